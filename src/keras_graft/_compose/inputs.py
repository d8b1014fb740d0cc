"""The inputs of the merged model, and what each branch gets of them. It must not know how a branch is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeAlias

import keras

from .. import _keras
from .._arguments import described, did_you_mean
from .._keras import Structure, SymbolicTensors, Tensor
from .branch import Branch
from .stages import free_name

__all__ = ["Inputs", "make_inputs", "signature_of"]

Inputs: TypeAlias = Literal["shared", "separate"] | SymbolicTensors


def make_inputs(inputs: Inputs, branches: Mapping[str, Branch], taken: Collection[str]) -> tuple[Any, dict[str, Any]]:
    """The inputs of the merged model, which give way to the names that are taken, and what each branch gets of them."""
    if isinstance(inputs, str) and inputs == "shared":
        shared = _shared_inputs(branches, taken)
        first = next(iter(branches.values()))
        return shared, {name: _in_order_of(branch, first, shared) for name, branch in branches.items()}
    if isinstance(inputs, str) and inputs == "separate":
        names = set(taken)  # each input takes one more
        each = {name: _separate_inputs(name, branch, names) for name, branch in branches.items()}
        return keras.tree.flatten(list(each.values())), each
    tensors = [] if isinstance(inputs, str) else keras.tree.flatten(inputs)
    if tensors and all(_is_input(tensor) for tensor in tensors):
        first = next(iter(branches.values()))
        return inputs, {name: _in_order_of_names(branch, first, inputs) for name, branch in branches.items()}
    symbolic = all(map(_is_symbolic, tensors))  # computed, and no input
    hint = "" if symbolic else " They have shapes and no values, as in `inputs=keras.Input((8,))`: data go to `fit`."
    raise ValueError(
        '`inputs` must be "shared", "separate", or one or more `keras.Input` tensors.'
        f"{did_you_mean(inputs, ('shared', 'separate'))}{hint} Received: inputs="
        f"{repr(inputs) if symbolic else described(inputs)}"
    )


def _is_input(tensor: Tensor) -> bool:
    return isinstance(tensor, keras.KerasTensor) and isinstance(
        _keras.tensor_history(tensor)[0], keras.layers.InputLayer
    )


def _shared_inputs(branches: Mapping[str, Branch], taken: Collection[str]) -> Any:
    (first, first_branch), *others = branches.items()
    expected = signature_of(first_branch.model)
    for name, branch in others:
        signature = _in_order_of(first_branch, branch, signature_of(branch.model))
        if signature != expected:
            raise ValueError(
                f"Branches '{first}' and '{name}' cannot share one input: their models take different ones. Use "
                '`inputs="separate"` to give each branch an input of its own, or pass `inputs=keras.Input(...)` and '
                f"let `Branch(preprocess=...)` adapt it. "
                f"Received: '{first}' takes {expected}, '{name}' takes {signature}"
            )
    structure = _keras.symbolic_inputs(branches[first].model)
    if isinstance(structure, dict):  # whose keys are the names
        return _keras.new_inputs(structure)

    def new_input(tensor: Tensor) -> Any:
        new = _keras.new_input(tensor)
        name = _keras.tensor_history(new)[0].name
        return new if name not in taken else _keras.new_input(tensor, free_name(f"{name}_input", taken))

    return keras.tree.map_structure(new_input, structure)


def _in_order_of(branch: Branch, other: Branch, tensors: Any) -> Any:
    """What is given for the inputs of the model of `other`, in the order of those of `branch`.

    Inputs in a list that have the same names in two models are the same inputs, whatever their order.
    """
    names, others = _names_in_list(branch), _names_in_list(other)
    if names == others or not names or not others:
        return tensors
    if sorted(names) == sorted(others):
        return type(tensors)(tensors[others.index(name)] for name in names)
    moved = [name for place, name in enumerate(names) if name in others and others.index(name) != place]
    if moved:
        raise ValueError(
            f"Branches '{branch.name}' and '{other.name}' cannot share their inputs: the inputs {moved} stand at "
            "different places in their models, and others have no counterpart of the same name. Give them equal names, "
            f"or use `inputs=\"separate\"`. Received: '{branch.name}' takes {names}, '{other.name}' takes {others}"
        )
    return tensors


def _in_order_of_names(branch: Branch, first: Branch, inputs: Structure) -> Any:
    """What inputs of the caller's own are for a branch: by name where a list has the names of its model's."""
    if branch.preprocess is not None or not isinstance(inputs, (list, tuple)):
        return inputs
    names, passed = _names_in_list(branch), [tensor.name for tensor in keras.tree.flatten(inputs)]
    if names and sorted(names) == sorted(passed):
        return type(inputs)(inputs[passed.index(name)] for name in names)
    return inputs if first.preprocess is not None else _in_order_of(branch, first, inputs)


def _names_in_list(branch: Branch) -> list[str]:
    """The names of the inputs of a model that takes several in a list; empty for every other, and where two are one."""
    structure = _keras.symbolic_inputs(branch.model)
    if not isinstance(structure, (list, tuple)) or not all(map(_is_symbolic, structure)):
        return []
    names = [tensor.name for tensor in structure]
    return names if len(set(names)) == len(names) else []


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, keras.KerasTensor)


def _separate_inputs(name: str, branch: Branch, taken: set[str]) -> Any:
    structure = _keras.symbolic_inputs(branch.model)
    leaves = keras.tree.flatten_with_path(structure)
    inputs = []
    for path, tensor in leaves:
        old_name = tensor.name if _keras.in_graph(tensor) else "_".join(map(str, path))
        new_name = free_name(f"{name}_{'input' if len(leaves) == 1 else old_name}", taken)
        taken.add(new_name)
        inputs.append(_keras.new_input(tensor, new_name))
    return keras.tree.pack_sequence_as(structure, inputs)


def signature_of(model: keras.Model) -> Any:
    def spec(tensor: Tensor) -> str:
        kind = " sparse" * tensor.sparse + " ragged" * tensor.ragged
        return f"{tensor.shape} {tensor.dtype}{kind}"

    signature = keras.tree.map_structure(spec, _keras.symbolic_inputs(model))
    return signature[0] if isinstance(signature, list) and len(signature) == 1 else signature

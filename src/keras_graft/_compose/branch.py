"""From a `Branch` to a frozen submodel and its feature tensor.

It resolves names, inputs and the layer at which a base model is cut. It must not know of heads or losses.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import keras

from .. import _keras
from .._arguments import check_model, described, did_you_mean, hint_about
from .._engine.decision import Decide
from .._engine.policy import Augmentation, DropoutPolicy, decider
from .._engine.rebuild import rebuild
from .._losses.ending import Ending, Stage, ending_of, is_units, steps_back
from .._losses.loss import compares_probabilities
from .._mode_lock import freeze
from .layout import data_format_of, data_formats_in
from .merge import apply_stage, called, checked_result, dtype_for, free_name

__all__ = ["Branch", "Inputs", "Models", "graft", "make_inputs", "name_branches", "warn_of_old_heads"]

_RANK_OF_VECTORS = 2
_WRAP_IT = (
    "Choose one of its outputs yourself, as in `x = keras.Input(...)`, and pass `keras.Model(x, model(x)['key'])`"
)
POOLINGS = ("avg", "max", "flatten")


@dataclasses.dataclass(frozen=True)
class Branch:
    """One base model, with options of its own, for `freeze_and_merge`.

    Args:
        model: The base model, a built `keras.Model`.
        name: Name of the branch, and of the frozen submodel in the merged model.
        dropout: Dropout policy of this branch. Defaults to that of the call.
        augmentation: `"keep"` or `"off"`, for the image augmentation of this branch. Defaults to that of
            the call.
        output: Where the base model ends, to cut off an old head: the name of a layer (`"avg_pool"`), the
            path of a nested one (`"encoder/avg_pool"`), the key of an output, an index into `model.layers`
            (`-2`), or a callable that gets the model and returns a symbolic tensor of it. Defaults to the
            model's own output.
        pooling: What makes a vector of features of a higher rank: `"avg"` or `"max"` (global pooling),
            `"flatten"`, a layer, or a callable from tensor to tensor. It is copied and frozen with the base, so
            it must not make new weights.
        preprocess: What stands before the base model: a layer, a list of layers, a model, or a callable
            from tensor to tensor. It is copied and frozen with the base, and the dropout policy holds for
            it too.
        projection: New trainable layers between the branch and the merge: an int (units of a linear Dense
            layer), a layer, a list of layers, a model, or a callable from tensor to tensor.

    Example:

    >>> import keras
    >>> from keras_graft import Branch, freeze_and_merge
    >>> base = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(4, name="features"), keras.layers.Dense(2, name="old_head")]
    ... )
    >>> model = freeze_and_merge([Branch(base, name="a", output="features")], head=3, loss="mse")
    >>> [layer.name for layer in model.get_layer("a").layers]
    ['input_layer', 'features']
    """

    model: keras.Model
    _: dataclasses.KW_ONLY
    name: str | None = None
    dropout: DropoutPolicy | None = None
    augmentation: Augmentation | None = None
    output: str | int | Callable[[keras.Model], Any] | None = None
    pooling: Literal["avg", "max", "flatten"] | keras.Layer | Callable[[Any], Any] | None = None
    preprocess: Stage | None = None
    projection: Stage | None = None


Models: TypeAlias = Sequence[keras.Model | Branch] | Mapping[str, keras.Model | Branch]
Inputs: TypeAlias = Literal["shared", "separate"] | Any


# ---------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------


def name_branches(models: Models) -> dict[str, Branch]:
    """The branches under their final names, every model checked."""
    given = _as_branches(models)
    chosen = [branch.name for branch in given if branch.name is not None]
    for name in chosen:
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"A branch name must be a non-empty string without '/'. Received: name={name!r}")
        if chosen.count(name) > 1:
            raise ValueError(
                f"Two branches are named '{name}', and a branch is found by its name. Give each `Branch(name=...)` of "
                f"its own. Received: names={chosen}"
            )
    named: dict[str, Branch] = {}
    for branch in given:
        name = branch.name or free_name(branch.model.name, {*chosen, *named})
        named[name] = dataclasses.replace(branch, name=name)
    refused = [name for name in named if not _keras.is_scope(name, inner=True)]
    if refused:
        raise ValueError(
            f"TensorFlow takes no branch called {refused[0]!r}, because `fit` and `predict` open a scope of that name. "
            "Give it another: `Branch(model, name=...)`, or a key in a dict of models, of letters from a to z, digits, "
            f"'.', '_' and '-'. Received: names={list(named)}"
        )
    return named


def _as_branches(models: Models) -> list[Branch]:
    if isinstance(models, (keras.Model, Branch)):
        raise TypeError(
            f"`models` must be a list or a dict of models, also for one: [model]. Received: models={models!r}"
        )
    if not isinstance(models, (Mapping, Sequence)) or isinstance(models, str):
        raise TypeError(
            "`models` must be a list of Keras models or Branch objects, or a dict from names to them. "
            f"{_hint_about_models(models)}Received: models={described(models)} (of type {type(models).__name__})"
        )
    if not models:
        raise ValueError(f"`models` must hold at least one model. Received: models={models!r}")
    if not isinstance(models, Mapping) and all(map(_is_named_pair, models)):
        raise TypeError(
            "`models` must be a list of Keras models or Branch objects, or a dict from names to them. Make a dict of "
            f"the pairs: dict(models). Received: models={described(models)}"
        )
    if isinstance(models, Mapping):
        return [_named_by_key(key, _as_branch(model, f"models['{key}']")) for key, model in models.items()]
    return [_as_branch(model, f"models[{index}]") for index, model in enumerate(models)]


def _is_named_pair(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str)  # noqa: PLR2004


def _hint_about_models(models: Any) -> str:
    if isinstance(models, (str, os.PathLike)):
        return f"Load the file first, and put the model into a list: [keras.models.load_model({str(models)!r})]. "
    if isinstance(models, Iterable) and not isinstance(models, type):
        return "Make a list of them: list(models). "
    return hint_about(models)


def _as_branch(model: Any, argument: str) -> Branch:
    branch = model if isinstance(model, Branch) else Branch(model)
    check_model(branch.model, argument)
    return branch


def _named_by_key(key: str, branch: Branch) -> Branch:
    if branch.name not in (None, key):
        raise ValueError(
            f"`models['{key}']` is a Branch with another name. Write the name once, as the key or as "
            f"`Branch(name=...)`. "
            f"Received: key='{key}', name='{branch.name}'"
        )
    return dataclasses.replace(branch, name=key)


# ---------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------


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
        return inputs, {name: _in_own_order(branch, first, inputs) for name, branch in branches.items()}
    symbolic = all(map(_is_symbolic, tensors))  # computed, and no input
    hint = "" if symbolic else " They have shapes and no values, as in `inputs=keras.Input((8,))`: data go to `fit`."
    raise ValueError(
        '`inputs` must be "shared", "separate", or one or more `keras.Input` tensors.'
        f"{did_you_mean(inputs, ('shared', 'separate'))}{hint} Received: inputs="
        f"{repr(inputs) if symbolic else described(inputs)}"
    )


def _is_input(tensor: Any) -> bool:
    return isinstance(tensor, keras.KerasTensor) and isinstance(
        _keras.tensor_history(tensor)[0], keras.layers.InputLayer
    )


def _shared_inputs(branches: Mapping[str, Branch], taken: Collection[str]) -> Any:
    (first, first_branch), *others = branches.items()
    expected = _signature(first_branch.model)
    for name, branch in others:
        signature = _in_order_of(first_branch, branch, _signature(branch.model))
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

    def new_input(tensor: Any) -> Any:
        new = _keras.new_input(tensor)
        name = _keras.tensor_history(new)[0].name
        return new if name not in taken else _keras.new_input(tensor, free_name(f"{name}_input", taken))

    return keras.tree.map_structure(new_input, structure)


def _in_order_of(branch: Branch, other: Branch, given: Any) -> Any:
    """What is given for the inputs of the model of `other`, in the order of those of `branch`.

    Inputs in a list that have the same names in two models are the same inputs, whatever their order.
    """
    names, others = _names_in_list(branch), _names_in_list(other)
    if names == others or not names or not others:
        return given
    if sorted(names) == sorted(others):
        return type(given)(given[others.index(name)] for name in names)
    moved = [name for place, name in enumerate(names) if name in others and others.index(name) != place]
    if moved:
        raise ValueError(
            f"Branches '{branch.name}' and '{other.name}' cannot share their inputs: the inputs {moved} stand at "
            "different places in their models, and others have no counterpart of the same name. Give them equal names, "
            f"or use `inputs=\"separate\"`. Received: '{branch.name}' takes {names}, '{other.name}' takes {others}"
        )
    return given


def _in_own_order(branch: Branch, first: Branch, inputs: Any) -> Any:
    """What inputs of the caller's own are for a branch: by name where a list has the names of its model's."""
    if branch.preprocess is not None or not isinstance(inputs, (list, tuple)):
        return inputs
    names, own = _names_in_list(branch), [tensor.name for tensor in keras.tree.flatten(inputs)]
    if names and sorted(names) == sorted(own):
        return type(inputs)(inputs[own.index(name)] for name in names)
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
        own_name = tensor.name if _keras.in_graph(tensor) else "_".join(map(str, path))
        new_name = free_name(f"{name}_{'input' if len(leaves) == 1 else own_name}", taken)
        taken.add(new_name)
        inputs.append(_keras.new_input(tensor, new_name))
    return keras.tree.pack_sequence_as(structure, inputs)


def _signature(model: Any) -> Any:
    def spec(tensor: Any) -> str:
        kind = " sparse" * tensor.sparse + " ragged" * tensor.ragged
        return f"{tensor.shape} {tensor.dtype}{kind}"

    signature = keras.tree.map_structure(spec, _keras.symbolic_inputs(model))
    return signature[0] if isinstance(signature, list) and len(signature) == 1 else signature


# ---------------------------------------------------------------------------------------------------------
# Grafting
# ---------------------------------------------------------------------------------------------------------


def graft(
    branch: Branch, inputs: Any, *, dropout: DropoutPolicy, augmentation: Augmentation, copy: bool
) -> tuple[keras.Model, Any]:
    """Makes the frozen submodel of a branch and calls it.

    Args:
        branch: The branch, with its final name.
        inputs: What it gets, in the structure that its model (or its `preprocess`) takes.
        dropout: Policy of the call, where the branch has none.
        augmentation: Likewise.
        copy: Whether the base model is copied or used itself.

    Returns:
        The frozen submodel, and its symbolic feature tensor.
    """
    decide = decider(
        dropout if branch.dropout is None else branch.dropout,
        augmentation if branch.augmentation is None else branch.augmentation,
        copy=copy,
        frozen=True,
        model=branch.model,
        preprocess=branch.preprocess,
    )
    assert branch.name is not None
    alone = branch.preprocess is None and branch.pooling is None
    entries = _keras.new_inputs(inputs)
    name = branch.name if alone else free_name(branch.model.name, [t.name for t in keras.tree.flatten(entries)])
    base = rebuild(branch.model, decide, frozen=True, name=name, cuts=_cuts(branch))
    submodel = base
    if not alone:
        submodel, inputs = _surrounded(base, branch, entries, inputs, dataclasses.replace(decide, copy=True))
    freeze(submodel)
    if copy:
        _keras.drop_activity_regularizers(submodel)
    return submodel, _call(submodel, inputs, branch)


def _surrounded(
    base: keras.Model, branch: Branch, entries: Any, inputs: Any, decide: Decide
) -> tuple[keras.Model, Any]:
    """The base model between its preprocessing and its pooling, as one submodel, and what it uses of the inputs."""
    tensors = entries
    if branch.preprocess is not None:
        name = free_name("preprocess", [base.name])
        tensors = _apply_copy(branch.preprocess, entries, decide, "preprocess", name, branch)
    features = _call(base, tensors, branch)
    if branch.pooling is not None:
        name = free_name("pooling", [base.name, "preprocess"])
        features = _pool(branch, base, features, decide, name)
    used, features = _used_inputs(entries, features)
    return keras.Model(used, features, name=branch.name), _same_of(used, entries, inputs)


def _apply_copy(stage: Any, tensors: Any, decide: Decide, argument: str, name: str, branch: Branch) -> Any:
    """Applies a copy of a stage, made as that of a base model is; the stage itself stays as it was."""
    entries = _keras.new_inputs(tensors)
    with _keras.nothing_left_behind(stage, always=True):
        results, copies = entries, dict[int, Any]()
        for step in stage if isinstance(stage, (list, tuple)) else [stage]:
            results = _step(step, results, argument, copies, branch)
        used, results = _used_inputs(entries, results)
        try:
            model = _keras.connected_model(used, results, name)
        except ValueError as error:
            raise ValueError(
                f"`{argument}` must return what it computes from the one that it gets, with layers of names that are "
                f"all different. Keras says: {error} Received: {argument}={stage!r}"
            ) from error
        if argument == "pooling":
            _check_no_new_weights(stage, model)
        copy = rebuild(model, decide, frozen=True)
        _keras.forget_calls(model)
    return copy(_same_of(used, entries, tensors))


def _same_of(used: Any, entries: Any, tensors: Any) -> Any:
    """Of `tensors`, those that stand where `used` stand among `entries`."""
    given = {id(entry): tensor for entry, tensor in zip(keras.tree.flatten(entries), keras.tree.flatten(tensors))}
    return keras.tree.map_structure(lambda entry: given[id(entry)], used)


def _used_inputs(entries: Any, results: Any) -> tuple[Any, Any]:
    """The inputs that a stage uses, and its results, none of them an input itself: Keras 3.12 builds no such models."""
    flat = keras.tree.flatten(entries)
    inputs = {id(entry) for entry in flat}

    def computed(tensor: Any) -> Any:
        return keras.layers.Identity(dtype=dtype_for([tensor]))(tensor) if id(tensor) in inputs else tensor

    results = keras.tree.map_structure(computed, results)
    behind = {name for result in keras.tree.flatten(results) for name in _keras.names_behind(result)}
    used = [entry for entry in flat if _keras.tensor_history(entry)[0].name in behind]
    return (entries if len(used) in (0, len(flat)) else used), results


def _step(step: Any, tensors: Any, argument: str, copies: dict[int, Any], branch: Branch) -> Any:
    """One layer or callable of a stage. A layer may be in use elsewhere, or not be built: it is copied, once."""
    if isinstance(step, keras.Layer):
        known = step.built or _keras.with_state(step)  # adapted text layers know their vocabulary before they are built
        if not known and id(step) not in copies:
            copies[id(step)] = _keras.copy_from_config(step, step.get_config())
        return copies.get(id(step), step)(tensors)
    if not callable(step) or isinstance(step, type):
        return apply_stage(step, tensors, argument, units=False)
    results = called(step, tensors, argument, f" of branch '{branch.name}'")
    if argument == "pooling" or not keras.tree.is_nested(results):
        return checked_result(results, argument)
    return keras.tree.map_structure(lambda tensor: checked_result(tensor, argument), results)


def _pool(branch: Branch, base: keras.Model, features: Any, decide: Decide, name: str) -> Any:
    pooling, rank = branch.pooling, len(features.shape)
    if isinstance(pooling, (list, tuple)) or (callable(pooling) and not isinstance(pooling, type)):
        return _apply_copy(pooling, features, decide, "pooling", name, branch)
    _check_pooling(branch, features)
    if rank == _RANK_OF_VECTORS:
        return features
    kinds = {"avg": "GlobalAveragePooling", "max": "GlobalMaxPooling"}
    kind = "Flatten" if pooling == "flatten" else f"{kinds[str(pooling)]}{rank - 2}D"
    layer = getattr(keras.layers, kind)
    return layer(name=name, data_format=_data_format(branch, base, kind), dtype=dtype_for([features]))(features)


def _check_pooling(branch: Branch, features: Any) -> None:
    pooling, rank = branch.pooling, len(features.shape)
    if pooling not in POOLINGS:
        words = ", ".join(f'"{word}"' for word in POOLINGS)
        kind = ValueError if isinstance(pooling, str) else TypeError
        raise kind(
            f"`pooling` must be one of {words}, a Keras layer, or a callable from tensor to tensor. "
            f"{hint_about(pooling)}Received: pooling={pooling!r}"
        )
    if pooling != "flatten" and rank not in (2, 3, 4, 5):
        raise ValueError(
            f"pooling=\"{pooling}\" needs features of rank 3, 4 or 5, and those of branch '{branch.name}' have shape "
            f"{features.shape}. Pass a layer or a callable as `pooling`."
        )


def _data_format(branch: Branch, base: keras.Model, layer: str) -> str:
    """On which side the channels of a base model stand, whatever was set globally after it was made."""
    known = data_format_of(base)
    current = keras.config.image_data_format()
    if known is not None:
        return known
    if current == "channels_last" and "channels_first" not in data_formats_in(base):
        return current
    raise ValueError(
        f"On which axis the channels of branch '{branch.name}' stand cannot be told from its layers, so "
        f'pooling="{branch.pooling}" might take the wrong axes. Say it: '
        f'`Branch(..., pooling=keras.layers.{layer}(data_format="channels_last"))`, or "channels_first". '
        f'Received: pooling="{branch.pooling}", keras.config.image_data_format()="{current}"'
    )


def _check_no_new_weights(pooling: Any, stage: keras.Model) -> None:
    given = {id(v) for layer in keras.tree.flatten(pooling) if isinstance(layer, keras.Layer) for v in layer.variables}
    if any(id(weight) not in given for weight in stage.weights):
        raise ValueError(
            "`pooling` must not make new weights: a branch is frozen, so they would keep the random values that they "
            f"start with. Use `Branch(projection=...)` for layers that train. Received: pooling={pooling!r}"
        )


def _call(submodel: keras.Model, inputs: Any, branch: Branch) -> Any:
    """Calls the submodel, with an error in the user's words where the inputs do not fit."""
    expected = _signature(submodel)
    given = [(t.shape, t.dtype) for t in keras.tree.flatten(inputs)]
    try:
        features = submodel(inputs)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The model of branch '{branch.name}' cannot take what reaches it. Adapt it with "
            "`Branch(preprocess=...)`, or give the merged model other `inputs`. "
            f"Expected: {expected}. Received: {given}"
        ) from error
    if not isinstance(features, keras.KerasTensor):
        raise ValueError(
            f"The subclassed model of branch '{branch.name}' returns several tensors, and a branch has one. "
            f"{_WRAP_IT}. Received: outputs={features!r}"
        )
    return features


# ---------------------------------------------------------------------------------------------------------
# Cutting off an old head
# ---------------------------------------------------------------------------------------------------------


def _cuts(branch: Branch) -> dict[int, Any]:
    """Which models of the base end where: the argument `cuts` of `rebuild`."""
    model, output = branch.model, branch.output
    if output is None:
        return _check_single_output(branch)
    if _keras.call_graph(model) is None:
        raise ValueError(
            "`output` needs a model that is a graph of layers (Sequential, Functional, or a subclass of it that leaves "
            f"`call` alone), and what the model of branch '{branch.name}' computes is known to its code alone. "
            f"{_WRAP_IT}. Received: model={model!r}, output={output!r}"
        )
    if isinstance(output, str):
        return _cuts_at_path(branch, output)
    if is_units(output):
        if not -len(model.layers) <= int(output) < len(model.layers):  # type: ignore[arg-type]
            raise ValueError(
                f"`output` as an int is an index into the {len(model.layers)} layers of the model of branch "
                f"'{branch.name}'. Received: output={output}"
            )
        return {id(model): _only_output(_keras.call_graph(model), model.layers[output], branch)}
    if callable(output) and not isinstance(output, keras.Layer):
        return _cuts_at_tensor(branch, output(model))
    raise TypeError(
        "`output` must be the name or path of a layer, an index into `model.layers`, or a callable from the model to "
        f"one of its symbolic tensors. "
        f"Received: output={output!r} (of type {type(output).__name__})"
    )


def _check_single_output(branch: Branch) -> dict[int, Any]:
    """Raises for several outputs; a single one in a list or dict is taken out of it."""
    outputs = list(getattr(branch.model, "outputs", None) or [])
    if len(outputs) > 1:
        structure = _keras.output_structure(branch.model) if hasattr(branch.model, "output_names") else None
        names = list(structure) if isinstance(structure, dict) else list(getattr(branch.model, "output_names", ()))
        raise ValueError(
            f"The model of branch '{branch.name}' has {len(outputs)} outputs, and a branch has one. Choose it with "
            f"`Branch(..., output=...)`, one of {names} or any layer. Received: model={branch.model!r}"
        )
    graph = _keras.call_graph(branch.model)
    nested = graph is not None and keras.tree.is_nested(_keras.output_structure(graph))
    return {id(branch.model): outputs[0]} if nested else {}


def warn_of_old_heads(branches: Mapping[str, Branch]) -> None:
    """Warns of branches that end in the class probabilities of an old head, unless their `output` says so."""
    for branch in branches.values():
        graph = _keras.call_graph(branch.model)
        if branch.output is not None or graph is None or len(graph.outputs) != 1:
            continue
        output = graph.outputs[0]
        ending, steps = ending_of(output), list(steps_back(output))
        if ending is None or ending.kind not in ("softmax", "sigmoid") or _drops(steps[0]):
            continue
        if len(output.shape) == _RANK_OF_VECTORS and _classifies(branch.model, ending):
            warnings.warn(_old_head(branch, steps, ending.operation), UserWarning, stacklevel=3)


def _classifies(model: Any, ending: Ending) -> bool:
    """Whether a model that ends in probabilities tells classes, by its loss; without one, by their number.

    Many sigmoids end an encoder or an autoencoder as well.
    """
    losses = keras.tree.flatten(getattr(model, "loss", None)) if getattr(model, "compiled", False) else []
    trained_on = [loss for loss in losses if loss is not None]
    if any(compares_probabilities(loss, ending) for loss in trained_on):
        return True
    return not trained_on and (ending.kind == "softmax" or ending.units == 1)


def _old_head(branch: Branch, steps: list[Any], classifier: Any) -> str:
    dense = next((i for i, step in enumerate(steps) if isinstance(step, keras.layers.Dense)), len(steps))
    features = next((step for step in steps[dense + 1 :] if not _drops(step)), None)
    cut, kept = _path_of(features, branch), _path_of(steps[0], branch)
    instead = f'`Branch(..., output="{cut}")`' if cut else "`Branch(..., output=...)`, the name of a layer before it"
    advice = f"Cut the old head off: {instead}. "
    if features is None and dense < len(steps):
        advice = "No layer stands before it, at which the model could be cut. "
    meant = f'output="{kept}"' if kept else "output=lambda model: model.outputs[0]"
    return (
        f"Branch '{branch.name}' ends in '{classifier.name}' (of type {type(classifier).__name__}), the classifier of "
        f"its old head, so class probabilities are merged and not features. {advice}If the "
        f"probabilities are what you want, say so: `Branch(..., {meant})`."
    )


def _drops(step: Any) -> bool:
    return isinstance(step, keras.layers.Dropout)


def _path_of(operation: Any, branch: Branch) -> str | None:
    """The path under which `Branch(output=...)` finds an operation, if there is one."""
    for path, found in _paths(_keras.call_graph(branch.model)):
        if found is operation:
            try:
                return path if _cuts(dataclasses.replace(branch, output=path)) else None
            except ValueError:  # it is called more than once, or makes several tensors
                return None
    return None


def _cuts_at_path(branch: Branch, path: str) -> dict[int, Any]:
    model, cuts = branch.model, {}
    graph = _keras.call_graph(model)
    outputs = _keras.output_structure(graph)
    if isinstance(outputs, dict) and isinstance(outputs.get(path), keras.KerasTensor):
        return {id(model): outputs[path]}
    for name in path.split("/"):
        found = [op for op in graph.operations if op.name == name] if graph is not None else []
        if not found:
            raise _no_such_output(branch, path)
        cuts[id(model)] = _only_output(graph, found[0], branch)
        model = found[0]
        graph = _keras.graph_of(model)
        _check_called_once(model, branch, path)
    return cuts


def _check_called_once(model: Any, branch: Branch, path: str) -> None:
    """Raises for a nested model that other graphs of the base call too: the cut would change those calls."""
    graphs = {id(graph): graph for graph in map(_keras.call_graph, _keras.walk(branch.model)) if graph is not None}
    calls = [node for graph in graphs.values() for node in _keras.nodes(graph) if node.operation is model]
    if _keras.graph_of(model) is not None and len({id(node) for node in calls}) > 1:
        raise ValueError(
            f"The nested model '{model.name}' of branch '{branch.name}' is called in more than one place, so a cut "
            f"inside it would change them all. Cut the base yourself, and pass the result. Received: output='{path}'"
        )


def _no_such_output(branch: Branch, path: str) -> ValueError:
    known = [known_path for known_path, _ in _paths(_keras.call_graph(branch.model))]
    near = difflib.get_close_matches(path, known, n=3) or [p for p in known if p.endswith(f"/{path}")][:3]
    hint = f"Did you mean {' or '.join(repr(name) for name in near)}?" if near else f"It has {known}."
    return ValueError(
        f"The model of branch '{branch.name}' has no layer '{path}' at which it could be cut. {hint} "
        f"Received: output='{path}'"
    )


def _paths(graph: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All operations of a graph with their paths, those of nested graph models included."""
    for operation in graph.operations:
        yield f"{prefix}{operation.name}", operation
        if _keras.graph_of(operation) is not None:
            yield from _paths(_keras.graph_of(operation), f"{prefix}{operation.name}/")


def _only_output(graph: Any, operation: Any, branch: Branch) -> Any:
    """The one tensor that `operation` makes in a graph."""
    calls = [node for node in _keras.nodes(graph) if node.operation is operation]
    if len(calls) != 1 or len(calls[0].outputs) != 1:
        raise ValueError(
            f"Layer '{operation.name}' of branch '{branch.name}' is called {len(calls)} times and makes "
            f"{sum(len(node.outputs) for node in calls)} tensors, so its name does not say which one is meant. Pass a "
            "callable that returns the tensor, as in `output=lambda model: model.get_layer('other').output`. "
            f"Received: output={branch.output!r}"
        )
    return calls[0].outputs[0]


def _cuts_at_tensor(branch: Branch, tensor: Any) -> dict[int, Any]:
    made = {id(t) for node in _keras.nodes(_keras.call_graph(branch.model)) for t in node.outputs}
    if not (isinstance(tensor, keras.KerasTensor) and id(tensor) in made):
        raise ValueError(
            f"The callable `output` must return a symbolic tensor of the model of branch '{branch.name}' itself, such "
            "as `model.get_layer('name').output`. For a layer of a nested model, pass its path instead, as in "
            f"'encoder/pool'. It returned {tensor!r}"
        )
    return {id(branch.model): tensor}

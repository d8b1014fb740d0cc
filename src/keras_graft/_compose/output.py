"""Where a base model is cut, and a warning where an old head was left on it."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from .. import _keras
from .._keras import Graph, Tensor
from .._losses.ending import Ending, ending_of, is_units, steps_back
from .._losses.loss import compares_probabilities
from .branch import Branch
from .stages import RANK_OF_VECTORS

__all__ = ["WRAP_IT", "cuts_of", "warn_of_old_heads"]

WRAP_IT = "Choose one of its outputs yourself, as in `x = keras.Input(...)`, and pass `keras.Model(x, model(x)['key'])`"


def cuts_of(branch: Branch) -> dict[int, Any]:
    """Which models of the base end where: the argument `cuts` of `rebuild`; a list of tensors for a list of outputs."""
    model, output = branch.model, branch.output
    if output is None:
        return _check_single_output(branch)
    if _keras.call_graph(model) is None:
        raise ValueError(
            "`output` needs a model that is a graph of layers (Sequential, Functional, or a subclass of it that leaves "
            f"`call` alone), and what the model of branch '{branch.name}' computes is known to its code alone. "
            f"{WRAP_IT}. Received: model={model!r}, output={output!r}"
        )
    if isinstance(output, (list, tuple)):
        return {id(model): _checked_tensors([_tensor_at(branch, one) for one in output], branch)}
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
        made = output(model)
        if isinstance(made, (list, tuple)):
            return {id(model): _checked_tensors([_own_tensor(branch, tensor) for tensor in made], branch)}
        return {id(model): _own_tensor(branch, made)}
    raise TypeError(
        "`output` must be the name or path of a layer, an index into `model.layers`, a callable from the model to one "
        f"of its symbolic tensors, or a list of these. "
        f"Received: output={output!r} (of type {type(output).__name__})"
    )


def _check_single_output(branch: Branch) -> dict[int, Any]:
    """Raises for several outputs; a single one in a list or dict is taken out of it."""
    outputs = list(getattr(branch.model, "outputs", None) or [])
    if len(outputs) > 1:
        structure = _keras.output_structure(branch.model) if hasattr(branch.model, "output_names") else None
        names = list(structure) if isinstance(structure, dict) else list(getattr(branch.model, "output_names", ()))
        raise ValueError(
            f"The model of branch '{branch.name}' has {len(outputs)} outputs, and a branch has one, or those that it "
            f"lists. Choose with `Branch(..., output=...)`, one of {names} or any layer, or a list of them. "
            f"Received: model={branch.model!r}"
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
        if len(output.shape) == RANK_OF_VECTORS and _classifies(branch.model, ending):
            warnings.warn(_old_head(branch, steps, ending.operation), UserWarning, stacklevel=3)


def _classifies(model: keras.Model, ending: Ending) -> bool:
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


def _path_of(operation: keras.Operation, branch: Branch) -> str | None:
    """The path under which `Branch(output=...)` finds an operation, if there is one."""
    for path, found in _paths(_keras.call_graph(branch.model)):
        if found is operation:
            try:
                return path if cuts_of(dataclasses.replace(branch, output=path)) else None
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


def _check_called_once(model: keras.Model, branch: Branch, path: str) -> None:
    """Raises for a nested model that other graphs of the base call too: the cut would change those calls."""
    graphs = {id(graph): graph for graph in map(_keras.call_graph, _keras.walk(branch.model)) if graph is not None}
    calls = [node for graph in graphs.values() for node in _keras.nodes(graph) if node.operation is model]
    if _keras.graph_of(model) is not None and len({id(node) for node in calls}) > 1:
        raise ValueError(
            f"The nested model '{model.name}' of branch '{branch.name}' is called in more than one place, so a cut "
            f"inside it would change them all. Cut the base yourself, and pass the result. Received: output='{path}'"
        )


def _no_such_output(branch: Branch, path: str) -> ValueError:
    paths = [known_path for known_path, _ in _paths(_keras.call_graph(branch.model))]
    near = difflib.get_close_matches(path, paths, n=3) or [p for p in paths if p.endswith(f"/{path}")][:3]
    hint = f"Did you mean {' or '.join(repr(name) for name in near)}?" if near else f"It has {paths}."
    return ValueError(
        f"The model of branch '{branch.name}' has no layer '{path}' at which it could be cut. {hint} "
        f"Received: output='{path}'"
    )


def _paths(graph: Graph, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All operations of a graph with their paths, those of nested graph models included."""
    for operation in graph.operations:
        yield f"{prefix}{operation.name}", operation
        if _keras.graph_of(operation) is not None:
            yield from _paths(_keras.graph_of(operation), f"{prefix}{operation.name}/")


def _only_output(graph: Graph, operation: keras.Operation, branch: Branch) -> Any:
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


def _tensor_at(branch: Branch, output: Any) -> Any:
    """The tensor of the base that one item of a list of outputs means."""
    if output is None or isinstance(output, (list, tuple)):
        raise TypeError(
            f"An item of `output` of branch '{branch.name}' must be what `output` is without a list: a name, an index "
            f"or a callable. Received: {output!r} in output={branch.output!r}"
        )
    cuts = cuts_of(dataclasses.replace(branch, output=output))
    if {*cuts} != {id(branch.model)}:
        raise ValueError(
            f"`output` of branch '{branch.name}' lists a layer of a nested model, and a nested model can be cut in one "
            "place alone. Pass the nested model as the base, with what stands before it as `Branch(preprocess=...)`. "
            f"Received: {output!r} in output={branch.output!r}"
        )
    return cuts[id(branch.model)]


def _checked_tensors(tensors: list[Any], branch: Branch) -> list[Any]:
    """Several tensors, once they are known to be different ones."""
    symbolic = all(isinstance(tensor, keras.KerasTensor) for tensor in tensors)
    if not tensors or not symbolic or len({*map(id, tensors)}) < len(tensors):
        raise ValueError(
            f"`output` of branch '{branch.name}' must list one or more tensors of its model, each once. "
            f"Received: output={branch.output!r}, which means {tensors}"
        )
    return tensors


def _own_tensor(branch: Branch, tensor: Tensor) -> Any:
    """A tensor that a callable gave, once it is known to be one of the base."""
    made = {id(t) for node in _keras.nodes(_keras.call_graph(branch.model)) for t in node.outputs}
    if not (isinstance(tensor, keras.KerasTensor) and id(tensor) in made):
        raise ValueError(
            f"The callable `output` must return a symbolic tensor of the model of branch '{branch.name}' itself, such "
            "as `model.get_layer('name').output`. For a layer of a nested model, pass its path instead, as in "
            f"'encoder/pool'. It returned {tensor!r}"
        )
    return tensor

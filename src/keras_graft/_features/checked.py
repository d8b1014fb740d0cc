"""Whether data fit a model and its loss: said in the words of the caller, before anything is computed with them.

What it is not sure of it lets pass, as Keras does. It must not know what becomes of the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from .. import _keras
from .._arguments import described
from .._behaviour import trace
from .._keras import Structure
from .data import Source
from .features import Features

__all__ = ["check_stored_labels", "checked", "checked_inputs"]


def checked(source: Source, model: keras.Model, name: str) -> Source:
    """The same data, with an error where inputs, targets or weights do not fit the model and its loss.

    Raises:
        ValueError: If the targets of arrays do not fit. For data in batches that shows with the first.
    """
    if not source.holds_targets:
        _check_targets(model, *source.targets, name="y" if name == "x" else f"the targets in {name}")

    def batches() -> Iterator[tuple[Any, tuple[Any, ...]]]:
        for number, (inputs, beside) in enumerate(checked_inputs(source, model, name).batches()):
            if source.holds_targets and number == 0:
                targets, weights = (*beside, None, None)[:2]
                _check_targets(model, targets, weights, name=f"the targets in {name}")
            elif source.holds_targets and beside:
                _check_labels(model, beside[0], f"the targets in {name}")
            yield inputs, beside

    return dataclasses.replace(source, batches=batches)


def check_stored_labels(features: Features, model: keras.Model, name: str) -> None:
    """Raises where labels that came with the features of data are none of the classes of the model.

    Raises:
        ValueError: If some are out of range.
    """
    for _, read in features.shards:
        _, beside = read()
        if beside:
            _check_labels(model, beside[0], f"the targets in {name}")


def checked_inputs(source: Source, model: keras.Model, name: str) -> Source:
    """The same data, with an error where inputs do not fit the model."""

    def batches() -> Iterator[tuple[Any, tuple[Any, ...]]]:
        for inputs, beside in source.batches():
            _check_inputs(model, inputs, name, stream=source.holds_targets)
            yield _of_rank(model, inputs), beside

    return dataclasses.replace(source, batches=batches)


# ---------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------


def _check_inputs(model: keras.Model, inputs: Structure, name: str, *, stream: bool) -> None:
    expected = _keras.symbolic_inputs(model)
    pairs = _pairs(expected, inputs)
    strings = pairs is not None and any(_holds_strings(leaf) and want.dtype != "string" for want, leaf in pairs)
    if not strings and (pairs is not None and all(_fits(want, leaf) for want, leaf in pairs)):
        return
    if not strings and _keras.takes_inputs(model, inputs):  # it has ways of its own, such as a last axis of 1
        return
    received = keras.tree.flatten(inputs)
    single = pairs is not None and all(_fits(want, leaf, skip=1) for want, leaf in pairs)
    hint, one = "", len(keras.tree.flatten(expected)) == 1
    if strings:
        hint = " Turn words into numbers first, with keras.layers.StringLookup or TextVectorization."
    elif single and stream:
        hint = " These are single examples: pass batches, dataset.batch(32)."
    elif isinstance(inputs, Mapping) and one:
        hint = " The model has one input: pass the array itself."
    elif isinstance(inputs, Mapping):
        hint = f" The keys must be the names of the inputs; received {sorted(map(str, inputs))}."
    elif len(received) != len(keras.tree.flatten(expected)):
        hint = f" It takes {len(keras.tree.flatten(expected))} inputs, and got {len(received)}."
    raise ValueError(
        f"`{name}` does not fit the inputs of model '{model.name}'. Expected: {_wanted(expected)}. Received: "
        f"{described(inputs)}.{hint}"
    )


def _of_rank(model: keras.Model, inputs: Structure) -> Any:
    """The inputs with a last axis of 1 where the model has one, and without it where it has none, as in Keras."""
    expected = _keras.symbolic_inputs(model)
    wanted = {id(leaf): want for want, leaf in _pairs(expected, inputs) or ()}

    def fitted(leaf: Any) -> Any:
        want = wanted.get(id(leaf))
        if want is None or not _is_dense(leaf):
            return leaf
        more = len(leaf.shape) - len(want.shape)
        if more == -1 and want.shape[-1] == 1:
            return leaf[..., None]
        return leaf[..., 0] if more == 1 and leaf.shape[-1] == 1 else leaf

    return keras.tree.map_structure(fitted, inputs)


def _is_dense(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) or (keras.ops.is_tensor(leaf) and not hasattr(leaf, "values"))


def _pairs(expected: Any, inputs: Structure) -> list[tuple[Any, Any]] | None:
    """Each input of a model with what it gets, as far as names or order tell."""
    tensors = keras.tree.flatten(expected)
    if isinstance(inputs, Mapping):
        by_name = expected if isinstance(expected, Mapping) else {tensor.name: tensor for tensor in tensors}
        return [(by_name[key], inputs[key]) for key in by_name] if by_name.keys() <= inputs.keys() else None
    leaves = keras.tree.flatten(inputs)
    return list(zip(tensors, leaves)) if len(tensors) == len(leaves) else None


def _fits(want: Any, leaf: Any, skip: int = 0) -> bool:
    """Whether the shape of an array is that of an input; without the axis of the examples where `skip` is 1."""
    try:
        shape = (None,) * skip + tuple(leaf.shape)
    except (AttributeError, TypeError, ValueError):  # no array, or of unknown rank
        return False
    same = (one == other or one is None or other is None for one, other in zip(want.shape[1:], shape[1:]))
    return len(shape) == len(want.shape) and all(same)


def _holds_strings(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        return all(isinstance(item, str) for item in np.ravel(leaf)[:_SOME])
    return getattr(dtype, "name", "") == "string" or getattr(dtype, "kind", "") in ("U", "S")


_SOME = 10


def _wanted(expected: Any) -> str:
    shown = [f"'{tensor.name}' of shape {_open(tensor.shape)}" for tensor in keras.tree.flatten(expected)]
    return ", ".join(shown)


def _open(shape: Any) -> str:
    sizes = ["examples", *("any" if size is None else str(size) for size in shape[1:])]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


# ---------------------------------------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------------------------------------


def _check_targets(model: keras.Model, targets: Structure, weights: Structure, name: str) -> None:
    if not _has_loss(model):
        raise ValueError(
            f"Model '{model.name}' was compiled without a loss, so there is nothing to train it on. Pass one: "
            "`model.compile(optimizer, loss='mse')`, for example."
        )
    losses = _keras.losses_of(model)
    of_keras = [_known(loss) for loss in keras.tree.flatten(losses) if loss is not None]
    if not of_keras or None in of_keras:
        return
    quoted = name if name.startswith("the ") else f"`{name}`"
    leaves = [leaf for leaf in keras.tree.flatten(targets) if leaf is not None]
    if any(map(_holds_strings, leaves)):
        raise ValueError(
            f"{quoted} must be numbers for loss={_named(losses)}. Turn names of classes into their numbers first: "
            f"`classes, y = numpy.unique(names, return_inverse=True)`. Received: {described(targets)}"
        )
    cause = _keras.error_of_loss(model, targets, weights)
    if cause is not None and "loss_weights" in cause:
        raise ValueError(
            f"Model '{model.name}' was compiled with `loss_weights` that do not go with its outputs. Give one for each "
            f"output, or leave them out: {cause}"
        )
    if cause is not None:
        raise ValueError(
            f"{quoted} must fit the outputs of model '{model.name}' and its loss {_named(losses)}. Expected targets "
            f"for {_outputs(model, losses)}. Received: {described(targets)}"
            f"{'' if weights is None else f', weights {described(weights)}'}."
            f"{_hint(model, of_keras, targets)} ({cause})"
        )
    _check_labels(model, targets, name)


def _has_loss(model: keras.Model) -> bool:
    if _keras.losses_of(model) is not None or model.losses:
        return True
    return trace.observe(model, True, (_keras.symbolic_inputs(model),), {}).losses


def _known(loss: Any) -> Any:
    """A loss of Keras itself, as the object or function that it is; None for one of somebody else."""
    of_keras = list(vars(keras.losses).values())
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return None
    function = getattr(loss, "fn", loss)
    return loss if type(loss) in of_keras or any(function is one for one in of_keras) else None


def _named(losses: Any) -> str:
    names = [loss if isinstance(loss, str) else getattr(loss, "name", loss) for loss in keras.tree.flatten(losses)]
    return f"{names[0]!r}" if len(names) == 1 else f"{names}"


def _outputs(model: keras.Model, losses: Any) -> str:
    """The outputs of a model, by the keys that targets need, with the shapes that their losses take."""
    structure = _keras.output_structure(_keras.call_graph(model))
    names = sorted(structure) if isinstance(structure, Mapping) else model.output_names
    parts = [losses] * len(names) if isinstance(losses, (str, keras.losses.Loss)) else _by_name(losses, names)
    shown = [_taken(tensor.shape, loss) for tensor, loss in zip(model.outputs, parts)]
    return ", ".join(f"'{name}' of shape {shape}" for name, shape in zip(names, shown))


def _by_name(losses: Any, names: list[str]) -> list[Any]:
    parts = [losses.get(name) for name in names] if isinstance(losses, Mapping) else keras.tree.flatten(losses)
    return parts if len(parts) == len(names) else parts[:1] * len(names)


def _taken(shape: Any, loss: Any) -> str:
    """The shape of the targets that a loss takes for outputs of a shape."""
    sparse = _known(loss) is not None and _is_sparse(_known(loss))
    return _open(shape[:-1] if sparse else shape)


def _hint(model: keras.Model, of_keras: list[Any], targets: Structure) -> str:
    """What to change, where the targets tell."""
    leaves = [leaf for leaf in keras.tree.flatten(targets) if leaf is not None]
    if not leaves:
        return " Targets are missing: pass `y`, or batches of (inputs, targets)."
    if len(leaves) != len(model.outputs):
        return f" The model has {len(model.outputs)} outputs, and got targets for {len(leaves)}."
    if len(leaves) > 1:
        return ""
    classes, rank = model.outputs[0].shape[-1], len(leaves[0].shape)
    if _is_sparse(of_keras[0]) and rank == len(model.outputs[0].shape) and leaves[0].shape[-1] == classes:
        other = _mirrored(of_keras[0], "CategoricalCrossentropy")
        return f" These are rows of probabilities: {other}pass y.argmax(axis=-1)."
    numbers = rank < len(model.outputs[0].shape) or leaves[0].shape[-1] == 1
    if _function(of_keras[0]) is keras.losses.categorical_crossentropy and numbers:
        other = _mirrored(of_keras[0], "SparseCategoricalCrossentropy")
        return f" These are numbers of classes: {other}pass keras.utils.to_categorical(y, {classes})."
    return ""


def _mirrored(loss: Any, name: str) -> str:
    """Says to use the loss that takes the other kind of targets, on the same outputs, where there is one."""
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    if config.get("ignore_class") is not None or config.get("label_smoothing") or config.get("axis", -1) != -1:
        return ""
    arguments = "from_logits=True" if config.get("from_logits") else ""
    return f"use loss=keras.losses.{name}({arguments}), or "


def _function(loss: Any) -> Any:
    return getattr(loss, "fn", loss)


def _is_sparse(loss: Any) -> bool:
    return _function(loss) is keras.losses.sparse_categorical_crossentropy


def _check_labels(model: keras.Model, targets: Structure, name: str) -> None:
    """Raises for numbers of classes that a model does not have: on a GPU they make the loss NaN, without an error."""
    leaves, losses = keras.tree.flatten(targets), keras.tree.flatten(_keras.losses_of(model))
    if len(leaves) != 1 or len(losses) != 1 or len(model.outputs) != 1 or not hasattr(leaves[0], "__array__"):
        return
    loss, classes = _known(losses[0]), model.outputs[0].shape[-1]
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    plain = config.get("ignore_class") is None and config.get("axis", -1) == -1
    if loss is None or not _is_sparse(loss) or not plain or classes is None:
        return
    numbers = np.asarray(leaves[0])
    if numbers.size == 0 or numbers.dtype.kind not in "biuf":
        return
    least, most = float(numbers.min()), float(numbers.max())
    if least <= -1 or most >= classes:
        quoted = name if name.startswith("the ") else f"`{name}`"
        raise ValueError(
            f"{quoted} must be numbers of classes from 0 to {classes - 1}, because model '{model.name}' has {classes} "
            f"outputs. Received: numbers from {least:g} to {most:g}. Number the classes from 0 on, give the head more "
            "units, or leave labels out by keras.losses.SparseCategoricalCrossentropy(ignore_class=...)."
        )

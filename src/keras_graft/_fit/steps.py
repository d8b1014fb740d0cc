"""How many steps run at once: where nobody notices, as many as take the time that Keras needs between two of them.

It must not know of features.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from .. import _keras
from .._arguments import callbacks_in
from .._behaviour import trace

__all__ = ["is_quiet", "steps_at_once", "with_one_iterator"]


def steps_at_once(model: keras.Model, rest: keras.Model, arguments: dict[str, Any]) -> int:
    """How many steps to run in one call of TensorFlow, which gives the same.

    With features at hand a step of a small head takes less time than what Keras does between two steps. So many run in
    one call, unless somebody would notice: code of the user in a callback, which sees what it calls the model for count
    in such calls too; `validation_steps`, which does; or one who watches long steps.
    """
    quiet = all(map(is_quiet, callbacks_in(arguments["callbacks"])))
    several = len(model.outputs) > 1  # with several steps at once 3.16-dev reports other losses of single outputs
    several |= model.distribute_strategy.num_replicas_in_sync > 1  # which fails with several steps (all)
    decided = model.steps_per_execution != 1 or model.run_eagerly or arguments["steps_per_epoch"]
    if several or decided or not quiet or arguments["validation_steps"] is not None:
        return model.steps_per_execution
    steps, quick = _steps_in(arguments), _QUICK // max(1, trace.multiplications(rest) or _QUICK)
    most = min(steps, _MOST_AT_ONCE, max(1, quick))
    whole = max(count for count in range(1, most + 1) if steps % count == 0)
    bar = arguments["verbose"] not in (0, 2)  # which counts whole calls
    return whole if bar or steps // whole <= steps / most + _CALLS_PER_ITERATOR else most


def _steps_in(arguments: dict[str, Any]) -> int:
    """How many steps an epoch of `fit` has, with features that are all at hand."""
    x = arguments["x"]
    if isinstance(x, tf.data.Dataset):
        return int(x.cardinality())
    return math.ceil(len(keras.tree.flatten(x)[0]) / arguments["batch_size"])


def with_one_iterator(arguments: dict[str, Any], at_once: int) -> dict[str, Any]:
    """The same arguments of `fit`, for one iterator that serves all epochs.

    Keras makes two for each epoch of data that end, which takes longer than an epoch of a small head.
    """
    steps, arguments = _steps_in(arguments), dict(arguments)
    if arguments["steps_per_epoch"] or steps % at_once:  # without an end, as many steps as calls of TensorFlow run
        return arguments
    if isinstance(arguments["x"], tf.data.Dataset):
        return {**arguments, "x": arguments["x"].repeat(), "steps_per_epoch": steps}
    targets = keras.tree.flatten((arguments["y"], arguments["sample_weight"]))
    if any(isinstance(leaf, tf.SparseTensor) or hasattr(leaf, "tocoo") for leaf in targets):  # these are no arrays
        return arguments
    names = ("x", "y", "sample_weight", "class_weight", "batch_size", "shuffle")
    batches = _keras.batches_of_fit(**{name: arguments.pop(name) for name in names})
    return {**arguments, "x": batches, "steps_per_epoch": steps, "shuffle": False}


def is_quiet(callback: Any) -> bool:
    """Whether a callback is one of Keras that hears of epochs alone, calls no model, and runs no code of the user."""
    methods = [name for name in vars(callback) if callable(getattr(type(callback), name, None))]
    return type(callback) in _QUIET and not methods and getattr(callback, "save_freq", "epoch") == "epoch"


_QUIET = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.EarlyStopping,
    keras.callbacks.History,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ReduceLROnPlateau,
)

# How many steps run in one call at the most, and at how many multiplications an example these are fewer.
_MOST_AT_ONCE = 128

_QUICK = 32_000_000

# How many calls take as long as the iterators that Keras makes for an epoch.
_CALLS_PER_ITERATOR = 16

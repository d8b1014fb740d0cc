"""What `compile`, `fit` and `predict` of Keras do: their methods, their batches, and what the optimizer knows."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src import tree
from keras.src.backend import compute_output_spec
from keras.src.trainers.compile_utils import CompileLoss
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.array_slicing import convert_to_sliceable
from tensorflow.python.framework.random_seed import DEFAULT_GRAPH_SEED, get_seed

from .aliases import Structure
from .calls import first_line
from .graphs import call_graph, output_structure
from .optimizers import trained_by, within_loss_scale
from .parts import walk
from .records import surgery

__all__ = [
    "METHODS_OF_FIT",
    "METHODS_OF_PREDICT",
    "batches_of_fit",
    "beside_graph",
    "beside_inputs_in_fit",
    "call_replaced",
    "compile_anew",
    "direction_of",
    "error_of_loss",
    "forget_traces",
    "functions_traced_anew",
    "is_in_evaluation",
    "losses_of",
    "overridden",
    "still_trained",
    "takes_inputs",
    "unknown_to_optimizer",
]


@contextlib.contextmanager
def call_replaced(model: keras.Model, call: Callable[..., Any], steps_at_once: int) -> Iterator[None]:
    """Puts `call` in the place of `model.call`, for inputs of any structure; and the functions that train it as new.

    They are traced with the call that the model has then, and Keras keeps them (all). A model that is compiled within
    keeps what it is compiled with.
    """
    ours = {
        "call": call,
        "steps_per_execution": steps_at_once,
        "_manual_input_spec": None,
        "_convert_input_args": False,  # a Sequential model casts to the dtype of its input
        "_allow_non_tensor_positional_args": True,  # and converts arrays, which a callback may call the model with
        "train_function": None,
        "test_function": None,
    }
    attributes = vars(model)
    before = {name: attributes[name] for name in ours if name in attributes}
    compiled = attributes.get("_compile_config")
    attributes.update(ours)
    try:
        yield
    finally:
        if attributes.get("_compile_config") is not compiled:
            before |= {"steps_per_execution": model.steps_per_execution, "train_function": None, "test_function": None}
        for name in ours:
            del attributes[name]
        attributes.update(before)


def beside_graph(model: keras.Model) -> list[str]:
    """The methods that let a call of a model do more than its graph: `__call__`, or a `call` put on the model (all)."""
    return [*overridden(model, ["__call__"]), *(["call"] if "call" in vars(model) else [])]


def unknown_to_optimizer(model: keras.Model) -> list[str]:
    """The paths of the variables that train and that the optimizer of a model was not built with (all)."""
    optimized = _known_to_optimizer(model)
    new = [] if optimized is None else [part for part in model.trainable_variables if id(part) not in optimized]
    return [variable.path for variable in new]


def still_trained(model: keras.Model) -> list[str]:
    """The paths of frozen variables that `fit` goes on training: with the step that it made before (all)."""
    optimized = _known_to_optimizer(model) if model.train_function is not None else None
    return [part.path for part in model.non_trainable_variables if optimized and id(part) in optimized]


def _known_to_optimizer(model: keras.Model) -> set[int] | None:
    """The ids of the variables that the optimizer of a model was built with; None where it was not built (all)."""
    optimizer = within_loss_scale(model.optimizer)
    if optimizer is None or not optimizer.built:
        return None
    return set(map(id, trained_by(optimizer)))


# The methods of a model that run in `fit`, those of validation among them, and in `predict`.
METHODS_OF_FIT = (
    *("fit", "make_train_function", "train_step", "compute_loss", "compute_metrics"),
    *("evaluate", "make_test_function", "test_step"),
)

METHODS_OF_PREDICT = ("predict", "make_predict_function", "predict_step")


def overridden(model: keras.Model, names: Iterable[str]) -> list[str]:
    """Which of some methods of a model are not those of `keras.Model`."""
    return [name for name in names if getattr(getattr(model, name), "__func__", None) is not getattr(keras.Model, name)]


def batches_of_fit(x: Any, batch_size: int, shuffle: bool, **beside: Any) -> tf.data.Dataset:
    """The batches that `fit` makes of arrays, epoch after epoch, without end (`ArrayDataAdapter`: all).

    Args:
        x: The inputs.
        batch_size: How many examples make a batch.
        shuffle: Whether they are in the order of `fit(shuffle=True)`.
        **beside: The arguments `y`, `sample_weight` and `class_weight` of `fit`.
    """
    rows = len(tree.flatten(x)[0])
    order = ArrayDataAdapter(np.arange(rows), batch_size=batch_size, shuffle=shuffle).get_tf_dataset()
    if get_seed(0)[0] != DEFAULT_GRAPH_SEED:  # with a seed, every epoch of `fit` has the same order (up to 3.15)
        order = order.cache()
    whole = convert_to_sliceable(ArrayDataAdapter(x, **beside)._inputs, target_backend="tensorflow")

    def batch_of(places: Any, arrays: Any) -> Any:
        return tree.map_structure(lambda array: None if array is None else tf.gather(array, places), arrays)

    pairs = tf.data.Dataset.zip((order.repeat(), tf.data.Dataset.from_tensors(tree.lists_to_tuples(whole)).repeat()))
    return pairs.map(batch_of, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def beside_inputs_in_fit(rows: int, y: Any, sample_weight: Any, class_weight: Any) -> tuple[Any, Any]:
    """Targets and weights of arrays as `fit` hands them on: floats in one precision, classes weighted (all)."""
    adapter = ArrayDataAdapter(np.arange(rows), y, sample_weight, class_weight=class_weight)
    whole = convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
    _, targets, weights = keras.utils.unpack_x_y_sample_weight(whole)
    return targets, weights


@contextlib.contextmanager
def functions_traced_anew() -> Iterator[None]:
    """Within it each call of a function of TensorFlow, in this thread, is a trace of its own, or runs its code.

    What a function was traced to is kept for all later calls. A trace in a stateless scope lacks what it assigns: later
    calls of the user's would move no variable and draw the same numbers; and a trace of the user's shows nothing. Where
    nothing is traced, the scope could not use what a trace assigned (TensorFlow 2.20 to 2.22).
    """
    if getattr(_in_this_thread, "traces_anew", False):
        yield
        return
    kind = type(tf.function(lambda: None))
    usual = kind.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if type(function) is not kind or not getattr(_in_this_thread, "traces_anew", False):
            return usual(function, *args, **kwargs)
        if tf.executing_eagerly():
            return function.python_function(*args, **kwargs)
        return usual(function._clone(None), *args, **kwargs)

    with surgery:
        _in_this_thread.traces_anew, kind.__call__ = True, call
        try:
            yield
        finally:
            _in_this_thread.traces_anew, kind.__call__ = False, usual


_in_this_thread = threading.local()


def takes_inputs(model: keras.Model, inputs: Structure) -> bool:
    """Whether a call of `model` on arrays of such names and shapes goes through, as Keras sees it (all)."""

    def spec(leaf: Any) -> Any:
        kind = keras.backend.standardize_dtype(getattr(leaf.dtype, "name", leaf.dtype))
        return keras.KerasTensor(tuple(leaf.shape), dtype=kind)

    try:
        given = tree.map_structure(lambda leaf: None if leaf is None else spec(leaf), inputs)
        compute_output_spec(lambda x: model(x, training=False), given)
    except (TypeError, ValueError, AttributeError):
        return False
    return True


def forget_traces(model: keras.Model) -> None:
    """Has a model trace its steps anew, and those inside it theirs: traces hold modes and rates as they were (all)."""
    for part in walk(model):
        if isinstance(part, keras.Model):
            part.train_function = part.test_function = part.predict_function = None


def compile_anew(model: keras.Model, optimizer: Any) -> None:
    """Compiles a model as it was compiled, with another optimizer: the very losses and metrics, and all settings (all).

    The config that Keras keeps holds what was given to `compile`, but for `auto_scale_loss`; settings may have been
    changed since. Where it fails, the model is compiled as it was. Within `fit` it trains on, with the new optimizer.
    """
    attributes = vars(model)
    has_trained = model.train_function is not None
    before = dict(attributes)
    settings = {name: getattr(model, name) for name in ("run_eagerly", "steps_per_execution", "jit_compile")}
    arguments = {**model._compile_config.config, "optimizer": optimizer, **settings}
    try:
        model.compile(**arguments, auto_scale_loss=False)
    except BaseException:
        for name in attributes.keys() - before.keys():
            del attributes[name]
        attributes.update(before)
        raise
    if has_trained:
        model.make_train_function()


def direction_of(model: keras.Model, monitor: str, mode: str) -> int:
    """1 if a monitored value is better where it is larger, else -1, as EarlyStopping sees it (all).

    Raises:
        ValueError: If `mode` is "auto" and no metric of `model` tells.
    """
    judge = keras.callbacks.EarlyStopping(monitor=monitor, mode=mode)
    judge.set_model(model)
    judge._set_monitor_op()
    return 1 if judge.monitor_op is keras.ops.greater else -1


def is_in_evaluation(model: keras.Model) -> bool:
    """Whether `evaluate` or `predict` of a model is what calls, and not `fit` (all): callbacks are told alike."""
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_code.co_name
        if name in ("fit", "evaluate", "predict") and frame.f_locals.get("self") is model:
            return name != "fit"
        frame = frame.f_back
    return False


def losses_of(model: keras.Model) -> Any:
    """The losses that `model` was compiled with, as they were given (all); None where there are none."""
    return getattr(model._compile_loss, "_user_loss", None)


# How many examples stand for a batch where shapes are compared: no axis of another meaning is likely to be as long.
_ROWS = 997


def error_of_loss(model: keras.Model, targets: Structure, weights: Structure) -> str | None:
    """What Keras has against targets and weights of such shapes, by a loss of its own (all); None where nothing."""

    def spec(leaf: Any) -> Any:
        if leaf is None:
            return None
        kind = keras.backend.standardize_dtype(getattr(leaf.dtype, "name", leaf.dtype))
        return keras.KerasTensor((_ROWS, *leaf.shape[1:]), dtype=kind)

    compiled = model._compile_loss
    try:
        given = [tree.map_structure(spec, x) for x in (targets, weights)]
    except (TypeError, ValueError, AttributeError):  # of kinds that are no arrays to Keras, such as sparse matrices
        return None
    outputs = tree.map_structure(
        lambda tensor: keras.KerasTensor((_ROWS, *tensor.shape[1:]), tensor.dtype), output_structure(call_graph(model))
    )
    loss = CompileLoss(compiled._user_loss, compiled._user_loss_weights, output_names=compiled.output_names)
    try:
        compute_output_spec(loss, given[0], outputs, given[1])
    except Exception as error:
        return first_line(error).replace(str(_ROWS), "examples")
    return None

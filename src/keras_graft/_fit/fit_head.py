"""`fit_head`: what `fit` does, with the frozen part computed once.

It puts the cut, the features and Keras's own `fit` together. It must not know how features are kept.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from .. import _keras
from .._arguments import (
    callbacks_in,
    check_callbacks,
    check_class_weight,
    check_model,
    check_option,
    check_share,
    checked_frequency,
    described,
    integer,
)
from .._behaviour.findings import rows_by_layer
from .._features.data import is_on_ray, is_stream, part_of, rows_of_arrays
from .._features.engines import check_engine, computer_of
from .._features.in_folder import place_of
from .._features.on_ray import RayOptions
from .._finetune.unfreezing import Unfreezing
from .._keras import Callback, Model
from .._losses.loss import check_endings
from .._split.obstacles import ends_determinism
from .._split.split import Split, make_cut
from .batches import store_errors_kept
from .feed import Feed
from .frozen import Frozen
from .in_place import fed_with_features
from .steps import steps_at_once, with_one_iterator

__all__ = ["fit_head"]

_DROPOUT = ("as composed", "off")


def fit_head(  # noqa: PLR0913  the arguments of `fit`
    model: Model,
    x: Any = None,
    y: Any = None,
    *,
    cache: Literal["memory"] | str | os.PathLike[str] = "memory",
    dropout: Literal["as composed", "off"] = "as composed",
    exact: bool = True,
    engine: Literal["tensorflow", "onnxruntime"] = "tensorflow",
    ray: RayOptions | None = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: Literal["auto"] | int = "auto",
    callbacks: Callback | Sequence[Callback] | None = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool | Literal["batch"] | None = None,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int | list[int] = 1,
) -> keras.callbacks.History:
    """Trains a model as `model.fit` does, and computes its frozen part only once.

    What is frozen and deterministic gives the same features in every epoch, and `fit` computes them again each
    time. This cuts the model at its frontier (see `split`), runs the part before it once over the data, and hands the
    features to `model.fit`, which trains what is behind: **the model itself is trained**. Losses, metrics,
    optimizer, callbacks and history are those of `model`; callbacks see `model`, so a ModelCheckpoint saves all of
    it, and they may call `model.evaluate` on raw inputs.

    Where it does not pay (nothing can be computed ahead, or little, and the features are larger than the inputs) a
    warning says so, with the layers in the way, and the model is trained by plain `fit`.

    Random augmentation in the data pipeline (in a `map` of a dataset, say) is seen once: **every epoch gets the
    examples of the first pass**. Use `fit`, or augment in several passes over the data, where that is not wanted.
    The order of a dataset is that of the first pass too, unless `shuffle=True`. A warning says so where the pipeline
    of a `tf.data.Dataset` shows it; what code of Python draws (in a generator, say) it does not show.

    Args:
        model: A compiled functional `keras.Model`, from `freeze_and_merge` or any other. It is trained.
        x: Inputs: arrays or tensors of shape (examples, ...), alone, in a list or in a dict; or a `tf.data.Dataset`
            of batches, a `keras.utils.PyDataset` or a generator of batches; or a `ray.data.Dataset`, whose columns are
            inputs by name (a single column is the one input): its workers compute the frozen part, into a folder that
            all of them see.
        y: Targets, for arrays. For a dataset of Ray the names of the columns that are targets, such as `"label"`, and
            `sample_weight` likewise.
        cache: Where features are kept: `"memory"`, or the path of a folder (`~` is the home folder), for features
            larger than memory and for those that shall be used again. What a folder holds is used where the data and
            the frozen part are the same, bit for bit, and computed otherwise; a run that was killed goes on where it
            stopped.
        dropout: `"as composed"`, or `"off"`: dropout in frozen layers does not drop while the head is trained, so
            that a model composed with `"keep"` trains on inference features, and drops again in `fit`.
        exact: Whether features are those of the model to the last bit. If False, frozen weights are folded into the
            operations around them (a batch normalisation into its convolution, say): worth it for many examples,
            because it takes some seconds to prepare, and rounds differently.
        engine: What computes features. `"onnxruntime"` is quicker for many examples, and rounds differently; `exact`
            is of no account then. It takes some seconds to prepare, which a folder spares the next run. The first batch
            is compared with that of TensorFlow. Where there is a doubt (strings, operations of others, open shapes)
            TensorFlow computes, and a warning says why. Needs `pip install "keras-graft[onnx]"`.
        ray: How Ray computes the frozen part, for a dataset of Ray: `RayOptions`. Its `batch_size` is that of the steps
            too.
        batch_size: Examples per step, 32 if None; for arrays.
        epochs: The epoch to stop at.
        verbose: `"auto"`, 0, 1 or 2, as in `fit`.
        callbacks: Callbacks of Keras.
        validation_split: The share of arrays, from their end, to validate on.
        validation_data: `(x, y)`, `(x, y, weights)` or a dataset to validate on. A dataset of Ray alone has its targets
            in the columns of `y`.
        shuffle: Whether examples are shuffled before each epoch. By default those of arrays are, as in `fit`, and
            those of a dataset come in the order of its first pass. With a folder they are shuffled within large
            portions, which come in random order. `"batch"` shuffles arrays within each batch alone, as in `fit`, and
            leaves datasets in order.
        class_weight: Weights of classes in the loss, such as `{0: 1.0, 1: 3.0}`; 1 for those that are left out.
        sample_weight: Weights of the examples of arrays.
        initial_epoch: The epoch to begin at.
        steps_per_epoch: Batches per epoch. An endless dataset and a generator need it, and **so many batches, the
            first, are all that the model is trained on**: give as many as the data have.
        validation_steps: Likewise for validation data.
        validation_batch_size: Examples per validation step; `batch_size` if None.
        validation_freq: How often to validate, as in `fit`.

    Returns:
        The `keras.callbacks.History` of `fit`.

    Raises:
        ImportError: If the packages of `engine` are not installed.
        TypeError: If `model` is not a Keras model, or the data or `cache` are of the wrong kind.
        ValueError: If `model` is not compiled, has no graph to cut, or arguments do not go together; if a callback
            changes frozen weights, or what frozen layers hold, before the first step; or if features cannot be kept:
            batches of several shapes, sparse tensors, strings.
        FeatureStoreError: (an `OSError`) If the folder cannot be written, is removed while it is used, or holds
            features of another model.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import fit_head, freeze_and_merge
    >>> base = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dropout(0.5)])
    >>> model = freeze_and_merge([base], head=1, dropout="keep", loss="mse")
    >>> x, y = np.random.default_rng(0).normal(size=(2, 64, 8)).astype("float32")
    >>> history = fit_head(model, x, y[:, :1], epochs=3, verbose=0)
    >>> len(history.history["loss"])
    3
    """
    _check(model, dropout, shuffle)
    check_engine(engine)
    place = place_of(cache)
    _check_callbacks(callbacks)
    check_class_weight(class_weight, sample_weight, _number_of_outputs(model))
    check_share("validation_split", validation_split)
    validates = validation_data is not None or validation_split
    arguments = _with_integers(
        {
            "epochs": epochs,
            "verbose": verbose,
            "callbacks": callbacks,
            "class_weight": class_weight,
            "initial_epoch": initial_epoch,
            "validation_freq": checked_frequency(validation_freq) if validates else validation_freq,
            "steps_per_epoch": steps_per_epoch,
            "validation_steps": validation_steps,
            "batch_size": batch_size,
            "validation_batch_size": validation_batch_size,
        }
    )
    found = make_cut(model, ends_determinism(model, noise_off=dropout == "off"))
    cause = _why_not_ahead(model, found)
    if dropout == "off":
        _check_silent(model, found, cause)
    if cause:
        warnings.warn(f"`fit_head` trains model '{model.name}' as `fit` does: {cause}", stacklevel=2)
        return model.fit(
            x,
            y,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=True if shuffle is None else shuffle,
            sample_weight=sample_weight,
            **arguments,
        )
    _warn_of_other_passes(x, arguments, shuffle)
    _warn_of_ending(model)
    feed = Feed(model, computer_of(found.features, engine, exact, place), place, verbose, ray)
    if is_on_ray(validation_data):
        validation_data = (validation_data, y, sample_weight)
    train, validation = _split_off((x, y, sample_weight), validation_split, validation_data)
    arguments = _with_features(feed, train, validation, shuffle, arguments)
    frozen = Frozen.of(found.features)
    at_once = steps_at_once(model, found.rest, arguments)
    arguments["callbacks"] = frozen.watched(callbacks)
    with store_errors_kept(feed.failures), fed_with_features(model, found.rest, at_once):
        history = model.fit(**with_one_iterator(arguments, at_once))
    frozen.warn_if_changed(model)
    return history


def _number_of_outputs(model: keras.Model) -> int:
    return len(model.outputs)


def _check(model: Any, dropout: Any, shuffle: Any) -> None:
    check_model(model, "model")
    if isinstance(shuffle, str):
        check_option("shuffle", shuffle, ("batch",), or_a=", True, False or None")
    check_option("dropout", dropout, _DROPOUT)
    if not model.compiled:
        raise ValueError(f"`model` must be compiled: call `model.compile(loss=...)` first. Received: model={model!r}")
    new = _keras.unknown_to_optimizer(model)
    if new:
        raise ValueError(
            f"The variables {new} train now, and the optimizer of `model` was built without them. Compile the model "
            "again after layers are unfrozen, with an optimizer of its own."
        )
    integer("steps_per_execution", model.steps_per_execution, least=1)
    still = _keras.still_trained(model)
    if still:
        warnings.warn(
            f"The variables {still} were frozen after `model` was trained, and it was not compiled again: `fit` would "
            "go on training them, `fit_head` does not. Compile the model again after layers are frozen.",
            stacklevel=3,
        )


def _check_callbacks(callbacks: Any) -> None:
    check_callbacks(callbacks)
    if any(isinstance(callback, Unfreezing) for callback in callbacks_in(callbacks)):
        raise ValueError(
            "`fit_head` computes once what is frozen, and `Unfreezing` changes that. Train with `model.fit`; or call "
            "`fit_head` for each stage by itself, and `unfreeze` between them: each call computes once what is frozen "
            f"then. Received: callbacks={described(callbacks)}"
        )


def _warn_of_ending(model: keras.Model) -> None:
    """Warns where a model of one output ends in numbers of another kind than its loss takes: it was compiled again."""
    if len(model.outputs) != 1:
        return
    try:
        check_endings(None, model.outputs[0], _keras.losses_of(model))
    except ValueError as error:
        warnings.warn(f"Model '{model.name}' may not be trained as meant. {error}", stacklevel=3)


def _with_integers(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fit`, with integers of Python in place of others."""
    bounds = dict.fromkeys(("batch_size", "validation_batch_size"), (1, True))
    bounds |= dict.fromkeys(("steps_per_epoch", "validation_steps"), (0, True))
    whole = {name: integer(name, arguments[name], least=least, or_none=none) for name, (least, none) in bounds.items()}
    whole |= {name: integer(name, arguments[name]) for name in ("epochs", "initial_epoch")}
    return {**arguments, **whole}


def _why_not_ahead(model: keras.Model, found: Split) -> str:
    """Why a model is better trained as it is; empty where its frozen part should be computed once."""
    way = "; ".join(f"'{path}': {why}" for path, why in list(found.in_the_way.items())[:5])
    overriding = [*_keras.overridden(model, _keras.METHODS_OF_FIT), *_keras.beside_graph(model)]
    if overriding:
        return f"it overrides {overriding}, which would get features in place of its inputs."
    if found.empty:
        return f"nothing in it can be computed ahead. In the way: {way}."
    size, raw = found.bytes_per_example, _keras.bytes_of(model.inputs)
    if size is None or raw is None or size <= max(raw, _SMALL) or (found.share or 0.0) >= _WORTH_IT:
        return ""
    return (
        f"{found.share or 0.0:.0%} of its multiplications can be computed ahead, and the features of an example would "
        f"take {size:,} bytes, its inputs {raw:,}. In the way: {way}."
    )


def _with_features(feed: Feed, train: Any, validation: Any, shuffle: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fit`, with features in place of data."""
    arguments = dict(arguments)
    size, validation_size = arguments.pop("batch_size"), arguments.pop("validation_batch_size")
    steps, validation_steps = arguments["steps_per_epoch"], arguments["validation_steps"]
    source = feed.source(train, steps, "x")
    other = None if validation is None else feed.source(validation, validation_steps, "validation_data")
    arguments.update(feed.training(source, size, steps, shuffle, arguments["class_weight"]))
    if other is not None:
        arguments.update(feed.validation(other, validation_size or size, validation_steps))
    return arguments


def _warn_of_other_passes(x: Any, arguments: dict[str, Any], shuffle: Any) -> None:
    """Says what `fit` would see in later epochs, and `fit_head` never does: it keeps the first pass."""
    if arguments["epochs"] - arguments["initial_epoch"] <= 1 or not isinstance(x, tf.data.Dataset):
        return
    steps = arguments["steps_per_epoch"]
    drawn = dict(_keras.drawn_anew(x))
    examples = [name for name, order_alone in drawn.items() if not order_alone]
    orders = [name for name, order_alone in drawn.items() if order_alone]
    endless = int(x.cardinality()) == tf.data.INFINITE_CARDINALITY
    whole = _keras.batches_of_a_pass(x) if endless else None
    said = []
    if examples and not (whole and steps and steps > whole):
        several = "a larger `steps_per_epoch`" if endless else "`x.repeat(5)`"
        said.append(
            f"`x` draws other examples in each pass ({', '.join(examples)}). Hand in several passes for fewer epochs "
            f"({several}), or train with `fit`."
        )
    if orders and not (shuffle and not isinstance(shuffle, str)):
        said.append(
            f"`x` has another order in each pass ({', '.join(orders)}). Pass shuffle=True, which shuffles what was "
            "computed before each epoch, or train with `fit`."
        )
    if whole is not None and steps is not None and 0 < steps < whole:
        said.append(
            f"`x` holds {whole} batches that it repeats, and the {steps} of `steps_per_epoch` are all that is trained "
            f"on. Pass steps_per_epoch={whole}, or leave `.repeat()` and `steps_per_epoch` out."
        )
    if said:
        warnings.warn(f"`fit_head` trains every epoch on the first pass over `x`. {' '.join(said)}", stacklevel=3)


# The share of the multiplications from which on features may be larger than the inputs.
_WORTH_IT = 0.5

# How many bytes of features of an example are kept in any case.
_SMALL = 4096


def _check_silent(model: keras.Model, found: Split, cause: str) -> None:
    """Raises where dropout in a frozen part would stay live although it shall be off."""
    behind = {id(part) for part in _keras.walk(found.rest)}
    rows = rows_by_layer(model)
    live = [row.path for key, row in rows.items() if key in behind and row.frozen and row.live and not row.holds]
    if live or cause:
        way = "; ".join(f"'{path}': {why}" for path, why in found.in_the_way.items())
        raise ValueError(
            f"With dropout=\"off\" the frozen layers {live} of model '{model.name}' would have to run in inference "
            f"mode, and only what can be computed ahead does. In the way: {way}. {cause} Compose the model with "
            'dropout="off" instead.'
        )


# How many parts a batch of data has at the most: inputs, targets and weights.
_PARTS = 3


def _split_off(train: tuple[Any, Any, Any], share: float | None, validation: Any) -> tuple[tuple[Any, Any, Any], Any]:
    """The data to train on, and those to validate on, each as inputs, targets and weights."""
    if validation is not None:
        if isinstance(validation, (tuple, list)):
            if not 1 <= len(validation) <= _PARTS:
                raise ValueError(
                    "`validation_data` must be (x, y), (x, y, weights) or a dataset. Received: "
                    f"validation_data={described(validation)}"
                )
            return train, (*keras.utils.unpack_x_y_sample_weight(tuple(validation)),)
        return train, (validation, None, None)
    if not share:
        return train, None
    if is_stream(train[0]):
        raise ValueError(
            "`validation_split` takes examples from the end of arrays. Pass `validation_data` with a "
            f"{type(train[0]).__name__}. Received: validation_split={share}"
        )
    rows = rows_of_arrays(*train, name="x")
    at = math.floor(rows * (1.0 - share))
    if not 0 < at < rows:
        raise ValueError(
            f"`validation_split` must leave examples to train and to validate on. Received: validation_split={share} "
            f"for {rows} examples"
        )
    return part_of(train, 0, at), part_of(train, at, rows)

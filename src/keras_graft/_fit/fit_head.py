"""`fit_head`: what `fit` does, with the frozen part computed once.

It puts the cut, the features and Keras's own `fit` together. It must not know how features are kept.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import warnings
from typing import Any, Literal

import keras
import numpy as np
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
from .._behaviour import trace
from .._behaviour.findings import rows_by_layer
from .._features.checked import checked
from .._features.computer import Computer
from .._features.data import Source, is_cast_by_fit, is_stream, part_of, rows_of_arrays, source_of
from .._features.features import Features, FeatureStoreError, features_in_folder, features_in_memory
from .._features.fingerprint import Uncomparable, fingerprint_of_model
from .._features.store import absolute
from .._losses.loss import check_endings
from .._split.obstacles import ends_determinism, variables_read_by
from .._split.split import Split, make_cut
from .feed import even, fed_with_features, in_place_of_inputs, store_errors_kept, stored_batches

__all__ = ["fit_head"]

_DROPOUT = ("as composed", "off")


def fit_head(  # noqa: PLR0913  the arguments of `fit`
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    *,
    cache: Literal["memory"] | str | os.PathLike[str] = "memory",
    dropout: Literal["as composed", "off"] = "as composed",
    exact: bool = True,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: Any = "auto",
    callbacks: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool | Literal["batch"] | None = None,
    class_weight: Any = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: Any = 1,
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
            of batches, a `keras.utils.PyDataset` or a generator of batches.
        y: Targets, for arrays.
        cache: Where features are kept: `"memory"`, or the path of a folder (`~` is the home folder), for features
            larger than memory and for those that shall be used again. What a folder holds is used where the data and
            the frozen part are the same, bit for bit, and computed otherwise; a run that was killed goes on where it
            stopped.
        dropout: `"as composed"`, or `"off"`: dropout in frozen layers does not drop while the head is trained, so
            that a model composed with `"keep"` trains on inference features, and drops again in `fit`.
        exact: Whether features are those of the model to the last bit. If False, frozen weights are folded into the
            operations around them (a batch normalisation into its convolution, say): worth it for many examples,
            because it takes some seconds to prepare, and rounds differently.
        batch_size: Examples per step, 32 if None; for arrays.
        epochs: The epoch to stop at.
        verbose: `"auto"`, 0, 1 or 2, as in `fit`.
        callbacks: Callbacks of Keras.
        validation_split: The share of arrays, from their end, to validate on.
        validation_data: `(x, y)`, `(x, y, weights)` or a dataset to validate on.
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
    _check(model, dropout, cache, shuffle)
    check_callbacks(callbacks)
    check_class_weight(class_weight, sample_weight, len(model.outputs))
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
    wish = _Wish(model, found, Computer(found.features, exact), _place(cache), verbose)
    train, validation = _split_off((x, y, sample_weight), validation_split, validation_data)
    arguments = _with_features(wish, train, validation, shuffle, arguments)
    frozen = _Frozen.of(found.features)
    at_once = _steps_at_once(model, found.rest, arguments)
    arguments["callbacks"] = frozen.watched(callbacks)
    with store_errors_kept(wish.failures), fed_with_features(model, found.rest, at_once):
        history = model.fit(**_with_one_iterator(arguments, at_once))
    frozen.warn_if_changed(model)
    return history


def _check(model: Any, dropout: Any, cache: Any, shuffle: Any) -> None:
    check_model(model, "model")
    if isinstance(shuffle, str):
        check_option("shuffle", shuffle, ("batch",), or_a=", True, False or None")
    if not (isinstance(cache, (str, os.PathLike)) and os.fspath(cache)):
        raise TypeError(f'`cache` must be "memory" or the path of a folder. Received: cache={cache!r}')
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


def _place(cache: Any) -> Any:
    """Where features are kept, wherever code of the user changes the working folder to."""
    return cache if isinstance(cache, str) and cache == "memory" else absolute(cache)


def _why_not_ahead(model: keras.Model, found: Split) -> str:
    """Why a model is better trained as it is; empty where its frozen part should be computed once."""
    way = "; ".join(f"'{path}': {why}" for path, why in list(found.in_the_way.items())[:5])
    own = [*_keras.overridden(model, _keras.METHODS_OF_FIT), *_keras.beside_graph(model)]
    if own:
        return f"it overrides {own}, which would get features in place of its inputs."
    if found.empty:
        return f"nothing in it can be computed ahead. In the way: {way}."
    size, raw = found.bytes_per_example, _keras.bytes_of(model.inputs)
    if size is None or raw is None or size <= max(raw, _SMALL) or (found.share or 0.0) >= _WORTH_IT:
        return ""
    return (
        f"{found.share or 0.0:.0%} of its multiplications can be computed ahead, and the features of an example would "
        f"take {size:,} bytes, its inputs {raw:,}. In the way: {way}."
    )


def _with_features(wish: _Wish, train: Any, validation: Any, shuffle: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fit`, with features in place of data."""
    arguments = dict(arguments)
    size, validation_size = arguments.pop("batch_size"), arguments.pop("validation_batch_size")
    steps, validation_steps = arguments["steps_per_epoch"], arguments["validation_steps"]
    source = wish.source(train, steps, "x")
    other = None if validation is None else wish.source(validation, validation_steps, "validation_data")
    arguments.update(wish.training(source, size, steps, shuffle, arguments["class_weight"]))
    if other is not None:
        arguments.update(wish.validation(other, validation_size or size, validation_steps))
    return arguments


def _warn_of_other_passes(x: Any, arguments: dict[str, Any], shuffle: Any) -> None:
    """Says what `fit` would see in later epochs, and `fit_head` never does: it keeps the first pass."""
    if arguments["epochs"] - arguments["initial_epoch"] <= 1 or not isinstance(x, tf.data.Dataset):
        return
    steps = arguments["steps_per_epoch"]
    drawn = dict(_keras.drawn_anew(x))
    examples, orders = ([name for name, order in drawn.items() if order is alone] for alone in (False, True))
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


def _steps_at_once(model: keras.Model, rest: keras.Model, arguments: dict[str, Any]) -> int:
    """How many steps to run in one call of TensorFlow, which gives the same.

    With features at hand a step of a small head takes less time than what Keras does between two steps. So many run in
    one call, unless somebody would notice: code of the user in a callback, which sees what it calls the model for count
    in such calls too; `validation_steps`, which does; or one who watches long steps.
    """
    quiet = all(map(_is_quiet, callbacks_in(arguments["callbacks"])))
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


def _with_one_iterator(arguments: dict[str, Any], at_once: int) -> dict[str, Any]:
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


def _is_quiet(callback: Any) -> bool:
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


@dataclasses.dataclass(frozen=True)
class _Frozen:
    """What the features were computed with.

    Attributes:
        features: What computed them.
        values: Its weights, and other variables that it reads, with tensors of what they were then. A tensor shares the
            memory of its variable until that is written to.
        code: A number for its code, and for what its layers hold beside variables; None where there is none.
        seen_changed: What was changed at some epoch, in words.
    """

    features: keras.Model
    values: list[tuple[Any, Any]]
    code: str | None
    seen_changed: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, features: keras.Model) -> _Frozen:
        graphs = {id(graph): graph for graph in map(_keras.call_graph, _keras.walk(features)) if graph is not None}
        nodes = [node for graph in graphs.values() for node in _keras.nodes(graph)]
        read = [variable for node in nodes for variable in variables_read_by(node)]
        seeds = {id(state) for state in _keras.seed_states(features)}
        known = [variable for variable in (*features.weights, *read) if id(variable) not in seeds]
        used = {id(_content(variable)): variable for variable in reversed(known)}
        values = [(variable, tf.convert_to_tensor(_content(variable))) for variable in used.values()]
        return cls(features, values, _number_of_code(features))

    def changed(self) -> str:
        """What is not what it was, in words; empty where all is."""
        code = _number_of_code(self.features)
        return self.changed_variables() or ("" if code == self.code else "what frozen layers hold beside their weights")

    def changed_variables(self) -> str:
        """Likewise of the variables alone."""
        changed = [
            getattr(variable, "path", variable.name)
            for variable, old in self.values
            if not _alike(np.asarray(_content(variable)), np.asarray(old))
        ]
        return f"{len(changed)} frozen weights ({', '.join(changed[:5])})" if changed else ""

    def watched(self, callbacks: Any) -> Any:
        """The callbacks, with one that raises where others changed the frozen part before the first step."""

        def check(logs: Any = None) -> None:
            changed = self.changed()
            if changed:
                raise ValueError(
                    f"A callback changed {changed} at the beginning of the training, when the features were computed "
                    "already. Load weights, restore backups and set attributes before `fit_head`, or use `fit`."
                )

        def note(epoch: int, logs: Any = None) -> None:
            changed = self.changed_variables()
            if changed:
                self.seen_changed.append(changed)

        if isinstance(callbacks, keras.callbacks.CallbackList):
            return callbacks
        theirs = callbacks_in(callbacks)
        by_epoch = {} if all(map(_is_quiet, theirs)) else {"on_epoch_begin": note, "on_epoch_end": note}
        return [*theirs, keras.callbacks.LambdaCallback(on_train_begin=check, **by_epoch)]

    def warn_if_changed(self, model: keras.Model) -> None:
        changed = self.seen_changed[0] if self.seen_changed else self.changed()
        if changed:
            warnings.warn(
                f"Model '{model.name}': {changed} changed while `fit_head` trained it on features that were computed "
                "before. Train it with `fit` where a callback changes what is frozen.",
                stacklevel=3,
            )


def _number_of_code(features: keras.Model) -> str | None:
    try:
        return fingerprint_of_model(features, weights=False)
    except Uncomparable:
        return None


def _content(variable: Any) -> Any:
    """The variable of TensorFlow that holds the value."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


@dataclasses.dataclass(frozen=True)
class _Wish:
    """Turns data into what `fit` gets: features and targets."""

    model: keras.Model
    found: Split
    computer: Computer
    cache: Any
    verbose: Any
    failures: list[FeatureStoreError] = dataclasses.field(default_factory=list)

    def training(
        self, source: Source, batch_size: int | None, steps: int | None, shuffle: Any, class_weight: Any
    ) -> dict[str, Any]:
        features = self._features(source, "train")
        shuffled = not source.holds_targets if shuffle is None else shuffle
        if isinstance(shuffle, str) and source.holds_targets:  # "batch", which Keras does with arrays alone (all)
            shuffled = False
        if source.holds_targets and source.count == steps:
            steps = None  # it holds exactly so many
        fed = self._fed(features, source, batch_size, steps, shuffled, class_weight)
        return {"shuffle": shuffled if "y" in fed else False, "steps_per_epoch": steps, **fed}

    def validation(self, source: Source, batch_size: int | None, steps: int | None) -> dict[str, Any]:
        features = self._features(source, "validation")
        fed = self._fed(features, source, batch_size, steps, shuffled=False)
        holds_so_many = source.holds_targets and source.count == steps
        counted = {"validation_steps": None if holds_so_many else steps}
        if "y" not in fed:
            return {"validation_data": fed["x"], **counted}
        data = (fed["x"], fed["y"], fed["sample_weight"])
        return {"validation_data": data, "validation_batch_size": fed["batch_size"], **counted}

    def source(self, data: Any, steps: int | None, name: str) -> Source:
        """Data that fit the model, or an error."""
        fixed = self.found.features.inputs[0].shape[0]
        source = source_of(*data, steps=steps, batch_size=fixed or _BATCH, name=name)
        return checked(source, self.model, name)

    def _features(self, source: Source, part: str) -> Features:
        verbose = 2 if self.verbose == 2 else int(self.verbose in (1, "auto"))  # noqa: PLR2004  a line, as in Keras
        bar = keras.utils.Progbar(source.count, verbose=verbose, unit_name="batch") if verbose else None
        if bar is not None:
            sys.stdout.write(f"Computing the frozen part ({part})\n")

        def progress(done: int) -> None:
            if bar is not None:
                bar.update(done, finalize=done == source.count)

        if self.cache == "memory":
            return features_in_memory(self.computer, source, progress)
        return features_in_folder(self.computer, source, progress, self.cache, part)

    def _fed(
        self,
        features: Features,
        source: Source,
        batch_size: int | None,
        steps: int | None,
        shuffled: Any,
        class_weight: Any = None,
    ) -> dict[str, Any]:
        """The arguments of `fit` for some data: arrays where `fit` can make the batches of them."""
        sizes = even(features.rows, batch_size or (math.ceil(features.rows / steps) if steps else 32))
        if source.holds_targets and not shuffled:
            sizes = features.batch_sizes
        elif source.holds_targets:
            sizes = even(features.rows, features.batch_sizes[0])
        whole = self._whole(features, sizes)
        if whole is None and source.holds_targets:
            return {"x": stored_batches(features, (None, None), sizes, shuffled, self.failures)}
        if whole is None:
            beside = _keras.beside_inputs_in_fit(features.rows, *source.targets, class_weight)
            return {"x": stored_batches(features, beside, sizes, shuffled, self.failures), "class_weight": None}
        tensors, came = whole
        y, weights = (*came, None, None)[:2] if source.holds_targets else source.targets
        inputs = in_place_of_inputs(features.keys, tensors)
        return {"x": inputs, "y": y, "sample_weight": weights, "batch_size": sizes[0]}

    def _whole(self, features: Features, sizes: list[int]) -> Any:
        """All features, and what came with them, where `fit` takes them as arrays, and as they are; None elsewhere."""
        if self.cache != "memory" or len(features.shards) > 1 or sizes != even(features.rows, sizes[0]):
            return None
        tensors, came = features.shards[0][1]()
        return None if any(map(is_cast_by_fit, keras.tree.flatten(came))) else (tensors, came)


# How many examples the frozen part gets at once, where it is free to choose.
_BATCH = 32

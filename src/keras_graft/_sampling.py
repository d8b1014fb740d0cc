"""`predict_samples`: Monte Carlo dropout, with all that is not random computed once.

It must not know how a model is cut, nor how noise is made live: that is `_split/` and `_engine/`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
import tensorflow as tf

from . import _keras, _plots
from ._arguments import check_model, described, integer
from ._engine.with_dropout import with_live_noise
from ._features.checked import checked_inputs
from ._features.computer import Computer
from ._features.data import is_on_ray, numbers, source_of
from ._features.engines import check_engine, computer_of
from ._features.extractor import inputs_in
from ._features.fingerprint import Uncomparable, fingerprint_of_model
from ._features.on_ray import RayOptions, mapped_on_ray, source_on_ray
from ._keras import Model
from ._split.obstacles import ends_noiselessness
from ._split.split import make_cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Samples", "predict_samples"]


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a model predicts with its dropout live, many times. Made by `predict_samples`.

    Attributes:
        values: The predictions, of shape (samples, examples, ...); for a model of several outputs a list or a dict of
            such arrays, as `predict` gives them.

    Example:

    >>> import numpy as np
    >>> from keras_graft import Samples
    >>> samples = Samples(np.array([[[0.9, 0.1]], [[0.5, 0.5]]]))  # 2 samples for 1 example, 2 classes
    >>> np.round(samples.mean, 2).tolist(), np.round(samples.std, 2).tolist()
    ([[0.7, 0.3]], [[0.2, 0.2]])
    >>> float(samples.mutual_information()[0]) < float(samples.predictive_entropy()[0])
    True
    """

    values: Any

    @property
    def mean(self) -> Any:
        """The mean over the samples, of shape (examples, ...)."""
        return keras.tree.map_structure(lambda values: _over_samples(np.mean, values), self.values)

    @property
    def std(self) -> Any:
        """The standard deviation over the samples, of shape (examples, ...)."""
        return keras.tree.map_structure(lambda values: _over_samples(np.std, values), self.values)

    def predictive_entropy(self, *, from_logits: bool = False) -> Any:
        """The entropy of the mean class probabilities: all the uncertainty, in nats.

        H[p] = -sum_c p_c log p_c with p the mean over the samples (Gal, 2016, "Uncertainty in Deep Learning", 3.3.1;
        Houlsby et al., 2011, arXiv:1112.5745).

        Args:
            from_logits: Whether the predictions are logits of classes, along the last axis, and not probabilities.
                A last axis of one is the probability, or the logit, of the second of two classes.

        Returns:
            An array of shape (examples, ...) without the axis of the classes, or a structure of such.

        Raises:
            ValueError: If the predictions are not probabilities that sum to 1, or of one class between 0 and 1.
        """
        return keras.tree.map_structure(
            lambda values: _entropy(_probabilities(values, from_logits).mean(axis=0)), self.values
        )

    def mutual_information(self, *, from_logits: bool = False) -> Any:
        """What of the uncertainty more data could take away, in nats: that between prediction and weights.

        H[mean of p] - mean of H[p] over the samples, known as BALD (Houlsby et al., 2011, arXiv:1112.5745; Gal et
        al., 2017, arXiv:1703.02910). The rest of the predictive entropy lies in the data.

        Args:
            from_logits: See `predictive_entropy`.

        Returns:
            An array of shape (examples, ...) without the axis of the classes, or a structure of such.

        Raises:
            ValueError: If the predictions are not probabilities that sum to 1, or of one class between 0 and 1.
        """

        def information(values: np.ndarray) -> np.ndarray:
            p = _probabilities(values, from_logits)
            return np.maximum(_entropy(p.mean(axis=0)) - _entropy(p).mean(axis=0), 0.0)  # below 0 by rounding alone

        return keras.tree.map_structure(information, self.values)

    def plot_spread(self, x: Any = None, y: Any = None, *, ax: Axes | None = None) -> Axes:
        """Plots the mean of a regression, in a band of two standard deviations.

        Needs matplotlib: `pip install 'keras-graft[plot]'`.

        Args:
            x: What to plot over, one number for each example, such as a feature. The examples themselves, from the
                lowest mean to the highest, if None.
            y: The targets, one number for each example, as dots.
            ax: Axes of matplotlib to draw on; those of a new figure if None.

        Returns:
            The axes, to go on with: `samples.plot_spread(x).set_title("...")`.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If there is not one prediction for each example, or not one number of `x` and `y`.

        Example:

        >>> import numpy as np
        >>> from keras_graft import Samples
        >>> samples = Samples(np.array([[[1.0], [2.0]], [[3.0], [2.0]]]))  # 2 samples for 2 examples
        >>> ax = samples.plot_spread(x=[0.1, 0.2], y=[1.5, 2.5])
        >>> ax.get_ylabel()
        'prediction'
        """
        values = _of_one_output(self.values)
        if values[0].size != values.shape[1]:
            raise ValueError(
                "Each example must have one prediction. Plot one of several with `Samples(samples.values[..., 0])`. "
                f"Received: values of shape {values.shape}"
            )
        mean, std = (statistic.reshape(-1) for statistic in (self.mean, self.std))
        over, targets = (_per_example(name, array, len(mean)) for name, array in (("x", x), ("y", y)))
        return _plots.spread(over, mean, std, targets, _plots.axes(ax))

    def plot_entropy(self, labels: Any, *, from_logits: bool = False, ax: Axes | None = None) -> Axes:
        """Plots histograms of the predictive entropy of right and of wrong predictions.

        The further they lie apart, the better the entropy tells which predictions to trust. The bars of each sum to
        1, however few of the predictions are wrong. Needs matplotlib: `pip install 'keras-graft[plot]'`.

        Args:
            labels: The class of each example, as an integer.
            from_logits: See `predictive_entropy`.
            ax: Axes of matplotlib to draw on; those of a new figure if None.

        Returns:
            The axes, to go on with.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If the predictions are not probabilities, of shape (samples, examples, classes), or if there is
                not one label for each example.

        Example:

        >>> import numpy as np
        >>> from keras_graft import Samples
        >>> samples = Samples(np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.8, 0.2], [0.3, 0.7]]]))  # 2 samples, 2 examples
        >>> ax = samples.plot_entropy(labels=[0, 0])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['right (1)', 'wrong (1)']
        """
        values = _of_one_output(self.values)
        if values.ndim != _RANK_OF_CLASSES:
            raise ValueError(
                "The predictions must have the shape (samples, examples, classes). "
                f"Received: values of shape {values.shape}"
            )
        p = _probabilities(values, from_logits).mean(axis=0)
        classes = _per_example("labels", labels, len(p))
        return _plots.entropy_histogram(_entropy(p), p.argmax(axis=-1) == classes, np.log(p.shape[-1]), _plots.axes(ax))


_RANK_OF_CLASSES = 3


def _of_one_output(values: Any) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    raise ValueError(
        "A plot shows one output. Choose it, as in `Samples(samples.values[0])` or `Samples(samples.values['name'])`. "
        f"Received: values={described(values)}"
    )


def _per_example(name: str, given: Any, examples: int) -> Any:
    """One number for each example, also where they stand in a column; None where none are given."""
    if given is None:
        return None
    array = np.asarray(given)
    if array.shape[:1] == (examples,) and array.size == examples:
        return array.reshape(-1)
    raise ValueError(
        f"`{name}` must hold one number for each of the {examples} examples. Received: {name} of shape {array.shape}"
    )


def _over_samples(reduce: Any, values: np.ndarray) -> np.ndarray:
    """A statistic over the samples, computed in float64: sums of half precision stop growing, or overflow.

    It is given in the dtype of the predictions, in float32 where that is of half precision, as numpy does for integers.
    """
    reduced = reduce(values, axis=0, dtype="float64")
    whole = np.issubdtype(values.dtype, np.integer) or values.dtype == bool
    return reduced if whole else reduced.astype(np.promote_types(values.dtype, "float32"))


def _entropy(p: np.ndarray) -> np.ndarray:
    return 0.0 - (p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)  # and not -0 where all is certain


def _probabilities(values: np.ndarray, from_logits: bool) -> np.ndarray:
    values = values.astype("float64")
    if values.shape[-1] == 1:
        other = np.zeros_like(values) if from_logits else 1.0 - values
        values = np.concatenate([other, values], axis=-1)
    if from_logits:
        odds = np.exp(values - values.max(axis=-1, keepdims=True))
        return odds / odds.sum(axis=-1, keepdims=True)
    if values.min() < 0 or not np.allclose(values.sum(axis=-1), 1.0, atol=1e-2):
        raise ValueError(
            "The predictions must be probabilities of classes, which are not negative and sum to 1 along the last "
            "axis (or lie between 0 and 1, where that has one entry). Pass `from_logits=True` for logits. Received: "
            f"values from {values.min():.3g} to {values.max():.3g}, of shape {values.shape}"
        )
    return values


def predict_samples(
    model: Model,
    x: Any,
    samples: int,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    engine: Literal["tensorflow", "onnxruntime"] = "tensorflow",
    ray: RayOptions | None = None,
) -> Samples:
    """Predicts many times with live dropout: Monte Carlo dropout, as an approximate Bayesian model.

    All that lies before the first live noise is computed once, and only the rest runs `samples` times. Noise layers
    alone are live: BatchNormalization uses its statistics and keeps them, and image augmentation is off. `model` is
    not changed, its seeds included. (Gal and Ghahramani, 2016, "Dropout as a Bayesian Approximation",
    arXiv:1506.02142.)

    Args:
        model: A built functional `keras.Model` with noise that is live in `fit` (as composed with `"keep"`, or in the
            head) or always (`"always"`).
        x: Inputs as `model.predict` takes them: arrays or tensors of shape (examples, ...), alone, in a list or in a
            dict, or a dataset of batches. Or a `ray.data.Dataset`, whose columns are inputs by name (a single column is
            the one input).
        samples: How many predictions to make for each example.
        batch_size: Examples that are computed at once, 32 if None; for arrays.
        seed: With the same seed, model, inputs and batch size, the samples are the same. Drawn at random if None.
        engine: What computes all that lies before the first live noise, as in `fit_head`.
        ray: How workers of Ray compute, for a dataset of Ray: `RayOptions`.

    Returns:
        `Samples`: all predictions, with mean, standard deviation and measures of uncertainty. For a dataset of Ray
        another one, whose rows have the columns `mean` and `std` in place of the inputs, and `predictive_entropy` and
        `mutual_information` where predictions are probabilities of classes. Of a model of several outputs each column
        has the name of the output behind it, as in `mean_a`.

    Raises:
        ImportError: If the packages of `engine` are not installed.
        TypeError: If `model` is not a Keras model.
        ValueError: If nothing in `model` is live, if it overrides `predict` or what that calls, or if `samples` is not
            a positive integer.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import predict_samples
    >>> model = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dropout(0.5), keras.layers.Dense(3, "softmax")]
    ... )
    >>> found = predict_samples(model, np.ones((4, 8), "float32"), samples=20, seed=0)
    >>> found.values.shape, found.mean.shape, found.predictive_entropy().shape
    ((20, 4, 3), (4, 3), (4,))
    """
    check_model(model, "model")
    check_engine(engine)
    if not isinstance(samples, (int, np.integer)) or isinstance(samples, bool) or samples < 1:
        raise ValueError(f"`samples` must be an integer of 1 or more. Received: samples={samples!r}")
    batch_size = integer("batch_size", batch_size, least=1, or_none=True)
    seed = integer("seed", seed, least=0, or_none=True)
    overriding = [*_keras.overridden(model, _keras.METHODS_OF_PREDICT), *_keras.beside_graph(model)]
    if overriding:
        raise ValueError(
            f"Model '{model.name}' overrides {overriding}, which would not run. Sample from its graph alone, "
            f"`keras.Model(model.input, model.output)`, and do to `values` what they do. Received: model={model!r}"
        )
    if is_on_ray(x):
        return _on_ray(model, x, samples, seed, engine, ray)
    found = make_cut(model, ends_noiselessness(model))
    stateful = [part.name for part in _keras.walk(found.rest) if getattr(part, "stateful", False)]
    if stateful:
        raise ValueError(
            f"Layers {stateful} of model '{model.name}' keep a state from batch to batch, so each sample would "
            "go on where the one before it ended. Build them with `stateful=False`."
        )
    if not found.in_the_way:
        raise ValueError(
            f"Nothing in model '{model.name}' is live, so all samples would be the same. Compose it with "
            f'dropout="keep" or "always", or put dropout into the head. Received: model={model!r}'
        )
    sampler = with_live_noise(found.rest)
    _set_seeds(sampler, seed)
    size = found.features.inputs[0].shape[0] or batch_size or 32
    source = checked_inputs(source_of(x, None, None, steps=None, batch_size=size, name="x"), model, "x")
    return Samples(_sampled(_computer_of(model, found.features, engine), sampler, source, samples))


def _on_ray(model: keras.Model, x: Any, samples: int, seed: int | None, engine: str, ray: RayOptions | None) -> Any:
    """A dataset of Ray with what workers sample of the rows of another one."""
    source = source_on_ray(x, None, None, _keras.names_of_inputs(model), ray, "x")
    options = source.options
    entropy = np.random.SeedSequence(seed).entropy
    summary = _Summary(model, source.columns, samples, entropy, engine, options.batch_size)
    first = next(iter(x.iter_batches(batch_size=1, batch_format="numpy")))
    summary = dataclasses.replace(summary, of_classes=summary.has_probabilities(first))  # as in all rows
    return mapped_on_ray(x, summary, options, batch_size=_CALLS * options.batch_size)


# How many batches a worker samples in one call: each call cuts and traces the model.
_CALLS = 32


@dataclasses.dataclass(frozen=True)
class _Summary:
    """Mean and spread of sampled predictions, for columns of inputs.

    Attributes:
        model: The model.
        columns: The names of the columns that are inputs.
        samples: How many predictions are made for each example.
        seed: The seed; rows that are computed together have one of their own.
        engine: What computes all that is not random.
        batch_size: How many examples are computed at once.
        of_classes: Whether predictions are probabilities of classes.
    """

    model: Any
    columns: tuple[str, ...]
    samples: int
    seed: Any
    engine: str
    batch_size: int
    of_classes: bool = False

    def __call__(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """The columns that are no inputs, and those of the summary."""
        drawn = self._drawn(block)
        statistics = {"mean": drawn.mean, "std": drawn.std}
        if self.of_classes:
            statistics["predictive_entropy"] = drawn.predictive_entropy()
            statistics["mutual_information"] = drawn.mutual_information()
        columns = {name: column for name, column in block.items() if name not in self.columns}
        for statistic, structure in statistics.items():
            for path, array in keras.tree.flatten_with_path(structure):
                columns["_".join((statistic, *map(str, path)))] = array
        return columns

    def has_probabilities(self, block: Mapping[str, Any]) -> bool:
        """Whether predictions for some rows are probabilities of classes."""
        try:
            self._drawn(block).predictive_entropy()
        except ValueError:
            return False
        return True

    def _drawn(self, block: Mapping[str, Any]) -> Samples:
        x = inputs_in(block, self.columns)
        content = hashlib.blake2b(repr(self.seed).encode(), digest_size=4)
        for array in x.values() if isinstance(x, dict) else [x]:
            content.update(np.ascontiguousarray(array).tobytes())
        seed = int.from_bytes(content.digest(), "little")
        options: dict[str, Any] = {"batch_size": self.batch_size, "seed": seed, "engine": self.engine}
        return predict_samples(self.model, x, self.samples, **options)


def _computer_of(model: keras.Model, features: keras.Model, engine: str) -> Computer:
    """What computes the features of a model: that of the last call, where nothing changed that it holds.

    To trace a large model takes as long as to run it over some hundred examples. As in `predict`, code of layers runs
    when it is traced, so what it reads from outside them is not read again. To TensorFlow the values of weights are
    handed in; ONNX Runtime holds them.
    """
    try:
        traced = fingerprint_of_model(features, weights=engine != "tensorflow")
    except Uncomparable:  # so nobody knows what changed
        return computer_of(features, engine)
    key = (engine, traced, *_keras.outputs_by_key(features), *map(id, features.variables))
    kept = _KEPT.get(model)
    if kept is None or kept[0] != key:
        kept = _KEPT[model] = (key, computer_of(features, engine))
    return kept[1]


# For the models that still live: what computed their features in the last call, and its fingerprint.
_KEPT: weakref.WeakKeyDictionary[keras.Model, tuple[Any, Computer]] = weakref.WeakKeyDictionary()


def _set_seeds(model: keras.Model, seed: int | None) -> None:
    states = list({id(state): state for state in _keras.seed_states(model)}.values())
    for state, sequence in zip(states, np.random.SeedSequence(seed).spawn(len(states))):
        state.assign(sequence.generate_state(2).astype(state.dtype))


def _sampled(computer: Computer, sampler: keras.Model, source: Any, samples: int) -> Any:
    """The predictions for all batches: the samples of a batch are drawn in one call."""
    kinds = [tensor.dtype for tensor in sampler.outputs]

    def draw(computed: list[Any]) -> list[Any]:
        ahead = _keras.one_or_by_key(dict(zip(_keras.outputs_by_key(computer.model), computed)))
        # One at a time, so that each finds the seeds as the one before it left them.
        return tf.map_fn(
            lambda _: keras.tree.flatten(sampler(ahead, training=False)),
            tf.range(samples),
            fn_output_signature=kinds,
            parallel_iterations=1,
        )

    drawn = tf.function(draw, reduce_retracing=True)
    parts = [numbers(drawn(computed)) for computed, _ in computer.over(source.batches())]
    whole = [np.concatenate(column, axis=1) for column in zip(*parts)]
    return keras.tree.pack_sequence_as(_keras.output_structure(_keras.graph_of(sampler)), whole)

"""What was done on trust is proved: it does what it is there for, and copies compute what their originals do."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from copied import assert_copied, branch_of, model_of, outputs
from keras import layers, ops

from keras_graft import ModeLock, _keras, freeze_and_merge, with_dropout
from keras_graft._engine.errors import RebuildError
from keras_graft._engine.proof import Doubt, Unproved


class ComputesWithItsRate(layers.Layer):
    """Has a dropout rate that it drops by in training mode, and computes with in inference mode on some data."""

    def __init__(self, rate: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.kept, self.drop = rate, 1 - rate, layers.Dropout(rate)

    def scaled(self, x: Any) -> Any:
        return ops.where(x > 20.0, 20.0 + (x - 20.0) * self.rate, x)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.drop(self.scaled(x), training=training)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


class ComputesWithWhatItKeeps(ComputesWithItsRate):
    def scaled(self, x: Any) -> Any:
        return ops.where(ops.abs(x) > 50.0, x * self.kept * 0.3, x)


class ComputesInBranches(ComputesWithItsRate):
    def scaled(self, x: Any) -> Any:
        return tf.cond(tf.reduce_any(x > 20.0), lambda: x * self.rate, lambda: x)


class TokenDropout(ComputesWithItsRate):
    """Scales what is left of tokens that are masked, as ESM-2 does."""

    def scaled(self, x: Any) -> Any:
        masked = ops.mean(ops.cast(x == 32.0, "float32"), axis=-1, keepdims=True)
        return ops.where(masked > 0, x * self.kept / (1 - masked), x)


class WithItsRateAsSlope(ComputesWithItsRate):
    def scaled(self, x: Any) -> Any:
        return ops.leaky_relu(x, negative_slope=self.rate)


class WhereThereIsARate(ComputesWithItsRate):
    def scaled(self, x: Any) -> Any:
        return ops.relu(x) if self.rate else x


class KeepsTheLargest(ComputesWithItsRate):
    def scaled(self, x: Any) -> Any:
        smallest = ops.top_k(x, int(4 * self.kept))[0][:, -1:]
        return ops.where(x >= smallest, x, 0.0)


class DropsByValue(ComputesWithItsRate):
    """Computes with its rate in training mode alone, in a graph that holds both."""

    def call(self, x: Any, training: bool = False) -> Any:
        return ops.where(bool(training), keras.random.dropout(x, self.rate), x)


COMPUTING = [
    *(ComputesWithItsRate, ComputesWithWhatItKeeps, ComputesInBranches, TokenDropout),
    *(WithItsRateAsSlope, WhereThereIsARate, KeepsTheLargest),
]


FAR = np.array([[32.0, -80.0, 90.0, 3.0], [21.0, 0.5, -1.0, 19.0]], "float32")


def held_in(where: str, layer: keras.Layer) -> keras.Model:
    wrapped = [layers.Reshape((1, 4)), layers.TimeDistributed(layer), layers.Flatten()]
    stack = wrapped if where == "wrapper" else [layer]
    return keras.Sequential([keras.Input((4,)), *stack], name="base")


def frozen_branch(model: keras.Model, policy: Any) -> keras.Model:
    return freeze_and_merge({"base": model}, 1, dropout=policy, loss="mse").get_layer("base")


@pytest.mark.parametrize(
    ("kind", "made", "where"),
    [(kind, made, "alone") for kind in COMPUTING for made in (with_dropout, frozen_branch)]
    + [(ComputesWithItsRate, frozen_branch, "wrapper")],
)
def test_a_layer_that_computes_with_its_rate_keeps_it_and_is_locked(kind: Any, made: Any, where: str) -> None:
    model = held_in(where, kind(name="layer"))
    expected = helpers.array(model(FAR, training=False))
    silent = made(model, "off")
    for training in (True, False):
        np.testing.assert_array_equal(helpers.array(silent(FAR, training=training)), expected)
    with pytest.raises(ValueError, match=r"computes with its rates|does not compute what the layer computes"):
        made(model, "remove")


@pytest.mark.parametrize("policy", ["off", "remove"])
@pytest.mark.parametrize("made", [with_dropout, frozen_branch])
def test_a_rate_that_counts_in_training_mode_alone_is_set_to_0(made: Any, policy: Any) -> None:
    model = held_in("alone", DropsByValue(name="layer"))
    silent = made(model, policy)
    assert not any(isinstance(part, ModeLock) for part in _keras.walk(silent))
    for training in (True, False):
        np.testing.assert_array_equal(helpers.array(silent(FAR, training=training)), FAR)


class DropsWords(ComputesWithItsRate):
    """Puts the unknown word (2) in place of some, and of padding (0) where it drops any."""

    def call(self, ids: Any, training: bool = False) -> Any:
        if not self.rate:
            return ids
        ids = ops.where(ids == 0, 2, ids)
        return ops.where(keras.random.uniform(ops.shape(ids)) < self.rate, 2, ids) if training else ids


@pytest.mark.parametrize("made", [with_dropout, frozen_branch])
def test_a_rate_that_tells_on_padding_alone_is_kept(made: Any) -> None:
    ids = np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    base = keras.Sequential([keras.Input((4,), dtype="int32"), DropsWords(name="layer"), layers.Embedding(3, 2)])
    base.add(layers.Flatten())
    silent, expected = made(base, "off"), helpers.array(base(ids, training=False))
    for training in (True, False):
        np.testing.assert_array_equal(helpers.array(silent(ids, training=training)), expected)


class TestTimeNormalization(layers.BatchNormalization):
    """Normalizes with the statistics of the batch, whatever the mode: only while it is trainable."""

    __test__ = False

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return super().call(inputs, training=True, mask=mask)


def test_a_layer_that_computes_otherwise_once_it_is_frozen_is_an_error() -> None:
    model = zoo.sequential(keras.Input((3,)), TestTimeNormalization())
    with pytest.raises(ValueError, match=r"otherwise where `trainable` is False"):
        freeze_and_merge([model], head=1, loss="mse")


class Secretive(layers.Layer):
    """A layer that holds what nobody can look into, which decides what it computes only if it says so."""

    factors: Any = {}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.key = (number for number in (1, 2))

    def call(self, x: Any) -> Any:
        return x * self.factors.get(id(self.key), 1.0)


@pytest.mark.quick
def test_a_doubt_is_decided_by_a_call() -> None:
    assert_copied(model_of(Secretive(name="secretive")))
    base = model_of(Secretive(name="secretive"))
    Secretive.factors[id(base.layers[0].key)] = 3.0
    try:
        with pytest.raises(RebuildError, match=r"Layer 'secretive'.*its attribute 'key'.*computes something else"):
            branch_of(base)
        np.testing.assert_array_equal(outputs(branch_of(base, copy=False)), outputs(base))
    finally:
        Secretive.factors.clear()


FACTORS: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()


class Outside(layers.Layer):
    """Computes with a number that a table outside holds for it."""

    def call(self, x: Any) -> Any:
        return x * FACTORS.get(self, 1.0)


class ClipsByOutside(layers.Layer):
    """Which shows on large values alone."""

    def call(self, x: Any) -> Any:
        return keras.ops.clip(x, -FACTORS.get(self, 1e9), FACTORS.get(self, 1e9))


class TrainsByOutside(layers.Layer):
    """Which shows in training mode alone."""

    def call(self, x: Any, training: bool = False) -> Any:
        return x * FACTORS.get(self, 1.0) if training else x


@pytest.mark.parametrize("kind", [Outside, ClipsByOutside, TrainsByOutside])
def test_a_copy_that_misses_what_lies_outside_of_its_original_is_refused(kind: Any) -> None:
    layer = kind(name="outside")
    FACTORS[layer] = 3.0
    base = model_of(layer)
    expected = outputs(base)
    with pytest.raises(RebuildError, match=r"'outside' .*what lies outside of it.*`copy=False`"):
        with_dropout(base, "keep")
    np.testing.assert_array_equal(outputs(branch_of(base, copy=False)), expected)


class OutsideInACell(layers.Layer):
    """A cell that computes with a number that a table outside holds for it."""

    state_size = output_size = 2

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(input_shape[-1], 2), name="kernel")

    def call(self, x: Any, states: Any) -> Any:
        new = FACTORS.get(self, 1.0) * keras.ops.matmul(x, self.kernel) + states[0]
        return new, [new]


class OutsideInTime(Outside):
    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@pytest.mark.parametrize("wrap, kind", [(layers.RNN, OutsideInACell), (layers.TimeDistributed, OutsideInTime)])
def test_what_lies_outside_of_a_layer_in_a_wrapper_is_missed_as_well(wrap: Any, kind: Any) -> None:
    layer = kind()
    FACTORS[layer] = 3.0
    base = model_of(layers.Reshape((2, 4)), layers.Dense(3), wrap(layer, name="wrapper"), layers.Flatten())
    for make in (branch_of, lambda model: with_dropout(model, "off")):
        with pytest.raises(RebuildError, match=r"'wrapper' .*what lies outside of it"):
            make(base)


class ByMode(layers.Layer):
    def __init__(self, calm: float, live: float) -> None:
        super().__init__()
        self.calm, self.live = calm, live

    def call(self, x: Any, training: bool = False) -> Any:
        return x * (self.live if training else self.calm)


def doubting(factor: float, live: bool = False) -> Doubt:
    """A doubt about a layer whose copy computes something else in training mode, or in both."""
    x = keras.Input((3,))
    original, copy = ByMode(1.0, 2.0), ByMode(factor, 5.0)
    original(x)
    return Doubt(original, copy, "layer", "factor", live)


@pytest.mark.parametrize(
    ("doubt", "holds"),
    [(doubting(1.0), True), (doubting(1.0, live=True), False), (doubting(1.01), False)],
    ids=["equal where it counts", "live", "another factor"],
)
def test_what_is_in_doubt_is_tried_in_the_modes_that_count(doubt: Doubt, holds: bool) -> None:
    worked_on: list[Any] = []

    def working_on(original: Any) -> contextlib.AbstractContextManager[None]:
        worked_on.append(original)
        return contextlib.nullcontext()

    with contextlib.nullcontext() if holds else pytest.raises(RebuildError, match=r"'layer'.*its attribute 'factor'"):
        Unproved(doubts=[doubt, doubt]).check(working_on)
    assert worked_on == [doubt.original]  # once for each pair


@pytest.mark.parametrize(("layer", "refused"), [(layers.Dropout(0.5), False), (layers.Rescaling(1.1), True)])
def test_a_layer_that_was_left_out_must_give_back_what_it_gets(layer: Any, refused: bool) -> None:
    layer(keras.Input((3,)))
    with pytest.raises(RebuildError, match=r"'it'.*cannot be left out") if refused else contextlib.nullcontext():
        Unproved(left_out=[(layer, "it")]).check(lambda original: contextlib.nullcontext())

"""State and randomness that Keras does not see are found by what operations are, not by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import guarantees
import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers, ops
from test_hostile import silent_features

from keras_graft import _keras, audit, freeze_and_merge, split, with_dropout
from keras_graft._behaviour.findings import Row
from keras_graft._engine.errors import RebuildError


class Box:
    """An object of nobody's."""

    def __init__(self, value: Any) -> None:
        self.value = value


HELD: dict[str, Callable[[tf.Variable], Any]] = {
    "attribute": lambda variable: variable,
    "dict": lambda variable: {"n": variable},
    "object": Box,
    "closure": lambda variable: lambda: variable,
}
GIVEN: dict[str, Callable[[Any], tf.Variable]] = {
    "attribute": lambda held: held,
    "dict": lambda held: held["n"],
    "object": lambda held: held.value,
    "closure": lambda held: held(),
}


class Counts(layers.Layer):
    """Counts its calls in a variable that Keras does not track, and tells the count."""

    def __init__(self, how: str = "attribute", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.how, self.held = how, HELD[how](tf.Variable(0.0))

    def count(self) -> tf.Variable:
        return GIVEN[self.how](self.held)

    def call(self, x: Any) -> Any:
        self.count().assign_add(1.0)
        return x * self.count()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "how": self.how}


class CountsInTraining(Counts):
    def call(self, x: Any, training: bool = False) -> Any:
        return super().call(x) if training else x * self.count()


class CountsInPython(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.calls = 0

    def call(self, x: Any) -> Any:
        self.calls += 1
        return x * float(self.calls)


class DrawsFromNumpy(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + np.random.default_rng().normal(size=6).astype("float32")


class PoolsAtRandom(layers.Layer):
    def call(self, x: Any) -> Any:
        pixels = tf.reshape(tf.repeat(x, 6, axis=1), (-1, 6, 6, 1))
        return tf.reshape(tf.nn.fractional_max_pool(pixels, [1, 1.4, 1.4, 1])[0], (-1, 16))


class PoolsAtFixedPlaces(layers.Layer):
    def call(self, x: Any) -> Any:
        pixels = tf.reshape(tf.repeat(x, 6, axis=1), (-1, 6, 6, 1))
        return tf.reshape(tf.nn.fractional_max_pool(pixels, [1, 1.4, 1.4, 1], seed=3)[0], (-1, 16))


class DrawsFromAGenerator(layers.Layer):
    def __init__(self, how: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.how, self.generator = how, tf.random.Generator.from_seed(1)

    def call(self, x: Any) -> Any:
        draw = {
            "binomial": lambda: self.generator.binomial([6], 5.0, 0.5),
            "normal": lambda: self.generator.normal([6]),
            "truncated_normal": lambda: self.generator.truncated_normal([6]),
            "uniform": lambda: self.generator.uniform([6]),
            "uniform_full_int": lambda: self.generator.uniform_full_int([6]),
        }
        return x + tf.cast(draw[self.how](), "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "how": self.how}


class NoiseOfPython(layers.Layer):
    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return x
        noisy = tf.numpy_function(lambda a: a + np.random.normal(size=a.shape).astype("float32"), [x], tf.float32)
        return tf.ensure_shape(noisy, x.shape)


class DoublesInPython(layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.ensure_shape(tf.py_function(lambda a: 2 * a, [x], tf.float32), x.shape)


class LooksUp(layers.Layer):
    """Stateful operations that draw nothing: a table, a message, an assertion."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pairs = tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1], tf.int64), tf.constant([2.0, 3.0]))
        self.table = tf.lookup.StaticHashTable(pairs, 0.0)

    def call(self, x: Any) -> Any:
        tf.print("looking up", output_stream="file:///dev/null")
        tf.debugging.assert_greater(x, -100.0)
        return x + self.table.lookup(tf.cast(tf.debugging.check_numerics(x, "x"), tf.int64))


class Mode(layers.Layer):
    """Draws in both modes, to an effect in training mode alone."""

    def noisy(self, x: Any) -> Any:
        return x + keras.random.normal(ops.shape(x))


class WithWhere(Mode):
    def call(self, x: Any, training: bool = False) -> Any:
        return ops.where(bool(training), self.noisy(x), x)


class WithCond(Mode):
    def call(self, x: Any, training: bool = False) -> Any:
        return tf.cond(tf.constant(bool(training)), lambda: self.noisy(x), lambda: x)


class WithCast(Mode):
    def call(self, x: Any, training: bool = False) -> Any:
        return x + keras.random.normal(ops.shape(x)) * ops.cast(bool(training), "float32")


class WithSwitch(Mode):
    def call(self, x: Any, training: bool = False) -> Any:
        return ops.switch(int(bool(training)), [lambda y: y, self.noisy], x)


class WithThreshold(Mode):
    def call(self, x: Any, training: bool = False) -> Any:
        kept = keras.random.uniform(ops.shape(x)) >= 0.5 * float(bool(training))
        return x * ops.cast(kept, "float32")


def base_of(layer: keras.Layer) -> keras.Sequential:
    layer.name = "layer"
    return zoo.sequential(keras.Input((6,)), layers.Dense(6), layer)


def row_of(layer: keras.Layer) -> Row:
    return next(row for row in audit(base_of(layer)).rows if row.name == "layer")


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("kind", [Counts, CountsInTraining])
def test_a_variable_of_tensorflow_that_a_call_moves_is_found(kind: Any, held: str) -> None:
    layer = kind(held)
    base = base_of(layer)
    base.trainable = False
    found = audit(base)
    row = next(row for row in found.rows if row.name == "layer")
    assert (row.fit, row.changes) == ("changes its variables", True)
    assert float(layer.count()) == 0.0
    with pytest.raises(AssertionError, match="layer"):
        found.assert_frozen()


@pytest.mark.parametrize("policy", guarantees.POLICIES)
def test_a_layer_that_moves_a_variable_of_tensorflow_in_every_mode_is_refused(policy: Any) -> None:
    with pytest.raises(RebuildError, match=r"'layer'.*updates \['a variable that Keras does not track'\]"):
        freeze_and_merge([base_of(Counts())], 1, dropout=policy, loss="mse")


def test_a_variable_of_tensorflow_that_moves_in_training_stands_still_in_a_branch() -> None:
    branch = freeze_and_merge({"a": base_of(CountsInTraining())}, 1, dropout="keep", loss="mse").get_layer("a")
    branch(zoo.vectors(4), training=True)
    assert float(branch.get_layer("layer").layer.count()) == 0.0


@pytest.mark.parametrize("make", [Counts, CountsInPython, DrawsFromNumpy, PoolsAtRandom, DoublesInPython])
def test_what_may_change_from_call_to_call_is_not_computed_ahead(make: Callable[[], keras.Layer]) -> None:
    base = base_of(make())
    base.trainable = False
    model = zoo.sequential(keras.Input((6,)), base, layers.Dense(1))
    assert list(split(model).in_the_way) == [f"{base.name}/layer"]


CHANGING = [CountsInPython, DrawsFromNumpy, PoolsAtRandom]
GENERATED = ["binomial", "normal", "truncated_normal", "uniform"]


@pytest.mark.parametrize("make", CHANGING)
def test_what_changes_from_call_to_call_in_every_mode_cannot_be_silenced(make: Callable[[], keras.Layer]) -> None:
    with pytest.raises(RebuildError, match=r"'layer'.*even in inference mode"):
        freeze_and_merge([base_of(make())], 1, dropout="off", loss="mse")


@pytest.mark.parametrize("how", GENERATED)
def test_every_draw_of_a_generator_is_known(how: str) -> None:
    assert row_of(DrawsFromAGenerator(how)).predict == "draws random numbers"
    with pytest.raises(RebuildError, match=r"'layer'.*even in inference mode"):
        freeze_and_merge([base_of(DrawsFromAGenerator(how))], 1, dropout="off", loss="mse")


@pytest.mark.parametrize("make", [PoolsAtFixedPlaces, LooksUp])
def test_an_operation_with_a_seed_or_a_state_that_draws_nothing_is_still(make: Callable[[], keras.Layer]) -> None:
    assert (row_of(make()).fit, row_of(make()).predict) == ("", "")
    silent_features(base_of(make()), "off", zoo.vectors(8))


def test_noise_of_a_python_function_is_kept_live_by_always_and_silenced_by_off() -> None:
    base, data = base_of(NoiseOfPython()), zoo.vectors(8)
    silent_features(base, "off", data)
    live = freeze_and_merge({"a": base}, 1, dropout="always", loss="mse").get_layer("a")
    assert not np.allclose(live.predict(data, verbose=0), base.predict(data, verbose=0))


@pytest.mark.parametrize("policy", ["off", "remove"])
def test_a_python_function_that_gives_the_same_each_time_is_no_reason_to_refuse(policy: Any) -> None:
    silent_features(base_of(DoublesInPython()), policy, zoo.vectors(8))


@pytest.mark.parametrize("make", [WithWhere, WithCond, WithCast, WithSwitch, WithThreshold])
def test_numbers_that_are_drawn_to_no_effect_in_inference_mode_are_no_noise_there(make: Any) -> None:
    base = base_of(make())
    row = row_of(make())
    assert (row.fit, row.predict) == ("draws random numbers", "")
    silent_features(base, "off", zoo.vectors(8))
    live = freeze_and_merge({"a": base}, 1, dropout="always", loss="mse").get_layer("a")
    assert not np.allclose(live.predict(zoo.vectors(8), verbose=0), base.predict(zoo.vectors(8), verbose=0))


class AboveAHundred(Mode):
    """Noise that only the data hold back."""

    def call(self, x: Any) -> Any:
        return ops.where(x > 100, self.noisy(x), x)


class WhereTheSumIsLarge(Mode):
    def call(self, x: Any) -> Any:
        return ops.cond(ops.sum(x) > 1e4, lambda: self.noisy(x), lambda: x)


class TimesWhatIsLarge(Mode):
    def call(self, x: Any) -> Any:
        return x + keras.random.normal(ops.shape(x)) * ops.cast(x > 100, "float32")


class WhereAWeightIsLarge(Mode):
    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(), initializer="zeros")

    def call(self, x: Any) -> Any:
        return x + self.scale * keras.random.normal(ops.shape(x))


HELD_BACK_BY_DATA = [AboveAHundred, WhereTheSumIsLarge, TimesWhatIsLarge, WhereAWeightIsLarge]


@pytest.mark.parametrize("make", HELD_BACK_BY_DATA)
def test_noise_that_only_data_hold_back_is_noise(make: Any) -> None:
    assert row_of(make()).predict == "draws random numbers"
    with pytest.raises(RebuildError, match=r"'layer'.*even in inference mode"):
        freeze_and_merge([base_of(make())], 1, dropout="off", loss="mse")


@pytest.mark.parametrize("make", HELD_BACK_BY_DATA)
def test_noise_that_only_data_hold_back_is_not_computed_ahead(make: Any) -> None:
    base = base_of(make())
    base.trainable = False
    model = zoo.sequential(keras.Input((6,)), base, layers.Dense(1))
    assert list(split(model).in_the_way) == [f"{base.name}/layer"]


class SeldomDropsAll(layers.Layer):
    """Draws one number for the whole batch, and drops it once in a thousand calls."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any) -> Any:
        return ops.where(keras.random.uniform((), seed=self.seeds) < 0.001, 0.0, x)


def test_noise_that_is_seldom_seen_is_noise() -> None:
    assert row_of(SeldomDropsAll()).predict == "draws random numbers"
    with pytest.raises(RebuildError, match=r"'layer'.*even in inference mode"):
        freeze_and_merge([base_of(SeldomDropsAll())], 1, dropout="off", loss="mse")


class WithRate(layers.Layer):
    """Its mode and its rate are numbers of the graph."""

    def __init__(self, rate: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seeds = keras.random.SeedGenerator(3)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


class WithAnd(WithRate):
    def call(self, x: Any, training: bool = False) -> Any:
        dropped = keras.random.uniform(ops.shape(x), seed=self.seeds) < self.rate
        return ops.where(ops.logical_and(dropped, bool(training)), 0.0, x)


class WithBranches(WithRate):
    def call(self, x: Any, training: bool = False) -> Any:
        noisy = lambda y: keras.random.dropout(y, self.rate, seed=self.seeds)  # noqa: E731
        return ops.switch(int(bool(training)), [lambda y: y, noisy], x)


class DropPath(WithRate):
    """Stochastic depth as most write it."""

    def call(self, x: Any, training: bool = False) -> Any:
        kept = 1.0 - self.rate * float(bool(training))
        return x / kept * ops.floor(kept + keras.random.uniform((ops.shape(x)[0], 1), seed=self.seeds))


@pytest.mark.parametrize("policy", ["off", "remove"])
@pytest.mark.parametrize("make", [WithAnd, WithBranches, DropPath])
def test_rates_that_the_mode_shuts_off_are_set_to_0(make: Any, policy: Any) -> None:
    silent_features(base_of(make()), policy, zoo.vectors(8))
    assert row_of(make()).predict == ""


class MasksAtRandom(WithRate):
    """Puts its noise into the mask."""

    def call(self, x: Any, training: bool = False) -> Any:
        outputs = x * 1.0
        if training:
            kept = keras.random.dropout(ops.ones_like(x[..., 0]), self.rate, seed=self.seeds) > 0
            _keras.set_keras_mask(outputs, kept)
        return outputs

    def compute_mask(self, x: Any, mask: Any = None) -> None:
        return None


def masking_base() -> keras.Model:
    return zoo.sequential(keras.Input((6, 8)), MasksAtRandom(name="layer"), layers.GlobalAveragePooling1D())


def is_live(model: Any, training: bool) -> bool:
    x = np.random.default_rng(0).normal(size=(16, 6, 8)).astype("float32")
    first, *others = (helpers.array(model(x, training=training)) for _ in range(4))
    return not all(np.array_equal(first, other) for other in others)


LIVE = {"keep": (True, False), "off": (False, False), "remove": (False, False), "always": (True, True)}


@pytest.mark.parametrize("policy", LIVE)
def test_noise_in_masks_follows_the_policy(policy: Any) -> None:
    branch = freeze_and_merge({"a": masking_base()}, 1, dropout=policy, loss="mse").get_layer("a")
    for model in (branch, with_dropout(masking_base(), policy)):
        assert (is_live(model, True), is_live(model, False)) == LIVE[policy]


class MasksInEveryMode(layers.Layer):
    """Its mask is drawn, where Keras asks for it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any) -> Any:
        return x

    def compute_mask(self, x: Any, mask: Any = None) -> Any:
        return keras.random.uniform((4, 6), seed=self.seeds) > 0.5


def test_a_mask_that_is_drawn_is_noise() -> None:
    base = zoo.sequential(
        keras.Input((6, 8), batch_size=4), MasksInEveryMode(name="layer"), layers.GlobalAveragePooling1D()
    )
    base.trainable = False
    assert [row.predict for row in audit(base).rows if row.name == "layer"] == ["draws random numbers"]
    model = zoo.sequential(keras.Input((6, 8), batch_size=4), base, layers.Dense(1))
    assert list(split(model).in_the_way) == ["base/layer"]
    with pytest.raises(RebuildError, match=r"'layer'.*even in inference mode"):
        freeze_and_merge([base], 1, dropout="off", loss="mse")


ADAPTED: dict[str, Callable[[], tuple[keras.Layer, Any]]] = {
    "TextVectorization": lambda: (layers.TextVectorization(vocabulary=["a", "b"]), np.array([["a b"], ["b"]])),
    "StringLookup": lambda: (layers.StringLookup(vocabulary=["a", "b"]), np.array([["a"], ["b"]])),
    "IntegerLookup": lambda: (layers.IntegerLookup(vocabulary=[1, 2]), np.array([[1], [2]])),
    "Hashing": lambda: (layers.Hashing(3), np.array([["a"], ["b"]])),
}


@pytest.mark.parametrize("make", ADAPTED.values(), ids=ADAPTED)
def test_tables_of_keras_are_still(make: Any) -> None:
    layer, data = make()
    kind = "int64" if data.dtype.kind == "i" else "string"
    model = keras.Sequential([keras.Input((1,), dtype=kind), layer])
    assert {row.fit for row in audit(model).rows} == {""}
    assert list(split(model).in_the_way) == []

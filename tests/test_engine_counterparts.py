"""Every copy is what it was copied from, or there is none: against the predictions of the original."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from copied import FORGOTTEN, Center, X, assert_copied, branch_of, model_of, outputs
from keras import layers

from keras_graft import with_dropout
from keras_graft._engine.counterparts import Counterparts
from keras_graft._engine.errors import RebuildError


class Forgetting(layers.Layer):
    """A `get_config` that leaves an argument out."""

    def __init__(self, factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x: Any) -> Any:
        return x * self.factor

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


class Holding(layers.Layer):
    """It computes with whatever it was given later."""

    factor: Any = 1.0

    def give(self, **values: Any) -> Holding:
        for name, value in values.items():
            setattr(self, name, value)
        return self

    def call(self, x: Any) -> Any:
        return x * self.factor() if callable(self.factor) else x * self.factor


class Table:
    """An object with state."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __call__(self) -> Any:
        return self.rows


class Slotted:
    """An object with slots."""

    __slots__ = ("rows",)

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __call__(self) -> Any:
        return self.rows


class WithSlot(layers.Layer):
    """A layer with a slot."""

    __slots__ = ("factor",)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = 1.0

    def call(self, x: Any) -> Any:
        return x * self.factor


class WithProperty(layers.Layer):
    """State behind a property."""

    _hidden = 1.0

    @property
    def factor(self) -> float:
        return self._hidden

    @factor.setter
    def factor(self, value: float) -> None:
        self._hidden = value

    def call(self, x: Any) -> Any:
        return x * self.factor


class Drawn(layers.Layer):
    """Constants drawn in `build`, without a seed."""

    def build(self, shape: Any) -> None:
        self.array = np.random.normal(size=shape[-1]).astype("float32")
        self.tensor = tf.random.normal((shape[-1],))
        self.variable = tf.Variable(tf.random.normal((shape[-1],)))

    def call(self, x: Any) -> Any:
        return x * self.array + self.tensor - self.variable


class Scaled(layers.Dense):
    """A subclass of a layer of Keras with state of its own."""

    scale = 1.0

    def call(self, x: Any, training: Any = None) -> Any:
        return super().call(x) * self.scale


class Composite(layers.Layer):
    """Sublayers that state is in."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = {"first": [Center()], "second": layers.Dense(3)}

    def build(self, shape: Any) -> None:
        self.parts["first"][0].build(shape)
        self.parts["second"].build(shape)
        self.built = True

    def call(self, x: Any) -> Any:
        return self.parts["second"](self.parts["first"][0](x))


def with_slot() -> keras.Layer:
    layer = WithSlot()
    layer.factor = 3.0
    return layer


def with_property() -> keras.Layer:
    layer = WithProperty()
    layer.factor = 3.0
    return layer


def scaled() -> keras.Layer:
    layer = Scaled(3)
    layer.scale = FORGOTTEN[:3]
    return layer


def composite() -> keras.Layer:
    layer = Composite()
    layer.parts["first"][0].fit_to(X)
    return layer


def with_a_reference_to_itself() -> keras.Layer:
    layer = Holding()
    return layer.give(number=5.0, factor=lambda: layer.number)


HIDDEN: dict[str, Callable[[], keras.Layer]] = {
    "a class attribute set on the instance": lambda: Center().fit_to(X),
    "an argument that get_config forgets": lambda: Forgetting(5.0),
    "an array": lambda: Holding().give(factor=FORGOTTEN),
    "a tensor": lambda: Holding().give(factor=tf.constant(FORGOTTEN)),
    "a variable of TensorFlow": lambda: Holding().give(factor=tf.Variable(FORGOTTEN)),
    "an object": lambda: Holding().give(factor=Table(FORGOTTEN)),
    "an object with slots": lambda: Holding().give(factor=Slotted(FORGOTTEN)),
    "a variable in an object in a list": lambda: Holding().give(
        held=[Table(tf.Variable(3.0))], factor=Table(tf.Variable(FORGOTTEN))
    ),
    "a closure": lambda: Holding().give(factor=lambda rows=FORGOTTEN: rows),
    "a closure over the layer": with_a_reference_to_itself,
    "a bound method": lambda: Holding().give(factor=Table(FORGOTTEN).__call__),
    "a partial function": lambda: Holding().give(factor=functools.partial(np.multiply, FORGOTTEN, 2)),
    "a slot": with_slot,
    "a property": with_property,
    "constants drawn in build": Drawn,
    "a subclass of Dense": scaled,
    "sublayers in dicts and lists": composite,
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_no_config_carries_is_handed_over(what: str) -> None:
    assert_copied(model_of(HIDDEN[what](), layers.Dense(3)))


@pytest.mark.parametrize("what", ["an array", "a variable of TensorFlow", "a variable in an object in a list"])
def test_what_is_handed_over_is_not_shared(what: str) -> None:
    base = model_of(HIDDEN[what](), layers.Dense(3))
    copy = with_dropout(base, "keep")
    before = outputs(copy)
    held = base.layers[0].factor
    held = held.rows if isinstance(held, Table) else held
    held.assign(held * 2) if isinstance(held, tf.Variable) else np.multiply(held, 2, out=held)
    np.testing.assert_array_equal(outputs(copy), before)
    assert (outputs(base) != before).any()
    FORGOTTEN[:] = np.arange(8)


def patched_call(layer: keras.Layer) -> None:
    usual = layer.call
    layer.call = lambda x, training=None: usual(x) * 2


def patched_method(layer: keras.Layer) -> None:
    layer.call = types.MethodType(lambda self, x, training=None: x @ self.kernel * 3, layer)


@pytest.mark.parametrize("patch", [patched_call, patched_method])
def test_a_replaced_call_of_a_layer_is_copied_with_the_weights_of_the_copy(patch: Callable[..., None]) -> None:
    base = model_of(layers.Dense(3, name="dense"))
    patch(base.get_layer("dense"))
    base = keras.Sequential([keras.Input((8,)), base.get_layer("dense")], name="patched")
    assert_copied(base)
    copy = with_dropout(base, "keep")
    before = outputs(copy)
    base.get_layer("dense").kernel.assign(base.get_layer("dense").kernel * 2)
    np.testing.assert_array_equal(outputs(copy), before)


def test_a_replaced_compute_mask_is_copied() -> None:
    embedding = layers.Embedding(5, 4, mask_zero=True)
    embedding.compute_mask = lambda x, mask=None: keras.ops.not_equal(x, 3)
    x = keras.Input((6,), dtype="int32")
    base = keras.Model(x, layers.LSTM(3)(embedding(x)), name="base")
    assert_copied(base, np.array([[1, 2, 3, 3, 0, 0], [3, 1, 1, 0, 3, 2]]))


class Offset(keras.Operation):
    """An operation with state of its own."""

    offset = 0.0

    def call(self, x: Any) -> Any:
        return x + self.offset

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, dtype=x.dtype)


@pytest.mark.quick
def test_the_state_of_an_operation_is_copied() -> None:
    x, operation = keras.Input((8,)), Offset()
    operation.offset = FORGOTTEN
    assert_copied(keras.Model(x, operation(x), name="base"))


def test_one_cell_twice_stays_one() -> None:
    cell = layers.LSTMCell(2)
    base = keras.Sequential([keras.Input((4, 2)), layers.RNN(layers.StackedRNNCells([cell, cell]))], name="base")
    x = np.random.default_rng(0).normal(size=(5, 4, 2)).astype("float32")
    assert_copied(base, x)
    assert len(with_dropout(base, "keep").weights) == len(base.weights)


def test_rates_that_no_config_carries_are_copied() -> None:
    class Dropping(layers.Layer):
        rate = 0.0

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.seeds = keras.random.SeedGenerator(1)

        def call(self, x: Any, training: bool = False) -> Any:
            return keras.random.dropout(x, self.rate, seed=self.seeds) if training else x

    layer = Dropping()
    layer.rate = 0.5
    branch = branch_of(model_of(layer), dropout="keep")
    assert (outputs(branch, training=True) == 0).mean() > 0.2


class DropsInAnObject(layers.Layer):
    """Its Dropout lies in an object that Keras does not look into."""

    def build(self, input_shape: Any) -> None:
        self.held = types.SimpleNamespace(drop=layers.Dropout(0.5))

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.held.drop(inputs, training=training)


@pytest.mark.parametrize("policy", ["keep", "always"])
def test_noise_in_an_object_of_ones_own_is_live(policy: Any) -> None:
    base = model_of(DropsInAnObject(), layers.Dense(4))
    branch = branch_of(base, dropout=policy)
    assert not np.array_equal(outputs(branch, training=True), outputs(branch, training=True))
    if policy == "keep":
        np.testing.assert_array_equal(outputs(branch), outputs(base))


def test_a_stateful_layer_that_has_run_is_copied_with_states_of_its_own():
    x = keras.Input(batch_shape=(6, 2, 4))
    base = keras.Model(x, layers.LSTM(3, stateful=True)(x), name="base")
    data = X.reshape(6, 2, 4)
    expected = outputs(base, data)
    copy = with_dropout(base, "keep")
    np.testing.assert_array_equal(outputs(copy, data), expected)  # it begins anew
    assert np.abs(outputs(base, data) - expected).max() > 0


def test_an_operation_that_cannot_be_copied_names_a_way_out_for_operations() -> None:
    inputs, x = keras.Input((8,)), keras.Input((8,))
    function = keras.Function(inputs, keras.ops.relu(inputs))
    with pytest.raises(RebuildError, match=r"Operation 'function.*compute the same in a layer of your own"):
        branch_of(keras.Model(x, function(x), name="base"))


# ---------------------------------------------------------------------------------------------------------
# What is nearly the same
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.array, np.ma.array, lambda values: np.array(values, object), tf.Variable])
def test_arrays_and_variables_are_alike_where_they_are_equal_and_not_shared(make: Any) -> None:
    one = make([1.0, 2.0])
    assert Counterparts().alike(one, make([1.0, 2.0]))
    for other in (one, make([1.0, 3.0]), make([[1.0, 2.0]]), [1.0, 2.0]):
        assert not Counterparts().alike(one, other)


def test_weak_references_are_alike_where_what_they_refer_to_is() -> None:
    one, same, other = Table(1.0), Table(1.0), Table(2.0)
    assert Counterparts().alike(weakref.ref(one), weakref.ref(same))
    assert not Counterparts().alike(weakref.ref(one), weakref.ref(other))
    assert not Counterparts().alike(weakref.ref(one), same)


class Steps(layers.Layer):
    """Goes through a dict in its order."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = {"times": 3.0, "plus": 1.0}

    def call(self, x: Any) -> Any:
        for name, value in self.steps.items():
            x = x * value if name == "times" else x + value
        return x


class Blocks(layers.Layer):
    """Goes through layers in a dict in their order."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.blocks = {"a": layers.Dense(8, activation="relu"), "b": layers.Dense(8)}

    def build(self, input_shape: Any) -> None:
        for block in self.blocks.values():
            block.build(input_shape)

    def call(self, x: Any) -> Any:
        for block in self.blocks.values():
            x = block(x)
        return x


class OfFunction(layers.Layer):
    """Its function holds a value among its attributes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

        def scaled(x: Any) -> Any:
            return x * scaled.factor  # type: ignore[attr-defined]

        scaled.factor = 1.0  # type: ignore[attr-defined]
        self.scaled = scaled

    def call(self, x: Any) -> Any:
        return self.scaled(x)


class Number(float):
    """A number with an attribute."""

    more = 0.0


class OfValue(layers.Layer):
    """Computes with a value of a kind of its own, which a test replaces."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._self_attention_scale: Any = 1.0
        self.masked = np.ma.array(np.ones(8, "float32"))
        self.number = Number(2.0)
        self.partial = functools.partial(np.add, 0.0)

    def call(self, x: Any) -> Any:
        x = x * self._self_attention_scale + self.number.more + getattr(self.partial, "more", 0.0)
        return x * self.masked.filled(0)


def reordered_steps() -> keras.Layer:
    layer = Steps()
    layer.steps = {"plus": 1.0, "times": 3.0}
    return layer


def reordered_layers() -> keras.Layer:
    layer = Blocks()
    layer.blocks = {"b": layer.blocks["b"], "a": layer.blocks["a"]}
    return layer


def attribute_of_a_function() -> keras.Layer:
    layer = OfFunction()
    layer.scaled.factor = 5.0
    return layer


def of_value(change: Callable[[Any], None]) -> keras.Layer:
    layer = OfValue()
    change(layer)
    return layer


NEARLY: dict[str, Callable[[], keras.Layer]] = {
    "the order of a dict": reordered_steps,
    "the order of layers in a dict": reordered_layers,
    "an attribute of a function": attribute_of_a_function,
    "a name that begins as those of TensorFlow": lambda: of_value(lambda it: setattr(it, "_self_attention_scale", 4.0)),
    "a mask": lambda: of_value(lambda it: it.masked.__setitem__(slice(2, 4), np.ma.masked)),
    "an attribute of a number": lambda: of_value(lambda it: setattr(it.number, "more", 4.0)),
    "an attribute of a partial function": lambda: of_value(lambda it: setattr(it.partial, "more", 4.0)),
}


@pytest.mark.parametrize("what", NEARLY)
def test_what_is_nearly_the_same_is_copied(what: str) -> None:
    assert_copied(model_of(NEARLY[what](), layers.Dense(3)))

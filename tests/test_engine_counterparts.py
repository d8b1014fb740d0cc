"""Every copy is what it was copied from, or there is none: against the predictions of the original."""

from __future__ import annotations

import functools
import pathlib
import types
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_graft as kg
from keras_graft import _keras, freeze_and_merge, with_dropout
from keras_graft._engine.errors import RebuildError

X = np.random.default_rng(0).normal(3.0, 2.0, (6, 8)).astype("float32")
FORGOTTEN = np.arange(8, dtype="float32")


def model_of(*parts: keras.Layer, name: str = "base") -> keras.Model:
    return keras.Sequential([keras.Input((8,)), *parts], name=name)


def outputs(model: Any, x: Any = X, **mode: Any) -> np.ndarray:
    return np.asarray(model(x, **(mode or {"training": False})))


def branch_of(base: keras.Model, **options: Any) -> Any:
    merged = freeze_and_merge([base], head=1, loss="mse", **options)
    return merged.get_layer(base.name)


def assert_copied(base: keras.Model, x: Any = X) -> None:
    """The original says what is right: its copy in a merged model, and the one with dropout, compute the same bits."""
    expected = outputs(base, x)
    np.testing.assert_array_equal(outputs(branch_of(base), x), expected)
    np.testing.assert_array_equal(outputs(with_dropout(base, "keep"), x), expected)
    np.testing.assert_array_equal(outputs(base, x), expected)


class Center(layers.Layer):
    """State in plain attributes, set after construction."""

    mean: Any = 0.0

    def fit_to(self, x: np.ndarray) -> Center:
        self.mean = x.mean(0)
        return self

    def call(self, x: Any) -> Any:
        return x - self.mean


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


def test_a_replaced_call_of_a_graph_model_is_refused() -> None:
    base = model_of(layers.Dense(3))
    usual = base.call
    base.call = lambda *args, **kwargs: usual(*args, **kwargs) * 2
    with pytest.raises(RebuildError, match=r"Model 'base'.*its attribute 'call'.*subclass of keras.Model"):
        branch_of(base)


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


def gelu(x: Any) -> Any:
    return x * 7.0


def relu(x: Any) -> Any:
    return -x


def swish2(x: Any) -> Any:
    return x * keras.ops.sigmoid(2 * x)


class Twice:
    """A callable object."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Any) -> Any:
        return x * self.factor


ACTIVATIONS: dict[str, Any] = {
    "the name of a built-in": gelu,
    "the name of another built-in": relu,
    "a function that is not registered": swish2,
    "a lambda": lambda x: x * 3,
    "a partial function": functools.partial(keras.ops.multiply, 5.0),
    "a callable object": Twice(4.0),
    "a bound method": Twice(6.0).__call__,
}


@pytest.mark.parametrize("what", ACTIVATIONS)
@pytest.mark.parametrize("scope", [False, True])
def test_activations_are_the_very_functions(what: str, scope: bool) -> None:
    inputs = keras.Input((8,))
    x = layers.Reshape((2, 4))(layers.Dense(8, activation=ACTIVATIONS[what])(inputs))
    x = layers.LSTM(3, activation=ACTIVATIONS[what], return_sequences=True)(x)
    x = layers.TimeDistributed(layers.Dense(2, activation=ACTIVATIONS[what]))(x)
    base = keras.Model(inputs, layers.Flatten()(x), name="base")
    with keras.saving.custom_object_scope({"swish2": swish2} if scope else {}):
        assert_copied(base)


def test_a_function_with_the_name_of_a_built_in_is_the_users_also_when_sampling() -> None:
    base = model_of(layers.Dense(8, activation=gelu), layers.Dense(2))
    sample = kg.predict_samples(freeze_and_merge([base], head=layers.Dropout(0.5), loss="mse"), X, 1, seed=0).mean
    expected = base.predict(X, verbose=0)
    assert np.isclose(sample, 2 * expected, rtol=1e-4).mean() > 0.2
    assert (np.isclose(sample, 2 * expected, rtol=1e-4) | (sample == 0)).all()


class Ones(keras.initializers.Initializer):
    """An initialiser that is not registered."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return keras.ops.ones(shape, dtype=dtype)


class Weighty(keras.regularizers.Regularizer):
    """A regulariser that is not registered, and forgets its argument."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, x: Any) -> Any:
        return self.factor * keras.ops.sum(keras.ops.abs(x))


class Capped(keras.constraints.Constraint):
    """A constraint that is not registered, and forgets its argument."""

    def __init__(self, limit: float = 1.0) -> None:
        self.limit = limit

    def __call__(self, w: Any) -> Any:
        return keras.ops.clip(w, -self.limit, self.limit)


def test_initializers_regularizers_and_constraints_need_no_registration() -> None:
    dense = layers.Dense(3, kernel_initializer=Ones(), kernel_regularizer=Weighty(4.0), kernel_constraint=Capped(0.25))
    base = model_of(dense)
    assert_copied(base)
    copy = with_dropout(base, "keep")
    np.testing.assert_allclose(float(copy.losses[0]), float(base.losses[0]))
    kernel = copy.layers[0].kernel
    np.testing.assert_array_equal(np.asarray(kernel.constraint(kernel)), np.full((8, 3), 0.25))


def test_a_function_that_is_no_class_does_as_initializer() -> None:
    assert_copied(model_of(layers.Dense(3, kernel_initializer=lambda shape, dtype: keras.ops.ones(shape))))


def test_a_scope_of_the_user_holds_while_copying() -> None:
    class Inner(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 2

    class Outer(layers.Layer):
        def __init__(self, made_from: str = "Inner", **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.made_from = made_from
            self.kind = keras.saving.get_registered_object(made_from) or keras.layers.Identity

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "made_from": self.made_from}

        def call(self, x: Any) -> Any:
            return x * (2 if self.kind is Inner else 1)

    with keras.saving.custom_object_scope({"Inner": Inner}):
        assert_copied(model_of(Outer()))


def named_scale(factor: float) -> type[layers.Layer]:
    class Scale(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * factor

    return Scale


@pytest.mark.parametrize("wrap", [layers.Pipeline])
def test_two_classes_of_one_name_stay_two(wrap: Any) -> None:
    assert_copied(model_of(wrap([named_scale(2.0)(), named_scale(5.0)()])))


@pytest.mark.parametrize("global_policy", ["float32", "mixed_bfloat16"])
def test_autocast_and_maps_of_policies_are_copied(global_policy: str) -> None:
    class Plain(layers.Layer):
        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, x: Any) -> Any:
            return keras.ops.cast(x, "float32") * keras.ops.cast(self.scale, "float32") / 3

    policy = keras.dtype_policies.DTypePolicy
    mapped = keras.dtype_policies.DTypePolicyMap(policy("mixed_bfloat16"), {"base/exact": policy("float32")})
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(global_policy)
    try:
        base = model_of(
            Plain(autocast=False, dtype="mixed_bfloat16"),
            layers.Dense(4, dtype=mapped, name="exact"),
            layers.Dense(3, dtype=mapped, name="coarse"),
        )
        copy = with_dropout(base, "keep")
        assert [layer.compute_dtype for layer in copy.layers] == [layer.compute_dtype for layer in base.layers]
        assert outputs(copy).dtype == outputs(base).dtype
        assert_copied(base)
    finally:
        keras.config.set_dtype_policy(before)


def test_a_lambda_with_a_callable_mask_is_copied() -> None:
    x = keras.Input((4, 2))
    masked = layers.Lambda(lambda t: t * 2, mask=lambda t, mask=None: t[..., 0] > 0, output_shape=(4, 2))(x)
    base = keras.Model(x, layers.LSTM(3)(masked), name="base")
    assert_copied(base, np.random.default_rng(0).normal(size=(5, 4, 2)).astype("float32"))


def test_one_cell_twice_stays_one() -> None:
    cell = layers.LSTMCell(2)
    base = keras.Sequential([keras.Input((4, 2)), layers.RNN(layers.StackedRNNCells([cell, cell]))], name="base")
    x = np.random.default_rng(0).normal(size=(5, 4, 2)).astype("float32")
    assert_copied(base, x)
    assert len(with_dropout(base, "keep").weights) == len(base.weights)


class Opaque(keras.Model):
    """A subclassed model with state that its config does not carry."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.center = Center()
        self.dense = layers.Dense(3)
        self.shift: Any = None

    def call(self, x: Any) -> Any:
        return self.dense(self.center(x)) + (0.0 if self.shift is None else self.shift)


def test_a_subclassed_model_keeps_its_hidden_state() -> None:
    base = Opaque(name="base")
    base.center.fit_to(X)
    base.shift = tf.Variable([1.0, 2.0, 3.0])
    base(X)
    base.compile("sgd", "mse")
    base.fit(X, X[:, :3], verbose=0)
    assert_copied(base)


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


def test_copy_false_leaves_flags_that_tell_the_truth() -> None:
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(4)], name="inner")
    x = keras.Input((8,))
    base = keras.Model(x, layers.Dense(3)(inner(x)), name="base")
    freeze_and_merge([base], head=1, loss="mse", copy=False)
    assert not any(part.trainable for part in _keras.walk(base))
    base.trainable = True
    assert len(base.trainable_variables) == 4


def test_copy_false_leaves_a_part_that_is_not_used_trainable() -> None:
    base = model_of(layers.Dense(4, name="used"), layers.Dense(3, name="unused"))
    freeze_and_merge([kg.Branch(base, output="used")], head=1, loss="mse", copy=False)
    unused = base.get_layer("unused")
    assert list(map(id, base.trainable_variables)) == [id(unused.kernel), id(unused.bias)]


class Quantizable(keras.Model):
    """A Functional subclass whose config tells of quantization by a map of dtype policies, as KerasHub backbones do."""

    def __init__(self, dtype: Any = None, **kwargs: Any) -> None:
        x = keras.Input((8,))
        hidden = layers.LayerNormalization(dtype=dtype, name="norm")(layers.Dense(6, dtype=dtype, name="first")(x))
        super().__init__(x, layers.Dense(4, dtype=dtype, name="second")(hidden), **kwargs)

    def get_config(self) -> dict[str, Any]:
        policies = keras.dtype_policies.DTypePolicyMap()
        for layer in self.layers:
            if layer.quantization_mode is not None:
                policies[layer.path] = layer.dtype_policy
        return {"name": self.name, "dtype": policies if len(policies) else None}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        if isinstance(config["dtype"], dict):
            config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        return cls(**config)


def test_no_dtype_policy_but_those_of_the_copy_is_written_to(tmp_path: pathlib.Path) -> None:
    base = Quantizable(name="base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a normalisation cannot be quantized
        base.quantize("int8")
    shared = [keras.config.dtype_policy(), *(layer.dtype_policy for layer in base.layers)]
    before = [dict(vars(policy)) for policy in shared]
    model = freeze_and_merge([base], head=1, loss="mse")
    model.get_config()
    kg.audit(model)
    model.save(tmp_path / "model.keras")
    assert [vars(policy) for policy in shared] == before
    known = {"Quantizable": Quantizable}
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=known, compile=False)
    np.testing.assert_array_equal(outputs(loaded), outputs(model))
    np.testing.assert_array_equal(outputs(branch_of(base)), outputs(base))


def test_an_operation_that_cannot_be_copied_names_a_way_out_for_operations() -> None:
    inputs, x = keras.Input((8,)), keras.Input((8,))
    function = keras.Function(inputs, keras.ops.relu(inputs))
    with pytest.raises(RebuildError, match=r"Operation 'function.*compute the same in a layer of your own"):
        branch_of(keras.Model(x, function(x), name="base"))


# ---------------------------------------------------------------------------------------------------------
# What looks like bookkeeping, and what is
# ---------------------------------------------------------------------------------------------------------


class OnDense(keras.Model):
    """A subclassed model with one dense layer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)
        super().build(input_shape)


class NamesOfTraining(OnDense):
    """Keeps what it computes with under names that Keras uses when it compiles and trains."""

    def call(self, x: Any) -> Any:
        return self.dense(x - self.loss) * self.history[0]


def test_what_a_model_keeps_under_the_names_of_training_is_copied():
    inner = NamesOfTraining(name="inner")
    inner.loss, inner.history = FORGOTTEN, [2.0]
    base = model_of(inner)
    base(X)
    assert_copied(base)


def test_what_keras_keeps_when_it_compiles_and_trains_is_no_part_of_a_copy():
    base = model_of(layers.Dense(3))
    base.compile("sgd", "mse")
    base.fit(X, np.ones((6, 3), "float32"), verbose=0)
    assert_copied(base)
    assert not with_dropout(base, "off").compiled


def test_a_stateful_layer_that_has_run_is_copied_with_states_of_its_own():
    x = keras.Input(batch_shape=(6, 2, 4))
    base = keras.Model(x, layers.LSTM(3, stateful=True)(x), name="base")
    data = X.reshape(6, 2, 4)
    expected = outputs(base, data)
    copy = with_dropout(base, "keep")
    np.testing.assert_array_equal(outputs(copy, data), expected)  # it begins anew
    assert np.abs(outputs(base, data) - expected).max() > 0


# ---------------------------------------------------------------------------------------------------------
# What is nearly the same
# ---------------------------------------------------------------------------------------------------------


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


class NamesOfGraphs(keras.Model):
    """Keeps what it computes with under names in which Keras keeps what a graph is connected to."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)
        self._outputs = 1.0

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        return self.dense(x) * self._outputs


def test_what_a_model_with_a_call_of_its_own_keeps_under_the_names_of_graphs_is_copied() -> None:
    inner = NamesOfGraphs(name="inner")
    inner._outputs = 3.0
    base = model_of(inner)
    base(X)
    assert_copied(base)


class ByName(OnDense):
    """Computes with its name, which no config of a model with arguments of its own carries."""

    def call(self, x: Any) -> Any:
        return self.dense(x) * {"three": 3.0}.get(self.name, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {}


def test_a_copy_has_the_name_of_its_original() -> None:
    inner = ByName(name="three")
    base = model_of(inner)
    base(X)
    assert_copied(base)
    np.testing.assert_array_equal(outputs(with_dropout(inner, "off")), outputs(inner))


# ---------------------------------------------------------------------------------------------------------
# What Keras lets people set on variables, models and in scopes
# ---------------------------------------------------------------------------------------------------------


def test_what_was_set_on_a_variable_is_copied() -> None:
    base = model_of(layers.Dense(2, name="dense"))
    bias = base.get_layer("dense").bias
    bias.overwrite_with_gradient = True
    bias.rate_factor = 0.1
    copy = with_dropout(base, "keep")
    assert copy.get_layer("dense").bias.rate_factor == 0.1
    for model in (base, copy):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(X, X[:, :2], shuffle=False, verbose=0)
    np.testing.assert_array_equal(copy.get_layer("dense").bias.numpy(), bias.numpy())


@pytest.mark.parametrize("policy", ["keep", "off", "remove"])
def test_layers_made_to_be_computed_twice_stay_so(policy: Any) -> None:
    with keras.RematScope(mode="full"):
        base = model_of(layers.Dense(6, name="made"), layers.Dropout(0.5), layers.LayerNormalization())
    copy = with_dropout(base, policy)
    assert copy.get_layer("made")._remat_mode.mode == "full"
    plain = model_of(layers.Dense(6, name="made"))
    with keras.RematScope(mode="full"):
        plain = with_dropout(plain, policy)
    assert plain.get_layer("made")._remat_mode is None


@pytest.mark.parametrize("kind", ["sequential", "functional", "nested"])
def test_data_set_on_a_graph_model_are_copied(kind: str) -> None:
    base = model_of(layers.Dropout(0.5), layers.Dense(2))
    if kind == "functional":
        base = keras.Model(base.inputs, base.outputs)
    base.temperature, base.class_names, base.bounds = tf.Variable(2.0), ["x", "y"], {"low": np.zeros(3)}
    base.last = base.layers[-1]  # no data: a copy has a layer of its own
    copy = with_dropout(model_of(base) if kind == "nested" else base, "off")
    copied = copy.layers[-1] if kind == "nested" else copy
    assert copied.temperature.numpy() == 2.0 and copied.temperature is not base.temperature
    assert list(copied.class_names) == ["x", "y"]
    assert copied.bounds["low"].tolist() == [0.0, 0.0, 0.0] and copied.bounds["low"] is not base.bounds["low"]
    assert not hasattr(copied, "last")
    assert len(copied.weights) == 2


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


def in_capitals(text: Any) -> Any:
    return tf.strings.upper(text)


@pytest.mark.parametrize(
    "standardize", [in_capitals, lambda text: tf.strings.lower(text) + "!"], ids=["named", "lambda"]
)
@pytest.mark.parametrize("split", ["whitespace", lambda text: tf.strings.split(text, "t")], ids=["word", "lambda"])
def test_text_vectorization_with_functions_of_ones_own_is_copied(standardize: Any, split: Any) -> None:
    """Keras leaves these functions as they are in its config, and its `from_config` does not take that."""
    texts = np.array([["the Cat sat"], ["a dog"]], dtype=object)
    layer = layers.TextVectorization(standardize=standardize, split=split)
    layer.adapt(texts)
    x = keras.Input((1,), dtype="string")
    base = keras.Model(x, layers.Dropout(0.5)(layers.Embedding(20, 3)(layer(x))))
    data = tf.constant(texts.tolist())
    np.testing.assert_array_equal(outputs(with_dropout(base, "off"), data, training=True), outputs(base, data))

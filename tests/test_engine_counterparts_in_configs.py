"""What configs name, and what they leave to names, scopes and policies, is the same in a copy."""

from __future__ import annotations

import functools
import pathlib
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from copied import X, assert_copied, branch_of, model_of, named_scale, outputs
from keras import layers

import keras_graft as kg
from keras_graft import freeze_and_merge, with_dropout


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


def test_a_lambda_with_a_callable_mask_is_copied() -> None:
    x = keras.Input((4, 2))
    masked = layers.Lambda(lambda t: t * 2, mask=lambda t, mask=None: t[..., 0] > 0, output_shape=(4, 2))(x)
    base = keras.Model(x, layers.LSTM(3)(masked), name="base")
    assert_copied(base, np.random.default_rng(0).normal(size=(5, 4, 2)).astype("float32"))


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


# ---------------------------------------------------------------------------------------------------------
# Names, scopes and policies
# ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("wrap", [layers.Pipeline])
def test_two_classes_of_one_name_stay_two(wrap: Any) -> None:
    assert_copied(model_of(wrap([named_scale(2.0)(), named_scale(5.0)()])))


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

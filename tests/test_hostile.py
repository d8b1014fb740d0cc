"""Models that once broke a guarantee, each under the name of what it does."""

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
from keras import layers

from keras_graft import Branch, ModeLock, freeze_and_merge, with_dropout
from keras_graft._engine.errors import RebuildError

SILENT = ("off", "remove")


def silent_features(base: keras.Model, policy: Any, data: Any) -> None:
    """Asserts that a branch gives the inference features of its base, in training mode too."""
    expected = helpers.array(base(data, training=False))
    branch = freeze_and_merge({"a": base}, 1, dropout=policy, loss="mse").get_layer("a")
    np.testing.assert_array_equal(helpers.array(branch(data, training=True)), expected)
    np.testing.assert_array_equal(helpers.array(branch(data, training=False)), expected)


def lambda_of_a_list() -> keras.layers.Layer:
    held = [layers.Dropout(0.5)]
    return layers.Lambda(lambda x: held[0](2.0 * x))


def lambda_of_a_default() -> keras.layers.Layer:
    hidden = layers.Dropout(0.5)
    return layers.Lambda(lambda x, drop=hidden: drop(x))


def lambda_of_a_helper() -> keras.layers.Layer:
    drop = layers.Dropout(0.5)

    def helper(x: Any) -> Any:
        return drop(x)

    return layers.Lambda(lambda x: helper(x) * 1.0)


class Holder:
    """An object that Keras does not look into."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        self.layer = layer


class Hiding(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.held = Holder(layers.Dropout(0.5))

    def call(self, x: Any) -> Any:
        return self.held.layer(x)


@pytest.mark.parametrize("policy", SILENT)
@pytest.mark.parametrize("hide", [lambda_of_a_list, lambda_of_a_default, lambda_of_a_helper, Hiding])
def test_noise_hidden_from_keras_is_found_and_silenced(hide: Callable[[], keras.layers.Layer], policy: str) -> None:
    base = zoo.sequential(keras.Input((6,)), layers.Dense(5), hide())
    try:
        silent_features(base, policy, zoo.vectors(8))
    except RebuildError as error:
        assert policy == "remove"
        assert "hangs on no argument" in str(error)


class CountsAlways(layers.Layer):
    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x: Any) -> Any:
        self.count.assign_add(1.0)
        return x


@pytest.mark.parametrize("policy", guarantees.POLICIES)
def test_a_layer_that_updates_its_state_in_every_mode_is_refused(policy: Any) -> None:
    base = keras.Sequential([keras.Input((6,)), CountsAlways(name="counts")])
    with pytest.raises(RebuildError, match=r"'counts'.*updates \['.*count'\] even in inference mode"):
        freeze_and_merge([base], 1, dropout=policy, loss="mse")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("last", [False, True])
def test_removing_a_dropout_that_casts_keeps_its_cast(dtype: str, last: bool) -> None:
    stack = [layers.Dense(5, dtype="float32"), layers.Dropout(0.5, dtype=dtype), layers.Dense(4, dtype="float32")]
    base = zoo.sequential(keras.Input((6,)), *stack[: 2 if last else 3])
    silent_features(base, "remove", zoo.vectors(8))


def test_a_dropout_that_feeds_two_outputs_from_one_input_can_be_removed() -> None:
    drop, x = layers.Dropout(0.5), keras.Input((6,))
    inner = keras.Model(x, [drop(x), drop(x)], name="inner")
    y = keras.Input((6,))
    base = keras.Model(y, layers.Concatenate()(inner(y)))
    removed = with_dropout(base, "remove")
    data = zoo.vectors(4)
    np.testing.assert_array_equal(helpers.array(removed(data, training=True)), np.concatenate([data, data], -1))


def test_a_cut_inside_a_nested_model_that_is_called_elsewhere_too_is_refused() -> None:
    x = keras.Input((4,))
    inner = keras.Model(x, layers.Dense(4)(layers.Dense(4, name="mid")(x)), name="inner")
    y = keras.Input((4,))
    between = keras.Model(y, inner(y), name="between")
    z = keras.Input((4,))
    base = keras.Model(z, inner(between(z)))
    with pytest.raises(ValueError, match=r"'inner'.*is called in more than one place.*output='inner/mid'"):
        freeze_and_merge([Branch(base, output="inner/mid")], 1, loss="mse")


class TrainsByDefault(layers.Layer):
    def call(self, x: Any, training: bool = True) -> Any:
        return x


@pytest.mark.parametrize("policy", guarantees.POLICIES)
def test_a_layer_with_training_mode_as_its_default_does_not_leak_it_to_the_head(policy: Any) -> None:
    base = keras.Sequential([keras.Input((50,)), TrainsByDefault()])
    model = freeze_and_merge([base], layers.Dropout(0.5), dropout=policy, loss="mse")
    assert not (helpers.array(model(np.ones((20, 50)))) == 0).any()


@pytest.mark.parametrize("kind", ["SpatialDropout1D", "Dropout"])
@pytest.mark.parametrize("policy", guarantees.POLICIES)
def test_a_dropout_of_mixed_precision_keeps_its_dtype(kind: str, policy: Any) -> None:
    drop = getattr(layers, kind)(0.5, dtype="mixed_bfloat16")
    base = zoo.sequential(keras.Input((4, 3)), layers.Dense(3), drop, layers.Flatten())
    data = zoo.vectors(8, 4, 3)
    branch = freeze_and_merge({"a": base}, 1, dropout=policy, loss="mse").get_layer("a")
    features = branch(data, training=False)
    assert features.dtype == base(data, training=False).dtype
    if policy != "always":
        np.testing.assert_array_equal(
            *(keras.ops.convert_to_numpy(keras.ops.cast(t, "float32")) for t in (features, base(data)))
        )


class AddsLoss(layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(keras.ops.sum(x))
        return x


@pytest.mark.parametrize("policy", guarantees.POLICIES)
def test_losses_that_a_layer_of_a_base_adds_are_dropped(policy: Any) -> None:
    base = keras.Sequential([keras.Input((6,)), AddsLoss()])
    model = freeze_and_merge([base], 1, dropout=policy, loss="mse")
    model(zoo.vectors(4), training=True)
    assert model.losses == []


class LoopNoise(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return x
        seed = self.seeds.next()

        def step(index: Any, value: Any) -> Any:
            return value * tf.random.stateless_uniform(keras.ops.shape(x), tf.cast(seed, "int32") + index)

        return keras.ops.fori_loop(0, 3, step, x)


def test_noise_drawn_inside_a_loop_is_kept_live_by_always() -> None:
    base = keras.Sequential([keras.Input((6,)), LoopNoise()])
    branch = freeze_and_merge({"a": base}, 1, dropout="always", loss="mse").get_layer("a")
    data = zoo.vectors(4)
    assert not np.allclose(helpers.array(branch(data, training=False)), data)


FIXED_TRANSFORMATIONS = {
    "Resizing": lambda: layers.Resizing(8, 8),
    "CenterCrop": lambda: layers.CenterCrop(8, 8),
    "AutoContrast": layers.AutoContrast,
    "Equalization": layers.Equalization,
}


@pytest.mark.parametrize("make", FIXED_TRANSFORMATIONS.values(), ids=FIXED_TRANSFORMATIONS)
def test_an_image_transformation_does_not_put_the_head_into_training_mode(make: Callable[[], Any]) -> None:
    base = keras.Sequential([keras.Input((8, 8, 3)), make(), layers.Flatten()])
    images = 100 + zoo.images(8)
    model = freeze_and_merge([base], layers.Dropout(0.5), loss="mse")
    assert (helpers.array(model(images)) == 0).mean() < 0.1
    kept = with_dropout(keras.Sequential([base, layers.Dropout(0.5)]), "keep")
    assert (helpers.array(kept(images)) == 0).mean() < 0.1


class CallsInAModeOfItsOwn(layers.Layer):
    """Without weights, so that nothing else asks for a lock."""

    def __init__(self, mode: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mode, self.inner = mode, layers.GaussianNoise(0.1)

    def call(self, x: Any) -> Any:
        return x + self.inner(x, training=self.mode)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mode": self.mode}


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_a_layer_that_calls_another_in_a_mode_of_its_own_does_not_leak_it_to_the_head(mode: bool, copy: bool) -> None:
    base = keras.Sequential([keras.Input((50,)), CallsInAModeOfItsOwn(mode)])
    model = freeze_and_merge([base], layers.Dropout(0.5), dropout="keep", copy=copy, loss="mse")
    data = np.ones((20, 50), "float32")
    dropped = [(helpers.array(model(data, training=training)) == 0).mean() for training in (True, False, None)]
    assert abs(dropped[0] - 0.5) < 0.1
    assert dropped[1:] == [0, 0]


class DropsAlways(layers.Layer):
    """A composite that hard-codes the mode of its dropout."""

    def __init__(self, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout
        self.drop = layers.Dropout(dropout)

    def call(self, x: Any) -> Any:
        return self.drop(x, training=True)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dropout": self.dropout}


@pytest.mark.parametrize("policy", SILENT)
def test_a_dropout_with_its_mode_in_the_code_is_silenced_by_its_rate(policy: Any) -> None:
    base = keras.Sequential([keras.Input((6,)), DropsAlways()])
    branch = freeze_and_merge({"a": base}, 1, dropout=policy, loss="mse").get_layer("a")
    data = zoo.vectors(8)
    for training in (True, False):
        np.testing.assert_array_equal(helpers.array(branch(data, training=training)), data)


def test_a_dropout_with_its_mode_in_the_code_cannot_be_silenced_without_a_copy() -> None:
    base = keras.Sequential([keras.Input((6,)), DropsAlways(name="deaf")])
    with pytest.raises(RebuildError, match=r"'deaf'.*ignores the mode"):
        freeze_and_merge([base], 1, dropout="off", copy=False, loss="mse")


class TrainsItsModel(layers.Layer):
    """A composite that hard-codes training mode for the model that it holds."""

    def __init__(self, inner: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = keras.saving.deserialize_keras_object(inner) if isinstance(inner, dict) else inner

    def call(self, x: Any) -> Any:
        return self.inner(x, training=True)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}


@pytest.mark.parametrize("policy", SILENT)
def test_a_mode_stored_below_a_layer_with_its_mode_in_the_code_is_not_relied_upon(policy: Any) -> None:
    """Keras 3.16 obeys the stored mode, and the copy has none."""
    x = keras.Input((6,))
    inner = keras.Model(x, layers.Dropout(0.5)(x, training=False))
    base = keras.Sequential([keras.Input((6,)), TrainsItsModel(inner)])
    branch = freeze_and_merge({"a": base}, 1, dropout=policy, loss="mse").get_layer("a")
    data = zoo.vectors(8)
    for training in (True, False):
        np.testing.assert_array_equal(helpers.array(branch(data, training=training)), data)


def test_a_lock_inside_a_layer_of_the_users_own_is_not_passed_over_by_always() -> None:
    inner = keras.Sequential([keras.Input((6,)), ModeLock(layers.Dropout(0.5, name="held")), layers.Dropout(0.5)])
    base = keras.Sequential([keras.Input((6,)), TrainsItsModel(inner, name="trains")])
    with pytest.raises(RebuildError, match=r"'trains'.*holds \['held'\], locked to inference mode"):
        freeze_and_merge([base], 1, dropout="always", loss="mse")


@pytest.mark.parametrize("policy", ["keep", *SILENT])
def test_a_spectral_normalization_that_casts_what_its_layer_gets_still_does(policy: Any) -> None:
    casting = layers.SpectralNormalization(layers.Dense(4), dtype="mixed_float16")
    silent_features(keras.Sequential([keras.Input((6,)), casting]), policy, zoo.vectors(8))


@pytest.mark.parametrize("policy", guarantees.POLICIES)
def test_wrappers_around_layers_of_one_name_keep_their_own_names(policy: Any) -> None:
    base = keras.Sequential([keras.Input((6,))])
    for name in ("one", "other"):
        base.add(layers.SpectralNormalization(layers.Dense(4, name="inner"), name=name))
    branch = freeze_and_merge({"a": base}, 1, dropout=policy, loss="mse").get_layer("a")
    assert [layer.name for layer in branch.layers] == ["one", "other"]
    silent_features(base, policy, zoo.vectors(8))


class RateThatScales(layers.Layer):
    """Its `rate` scales its outputs, with and without noise."""

    def __init__(self, rate: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        noise = keras.random.normal(keras.ops.shape(x), seed=self.seeds)
        return x * self.rate + (noise if training and self.rate else 0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


def test_an_argument_with_the_name_of_a_rate_that_changes_the_outputs_is_not_set_to_0() -> None:
    base = keras.Sequential([keras.Input((6,)), RateThatScales(name="scales")])
    with pytest.raises(RebuildError, match=r"'scales'.*'rate': 0.0.*does not compute what the layer computes"):
        freeze_and_merge([base], 1, dropout="remove", loss="mse")
    silent_features(base, "off", zoo.vectors(8))


class RatesPerBlock(layers.Layer):
    def __init__(self, drop_path_rate: list[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop_path_rate = drop_path_rate
        self.drops = [layers.Dropout(rate) for rate in drop_path_rate]

    def call(self, x: Any) -> Any:
        for drop in self.drops:
            x = x + drop(x)
        return x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "drop_path_rate": self.drop_path_rate}


@pytest.mark.parametrize("policy", SILENT)
def test_a_list_of_rates_is_set_to_0(policy: Any) -> None:
    silent_features(keras.Sequential([keras.Input((6,)), RatesPerBlock([0.1, 0.5])]), policy, zoo.vectors(8))


class Everything(layers.Layer):
    """Dropout, batch statistics and a state of its own in one layer."""

    def __init__(self, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout
        self.block, self.counter = zoo.Block(6, dropout), zoo.Counter()

    def build(self, shape: Any) -> None:
        self.block.build(shape)
        self.counter.build(shape)

    def call(self, x: Any) -> Any:
        return self.counter(self.block(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dropout": self.dropout}


@pytest.mark.parametrize("policy", SILENT)
def test_a_layer_with_dropout_statistics_and_state_is_silenced_whole(policy: Any) -> None:
    base = zoo.sequential(keras.Input((6,)), Everything(name="everything"))
    silent_features(base, policy, zoo.vectors(8))
    model = freeze_and_merge({"a": base}, 2, dropout=policy, loss="mse", run_eagerly=True)
    before = [helpers.array(v) for v in model.get_layer("a").weights]
    model.fit(zoo.vectors(8), np.zeros((8, 2)), verbose=0)
    for variable, value in zip(model.get_layer("a").weights, before):
        np.testing.assert_array_equal(helpers.array(variable), value)


@pytest.mark.parametrize("policy", ["keep", "always"])
def test_a_layer_that_moves_its_state_whenever_it_drops_cannot_be_kept_live(policy: Any) -> None:
    base = zoo.sequential(keras.Input((6,)), Everything(name="everything"))
    with pytest.raises(RebuildError, match=rf'"{policy}".*\'everything\'.*updates \[.*steps.*live and frozen'):
        freeze_and_merge([base], 1, dropout=policy, loss="mse")

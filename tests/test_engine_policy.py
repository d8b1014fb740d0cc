"""Policies layer by layer: what is silenced, kept live, locked or refused, against what the layers drop."""

from __future__ import annotations

from typing import Any

import guarantees
import helpers
import keras
import numpy as np
import pytest
import zoo
from guarantees import POLICIES
from keras import layers, ops
from zoo import ZOO

from keras_graft import ModeLock, _keras, audit, freeze_and_merge, unfreeze, with_dropout

ONES = np.ones((100, 100), "float32")


def dropping(rate: float) -> keras.Model:
    return keras.Sequential([keras.Input((100,)), layers.Dropout(rate, name="drop")], name="base")


def dropped(model: keras.Model, *, training: bool) -> float:
    return float((helpers.array(model(ONES, training=training)) == 0).mean())


def test_a_callable_is_asked_for_every_noise_layer_also_inside_wrappers() -> None:
    asked: list[str] = []

    def policy(layer: keras.Layer) -> str:
        asked.append(type(layer).__name__)
        return "off"

    with_dropout(zoo.make_time_distributed(), policy)  # type: ignore[arg-type]
    with_dropout(zoo.make_bidirectional(), policy)  # type: ignore[arg-type]
    with_dropout(zoo.make_cells(), policy)  # type: ignore[arg-type]
    assert asked == ["Dropout", "Dropout", "LSTM", "LSTM", "GRU", "GRU", "LSTMCell", "GRUCell"]


@pytest.mark.quick
def test_a_callable_chooses_layer_by_layer() -> None:
    x = keras.Input((100,))
    both = keras.Model(x, [layers.Dropout(0.5, name="a")(x), layers.Dropout(0.5, name="b")(x)])
    model = with_dropout(both, lambda layer: "always" if layer.name == "a" else "remove")
    a, b = (helpers.array(t) for t in model(ONES, training=False))
    assert abs((a == 0).mean() - 0.5) < 0.03
    assert not (b == 0).any()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_can_be_changed_again(policy: Any) -> None:
    always = with_dropout(dropping(0.5), "always")
    again = with_dropout(always, policy)
    assert (dropped(again, training=True) > 0.3) == (policy in ("keep", "always"))
    assert (dropped(again, training=False) > 0.3) == (policy in ("keep", "always"))


@pytest.mark.parametrize("copy", [True, False])
def test_a_merged_model_can_be_merged_again(copy: bool) -> None:
    always = freeze_and_merge([ZOO["attention"].make()], None, dropout="always")
    model = freeze_and_merge([always], 1, dropout="off", copy=copy, loss="mse")
    x = zoo.steps(4)
    np.testing.assert_array_equal(helpers.array(model(x, training=True)), helpers.array(model(x, training=False)))


@keras.saving.register_keras_serializable(package="policy")
class Fixed(layers.Layer):
    """Drops at a rate that is written into its code."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense, self.drop = layers.Dense(6), layers.Dropout(0.5, name="inner_drop")

    def call(self, x: Any) -> Any:
        return self.drop(self.dense(x))


def fixed() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), Fixed(name="fixed")])


def test_a_layer_that_would_have_to_be_frozen_is_refused_while_it_trains() -> None:
    with pytest.raises(ValueError, match=r"Layer 'fixed.*' .*has to be locked.*Freeze it first"):
        with_dropout(fixed(), "off")


def locks(model: keras.Model) -> list[str]:
    return [part.name for part in _keras.walk(model) if type(part) is ModeLock]


def test_off_sets_rates_to_0_where_it_can_and_leaves_the_layer_trainable() -> None:
    model = zoo.make_custom()
    silent = with_dropout(model, "off")
    assert not locks(silent)
    assert [v.shape for v in silent.trainable_variables] == [v.shape for v in model.trainable_variables]
    x = zoo.vectors(8)
    np.testing.assert_array_equal(helpers.array(silent(x)), helpers.array(model(x)))
    once, again = (helpers.array(silent(x, training=True)) for _ in range(2))
    np.testing.assert_array_equal(once, again)


@keras.saving.register_keras_serializable(package="policy")
class Bare(layers.Layer):
    """Holds a Dropout and no weights, so that nothing of it is forgotten in a file."""

    def __init__(self, rate: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.drop = rate, layers.Dropout(rate)

    def call(self, x: Any) -> Any:
        return self.drop(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable(package="policy")
class HalfSilent(Bare):
    """Drops at a rate of its own as well."""

    def call(self, x: Any, training: bool = False) -> Any:
        x = super().call(x)
        return keras.random.dropout(x, 0.5) if training else x


@keras.saving.register_keras_serializable(package="policy")
class Scaled(Bare):
    """Computes something else at another rate, in inference mode too."""

    def call(self, x: Any) -> Any:
        return (1 + self.rate) * super().call(x)


def test_a_lock_silences_a_layer_that_computes_something_else_at_a_rate_of_0() -> None:
    base = keras.Sequential([keras.Input((100,)), Scaled(0.5)], name="base")
    for model in (freeze_and_merge([base], None, dropout="off"), with_dropout(base, "off")):
        assert len(locks(model)) == 1
        np.testing.assert_array_equal(helpers.array(model(ONES, training=True)), 1.5 * ONES)


@pytest.mark.parametrize("policy", ["off", "remove"])
def test_a_branch_has_no_lock_where_rates_of_0_do(policy: Any) -> None:
    base = keras.Sequential([keras.Input((100,)), Bare(0.5)], name="base")
    model = freeze_and_merge([base], None, dropout=policy)
    assert not locks(model)
    assert dropped(model, training=True) == 0


def test_a_lock_silences_a_layer_that_its_rates_do_not() -> None:
    base = keras.Sequential([keras.Input((100,)), HalfSilent(0.5)], name="base")
    for model in (freeze_and_merge([base], None, dropout="off"), with_dropout(base, "off")):
        assert len(locks(model)) == 1
        assert dropped(model, training=True) == 0


def test_the_same_layer_is_locked_once_it_is_frozen() -> None:
    model = fixed()
    model.trainable = False
    silent = with_dropout(model, "off")
    x = zoo.vectors(8)
    np.testing.assert_array_equal(helpers.array(silent(x, training=True)), helpers.array(model(x)))


@pytest.mark.parametrize("policy", ["off", "remove"])
def test_a_layer_that_ignores_the_mode_is_named(policy: Any) -> None:
    model = keras.Sequential([keras.Input((6,)), zoo.Stubborn(name="stubborn")])
    with pytest.raises(ValueError, match=r"[Ll]ayer 'stubborn'"):
        with_dropout(model, policy)


class CountsAndDrops(zoo.Counter):
    """Updates its state whenever it drops: it can be frozen or kept live, not both."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.drop(super().call(inputs, training=training), training=training)


@pytest.mark.parametrize("policy", ["keep", "always"])
def test_a_layer_that_cannot_be_frozen_and_live_is_named_with_the_way_out(policy: Any) -> None:
    model = keras.Sequential([keras.Input((6,)), CountsAndDrops(name="counts")])
    with pytest.raises(ValueError, match=rf"Policy \"{policy}\".*'counts'.*updates \[.*steps.*Use \"off\""):
        freeze_and_merge([model], 1, dropout=policy, loss="mse")


def test_remove_is_refused_where_the_noise_hangs_on_no_argument() -> None:
    with pytest.raises(ValueError, match=r'Policy "remove".*\'fixed\'.*\'inner_drop\'.*Use "off"'):
        freeze_and_merge([fixed()], 1, dropout="remove", loss="mse")


def test_a_lock_in_the_original_gives_way_to_the_policy() -> None:
    x = keras.Input((100,))
    model = keras.Model(x, ModeLock(layers.Dropout(0.5), training=True)(x))
    assert dropped(with_dropout(model, "off"), training=True) == 0


def test_remove_leaves_a_custom_layer_trainable_where_its_rate_can_be_set_to_0() -> None:
    model = zoo.make_custom()
    removed = with_dropout(model, "remove")
    assert [v.shape for v in removed.trainable_variables] == [v.shape for v in model.trainable_variables]
    assert removed.get_layer(model.layers[0].name).drop.rate == 0


# ---------------------------------------------------------------------------------------------------------
# Losses of a model's own
# ---------------------------------------------------------------------------------------------------------


class Divergence(layers.Layer):
    """The term of a VAE: it has no weights, and its loss trains the layers in front."""

    def call(self, x: Any) -> Any:
        self.add_loss(ops.mean(ops.square(x)))
        return x


class Samples(Divergence):
    def call(self, x: Any, training: bool = False) -> Any:
        x = super().call(x)
        return x + keras.random.normal(ops.shape(x)) if training else x


@pytest.mark.parametrize("policy", guarantees.POLICIES)
@pytest.mark.parametrize("kind", [Divergence, Samples])
def test_a_copy_has_the_losses_that_layers_without_weights_add(kind: Any, policy: Any) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dropout(0.5), kind(name="kl")])
    x = zoo.vectors(8, 4)
    copy = with_dropout(model, "keep" if (kind, policy) == (Samples, "remove") else policy)
    for training in (True, False):
        copy(x, training=training)
        model(x, training=training)
        assert len(copy.losses) == len(model.losses) == 1
    if policy != "always":
        np.testing.assert_array_equal(*(helpers.array(m.losses[0]) for m in (copy, model)))


# ---------------------------------------------------------------------------------------------------------
# Rates
# ---------------------------------------------------------------------------------------------------------

WITH_RATE: dict[str, Any] = {
    "Dropout": layers.Dropout,
    "GaussianNoise": layers.GaussianNoise,
    "LSTM": lambda rate: layers.LSTM(3, dropout=rate, recurrent_dropout=rate),
    "Bidirectional": lambda rate: layers.Bidirectional(layers.GRU(3, recurrent_dropout=rate)),
    "TimeDistributed": lambda rate: layers.TimeDistributed(layers.Dropout(rate)),
    "MultiHeadAttention": lambda rate: layers.MultiHeadAttention(2, 3, dropout=rate),
}


def noisy(kind: str, rate: float) -> keras.Model:
    x, layer = keras.Input((3, 8)), WITH_RATE[kind](rate)
    y = layer(x, x) if kind == "MultiHeadAttention" else layer(x)
    return keras.Model(x, layers.Flatten()(y), name="base")


def from_the_same_seeds(model: keras.Model, weights: list[np.ndarray]) -> np.ndarray:
    """What a model computes in training mode, with these weights."""
    model.set_weights(weights)
    for variable in model.variables:
        if "seed_generator_state" in variable.path:
            variable.assign([7, 3])
    return helpers.array(model(zoo.vectors(4, 3, 8), training=True))


@pytest.mark.parametrize("kind", WITH_RATE)
def test_a_number_is_the_rate_of_a_layer_made_with_it(kind: str) -> None:
    by_hand, made = noisy(kind, 0.3), noisy(kind, 0.6)
    weights = by_hand.get_weights()
    expected = from_the_same_seeds(by_hand, weights)
    for model in (with_dropout(made, 0.3), freeze_and_merge([made], lambda x: x * 1, dropout=0.3, loss="mse")):
        np.testing.assert_array_equal(from_the_same_seeds(model, weights), expected)
        np.testing.assert_array_equal(from_the_same_seeds(helpers.reloaded(model), weights), expected)


def test_a_callable_returns_rates_beside_words() -> None:
    x = keras.Input((100,))
    names = {"set": 0.2, "kept": "keep", "silent": 0.0, "gone": "remove"}
    made = keras.Model(x, [layers.Dropout(0.5, name=name)(x) for name in names], name="base")
    model = with_dropout(made, lambda layer: names[layer.name])  # type: ignore[arg-type, return-value]
    outputs = [helpers.array(tensor) for tensor in model(ONES, training=True)]
    np.testing.assert_allclose([(tensor == 0).mean() for tensor in outputs], [0.2, 0.5, 0, 0], atol=0.03)
    assert all((helpers.array(tensor) == 1).all() for tensor in model(ONES, training=False))
    assert next(row.fit for row in audit(model).rows if row.path == "set") == "drops 20%"


def test_a_rate_that_was_set_comes_back_and_not_the_one_before() -> None:
    model = helpers.grafted([dropping(0.9)], layers.Dense(1), dropout=0.2)
    silent = with_dropout(model, "off")
    assert with_dropout(silent, "keep").get_layer("base").get_layer("drop").rate == 0.2
    assert with_dropout(silent, 0.4).get_layer("base").get_layer("drop").rate == 0.4
    recurrent = helpers.grafted([noisy("LSTM", 0.9)], dropout=0.2)
    for policy in ("off", "keep"):
        unfreeze(recurrent, 1, learning_rate=0.1, dropout=policy)  # type: ignore[arg-type]
    lstm = recurrent.get_layer("base").layers[1]
    assert [lstm.dropout, lstm.recurrent_dropout] == [0.2, 0.2]


def test_a_rate_is_refused_where_the_library_knows_none() -> None:
    with pytest.raises(ValueError, match=r"Rate 0.3 cannot be kept for layer 'fixed'.*knows no argument.*Use \"off\""):
        freeze_and_merge([fixed()], 1, dropout=0.3, loss="mse")


def test_a_layer_that_is_not_copied_keeps_its_rate() -> None:
    base = dropping(0.5)
    with pytest.raises(ValueError, match=r"Rate 0.3 cannot be kept for layer 'drop'.*with copy=False.*'rate': 0.5"):
        freeze_and_merge([base], 1, dropout=0.3, copy=False, loss="mse")
    assert dropped(freeze_and_merge([base], None, dropout=0.5, copy=False), training=True) > 0.3


# ---------------------------------------------------------------------------------------------------------
# Precision
# ---------------------------------------------------------------------------------------------------------


class DropPath(layers.Layer):
    """Stochastic depth as many write it: in half precision a number below 1 may be rounded to 1."""

    def __init__(self, rate: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return x
        drawn = keras.random.uniform((ops.shape(x)[0], 1), dtype="float32", seed=self.seed_generator)
        return x / (1 - self.rate) * ops.floor(1 - self.rate + ops.cast(drawn, x.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "float32"])
def test_stochastic_depth_is_silent_in_every_precision(dtype: str) -> None:
    x = zoo.vectors(20_000, 3)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, DropPath(dtype=dtype)(layers.Dense(2, dtype=dtype)(inputs)))
    expected = np.asarray(model(x, training=False))
    for made in (with_dropout(model, "off"), freeze_and_merge([model], head=None, dropout="off")):
        np.testing.assert_array_equal(np.asarray(made(x, training=True)), expected)


@pytest.mark.parametrize("option", ["dropout", "augmentation"])
def test_a_policy_that_is_none_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"`{option}` must be one of"):
        freeze_and_merge([zoo.make_nested()], head=1, loss="mse", **{option: "of"})

"""with_dropout, and policies layer by layer."""

from __future__ import annotations

from typing import Any

import guarantees
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from guarantees import POLICIES
from keras import layers, ops
from zoo import ZOO

from keras_graft import ModeLock, _keras, audit, freeze_and_merge, split, with_dropout

ONES = np.ones((100, 100), "float32")


def dropping(rate: float) -> keras.Model:
    return keras.Sequential([keras.Input((100,)), layers.Dropout(rate, name="drop")], name="base")


def dropped(model: keras.Model, *, training: bool) -> float:
    return float((guarantees.array(model(ONES, training=training)) == 0).mean())


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(
    ("policy", "in_fit", "in_predict"),
    [("keep", True, False), ("off", False, False), ("remove", False, False), ("always", True, True)],
)
def test_the_share_of_dropped_units_is_the_rate_where_the_policy_drops(
    policy: Any, in_fit: bool, in_predict: bool, rate: float
) -> None:
    model = with_dropout(dropping(rate), policy)
    for training, live in ((True, in_fit), (False, in_predict)):
        share = dropped(model, training=training)
        assert share == 0 if not live else abs(share - rate) < 0.03  # 10,000 units: 6 standard deviations


@pytest.mark.parametrize("policy", POLICIES)
def test_the_trainable_flags_stay_as_they_are(policy: Any) -> None:
    model = zoo.make_functional()
    model.layers[1].trainable = False
    copy = with_dropout(model, policy)
    assert [v.path for v in copy.trainable_variables] == [v.path for v in model.trainable_variables]
    assert not copy.compiled


def test_batch_statistics_still_move_in_a_model_that_trains() -> None:
    model = with_dropout(zoo.make_convolutional(), "off")
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    before = guarantees.array(norm.moving_mean)
    model(zoo.images(8), training=True)
    assert not np.array_equal(guarantees.array(norm.moving_mean), before)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_model_is_untouched(policy: Any) -> None:
    model = zoo.make_nested()
    before = guarantees.snapshot(model)
    with_dropout(model, policy)
    np.testing.assert_equal(guarantees.snapshot(model), before)


def test_off_keeps_every_layer_under_its_name_and_remove_takes_them_out() -> None:
    model = zoo.make_sequential()
    assert [x.name for x in with_dropout(model, "off").layers] == [x.name for x in model.layers]
    kept = [x.name for x in model.layers if not isinstance(x, layers.Dropout)]
    assert [x.name for x in with_dropout(model, "remove").layers] == kept


def test_a_removed_model_draws_no_random_numbers_at_all() -> None:
    assert not with_dropout(zoo.make_nested(), "remove").non_trainable_variables


def test_a_callable_is_asked_for_every_noise_layer_also_inside_wrappers() -> None:
    asked: list[str] = []

    def policy(layer: keras.Layer) -> str:
        asked.append(type(layer).__name__)
        return "off"

    with_dropout(zoo.make_time_distributed(), policy)  # type: ignore[arg-type]
    with_dropout(zoo.make_bidirectional(), policy)  # type: ignore[arg-type]
    with_dropout(zoo.make_cells(), policy)  # type: ignore[arg-type]
    assert asked == ["Dropout", "Dropout", "LSTM", "LSTM", "GRU", "GRU", "LSTMCell", "GRUCell"]


def test_a_callable_chooses_layer_by_layer() -> None:
    x = keras.Input((100,))
    both = keras.Model(x, [layers.Dropout(0.5, name="a")(x), layers.Dropout(0.5, name="b")(x)])
    model = with_dropout(both, lambda layer: "always" if layer.name == "a" else "remove")
    a, b = (guarantees.array(t) for t in model(ONES, training=False))
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
    np.testing.assert_array_equal(guarantees.array(model(x, training=True)), guarantees.array(model(x, training=False)))


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
    np.testing.assert_array_equal(guarantees.array(silent(x)), guarantees.array(model(x)))
    once, again = (guarantees.array(silent(x, training=True)) for _ in range(2))
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
        np.testing.assert_array_equal(guarantees.array(model(ONES, training=True)), 1.5 * ONES)


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
    np.testing.assert_array_equal(guarantees.array(silent(x, training=True)), guarantees.array(model(x)))


class Stubborn(layers.Layer):
    """Drops in every mode: it hard-codes training mode."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)

    def call(self, x: Any) -> Any:
        return self.drop(x, training=True)


@pytest.mark.parametrize("policy", ["off", "remove"])
def test_a_layer_that_ignores_the_mode_is_named(policy: Any) -> None:
    model = keras.Sequential([keras.Input((6,)), Stubborn(name="stubborn")])
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


@pytest.mark.parametrize("model", [None, "model.keras", layers.Dense(3)])
def test_something_that_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"`model` must be a keras.Model.*Received: model="):
        with_dropout(model, "off")


def test_a_model_that_is_not_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`model` must be built"):
        with_dropout(keras.Sequential([layers.Dense(3)]), "off")


@pytest.mark.parametrize("policy", ["Off", "", None, 0.5])
def test_an_unknown_policy_is_refused_with_the_allowed_ones(policy: Any) -> None:
    with pytest.raises(ValueError, match=r'one of "keep", "off", "remove", "always".*Received: policy='):
        with_dropout(dropping(0.5), policy)


def test_remove_leaves_a_custom_layer_trainable_where_its_rate_can_be_set_to_0() -> None:
    model = zoo.make_custom()
    removed = with_dropout(model, "remove")
    assert [v.shape for v in removed.trainable_variables] == [v.shape for v in model.trainable_variables]
    assert removed.get_layer(model.layers[0].name).drop.rate == 0


@pytest.mark.parametrize("policy", ["none", None, False, 0.0])
def test_a_policy_that_is_none_is_named_as_the_parameter_is(policy: Any) -> None:
    with pytest.raises(ValueError, match=rf'`policy` must be one of .* You mean "off"\. Received: policy={policy!r}'):
        with_dropout(dropping(0.5), policy)


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
    expected = guarantees.array(model(FAR, training=False))
    silent = made(model, "off")
    for training in (True, False):
        np.testing.assert_array_equal(guarantees.array(silent(FAR, training=training)), expected)
    with pytest.raises(ValueError, match=r"computes with its rates|does not compute what the layer computes"):
        made(model, "remove")


@pytest.mark.parametrize("policy", ["off", "remove"])
@pytest.mark.parametrize("made", [with_dropout, frozen_branch])
def test_a_rate_that_counts_in_training_mode_alone_is_set_to_0(made: Any, policy: Any) -> None:
    model = held_in("alone", DropsByValue(name="layer"))
    silent = made(model, policy)
    assert not any(isinstance(part, ModeLock) for part in _keras.walk(silent))
    for training in (True, False):
        np.testing.assert_array_equal(guarantees.array(silent(FAR, training=training)), FAR)


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
    silent, expected = made(base, "off"), guarantees.array(base(ids, training=False))
    for training in (True, False):
        np.testing.assert_array_equal(guarantees.array(silent(ids, training=training)), expected)


# ---------------------------------------------------------------------------------------------------------
# Attention that gets masks: where its rate is 0, Keras takes a kernel that gives other numbers for padding
# ---------------------------------------------------------------------------------------------------------


def by_mask_zero(ids: Any) -> Any:
    h = layers.Embedding(10, 4, mask_zero=True)(ids)
    return h + layers.MultiHeadAttention(2, 4, dropout=0.3, name="attention")(h, h)


def by_argument(ids: Any) -> Any:
    h, seen = layers.Embedding(10, 4)(ids), ops.not_equal(ids, 0)
    mask = ops.logical_and(ops.expand_dims(seen, 1), ops.expand_dims(seen, 2))
    return layers.GroupQueryAttention(4, 2, 1, dropout=0.3, name="attention")(h, h, attention_mask=mask)


class Block(layers.Layer):
    """As in tutorials: attention in a layer of its own, with the masks that its inputs carry."""

    def __init__(self, rate: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.attention = layers.MultiHeadAttention(2, 4, dropout=rate)
        self.drop = layers.Dropout(rate)

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)

    def call(self, x: Any, training: bool = False) -> Any:
        return x + self.drop(self.attention(x, x, training=training), training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


def by_block(ids: Any) -> Any:
    return Block(name="attention")(layers.Embedding(10, 4, mask_zero=True)(ids))


MASKED = {"mask_zero": by_mask_zero, "argument": by_argument, "block": by_block}


def masked_model(masked: Any) -> tuple[keras.Model, Any, Any]:
    """The model, ids with padding, and what it computes for them in inference mode."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((6,), dtype="int32")
    h = layers.Lambda(lambda x: x * 1.0)(masked(ids))  # which takes no mask
    model = keras.Model(ids, layers.Flatten()(layers.Dense(8, activation="tanh")(h)), name="base")
    data = np.random.default_rng(0).integers(1, 10, (16, 6))
    data[:, 4:] = 0
    return model, data, guarantees.array(model(data, training=False))


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask attached to it:UserWarning")
@pytest.mark.parametrize("masked", MASKED.values(), ids=MASKED)
def test_attention_over_padding_computes_in_a_branch_what_it_does_in_inference_mode(masked: Any) -> None:
    model, data, expected = masked_model(masked)
    silent = frozen_branch(model, "off")
    for training in (True, False):
        np.testing.assert_array_equal(guarantees.array(silent(data, training=training)), expected)
    with pytest.raises(ValueError, match="'attention'"):
        frozen_branch(model, "remove")


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask attached to it:UserWarning")
@pytest.mark.parametrize("masked", [by_mask_zero, by_argument], ids=["mask_zero", "argument"])
def test_attention_over_padding_still_trains_without_its_dropout(masked: Any) -> None:
    model, data, expected = masked_model(masked)
    silent = with_dropout(model, "off")
    for training in (True, False):
        np.testing.assert_array_equal(guarantees.array(silent(data, training=training)), expected)
    assert len(silent.trainable_variables) == len(model.trainable_variables)


def test_attention_that_no_mask_can_reach_is_not_locked_by_with_dropout() -> None:
    image = keras.Input((8, 8, 3))
    x = layers.Reshape((16, 4))(layers.Conv2D(4, 2, 2)(image))
    model = keras.Model(image, layers.MultiHeadAttention(2, 4, dropout=0.3)(x, x, use_causal_mask=True))
    for policy in ("off", "remove"):
        silent = with_dropout(model, policy)
        assert not any(isinstance(part, ModeLock) for part in _keras.walk(silent))


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning")
def test_attention_computes_the_same_behind_a_mask_that_comes_with_its_inputs() -> None:
    x = keras.Input((6, 8))
    inner = keras.Input((6, 8))
    attention = layers.MultiHeadAttention(2, 4, dropout=0.1)
    encoder = keras.Model(
        x, keras.Sequential([keras.Model(inner, attention(inner, inner))])(layers.Activation("tanh")(x))
    )
    tokens = np.array([[1, 2, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    embedding = layers.Embedding(9, 8, mask_zero=True)
    mask = embedding.compute_mask(tokens)

    def behind_the_mask(model: keras.Model) -> np.ndarray:
        embedded = embedding(tokens)
        _keras.set_keras_mask(embedded, mask)
        return np.asarray(model(embedded, training=False))

    expected = behind_the_mask(encoder)
    for policy in ("keep", "off"):
        np.testing.assert_allclose(behind_the_mask(with_dropout(encoder, policy)), expected, rtol=1e-5, atol=1e-6)
    with pytest.warns(UserWarning, match="Behind a mask .* may compute something else.*multi_head_attention"):
        with_dropout(encoder, "remove")


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
        np.testing.assert_array_equal(*(guarantees.array(m.losses[0]) for m in (copy, model)))


# ---------------------------------------------------------------------------------------------------------
# What made-up data and a trace of open sizes do not show
# ---------------------------------------------------------------------------------------------------------


class MarksPadding(layers.Layer):
    """Puts a mask on what it gives in its `call`."""

    def call(self, x: Any) -> Any:
        y = x * 1
        y._keras_mask = ops.any(ops.not_equal(x, 0), axis=-1)
        return y


def marks_on_the_instance() -> Any:
    layer = layers.Identity()
    layer.compute_mask = lambda x, mask=None: ops.any(ops.not_equal(x, 0), axis=-1)
    return layer


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning")
@pytest.mark.parametrize("marker", [MarksPadding, marks_on_the_instance])
def test_attention_behind_a_mask_of_a_layers_own_making_computes_the_same(marker: Any) -> None:
    data = zoo.vectors(4, 6, 8)
    data[:2, 3:] = 0
    data[0] = 0
    x = keras.Input((6, 8))
    marked = marker()(x)
    model = keras.Model(x, layers.MultiHeadAttention(2, 4, dropout=0.1)(marked, marked))
    np.testing.assert_allclose(with_dropout(model, "off")(data), model(data, training=False), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r'"remove" cannot be kept .*it gets a mask'):
        with_dropout(model, "remove")


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


class NoisyIfLong(layers.Layer):
    """Decides on a size that a model leaves open, and `fit` knows."""

    def __init__(self, axis: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        size = x.shape[self.axis]
        if training and size is not None and size > 4:
            return x + keras.random.normal(ops.shape(x), seed=self.seed_generator)
        return x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": self.axis}


@pytest.mark.parametrize("axis", [0, 1])
def test_noise_that_hangs_on_a_size_which_a_trace_leaves_open_is_seen(axis: int) -> None:
    x = zoo.vectors(8, 32, 3)
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, NoisyIfLong(axis, name="long")(inputs))
    np.testing.assert_array_equal(with_dropout(model, "off")(x, training=True), x)
    assert [row.path for row in audit(model).live] == ["long"]


class MovesIfLong(layers.Layer):
    def build(self, input_shape: Any) -> None:
        self.mean = self.add_weight(shape=(), initializer="zeros", trainable=False, name="mean")

    def call(self, x: Any, training: bool = False) -> Any:
        if training and x.shape[1] is not None and x.shape[1] > 16:
            self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x))
        return x - self.mean


def test_a_statistic_that_long_sequences_move_stands_still_in_a_frozen_branch() -> None:
    x = zoo.vectors(8, 32, 3) + 5
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, layers.GlobalMaxPooling1D()(MovesIfLong()(inputs)))
    merged = freeze_and_merge([model], head=1, dropout="keep", loss="mse")
    merged.fit(x, np.zeros((8, 1)), verbose=0)
    assert float(merged.layers[1].variables[0]) == 0


def jittered_outliers(values: np.ndarray) -> np.ndarray:
    return (values + np.random.normal(size=values.shape) * (np.abs(values) > 5)).astype("float32")


class JittersOutliers(layers.Layer):
    def call(self, x: Any, training: bool = False) -> Any:
        return tf.ensure_shape(tf.numpy_function(jittered_outliers, [x], tf.float32), x.shape) if training else x


def test_noise_of_python_that_large_values_alone_show_is_silenced() -> None:
    x = 100 * zoo.vectors(8, 3)
    model = zoo.sequential(keras.Input((3,)), JittersOutliers())
    np.testing.assert_array_equal(with_dropout(model, "off")(x, training=True), x)


class UnfreezesItself(layers.Layer):
    def build(self, input_shape: Any) -> None:
        self.gain = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gain")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.trainable = True
        return x * self.gain


@pytest.mark.parametrize("policy", ["keep", "off"])
def test_a_layer_that_unfreezes_itself_stays_frozen(policy: Any) -> None:
    model = zoo.sequential(keras.Input((3,)), UnfreezesItself())
    merged = freeze_and_merge([model], head=1, dropout=policy, loss="mse")
    before = np.asarray(merged.layers[1].variables[0])
    merged.fit(zoo.vectors(8, 3), zoo.vectors(8, 1), verbose=0)
    np.testing.assert_array_equal(merged.layers[1].variables[0], before)
    assert len(merged.trainable_variables) == 2


class TestTimeNormalization(layers.BatchNormalization):
    """Normalizes with the statistics of the batch, whatever the mode: only while it is trainable."""

    __test__ = False

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return super().call(inputs, training=True, mask=mask)


def test_a_layer_that_computes_otherwise_once_it_is_frozen_is_an_error() -> None:
    model = zoo.sequential(keras.Input((3,)), TestTimeNormalization())
    with pytest.raises(ValueError, match=r"otherwise where `trainable` is False"):
        freeze_and_merge([model], head=1, loss="mse")


# ---------------------------------------------------------------------------------------------------------
# What `with_dropout` must not take away
# ---------------------------------------------------------------------------------------------------------


class NoisyStatistic(layers.Layer):
    """Has nothing to train, but moves."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def build(self, input_shape: Any) -> None:
        self.mean = self.add_weight(shape=(input_shape[-1],), initializer="zeros", trainable=False, name="mean")

    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return x - self.mean
        self.mean.assign(0.5 * self.mean + 0.5 * ops.mean(x, axis=0))
        return x - ops.mean(x, axis=0) + keras.random.normal(ops.shape(x), seed=self.seed_generator)


def test_a_statistic_is_not_stopped_without_a_word() -> None:
    model = zoo.sequential(keras.Input((3,)), layers.Dense(3), NoisyStatistic(name="own"))
    with pytest.raises(ValueError, match=r"has to be locked .*frozen, but it updates \['.*mean'\].*Use \"keep\""):
        with_dropout(model, "off")


@pytest.mark.parametrize("policy", ["keep", "off", "remove"])
def test_the_loss_of_an_activity_regularizer_of_dropout_stays(policy: Any) -> None:
    x = zoo.vectors(8, 3)
    drop = layers.Dropout(0.5, activity_regularizer=keras.regularizers.L2(1.0))
    model = zoo.sequential(keras.Input((3,)), layers.Dense(4), drop, layers.Dense(1))
    copy = with_dropout(model, policy)
    for made in (model, copy):
        made(x, training=False)
    assert model.losses
    np.testing.assert_allclose(copy.losses, model.losses, rtol=1e-6)


def test_methods_that_a_copy_has_not_are_said() -> None:
    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    x = keras.Input((3,))
    with pytest.warns(UserWarning, match=r"plain keras.Model, without what Own does in \['train_step'\]"):
        with_dropout(Own(x, layers.Dropout(0.5)(x)), "off")


def test_a_model_that_doubles_what_its_graph_gives_is_not_copied_without_a_word() -> None:
    class Doubled(keras.Model):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) * 2

    x = keras.Input((3,))
    model = Doubled(x, layers.Dense(1)(x))
    with pytest.raises(ValueError, match="__call__"):
        with_dropout(model, "off")
    with pytest.raises(ValueError, match="__call__"):
        split(model)

"""Dropout of composed branches in fine-tuning: put back, set, silenced, and refused where that cannot be."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import array, grafted, reloaded, snapshot
from keras import layers
from zoo import vectors

from keras_graft import ModeLock, audit, freeze_and_merge, register_layer, unfreeze, with_dropout

X = vectors(4, 3, 8)

KINDS = {
    "Dropout": lambda: layers.Dropout(0.3),
    "SpatialDropout1D": lambda: layers.SpatialDropout1D(0.3),
    "AlphaDropout": lambda: layers.AlphaDropout(0.3),
    "GaussianDropout": lambda: layers.GaussianDropout(0.3),
    "GaussianNoise": lambda: layers.GaussianNoise(0.3),
    "LSTM": lambda: layers.LSTM(3, dropout=0.3, recurrent_dropout=0.2, return_sequences=True),
    "GRU": lambda: layers.GRU(3, dropout=0.3, return_sequences=True),
    "RNN": lambda: layers.RNN(layers.SimpleRNNCell(3, dropout=0.3), return_sequences=True),
    "Bidirectional": lambda: layers.Bidirectional(layers.LSTM(3, recurrent_dropout=0.3, return_sequences=True)),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Dropout(0.3)),
    "Attention": lambda: layers.Attention(dropout=0.3),
    "MultiHeadAttention": lambda: layers.MultiHeadAttention(2, 3, dropout=0.3),
    "GroupQueryAttention": lambda: layers.GroupQueryAttention(3, 2, 1, dropout=0.3),
}


def base(kind: str) -> keras.Model:
    x = keras.Input((3, 8))
    layer = KINDS[kind]()
    y = layer([x, x]) if kind == "Attention" else layer(x, x) if "Attention" in kind else layer(x)
    return keras.Model(x, layers.Dense(4, name="top")(layers.Flatten()(y)), name="base")


def drops(model: keras.Model) -> list[bool]:
    """Whether it drops in training mode, and in inference mode."""
    spreads = [np.ptp([array(model(X, training=mode)) for _ in range(2)], axis=0) for mode in (True, False)]
    return [bool(spread.any()) for spread in spreads]


LIVE, STILL, ALWAYS = [True, False], [False, False], [True, True]


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
def test_rates_that_were_taken_come_back(kind):
    model = grafted([base(kind)], head=1, dropout="off")
    assert drops(model) == STILL
    unfreeze(model, "base/top", learning_rate=0.1, dropout="keep")
    assert drops(model) == LIVE
    expected = [row.effect for row in audit(grafted([base(kind)], head=1, dropout="keep")).rows]
    assert [row.effect for row in audit(model).rows] == expected
    assert drops(reloaded(model)) == LIVE


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_that_of_a_layer_made_with_the_rate(kind):
    """The same numbers, with the same seeds, as those of a model that never lost its rates."""
    there, back = (grafted([base(kind)], head=1, dropout=policy) for policy in ("keep", "off"))
    unfreeze(back, "base/top", learning_rate=0.1, dropout="keep")
    back.set_weights(there.get_weights())
    for model in (there, back):
        for variable in model.variables:
            if "seed_generator_state" in variable.path:
                variable.assign([7, 3])
    np.testing.assert_array_equal(array(back(X, training=True)), array(there(X, training=True)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.once
def test_it_is_silenced_and_set_where_it_stands(kind):
    model = grafted([base(kind)], head=1, dropout="keep")
    unfreeze(model, "base/top", learning_rate=0.1, dropout="off")
    assert drops(model) == STILL
    unfreeze(model, "base/top", learning_rate=0.1, dropout=0.6)
    assert drops(model) == LIVE
    unfreeze(model, "base/top", learning_rate=0.1, dropout="off")
    unfreeze(model, "base/top", learning_rate=0.1, dropout="keep")
    assert drops(model) == LIVE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.once
def test_locks_that_always_drop_are_set_to_other_modes(kind):
    model = grafted([base(kind)], head=1, dropout="always")
    for policy, expected in (("keep", LIVE), ("off", STILL), ("always", ALWAYS)):
        unfreeze(model, "base/top", learning_rate=0.1, dropout=policy)
        assert drops(model) == expected
        assert drops(reloaded(model)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["keep", "always"])
@pytest.mark.once
def test_with_dropout_takes_back_what_off_took(kind, policy):
    model = grafted([base(kind)], head=1, dropout="off")
    expected = LIVE if policy == "keep" else ALWAYS
    assert drops(with_dropout(model, policy)) == expected
    assert drops(grafted({"again": model}, head=1, dropout=policy)) == expected
    assert drops(model) == STILL


def test_with_dropout_leaves_frozen_what_was_frozen_in_a_lock():
    model = grafted([base("MultiHeadAttention")], head=1, dropout="off")
    unfreeze(model, lambda layer: isinstance(layer, layers.MultiHeadAttention), learning_rate=0.1)
    again = with_dropout(model, "keep")
    assert len(again.trainable_variables) == len(model.trainable_variables)
    assert len(reloaded(again).trainable_variables) == len(model.trainable_variables)
    (lock,) = [layer for layer in again.get_layer("base").layers if isinstance(layer, ModeLock)]
    assert lock.training is None


def test_with_dropout_leaves_open_what_was_open_in_a_wrapper():
    x = keras.Input((3, 6, 8))
    inner = keras.Sequential([keras.Input((6, 8)), layers.Flatten(), layers.Dense(2)])
    attention = layers.MultiHeadAttention(2, 3, dropout=0.3)
    y = keras.Input((6, 8))
    block = keras.Model(y, attention(y, y))
    made = keras.Model(
        x, layers.Flatten()(layers.TimeDistributed(inner)(layers.TimeDistributed(block)(x))), name="base"
    )
    model = grafted([made], head=1, dropout="off")
    unfreeze(model, lambda layer: True, learning_rate=0.1)
    again = with_dropout(model, "keep")
    for other in (again, reloaded(again), reloaded(model)):
        assert len(other.trainable_variables) == len(model.trainable_variables)


def test_a_lock_of_the_users_own_stays_closed_under_keep():
    x = keras.Input((3, 8))
    made = keras.Model(x, layers.Flatten()(ModeLock(layers.Dropout(0.5))(x)), name="base")
    assert drops(grafted([made], head=1, dropout="keep")) == STILL


def test_a_callable_is_asked_for_each_noise_layer():
    x = keras.Input((3, 8))
    y = layers.Dropout(0.3, name="first")(x)
    y = layers.LSTM(3, dropout=0.2, name="second")(layers.GaussianNoise(0.1, name="third")(y))
    model = grafted([keras.Model(x, layers.Dense(2, name="top")(y), name="base")], head=1, dropout="off")
    asked = []

    def choose(layer: keras.Layer):
        asked.append(layer.name)
        return {"first": 0.5, "second": "keep"}.get(layer.name)

    unfreeze(model, "base/top", learning_rate=0.1, dropout=choose)
    assert asked == ["first", "third", "second"]
    branch = model.get_layer("base")
    assert [branch.get_layer("first").rate, branch.get_layer("third").stddev] == [0.5, 0.0]
    assert branch.get_layer("second").dropout == 0.2


def test_layers_that_never_dropped_still_do_not():
    x = keras.Input((3, 8))
    made = keras.Model(x, layers.LSTM(3, name="lstm")(layers.Dropout(0.3)(x)), name="base")
    model = grafted([made], head=1, dropout="off")
    unfreeze(model, "base/lstm", learning_rate=0.1, dropout="keep")
    assert model.get_layer("base").get_layer("lstm").dropout == 0


def test_rates_of_a_file_are_not_known():
    model = reloaded(grafted([base("Dropout")], head=1, dropout="off", optimizer="sgd"))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"rate of layer 'base/dropout\w*'.*is 0.*Give a rate"):
        unfreeze(model, "base/top", learning_rate=0.1, dropout="keep")
    assert snapshot(model) == before
    unfreeze(model, "base/top", learning_rate=0.1, dropout=0.3)
    assert drops(model) == LIVE


@register_layer(effect="noise", rates=["strength"])
@keras.saving.register_keras_serializable(package="test_finetune_dropout")
class Shaking(layers.Layer):
    def __init__(self, strength, **options):
        super().__init__(**options)
        self.strength = strength
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs, training=False):
        if not training:
            return inputs
        return inputs + self.strength * keras.random.normal(keras.ops.shape(inputs), seed=self.seed_generator)

    def get_config(self):
        return {**super().get_config(), "strength": self.strength}


def test_a_registered_layer_gets_its_rate_back():
    x = keras.Input((3, 8))
    made = keras.Model(x, layers.Dense(2, name="top")(layers.Flatten()(Shaking(0.5)(x))), name="base")
    model = grafted([made], head=1, dropout="off")
    assert drops(model) == STILL
    unfreeze(model, "base/top", learning_rate=0.1, dropout="keep")
    assert drops(model) == LIVE


@pytest.mark.parametrize(
    ("dropout", "error", "message"),
    [
        ("remove", ValueError, 'must not be "remove"'),
        ("none", ValueError, "must be None, one of keep"),
        (1.0, ValueError, "from 0 to below 1"),
        (-0.1, ValueError, "from 0 to below 1"),
        (True, TypeError, "must be None, one of keep"),
        ([0.1], TypeError, "must be None, one of keep"),
        (lambda layer: "never", ValueError, "returns for layer"),
        ("always", ValueError, "stands in no ModeLock"),
    ],
)
def test_what_cannot_be_done_is_refused(dropout, error, message):
    model = grafted([base("Dropout")], head=1, dropout="off")
    before = snapshot(model)
    with pytest.raises(error, match=message):
        unfreeze(model, "base/top", learning_rate=0.1, dropout=dropout)
    assert snapshot(model) == before


def test_an_error_puts_rates_and_modes_back(monkeypatch):
    model = grafted([base("MultiHeadAttention"), base("LSTM")], inputs="separate", head=1, dropout="off")
    before = snapshot(model)

    def broken(*args, **kwargs):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "compile", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            unfreeze(model, 1, learning_rate=0.1, dropout="keep")
    assert {key: value for key, value in snapshot(model).items() if "seed" not in key} == {
        key: value for key, value in before.items() if "seed" not in key
    }


def test_a_layer_that_lost_its_bound_is_named():
    made = keras.Sequential(
        [keras.Input((8,)), layers.SpectralNormalization(layers.Dense(3, name="bound")), layers.Dense(2, name="top")],
        name="base",
    )
    made(vectors(2, 8), training=True)
    model = freeze_and_merge([made], head=1, loss="mse")
    unfreeze(model, "base/top", learning_rate=0.1)
    with pytest.warns(UserWarning, match="stood in a SpectralNormalization"):
        unfreeze(model, 2, learning_rate=0.1)


def test_a_branch_that_has_predicted_predicts_as_it_drops_now():
    model = grafted([base("Dropout")], head=1, dropout="always")
    branch = model.get_layer("base")

    def drops_in_predict():
        return not np.array_equal(*(branch.predict(X, verbose=0) for _ in range(2)))

    assert drops_in_predict()
    for dropout in ("off", "always"):
        unfreeze(model, "base/top", learning_rate=0.1, dropout=dropout)
        assert drops_in_predict() == (dropout == "always")


@pytest.mark.parametrize("dropout", [0.3, "keep"])
def test_what_remove_took_out_does_not_come_back_in_silence(dropout):
    model = grafted([base("Dropout")], head=1, dropout="remove")
    with pytest.warns(UserWarning, match=r"\['base'\] hold no dropout.*compose the model anew"):
        unfreeze(model, "base/top", learning_rate=0.1, dropout=dropout)


def test_a_number_is_the_rate_of_all_that_drops_in_a_layer():
    x = keras.Input((3, 8))
    made = keras.Model(x, layers.LSTM(3, dropout=0.4, recurrent_dropout=0.3, name="lstm")(x), name="base")
    for policy in ("off", "keep"):
        model = grafted([made], head=1, dropout=policy)
        unfreeze(model, "base/lstm", learning_rate=0.1, dropout=0.25)
        lstm = model.get_layer("base").get_layer("lstm")
        assert (lstm.dropout, lstm.recurrent_dropout) == (0.25, 0.25)

"""Fine-tuning: what trains after `unfreeze` and `freeze`, in the process and in files, against plain Keras."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import array, grafted, outputs, reloaded, snapshot
from keras import layers
from zoo import HARD, ZOO, if_quick, vectors

from keras_graft import Branch, ModeLock, audit, fit_head, freeze, split, unfreeze, with_dropout
from keras_graft._features.computer import Computer
from keras_graft._finetune.parts import parts_of

X, Y = vectors(32, 8), vectors(32, 2, seed=1)


def base(name: str = "base") -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(6, activation="relu", name="low"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.4, seed=3, name="drop"),
            layers.Dense(4, name="top"),
        ],
        name=name,
    )


def attention_base(name: str = "attention") -> keras.Model:
    x = keras.Input((8,))
    steps = layers.Reshape((4, 2))(x)
    y = layers.MultiHeadAttention(2, 3, dropout=0.2, name="mha")(steps, steps)
    y = layers.LayerNormalization(name="norm")(y)
    return keras.Model(x, layers.Flatten()(layers.Dense(2, name="top")(y)), name=name)


def merged(*bases: keras.Model, **options: Any) -> keras.Model:
    made = grafted(bases or [base()], head=2, **{"optimizer": keras.optimizers.SGD(0.1), **options})
    for variable in made.weights:  # statistics, scales and offsets that are not those of a new layer
        if variable.path.endswith(("variance", "gamma", "beta", "mean")):
            variable.assign(np.linspace(0.5, 2, variable.shape[0]))
    return made


def moved_by(model: keras.Model, **options: Any) -> set[str]:
    """The paths of the weights that a step of training moves."""
    before = {id(v): array(v).tobytes() for v in model.weights}
    model.fit(X, Y, **{"batch_size": 32, "verbose": 0, **options})
    return {v.path for v in model.weights if array(v).tobytes() != before[id(v)]}


HEAD = {"head/kernel", "head/bias"}


# ---------------------------------------------------------------------------------------------------------
# What trains
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_what_was_meant_trains_and_nothing_else():
    model = merged()
    assert unfreeze(model, "base/top", learning_rate=0.1) is model
    assert moved_by(model) == {"top/kernel", "top/bias", *HEAD}


def test_a_second_call_adds():
    model = merged()
    unfreeze(model, "base/top", learning_rate=0.1)
    unfreeze(model, "base/low", learning_rate=0.1)
    assert moved_by(model) == {"low/kernel", "low/bias", "top/kernel", "top/bias", *HEAD}


def test_training_is_that_of_plain_keras():
    model, plain = merged(dropout="remove"), base("plain")
    for mine, theirs in zip(model.get_layer("base").weights, plain.weights):
        theirs.assign(mine)
    head = layers.Dense(2)
    plain.get_layer("norm").trainable = False
    x = keras.Input((8,))
    by_hand = keras.Model(x, head(plain.get_layer("top")(plain.get_layer("norm")(plain.get_layer("low")(x)))))
    head.set_weights(model.get_layer("head").get_weights())
    by_hand.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", jit_compile=False)
    unfreeze(model, "base", learning_rate=0.05)
    for trained in (model, by_hand):
        trained.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    for mine, theirs in zip(model.weights, by_hand.weights):
        np.testing.assert_allclose(array(mine), array(theirs), rtol=1e-5, atol=1e-6)


def test_a_model_composed_by_hand_is_fine_tuned_too():
    plain = base()
    plain.trainable = False
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(2, name="head")(plain(x)))
    model.compile("sgd", "mse", jit_compile=False)
    unfreeze(model, 1, learning_rate=0.1)
    assert moved_by(model) == {v.path for v in plain.get_layer("top").weights} | HEAD


@pytest.mark.parametrize("policy", ["keep", "off", "remove", "always"])
def test_dropout_stays_as_it_was_composed(policy):
    model = merged(dropout=policy)
    unfreeze(model, "base", learning_rate=0.1)
    drops = [bool(np.ptp([array(model(X[:1], training=mode)) for _ in range(20)], axis=0).any()) for mode in (1, 0)]
    assert drops == {"keep": [True, False], "always": [True, True]}.get(policy, [False, False])


def test_freezing_again_leaves_the_head_alone_to_train():
    model = merged(base(), attention_base())
    unfreeze(model, lambda layer: True, learning_rate=0.1, batch_norm="affine")
    assert len(model.trainable_variables) > len(HEAD)
    assert freeze(model) is model
    assert moved_by(model) == HEAD
    assert moved_by(reloaded(model)) == HEAD


# ---------------------------------------------------------------------------------------------------------
# BatchNormalization
# ---------------------------------------------------------------------------------------------------------

NORM = {"norm/gamma", "norm/beta"}
STATISTICS = {"norm/moving_mean", "norm/moving_variance"}
DENSE = {"low/kernel", "low/bias", "top/kernel", "top/bias"}


@pytest.mark.parametrize(("batch_norm", "more"), [("inference", set()), ("affine", NORM), ("train", NORM | STATISTICS)])
@pytest.mark.parametrize("policy", ["keep", "off", "always"])
def test_batch_normalisation_does_as_it_was_told(batch_norm, more, policy):
    model = merged(dropout=policy)
    unfreeze(model, "base", learning_rate=0.1, batch_norm=batch_norm)
    loaded = reloaded(model)
    assert moved_by(model) == DENSE | more | HEAD
    assert len(moved_by(loaded)) == len(DENSE | more | HEAD)


def test_scale_and_offset_train_on_statistics_that_stand_still():
    model = merged(dropout="off")
    unfreeze(model, "base", learning_rate=0.1, batch_norm="affine")
    np.testing.assert_array_equal(array(model(X, training=True)), array(model(X, training=False)))
    freeze(model)
    assert type(model.get_layer("base").get_layer("norm")) is layers.BatchNormalization


def test_a_normalisation_of_ones_own_is_not_changed_into_another_class():
    class Own(layers.BatchNormalization):
        pass

    plain = keras.Sequential([keras.Input((8,)), layers.Dense(3), Own(name="own")], name="base")
    plain.trainable = False
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(2)(plain(x)))
    model.compile("sgd", "mse")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r'is of the class Own.*batch_norm="inference"'):
        unfreeze(model, "base", learning_rate=0.1, batch_norm="affine")
    assert snapshot(model) == before


def test_statistics_in_a_lock_cannot_follow_the_mode():
    block = keras.Sequential([layers.Dense(3), layers.BatchNormalization(), layers.Dropout(0.5)])
    model = merged(keras.Sequential([keras.Input((4, 2)), layers.TimeDistributed(block), layers.Flatten()], name="b"))
    locked = any(lock for part in parts_of(model) for lock in part.locks)
    if not locked:
        pytest.skip("no lock is needed here")
    with pytest.raises(ValueError, match="cannot follow the mode"):
        unfreeze(model, "b", learning_rate=0.1, batch_norm="train")


# ---------------------------------------------------------------------------------------------------------
# Locks, LoRA, quantized layers
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["keep", "off", "always"])
def test_a_lock_opens_for_what_was_meant_and_keeps_its_mode(policy, tmp_path):
    model = merged(attention_base(), dropout=policy)
    unfreeze(model, "attention/mha", learning_rate=0.1)
    loaded = reloaded(model)
    for trained in (model, loaded):
        moved = moved_by(trained)
        assert all("mha" in path or "head" in path for path in moved)
        assert sum("mha" in path for path in moved) >= 7  # the gradient of a bias of keys is 0
    assert len(loaded.trainable_variables) == len(model.trainable_variables) == 10
    spread = np.ptp([array(loaded(X[:1], training=False)) for _ in range(20)], axis=0)
    assert bool(spread.any()) == (policy == "always")


def test_weights_loaded_in_place_leave_a_lock_open(tmp_path):
    model = merged(attention_base(), optimizer="adam")
    unfreeze(model, "attention/mha", learning_rate=0.1)
    model.fit(X, Y, verbose=0)
    before = [v.path for v in model.trainable_variables]
    model.save_weights(tmp_path / "w.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_weights(tmp_path / "w.weights.h5")
    assert [v.path for v in model.trainable_variables] == before
    assert len(moved_by(model)) > len(HEAD)


def test_a_clone_is_as_open_as_the_model():
    model = merged(attention_base())
    unfreeze(model, "attention/mha", learning_rate=0.1)
    clone = keras.models.clone_model(model)
    clone.compile("sgd", "mse", jit_compile=False)
    assert len(clone.trainable_variables) == len(model.trainable_variables)


def test_a_backup_restores_what_was_open(tmp_path):
    models = [merged(attention_base(), optimizer="adam") for _ in range(2)]
    for model in models:
        model.set_weights(models[0].get_weights())
        unfreeze(model, "attention/mha", learning_rate=0.01)

    def fit(model: keras.Model, epochs: int, **options: Any) -> None:
        model.fit(X, Y, epochs=epochs, batch_size=8, shuffle=False, verbose=0, **options)

    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    fit(models[0], 4)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(models[1], 4, callbacks=[backup, Killed()])
    restarted = merged(attention_base(), optimizer="adam")
    unfreeze(restarted, "attention/mha", learning_rate=0.01)
    fit(restarted, 4, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    pairs = zip(
        models[0].variables + models[0].optimizer.variables, restarted.variables + restarted.optimizer.variables
    )
    for expected, actual in pairs:
        if "seed" not in expected.path:  # no file of Keras holds those
            np.testing.assert_array_equal(array(actual), array(expected))


def test_a_flag_set_by_hand_on_a_lock_opens_nothing_and_says_so():
    model = merged(attention_base())
    with pytest.warns(UserWarning, match="stays frozen.*unfreeze"):
        model.get_layer("attention").trainable = True
    lock = model.get_layer("attention").get_layer("mha")
    assert not lock.trainable_variables
    with pytest.warns(UserWarning, match="stays frozen"):
        lock.trainable = True
    assert not lock.trainable_variables


def test_a_flag_set_by_hand_closes_a_lock():
    model = merged(attention_base())
    unfreeze(model, "attention", learning_rate=0.1)
    model.get_layer("attention").trainable = False
    assert not model.get_layer("attention").get_layer("mha").trainable_variables


def test_kernels_below_lora_stand_still():
    made = base()
    made.get_layer("low").enable_lora(2)
    model = merged(made)
    unfreeze(model, "base/low", learning_rate=0.1)
    model.fit(X, Y, verbose=0)  # the first step moves one of the two alone, since the other starts with zeros
    before = array(model.get_layer("base").get_layer("low")._kernel)
    assert moved_by(model) >= {"low/lora_kernel_a", "low/lora_kernel_b", "low/bias"}
    np.testing.assert_array_equal(array(model.get_layer("base").get_layer("low")._kernel), before)
    assert len(reloaded(model).trainable_variables) == len(model.trainable_variables)


def test_quantized_kernels_stand_still():
    made = base()
    made.get_layer("low").quantize("int8")
    model = merged(made)
    unfreeze(model, "base/low", learning_rate=0.1)
    assert moved_by(model) == {"low/bias", *HEAD}


# ---------------------------------------------------------------------------------------------------------
# Any model
# ---------------------------------------------------------------------------------------------------------

# Keras loses in files that two layers hold one variable, and LoRA in composite layers.
OTHERWISE_IN_FILES = ("tied", "autoencoder", "lora_attention")


def fits(name: str) -> bool:
    return name not in ("only_dropout", "only_dropout_functional", "optional")


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        pytest.param(name, policy, id=f"{name}-{policy}", marks=if_quick(name in HARD and policy in ("off", "always")))
        for name in filter(fits, ZOO)
        for policy in ("keep", "off", "always")
    ],
)
def test_any_model_trains_what_is_open_and_keeps_it_in_files(name, policy):
    case = ZOO[name]
    options = {"output": case.output} if case.output else {"pooling": "flatten"}
    model = grafted([Branch(case.make(), **options)], head=2, dropout=policy, optimizer="sgd")
    model.compile("sgd", "mse", jit_compile=False)
    x, y = case.data(case.batch or 8), vectors(case.batch or 8, 2)
    x = keras.tree.map_structure(lambda leaf: tf.constant(leaf) if leaf.dtype.kind in "UO" else leaf, x)
    bounded = name in ("spectral", "time_distributed_spectral")
    with pytest.warns(UserWarning, match="SpectralNormalization") if bounded else contextlib.nullcontext():
        unfreeze(model, lambda layer: True, learning_rate=0.1)
    opened = {id(v) for v in model.trainable_variables}
    before = {id(v): array(v).tobytes() for v in model.weights}
    model.fit(x, y, batch_size=case.batch or 8, verbose=0)
    moved = {id(v) for v in model.weights if array(v).tobytes() != before[id(v)]}
    assert moved <= opened
    assert len(moved) > len(model.get_layer("head").weights)
    if name not in OTHERWISE_IN_FILES:
        loaded = reloaded(model)
        assert sum(v.shape.num_elements() for v in loaded.trainable_variables) == sum(
            v.shape.num_elements() for v in model.trainable_variables
        )
        if policy == "off" and name != "stateful":
            np.testing.assert_array_equal(outputs(loaded, x), outputs(model, x))
    audit(freeze(model)).assert_frozen()
    assert {id(v) for v in model.trainable_variables} == {id(v) for v in model.get_layer("head").weights}


@pytest.mark.parametrize("policy", ["keep", "off"])
@pytest.mark.parametrize("layers_", ["attention/top", "attention/mha", "base"])
@pytest.mark.once
def test_fit_head_trains_a_half_open_model_as_fit_does(policy, layers_):
    def made() -> keras.Model:
        keras.utils.set_random_seed(1)
        model = merged(base(), attention_base(), dropout=policy)
        return unfreeze(model, layers_, learning_rate=0.05)

    plain, ahead = made(), made()
    plain.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    fit_head(ahead, X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for expected, actual in zip(plain.weights, ahead.weights):
        np.testing.assert_allclose(array(actual), array(expected), rtol=1e-5, atol=1e-6)


@keras.saving.register_keras_serializable(package="test_finetune_unfreeze")
class Encoder(keras.Model):
    """A graph in a class of its own, as KerasHub has them: composed without dropout it stands in a lock as a whole."""

    def __init__(self, dropout: float = 0.3, **options: Any) -> None:
        x = keras.Input((4, 2))
        y = layers.Dense(6, name="project")(x)
        for number in range(2):
            drop = {"dropout": dropout, "name": f"attention_{number}"}
            y = layers.LayerNormalization(name=f"norm_{number}")(y + layers.MultiHeadAttention(2, 3, **drop)(y, y))
        y = layers.BatchNormalization(name="statistics")(layers.Dropout(dropout)(layers.Dense(5, name="low")(y)))
        super().__init__(x, layers.GlobalAveragePooling1D()(layers.Dense(4, name="top")(y)), **options)
        self.dropout = dropout

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dropout": self.dropout}


STEPS = vectors(32, 4, 2)


@pytest.mark.parametrize("names", [("top",), ("top", "statistics", "low"), ("attention_1", "norm_1")])
def test_an_open_lock_is_cut_inside_where_it_holds_a_graph(names):
    def made() -> keras.Model:
        keras.utils.set_random_seed(1)
        model = merged(Encoder(name="base"), optimizer=keras.optimizers.Adam(0.05))
        return unfreeze(model, lambda layer: layer.name in names, learning_rate=0.05, batch_norm="affine")

    plain, ahead = made(), made()
    lock = next(part for part in ahead._flatten_layers() if isinstance(part, ModeLock))
    assert isinstance(lock.layer, Encoder)
    found = split(ahead)
    assert not found.empty
    assert all(path.startswith("base/base/") for path in found.in_the_way)
    before = {id(v): array(v) for v in ahead.weights}
    options = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0, "validation_data": (STEPS, Y)}
    expected = plain.fit(STEPS, Y, **options)
    actual = fit_head(ahead, STEPS, Y, **options)
    for name, values in expected.history.items():
        np.testing.assert_allclose(actual.history[name], values, rtol=1e-5)
    for one, other in zip(plain.weights, ahead.weights):
        np.testing.assert_allclose(array(other), array(one), rtol=1e-5, atol=1e-6)
    open_ = {id(v) for v in ahead.trainable_variables}
    for variable in ahead.weights:
        assert id(variable) in open_ or (array(variable) == before[id(variable)]).all()
    np.testing.assert_allclose(outputs(found.rest, outputs(found.features, STEPS)), outputs(ahead, STEPS), rtol=1e-5)
    assert lock.opened and lock.training is False


def test_behind_a_cut_in_a_lock_everything_stays_in_the_mode_of_the_lock():
    model = merged(Encoder(name="base"))
    unfreeze(model, lambda layer: layer.name == "attention_0", learning_rate=0.05)
    rest, crossing = split(model).rest, outputs(split(model).features, STEPS)
    np.testing.assert_array_equal(array(rest(crossing, training=True)), array(rest(crossing, training=False)))


def test_a_merged_model_is_a_base_model_again():
    model = merged(attention_base())
    unfreeze(model, "attention", learning_rate=0.1, batch_norm="affine")
    again = grafted({"again": model}, head=2)
    audit(again).assert_frozen()
    assert len(model.trainable_variables) > len(HEAD)


# ---------------------------------------------------------------------------------------------------------
# Compiling again
# ---------------------------------------------------------------------------------------------------------


def test_losses_metrics_and_settings_survive():
    metric = keras.metrics.MeanAbsoluteError(name="mine")
    model = merged(loss=lambda y, z: keras.ops.mean((y - z) ** 2, -1), metrics=[metric], optimizer="adam")
    model.steps_per_execution = 2
    unfreeze(model, "base/top", learning_rate=0.01)
    assert (model.jit_compile, model.steps_per_execution) == (False, 2)
    assert "mine" in model.fit(X, Y, batch_size=8, verbose=0).history


@pytest.mark.parametrize("made", [0.01, lambda: 0.01, keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.5)])
@pytest.mark.parametrize("before", [0.1, keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)])
@pytest.mark.once
def test_the_optimizer_is_a_fresh_one_of_the_same_settings(made, before):
    optimizer = keras.optimizers.AdamW(before, weight_decay=0.3, clipnorm=2.0, use_ema=True)
    model = merged(optimizer=optimizer)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.fit(X, Y, verbose=0)
    unfreeze(model, "base/top", learning_rate=made)
    new = model.optimizer
    assert new is not optimizer
    assert (type(new), new.weight_decay, new.clipnorm, new.use_ema) == (keras.optimizers.AdamW, 0.3, 2.0, True)
    assert float(new.learning_rate) == pytest.approx(0.01)
    assert int(array(new.iterations)) == 0
    model.fit(X, Y, verbose=0)
    head = model.get_layer("head")
    assert [new._use_weight_decay(variable) for variable in (head.bias, head.kernel)] == [False, True]


def test_a_scaled_loss_stays_scaled():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=64.0)
    model = merged(optimizer=optimizer)
    unfreeze(model, "base/top", learning_rate=0.01)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert (model.optimizer.initial_scale, float(model.optimizer.learning_rate)) == (64.0, pytest.approx(0.01))
    assert moved_by(model) == {"top/kernel", "top/bias", *HEAD}


# ---------------------------------------------------------------------------------------------------------
# Refused, with nothing changed
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": "base/tpo"}, ValueError, "Did you mean 'base/top'"),
        ({"layers": 0}, ValueError, "1 or more"),
        ({"layers": []}, ValueError, "at least one"),
        ({"layers": None}, TypeError, "must be the name of a branch"),
        ({"layers": True}, TypeError, "must be the name of a branch"),
        ({"layers": "base/norm"}, ValueError, "none of that can train.*affine"),
        ({"layers": "base", "learning_rate": 0}, ValueError, "more than 0"),
        ({"layers": "base", "learning_rate": "small"}, TypeError, "must be a number"),
        ({"layers": "base", "batch_norm": "frozen"}, ValueError, "batch_norm"),
        ({"layers": lambda layer: False}, ValueError, "No layer of the branches is meant"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, error, message):
    model = merged()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        unfreeze(model, **{"learning_rate": 0.1, **arguments})
    assert snapshot(model) == before


def test_a_model_that_was_not_compiled_is_refused():
    model = keras.Sequential([base(), layers.Dense(2)])
    for change in (lambda: unfreeze(model, "base", learning_rate=0.1), lambda: freeze(model)):
        with pytest.raises(ValueError, match="must be compiled"):
            change()


def test_a_model_without_branches_is_refused():
    flat = base()
    flat.compile("sgd", "mse")
    with pytest.raises(ValueError, match="has no branches"):
        unfreeze(flat, "top", learning_rate=0.1)


def test_an_error_while_compiling_leaves_everything_as_it_was(monkeypatch):
    model = merged(attention_base())
    before, optimizer = snapshot(model), model.optimizer

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "compile", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            unfreeze(model, "attention", learning_rate=0.1)
    assert snapshot(model) == before
    assert model.optimizer is optimizer
    assert moved_by(model) == HEAD


def test_what_was_computed_below_an_open_layer_is_computed_once(tmp_path, monkeypatch):
    """A folder serves every run that is cut at the same place, whatever is open above."""
    model, computed = merged(base(), dropout="remove"), []
    with monkeypatch.context() as patch:
        call = Computer.__call__

        def counted(self, function, batch):
            computed.append(1)
            return call(self, function, batch)

        patch.setattr(Computer, "__call__", counted)

        def batches_computed() -> int:
            computed.clear()
            fit_head(model, X, Y, cache=tmp_path, epochs=2, verbose=0)
            return len(computed)

        assert batches_computed() > 0  # for the head
        unfreeze(model, "base/top", learning_rate=0.1)
        assert batches_computed() > 0  # the cut moved down
        unfreeze(model, "base/top", learning_rate=0.01, layer_decay=0.5)
        assert batches_computed() == 0
        freeze(model)
        assert batches_computed() > 0  # the top has changed since


# ---------------------------------------------------------------------------------------------------------
# What attackers broke
# ---------------------------------------------------------------------------------------------------------


def by_hand(frozen: keras.Model) -> keras.Model:
    """A model that was composed in plain Keras."""
    frozen.trainable = False
    x = keras.Input(frozen.input_shape[1:])
    model = keras.Model(x, layers.Dense(2, name="head")(frozen(x)))
    model.compile("sgd", "mse", jit_compile=False)
    return model


@keras.saving.register_keras_serializable(package="test_finetune_unfreeze")
class WithToken(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(4, name="dense")

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 8), name="token")
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return self.dense(x + self.token)


def test_weights_of_a_model_itself_train_too():
    made = WithToken(name="vit")
    made(X)
    model = merged(made)
    unfreeze(model, "vit", learning_rate=0.1)
    assert {path.rsplit("/", 1)[-1] for path in moved_by(model) - HEAD} == {"token", "kernel", "bias"}
    assert len(reloaded(model).trainable_variables) == len(model.trainable_variables) == 5


def test_activity_losses_count_again_where_a_layer_trains():
    made = keras.Sequential([keras.Input((8,)), layers.Dense(4, activity_regularizer="l2", name="top")], name="base")
    losses = []
    for copy in (True, False):
        keras.utils.set_random_seed(1)
        model = grafted([made], head=2, copy=copy, optimizer="sgd")
        frozen = model.evaluate(X, Y, verbose=0)
        unfreeze(model, "base", learning_rate=0.1)
        losses.append(model.evaluate(X, Y, verbose=0))
        freeze(model)
        assert copy is False or model.evaluate(X, Y, verbose=0) == pytest.approx(frozen)
    assert losses[0] == pytest.approx(losses[1])


def test_activity_losses_that_nobody_took_stay():
    made = keras.Sequential([keras.Input((8,)), layers.Dense(4, activity_regularizer="l2", name="top")], name="base")
    model = by_hand(made)
    expected = model.evaluate(X, Y, verbose=0)
    freeze(unfreeze(model, "base", learning_rate=0.1))
    assert model.evaluate(X, Y, verbose=0) == expected


def test_a_lock_that_holds_the_mode_alone_is_closed_and_opened():
    model = merged(attention_base(), dropout="keep")
    unfreeze(model, "attention/mha", learning_rate=0.1)
    copy = with_dropout(model, "off")
    copy.compile("sgd", "mse", jit_compile=False)
    assert len(copy.trainable_variables) == 10
    freeze(copy)
    assert len(copy.trainable_variables) == len(reloaded(copy).trainable_variables) == 2
    unfreeze(copy, "attention/mha", learning_rate=0.1)
    assert len(copy.trainable_variables) == len(reloaded(copy).trainable_variables) == 10


def test_behind_a_lock_that_holds_the_mode_alone_what_trains_is_said_again():
    x = keras.Input((4, 2))
    masked = layers.Masking()(x)
    y = layers.MultiHeadAttention(2, 3, dropout=0.2, name="mha")(masked, masked)
    plain = keras.Model(x, layers.GlobalAveragePooling1D()(layers.Dense(2, name="top")(y)), name="base")
    copy = with_dropout(plain, "off")
    lock = next(layer for layer in copy.layers if isinstance(layer, ModeLock))
    assert not lock.frozen
    model = by_hand(copy)
    unfreeze(model, "base/mha", learning_rate=0.1)
    assert len(model.trainable_variables) == len(reloaded(model).trainable_variables) == 10


def test_a_bound_that_a_lock_stills_is_named():
    made = keras.Sequential(
        [keras.Input((8,)), layers.SpectralNormalization(layers.Dense(3), name="bound"), layers.Dense(2)], name="base"
    )
    model = merged(made, copy=False)
    with pytest.warns(UserWarning, match="train without its bound"):
        unfreeze(model, "base", learning_rate=0.1)


@keras.saving.register_keras_serializable(package="test_finetune_unfreeze")
class Composite(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.norm = layers.Dense(8, name="dense"), layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build(shape)
        self.built = True

    def call(self, x, training=False):
        return self.norm(self.dense(x), training=training)


def test_what_files_of_plain_keras_forget_is_said():
    model = by_hand(keras.Sequential([keras.Input((8,)), Composite(name="block"), layers.Dense(3)], name="base"))
    with pytest.warns(UserWarning, match=r"\['base/block'\] is in no file"):
        unfreeze(model, "base/block", learning_rate=0.1)
    with pytest.warns(UserWarning, match=r"\['base/block'\] is in no file"):
        freeze(model)


def test_what_moves_although_frozen_is_said():
    made = keras.Sequential(
        [keras.Input((8,)), layers.SpectralNormalization(layers.Dense(3), name="bound")], name="base"
    )
    model = by_hand(made)
    with pytest.warns(UserWarning) as said:
        freeze(model)
    assert any("'base/bound'] move in `fit`" in str(warning.message) for warning in said)


def test_an_adapted_normalisation_in_front_is_no_base():
    normalise = layers.Normalization()
    normalise.adapt(X)
    made, x = base(), keras.Input((8,))
    made.trainable = False
    model = keras.Model(x, layers.Dense(2, name="head")(made(normalise(x))))
    model.compile("sgd", "mse", jit_compile=False)
    unfreeze(model, "base/top", learning_rate=0.1)
    assert len(model.trainable_variables) == 4


@keras.saving.register_keras_serializable(package="test_finetune_unfreeze")
class WithoutBuild(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(6, name="dense")

    def call(self, x):
        return self.dense(x)


def test_a_layer_that_only_a_call_builds_trains():
    x = keras.Input((8,))
    model = merged(keras.Model(x, WithoutBuild(name="block")(x), name="base"))
    unfreeze(model, "base", learning_rate=0.1)
    with warnings.catch_warnings():  # Keras says it of every such layer, in plain models too
        warnings.filterwarnings("ignore", "`build\\(\\)` was called on layer")
        loaded, clone = reloaded(model), keras.models.clone_model(model)
    assert len(moved_by(loaded)) == len(moved_by(model)) == len(model.trainable_variables) == 4
    assert len(clone.trainable_variables) == 4


def test_a_compile_of_ones_own_is_refused():
    class Distilling(keras.Model):
        def compile(self, optimizer, alpha=0.1, **options):
            super().compile(optimizer=optimizer, **options)
            self.alpha = alpha

    made, x = base(), keras.Input((8,))
    made.trainable = False
    model = Distilling(x, layers.Dense(2)(made(x)))
    model.compile("sgd", alpha=0.7, loss="mse")
    with pytest.raises(ValueError, match="class Distilling, whose `compile` may take arguments of its own"):
        unfreeze(model, "base", learning_rate=0.1)
    assert model.alpha == 0.7


def test_what_files_forget_of_a_subclassed_model_is_said():
    made = WithToken(name="vit")
    made(X)
    model = by_hand(keras.Sequential([keras.Input((8,)), made], name="base"))
    with pytest.warns(UserWarning, match="is in no file"):
        unfreeze(model, "base/vit/dense", learning_rate=0.1)

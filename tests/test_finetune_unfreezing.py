"""`Unfreezing`: what trains at which epoch, and that a run which was interrupted ends as one that was not."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from helpers import array, grafted, reloaded, snapshot
from keras import layers
from zoo import vectors

from keras_graft import Unfreezing, audit, fit_head, freeze, unfreeze
from keras_graft._finetune.grouped_rates import GroupedRates

once, slow = pytest.mark.once, pytest.mark.slow
X, Y = vectors(24, 8), vectors(24, 2, seed=1)
EPOCHS = 5
BOUNDARIES = [pytest.param(1, marks=slow), 2, pytest.param(3, marks=slow), pytest.param(4, marks=once)]


def images(name: str = "images") -> keras.Model:
    stack = [
        layers.Reshape((2, 2, 2)),
        layers.Conv2D(3, 2, padding="same", name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.3, seed=1),
        layers.Flatten(),
        layers.Dense(4, name="top"),
    ]
    return keras.Sequential([keras.Input((8,)), *stack], name=name)


def attention(name: str = "attention") -> keras.Model:
    x = keras.Input((8,))
    steps = layers.Reshape((4, 2))(x)
    y = layers.MultiHeadAttention(2, 3, dropout=0.2, name="mha")(steps, steps)
    return keras.Model(x, layers.Flatten()(layers.Dense(2, name="top")(y)), name=name)


def recurrent(name: str = "recurrent") -> keras.Model:
    stack = [layers.Reshape((4, 2)), layers.LSTM(3, dropout=0.2, seed=2, name="lstm"), layers.Dense(3, name="top")]
    return keras.Sequential([keras.Input((8,)), *stack], name=name)


def three_branches(dropout: str = "off", **options: Any) -> keras.Model:
    keras.utils.set_random_seed(7)
    bases = [images(), attention(), recurrent()]
    return grafted(bases, head=2, dropout=dropout, **{"optimizer": keras.optimizers.Adam(0.01), **options})


def schedule(**options: Any) -> Unfreezing:
    stages = {1: ["images/top", "recurrent/top"], 2: ["attention"], 4: ["images", "recurrent"]}
    return Unfreezing(stages, **{"learning_rate": 0.02, "layer_decay": 0.5, **options})


class Killed(Exception):
    """The process ended."""


class Kill(keras.callbacks.Callback):
    """Ends a run before an epoch begins, as far as all other callbacks see it."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.at:
            raise Killed


def train(model: keras.Model, *callbacks: Any, **options: Any) -> keras.callbacks.History:
    options = {"epochs": EPOCHS, "batch_size": 8, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, callbacks=list(callbacks), **options)


def state(model: keras.Model) -> list[np.ndarray]:
    return [array(variable) for variable in [*model.weights, *model.optimizer.variables]]


def assert_same(actual: keras.Model, expected: keras.Model) -> None:
    for one, other in itertools.zip_longest(state(actual), state(expected)):
        np.testing.assert_array_equal(one, other)


class Flags(keras.callbacks.Callback):
    """Notes what trains in each epoch, and what moves in it."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[set[str]] = []
        self.moved: list[set[str]] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.before = {id(v): array(v).tobytes() for v in self.model.weights}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.trained.append({v.path for v in self.model.trainable_variables})
        self.moved.append({v.path for v in self.model.weights if array(v).tobytes() != self.before[id(v)]})


# ---------------------------------------------------------------------------------------------------------
# What trains at which epoch
# ---------------------------------------------------------------------------------------------------------


def simple(**options: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    stack = [
        layers.Dense(6, activation="tanh", name="low"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.3, seed=1),
        layers.Dense(4, name="top"),
    ]
    base = keras.Sequential([keras.Input((8,)), *stack], name="base")
    return grafted([base], head=2, **{"optimizer": keras.optimizers.SGD(0.1), **options})


@pytest.mark.quick
def test_what_is_due_trains_and_nothing_else():
    model, flags = simple(), Flags()
    train(model, Unfreezing({1: "base/top", 3: "base"}, learning_rate=0.1), flags)
    head = {"head/kernel", "head/bias"}
    top, low = {"top/kernel", "top/bias"}, {"low/kernel", "low/bias"}
    assert flags.trained == [head, head | top, head | top, head | top | low, head | top | low]
    assert flags.moved == flags.trained


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.once
def test_it_trains_as_a_plain_optimizer_that_is_compiled_between_epochs(steps):
    """SGD without momentum has no state, so plain Keras can do the same by hand."""
    model, plain = simple(steps_per_execution=steps), simple(steps_per_execution=steps)
    train(model, Unfreezing({1: "base/top", 3: "base/low"}))
    for epochs, names in ((1, ()), (2, ("top",)), (2, ("top", "low"))):
        for name in names:
            plain.get_layer("base").get_layer(name).trainable = True
            for variable in plain.get_layer("base").get_layer(name).variables:
                variable.trainable = True
        plain.compile(keras.optimizers.SGD(0.1), plain.loss, steps_per_execution=steps)
        train(plain, epochs=epochs)
    for one, other in zip(model.weights, plain.weights):
        np.testing.assert_array_equal(array(one), array(other))


def test_what_joins_has_step_counts_of_its_own():
    model = simple(optimizer=keras.optimizers.Adam(0.01))
    train(model, Unfreezing({1: "base/top", 3: "base/low"}))
    steps = {group: int(array(inner._iterations)) for group, inner in model.optimizer._hidden.inner.items()}
    assert steps == {"head": 15, "stage_0": 12, "stage_1": 6}


def test_rates_are_by_depth_as_those_of_unfreeze():
    model, other = simple(), simple()
    train(model, Unfreezing({1: "base/top", 3: "base"}, learning_rate=0.4, layer_decay=0.5))
    unfreeze(other, "base", learning_rate=0.4, layer_decay=0.5)
    assert sorted(model.optimizer.rates().values()) == sorted(other.optimizer.rates().values())


def test_statistics_stand_still_and_affine_trains_on_them():
    model, flags = simple(), Flags()
    train(model, Unfreezing({1: "base"}, batch_norm="affine"), flags)
    assert {"norm/gamma", "norm/beta"} < flags.moved[1]
    assert not {path for paths in flags.moved for path in paths if "moving" in path}


def test_layers_that_no_stage_names_stay_as_they_are():
    model, flags = simple(), Flags()
    unfreeze(model, "base/low", learning_rate=0.1)
    train(model, Unfreezing({2: "base/top"}), flags, epochs=3)
    assert [{"low/kernel"} <= trained for trained in flags.trained] == [True, True, True]
    assert [{"top/kernel"} <= trained for trained in flags.trained] == [False, False, True]


def test_a_second_run_from_the_first_epoch_freezes_again_what_is_not_due():
    model, flags = simple(), Flags()
    callback = Unfreezing({1: "base/top"})
    train(model, callback, epochs=2)
    optimizer = model.optimizer
    train(model, callback, flags, epochs=2)
    assert flags.moved[0] == {"head/kernel", "head/bias"}
    assert flags.moved[1] > flags.moved[0]
    assert model.optimizer is optimizer


def test_freeze_takes_it_all_back():
    model = simple()
    train(model, Unfreezing({0: "base"}, layer_decay=0.5), epochs=1)
    audit(freeze(model)).assert_frozen()
    assert type(model.optimizer) is keras.optimizers.SGD


def test_it_begins_at_the_epoch_that_fit_begins_at():
    model, flags = simple(), Flags()
    train(model, Unfreezing({1: "base/top", 3: "base"}), flags, initial_epoch=3)
    assert all({"low/kernel", "top/kernel"} <= moved for moved in flags.moved)


# ---------------------------------------------------------------------------------------------------------
# Interrupted
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken() -> keras.Model:
    model = three_branches()
    train(model, schedule(batch_norm="affine"))
    return model


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=once)])
@pytest.mark.parametrize("at", BOUNDARIES)
def test_a_run_that_was_killed_goes_on_to_the_bit(unbroken, tmp_path, at, first):
    def callbacks() -> list[Any]:
        both = [keras.callbacks.BackupAndRestore(tmp_path / "backup"), schedule(batch_norm="affine")]
        return both if first else both[::-1]

    with pytest.raises(Killed):
        train(three_branches(), *callbacks(), Kill(at))
    model = three_branches()
    history = train(model, *callbacks())
    assert len(history.epoch) == EPOCHS - at
    assert_same(model, unbroken)


@pytest.mark.parametrize("at", BOUNDARIES)
def test_a_file_from_the_middle_goes_on_to_the_bit(unbroken, at):
    model = three_branches()
    train(model, schedule(batch_norm="affine"), epochs=at)
    loaded = reloaded(model)
    train(loaded, schedule(batch_norm="affine"), initial_epoch=at)
    assert_same(loaded, unbroken)


@pytest.mark.parametrize("dropout", ["always", pytest.param("keep", marks=slow)])
@pytest.mark.once
def test_with_live_dropout_what_trains_and_how_often_is_the_same(tmp_path, dropout):
    def run(model: keras.Model, *more: Any) -> Flags:
        flags = Flags()
        train(model, keras.callbacks.BackupAndRestore(tmp_path / "backup"), schedule(), flags, *more)
        return flags

    whole, flags = three_branches(dropout), Flags()
    train(whole, schedule(), flags)
    with pytest.raises(Killed):
        run(three_branches(dropout), Kill(3))
    model = three_branches(dropout)
    assert run(model).trained == flags.trained[3:]
    counts = [
        [int(array(v)) for v in one.optimizer.variables if v.path.endswith("iteration")] for one in (model, whole)
    ]
    assert counts[0] == counts[1]
    still = {id(v) for v in model.non_trainable_variables}
    for one, other in zip(model.weights, whole.weights):
        if id(one) in still:
            np.testing.assert_array_equal(array(one), array(other))


OPTIMIZERS = {
    "average": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.8),
    "average now and then": lambda: keras.optimizers.SGD(0.01, use_ema=True, ema_overwrite_frequency=2),
    "accumulated": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=8.0),
    "one norm": lambda: keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=0.5),
    "schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.7)),
}


@pytest.mark.parametrize(
    "which", [pytest.param(which, marks=[] if which in ("scaled", "schedule") else slow) for which in OPTIMIZERS]
)
@pytest.mark.once
def test_every_kind_of_optimizer_goes_on_and_moves_nothing_that_is_frozen(tmp_path, which):
    def callbacks() -> list[Any]:
        stages = Unfreezing({2: "base/top", 9: "base/low"})
        return [keras.callbacks.BackupAndRestore(tmp_path / which, delete_checkpoint=False), stages]

    whole, flags = simple(optimizer=OPTIMIZERS[which]()), Flags()
    low = array(whole.get_layer("base").get_layer("low").kernel)
    train(whole, Unfreezing({2: "base/top", 9: "base/low"}), flags)
    np.testing.assert_array_equal(array(whole.get_layer("base").get_layer("low").kernel), low)
    assert "top/kernel" not in flags.moved[0] | flags.moved[1]
    with pytest.raises(Killed):
        train(simple(optimizer=OPTIMIZERS[which]()), *callbacks(), Kill(3))
    model = simple(optimizer=OPTIMIZERS[which]())
    train(model, *callbacks())
    assert_same(model, whole)


def test_averages_are_swapped_for_what_trains_alone():
    model = simple(optimizer=keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
    low = array(model.get_layer("base").get_layer("low").kernel)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    train(model, Unfreezing({1: "base/top", 9: "base/low"}), swap, validation_data=(X, Y))
    np.testing.assert_array_equal(array(model.get_layer("base").get_layer("low").kernel), low)
    assert (array(model.get_layer("base").get_layer("top").kernel) != 0).all()


@pytest.mark.parametrize("first", [True, False])
def test_averages_of_what_joins_begin_with_its_values(first):
    """Keras begins them with zeros, and SwapEMAWeights swaps them in before the first step."""
    model = simple(optimizer=keras.optimizers.Adam(1e-2, use_ema=True))
    top = array(model.get_layer("base").get_layer("top").kernel)
    callbacks = [Unfreezing({1: "base/top"}, learning_rate=1e-9), keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
    train(model, *(callbacks if first else callbacks[::-1]), epochs=3)
    np.testing.assert_allclose(array(model.get_layer("base").get_layer("top").kernel), top, atol=1e-6)


def test_evaluate_and_predict_change_nothing():
    model, callback = simple(optimizer=keras.optimizers.Adam(0.01)), Unfreezing({1: "base/top"})
    unfreeze(model, "base/low", learning_rate=0.01)
    train(model, epochs=1)
    optimizer = model.optimizer
    model.evaluate(X, Y, callbacks=[callback], verbose=0)
    model.predict(X, callbacks=[callback], verbose=0)
    assert model.optimizer is optimizer
    assert [v.path for v in model.trainable_variables] == ["low/kernel", "low/bias", "head/kernel", "head/bias"]


# ---------------------------------------------------------------------------------------------------------
# When a monitored value stops improving
# ---------------------------------------------------------------------------------------------------------


class Script(keras.callbacks.Callback):
    """Puts values of its own into the logs of each epoch."""

    def __init__(self, name: str, values: list[float]) -> None:
        super().__init__()
        self.name, self.values = name, values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs[self.name] = self.values[epoch]


def begun(values: list[float], **options: Any) -> list[int]:
    """How many of two stages have begun in each epoch, where these values are monitored."""
    model, flags = simple(), Flags()
    stages = Unfreezing(["base/top", "base/low"], monitor="score", **options)
    train(model, Script("score", values), stages, flags, epochs=len(values))
    return [("top/kernel" in paths) + ("low/kernel" in paths) for paths in flags.trained]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([5, 4, 3, 2, 1], {"mode": "min", "patience": 1}, [0, 0, 0, 0, 0]),
        ([5, 5, 5, 5, 5], {"mode": "min", "patience": 1}, [0, 0, 1, 2, 2]),
        ([5, 5, 5, 5, 5], {"mode": "min", "patience": 2}, [0, 0, 0, 1, 1]),
        ([1, 2, 3, 3, 4], {"mode": "max", "patience": 1}, [0, 0, 0, 0, 1]),
        ([5, 4.9, 4.8, 4.7, 4.6], {"mode": "min", "patience": 1, "min_delta": 0.5}, [0, 0, 1, 2, 2]),
        ([np.nan, np.nan, 5, 4, 4], {"mode": "min", "patience": 2}, [0, 0, 1, 1, 1]),
    ],
)
@pytest.mark.once
def test_a_stage_begins_when_the_value_stops_improving(values, options, expected):
    assert begun(values, **options) == expected


@pytest.mark.parametrize("monitor", ["loss", pytest.param("val_loss", marks=slow)])
@pytest.mark.parametrize("first", [True, False])
def test_what_was_monitored_survives_the_restart(tmp_path, monitor, first):
    def callbacks() -> list[Any]:
        stages = Unfreezing(["base/top", "base/low"], monitor=monitor, patience=2, min_delta=1e3)
        both = [keras.callbacks.BackupAndRestore(tmp_path / "backup"), stages]
        return both if first else both[::-1]

    options = {"epochs": 7, "validation_data": (X[:8], Y[:8])}
    whole, flags = simple(), Flags()
    train(whole, callbacks()[not first], callbacks()[first], flags, **options)
    assert ["top/kernel" in paths for paths in flags.trained] == [False] * 3 + [True] * 4
    for at in (2, 4):
        with pytest.raises(Killed):
            train(simple(), *callbacks(), Kill(at), **options)
        model = simple()
        train(model, *callbacks(), **options)
        assert_same(model, whole)


def test_a_file_keeps_what_was_monitored():
    def stages() -> Unfreezing:
        return Unfreezing(["base/top"], monitor="loss", patience=2, min_delta=1e3)

    model, flags = simple(), Flags()
    train(model, stages(), epochs=2)
    train(reloaded(model), stages(), flags, initial_epoch=2)
    assert [len(paths) for paths in flags.trained] == [2, 4, 4]


def test_a_metric_of_keras_tells_its_direction():
    model = simple(metrics=["accuracy"])
    stages = Unfreezing(["base/top"], monitor="accuracy", patience=1, min_delta=2.0)
    flags = Flags()
    train(model, stages, flags, epochs=3)
    assert ["top/kernel" in paths for paths in flags.trained] == [False, False, True]


def test_a_value_whose_direction_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="mode='max'"):
        begun([1.0, 1.0, 1.0], patience=1)


def test_a_value_that_is_not_there_is_said():
    with pytest.warns(UserWarning, match=r"'val_loss', which is not available.*\['loss'\]"):
        train(simple(), Unfreezing(["base"], monitor="val_loss"), epochs=1)


# ---------------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "options", "error", "message"),
    [
        ("base", {}, TypeError, "mapping from epochs"),
        ({}, {}, ValueError, "at least one stage"),
        ([], {"monitor": "loss"}, ValueError, "at least one stage"),
        (["base"], {}, ValueError, "says no epochs"),
        ({1: "base"}, {"monitor": "loss"}, ValueError, "`stages` is a list"),
        ({-1: "base"}, {}, ValueError, "counted from 0"),
        ({"base": 1}, {}, ValueError, "counted from 0"),
        (["base"], {"monitor": 3}, TypeError, "`monitor` must be the name"),
        (["base"], {"monitor": "loss", "patience": 0}, ValueError, "`patience`"),
        (["base"], {"monitor": "loss", "min_delta": "1"}, TypeError, "`min_delta`"),
        (["base"], {"monitor": "loss", "mode": "up"}, ValueError, "`mode`"),
        ({1: "base"}, {"batch_norm": "off"}, ValueError, "`batch_norm`"),
        ({1: "base"}, {"learning_rate": -1}, ValueError, "`learning_rate`"),
    ],
)
def test_other_arguments_are_refused(stages, options, error, message):
    with pytest.raises(error, match=message):
        Unfreezing(stages, **options)


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ({1: "base/tpo"}, {}, "Did you mean 'base/top'"),
        ({1: "base/norm"}, {}, "none of that can train"),
        ({1: "base"}, {"layer_decay": {"bse": 0.5}}, "No layer"),
    ],
)
def test_what_means_nothing_is_refused_before_training(stages, options, message):
    model = simple()
    before, optimizer = snapshot(model), model.optimizer
    with pytest.raises(ValueError, match=message):
        train(model, Unfreezing(stages, **options))
    assert snapshot(model) == before
    assert model.optimizer is optimizer


def test_fit_head_refuses_it_and_says_what_to_do():
    with pytest.raises(ValueError, match="`unfreeze` between them"):
        fit_head(simple(), X, Y, callbacks=[Unfreezing({1: "base"})], verbose=0)


def test_another_schedule_begins_with_a_fresh_optimizer():
    model = simple()
    train(model, Unfreezing({1: "base/top"}), epochs=2)
    first = model.optimizer
    train(model, Unfreezing({1: "base/low"}), epochs=2)
    assert isinstance(model.optimizer, GroupedRates)
    assert model.optimizer is not first


# ---------------------------------------------------------------------------------------------------------
# `unfreeze` in callbacks of one's own
# ---------------------------------------------------------------------------------------------------------


class ByHand(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            unfreeze(self.model, "base/top", learning_rate=0.1)


def test_unfreeze_works_within_fit():
    model, flags = simple(), Flags()
    train(model, ByHand(), flags, epochs=3)
    assert ["top/kernel" in moved for moved in flags.moved] == [False, True, True]


def test_unfreeze_within_fit_head_is_refused():
    model = simple()
    before = [v.trainable for v in model.weights]
    with pytest.raises(ValueError, match="by `fit_head` while it trains"), warnings.catch_warnings():
        fit_head(model, X, Y, epochs=3, callbacks=[ByHand()], verbose=0)
    assert [v.trainable for v in model.weights] == before


# ---------------------------------------------------------------------------------------------------------
# What a second attack broke
# ---------------------------------------------------------------------------------------------------------


def sharing_a_layer() -> keras.Model:
    shared = layers.Dense(4, name="shared")
    branches = []
    for name in ("a", "b"):
        x = keras.Input((8,))
        branches.append(keras.Model(x, layers.Dense(4, name=f"top_{name}")(shared(x)), name=name))
        branches[-1].trainable = False
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(2)(layers.Concatenate()([branch(x) for branch in branches])))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_layer_of_two_branches_trains_from_the_stage_of_the_first(first):
    model = sharing_a_layer()
    before = array(model.get_layer("a").get_layer("shared").kernel)
    model.fit(X, Y, epochs=1, verbose=0, callbacks=[Unfreezing({0: first, 9: "ba".replace(first, "")})])
    assert "shared/kernel" in {variable.path for variable in model.trainable_variables}
    assert np.abs(array(model.get_layer("a").get_layer("shared").kernel) - before).max() > 0


def test_another_learning_rate_is_taken_and_a_rate_that_was_lowered_is_kept(tmp_path):
    model = grafted([images()], head=2, dropout="off", optimizer="sgd")

    def rate_after(rate, **options):
        model.fit(X, Y, verbose=0, callbacks=[Unfreezing({0: "images/top"}, learning_rate=rate)], **options)
        return float(model.optimizer.learning_rate)

    assert rate_after(0.05) == pytest.approx(0.05)
    model.optimizer.learning_rate = 0.01  # as ReduceLROnPlateau does
    assert rate_after(0.05) == pytest.approx(0.01)
    assert rate_after(np.float32(0.05)) == pytest.approx(0.01)
    model.save(tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras")
    assert rate_after(0.05) == pytest.approx(0.01)
    assert rate_after(None) == pytest.approx(0.01)
    assert rate_after(1e-4) == pytest.approx(1e-4)
    decay = keras.optimizers.schedules.ExponentialDecay(1e-3, 10, 0.5)
    assert rate_after(decay) < 1e-3
    steps = int(model.optimizer.iterations)
    rate_after(keras.optimizers.schedules.ExponentialDecay(1e-3, 10, 0.5))
    assert int(model.optimizer.iterations) == 2 * steps
    rates = [lambda: 1e-5, lambda: 1e-6]
    assert [rate_after(rate) for rate in rates] == pytest.approx([1e-5, 1e-6])
    steps = int(model.optimizer.iterations)
    rate_after(rates[1])
    assert int(model.optimizer.iterations) == 2 * steps

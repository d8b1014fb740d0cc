"""`register_layer`: the library is taught layers of others, and what it is told is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import guarantees
import keras
import numpy as np
import pytest
import zoo
from helpers import array
from keras import layers

from keras_graft import fit_head, freeze_and_merge, register_layer, split, unfreeze, with_dropout
from keras_graft._behaviour import table as _behaviour
from keras_graft._behaviour.table import Effect, behaviour
from keras_graft._engine.errors import RebuildError


@pytest.fixture(autouse=True)
def a_table_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_behaviour, "_TABLE", dict(_behaviour._TABLE))


class Noisy(layers.Layer):
    """Adds noise of its own strength, under a name that says nothing."""

    def __init__(self, zeta: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.zeta = zeta
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs: Any, training: bool = False) -> Any:
        noise = keras.random.normal(keras.ops.shape(inputs), seed=self.seed_generator)
        return inputs + self.zeta * noise if training and self.zeta else inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "zeta": self.zeta}


class Survives(layers.Layer):
    """Drops whole examples, unless they survive."""

    def __init__(self, survival: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.survival = survival
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training or self.survival == 1:
            return inputs
        chance = keras.random.uniform((keras.ops.shape(inputs)[0], 1), seed=self.seed_generator)
        return keras.ops.where(chance < self.survival, inputs / self.survival, 0.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "survival": self.survival}


class DrawsAtRate0(Survives):
    """Like many layers of others: at the silent value it still draws, and nothing comes of it."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        chance = keras.random.uniform((keras.ops.shape(inputs)[0], 1), seed=self.seed_generator)
        return keras.ops.where(chance < self.survival, inputs / self.survival, 0.0)


class Deaf(layers.Layer):
    """A Dense layer with noise on its kernel, in every mode."""

    def __init__(self, units: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.seed_generator = keras.random.SeedGenerator(1)

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")
        self.calls = self.add_weight(shape=(), name="calls", initializer="zeros", trainable=False)

    def call(self, inputs: Any) -> Any:
        self.calls.assign_add(1.0)
        return inputs @ (self.kernel + keras.random.normal(self.kernel.shape, seed=self.seed_generator))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


class Residual(layers.Layer):
    """A wrapper: what its layer computes, added to what it gets."""

    def __init__(self, inner: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, input_shape: Any) -> None:
        self.inner.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return inputs + self.inner(inputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Residual:
        return cls(**{**config, "inner": keras.saving.deserialize_keras_object(config["inner"])})


def around(layer: keras.Layer) -> keras.Model:
    return zoo.sequential(keras.Input((6,)), layers.Dense(4), layer)


def branch_of(base: keras.Model, policy: Any, **options: Any) -> keras.Model:
    return freeze_and_merge({"a": base}, 2, dropout=policy, loss="mse", **options).get_layer("a")


def live(model: keras.Model, *, training: bool) -> bool:
    x = zoo.vectors(32)
    return not np.array_equal(array(model(x, training=training)), array(model(x, training=training)))


REGISTERED: dict[str, tuple[type, dict[str, Any]]] = {
    "rates": (Noisy, {"rates": ["zeta"]}),
    "rates_of_only_noise": (Noisy, {"rates": "zeta", "only_noise": True}),
    "another_silent_value": (Survives, {"rates": {"survival": 1.0}}),
    "draws at rate 0": (DrawsAtRate0, {"rates": {"survival": 1.0}}),
    "replacement": (Noisy, {"replacement": lambda layer: layers.Identity()}),
    "only_noise": (Survives, {"only_noise": True}),
}


@pytest.fixture(params=REGISTERED)
def registered(request: pytest.FixtureRequest) -> Iterator[type]:
    kind, row = REGISTERED[request.param]
    yield register_layer(kind, effect="noise", **row)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("policy", guarantees.POLICIES)
def test_a_registered_noise_layer_follows_the_policies(registered: type, policy: str, copy: bool) -> None:
    base = around(registered())
    expected = array(base(zoo.vectors(32), training=False))
    branch = branch_of(base, policy, copy=copy)
    assert live(branch, training=True) == (policy in ("keep", "always"))
    assert live(branch, training=False) == (policy == "always")
    if policy != "always":
        np.testing.assert_array_equal(array(branch(zoo.vectors(32), training=policy != "keep")), expected)


def test_remove_leaves_out_what_only_makes_noise() -> None:
    register_layer(Noisy, effect="noise", rates=["zeta"], only_noise=True)
    base = around(Noisy(name="noisy"))
    assert "noisy" not in [layer.name for layer in branch_of(base, "remove").layers]
    assert "noisy" in [layer.name for layer in branch_of(base, "off").layers]


def test_a_replacement_gets_the_variables_that_it_has_an_attribute_for() -> None:
    register_layer(Deaf, effect="noise", replacement=lambda layer: layers.Dense(layer.units, use_bias=False))
    base = around(Deaf(name="deaf"))
    branch = branch_of(base, "off")
    assert type(branch.get_layer("deaf")) is layers.Dense
    np.testing.assert_array_equal(array(branch.get_layer("deaf").kernel), array(base.get_layer("deaf").kernel))
    assert not live(branch, training=True)


def test_a_layer_that_ignores_the_mode_is_refused_until_it_is_registered() -> None:
    with pytest.raises(RebuildError, match=r"'deaf'.*ignores the mode.*register_layer"):
        branch_of(around(Deaf(name="deaf")), "off")


def test_a_wrapper_is_looked_into() -> None:
    register_layer(Residual, effect="nothing", parts=["inner"])
    base = around(Residual(layers.Dropout(0.5), name="residual"))
    expected = array(base(zoo.vectors(8), training=False))
    for policy in ("off", "remove"):
        branch = branch_of(base, policy)
        np.testing.assert_array_equal(array(branch(zoo.vectors(8), training=True)), expected)
    assert type(branch.get_layer("residual").inner) is layers.Identity
    assert live(branch_of(base, "keep"), training=True)
    assert live(branch_of(base, "always"), training=False)


def test_a_wrapper_keeps_the_weights_of_a_part_that_is_replaced() -> None:
    register_layer(Residual, effect="nothing", parts={"inner": "inner"})
    register_layer(Deaf, effect="noise", replacement=lambda layer: layers.Dense(layer.units, use_bias=False))
    base = around(Residual(Deaf(), name="residual"))
    branch = branch_of(base, "remove")
    new = branch.get_layer("residual")
    new = getattr(new, "layer", new)  # it is locked: Keras would forget that its part is frozen
    np.testing.assert_array_equal(array(new.inner.kernel), array(base.get_layer("residual").inner.kernel))
    assert not live(branch, training=True)


def test_a_layer_that_changes_its_state_is_replaced_when_it_is_frozen() -> None:
    register_layer(zoo.Counter, effect="state", replacement=lambda layer: layers.Identity())
    base = around(zoo.Counter(name="counter"))
    assert type(branch_of(base, "keep").get_layer("counter")) is layers.Identity
    assert type(with_dropout(base, "off").get_layer("counter")) is zoo.Counter


def test_random_numbers_that_are_no_noise_may_stay() -> None:
    @register_layer(effect="nothing", reason="samples in both modes")
    class Sampling(Noisy):
        def call(self, inputs: Any, training: bool = False) -> Any:
            return super().call(inputs, training=True)

    branch = branch_of(around(Sampling()), "off")
    assert live(branch, training=False)


def test_a_registered_layer_is_found_inside_a_layer_that_is_not() -> None:
    register_layer(Noisy, effect="noise", rates=["zeta"])
    asked: list[keras.Layer] = []
    branch_of(around(Residual(Noisy(name="noisy"))), lambda layer: asked.append(layer) or "keep")
    assert [layer.name for layer in asked] == ["noisy"]


def test_a_registration_is_not_inherited() -> None:
    register_layer(Noisy, effect="nothing")

    class Louder(Noisy):
        pass

    assert behaviour(Louder()).effect is Effect.UNKNOWN
    assert behaviour(Noisy()).reason == "registered with effect 'nothing'"


def test_the_last_registration_counts() -> None:
    register_layer(Noisy, effect="nothing")
    register_layer(Noisy, effect="noise", rates=["zeta"], reason="adds noise of strength zeta")
    assert behaviour(Noisy()).reason == "adds noise of strength zeta"


def test_a_layer_whose_rate_is_silent_is_not_asked_about() -> None:
    register_layer(Survives, effect="noise", rates={"survival": 1.0})
    assert behaviour(Survives(1.0)).effect is Effect.NOTHING
    assert behaviour(Survives(0.5)).effect is Effect.NOISE


# ---------------------------------------------------------------------------------------------------------
# What is wrong is refused
# ---------------------------------------------------------------------------------------------------------


class Twice(Noisy):
    """Noise that hangs on nothing, in a layer that does more."""

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def call(self, inputs: Any, training: bool = False) -> Any:
        noise = keras.random.normal(keras.ops.shape(inputs), seed=self.seed_generator)
        return 2 * inputs + (noise if training else 0)


LIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "still noisy": ({"rates": ["zeta"]}, "off", r"'told'.*'zeta': 0.0.*still draws random numbers"),
    "does more": ({"only_noise": True}, "remove", r"'told'.*cannot be left out.*only_noise=True"),
    "other": (
        {"replacement": lambda layer: layers.Identity()},
        "off",
        r"'told'.*replacement of its class does not comp",
    ),
    "no layer": ({"replacement": lambda layer: 3}, "off", r"must return a new Keras layer.*'told' it returned 3"),
    "the same": (
        {"replacement": lambda layer: layer},
        "off",
        r"must return a new Keras layer.*'told' it returned <Twice",
    ),
    "a bug": ({"replacement": lambda layer: layer.nothing}, "off", r"'told'.*AttributeError"),
    "new weights": ({"replacement": lambda layer: layers.Dense(4)}, "off", r"'told'.*more variables.*bias.*kernel"),
    "no way": ({}, "remove", r"'told'.*neither `rates` nor a `replacement`.*\"off\""),
}


@pytest.mark.parametrize("case", LIES.values(), ids=LIES)
def test_a_registration_that_does_not_hold_is_an_error(case: tuple[dict[str, Any], str, str]) -> None:
    row, policy, message = case
    register_layer(Twice, effect="noise", **row)
    with pytest.raises(RebuildError, match=f"(?s){message}"):
        branch_of(around(Twice(name="told")), policy)


def test_a_wrapper_is_not_left_out_for_a_layer_that_does_more_than_it_is_registered_for() -> None:
    register_layer(Twice, effect="noise", only_noise=True)
    x = keras.Input((3, 6))
    base = keras.Model(x, layers.Flatten()(layers.TimeDistributed(Twice(), name="wrapper")(x)))
    with pytest.raises(RebuildError, match=r"'wrapper'.*cannot be left out"):
        branch_of(base, "remove")


class Clips(layers.Layer):
    """Leaves alone what is not negative."""

    def call(self, x: Any, training: bool = False) -> Any:
        x = keras.ops.relu(x)
        return x + keras.random.normal(keras.ops.shape(x)) if training else x


def test_a_layer_that_computes_on_negative_data_alone_is_not_left_out() -> None:
    register_layer(Clips, effect="noise", only_noise=True)
    with pytest.raises(RebuildError, match=r"'clips'.*cannot be left out"):
        branch_of(around(Clips(name="clips")), "remove")


def test_a_layer_that_is_said_to_do_nothing_and_drops_is_an_error() -> None:
    register_layer(Noisy, effect="nothing")
    with pytest.raises(
        RebuildError, match=r"'told'.*draws random numbers in training mode.*registered as one that does not"
    ):
        branch_of(around(Noisy(name="told")), "off")


@pytest.mark.parametrize("effect", ["nothing", "statistics"])
def test_a_layer_that_is_said_to_stand_still_and_moves_is_an_error(effect: Any) -> None:
    register_layer(zoo.Counter, effect=effect)
    with pytest.raises(RebuildError, match=r"'told'.*updates \[.*steps.*registered as one that does not"):
        branch_of(around(zoo.Counter(name="told")), "off")


def test_a_rate_that_the_config_lacks_is_an_error() -> None:
    class Careless(Noisy):
        def get_config(self) -> dict[str, Any]:
            return layers.Layer.get_config(self)

    register_layer(Careless, effect="noise", rates=["zeta"])
    with pytest.raises(ValueError, match=r"Careless is registered with rates=\['zeta'\].*has no \['zeta'\]"):
        branch_of(around(Careless()), "off")


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no class": (lambda: register_layer(Noisy(), effect="noise"), TypeError, "subclass of keras.Layer.*cls=<Noisy"),
    "no layer": (lambda: register_layer(dict, effect="noise"), TypeError, "subclass of keras.Layer"),
    "of Keras": (lambda: register_layer(layers.Dropout, effect="nothing"), ValueError, "knows what Dropout does"),
    "effect": (lambda: register_layer(Noisy, effect="drops"), ValueError, "one of .*'noise'.*effect='drops'"),
    "unknown": (lambda: register_layer(Noisy, effect="unknown"), ValueError, "effect='unknown'"),
    "rate": (lambda: register_layer(Noisy, effect="noise", rates=["rate"]), ValueError, r"arguments \['rate'\].*zeta"),
    "misplaced": (
        lambda: register_layer(Noisy, effect="nothing", rates=["zeta"]),
        ValueError,
        r"effect='nothing' and \['rates'\] for Noisy",
    ),
    "no words": (lambda: register_layer(Noisy, effect="noise", rates=[0.5]), TypeError, r"`rates`.*rates=\[0.5\]"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_wrong_registration_is_refused(case: tuple[Callable[[], Any], type[Exception], str]) -> None:
    call, error, message = case
    before = dict(_behaviour._TABLE)
    with pytest.raises(error, match=message):
        call()
    assert before == _behaviour._TABLE


class Scaled(Noisy):
    """Computes with its strength in inference mode too."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        return (1 + self.zeta) * super().call(inputs, training=training)


def with_noise(layer: keras.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), layer, layers.Dense(2)], name="base")


def test_a_registered_rate_can_be_another_and_comes_back() -> None:
    register_layer(Noisy, effect="noise", rates=["zeta"])
    base = with_noise(Noisy(0.5, name="noisy"))
    model = freeze_and_merge([base], 1, dropout=0.25, loss="mse")
    assert model.get_layer("base").get_layer("noisy").zeta == 0.25
    assert with_dropout(with_dropout(base, "off"), "keep").get_layer("noisy").zeta == 0.5


def test_a_rate_that_changes_what_is_computed_in_inference_mode_is_refused() -> None:
    register_layer(Scaled, effect="noise", rates=["zeta"])
    with pytest.raises(
        RebuildError, match=r"rate cannot be changed of layer 'scaled'.*\{'zeta': 0.25\}.*inference mode"
    ):
        freeze_and_merge([with_noise(Scaled(0.5, name="scaled"))], 1, dropout=0.25, loss="mse")


def test_a_rate_is_refused_where_a_class_is_registered_with_none() -> None:
    register_layer(Noisy, effect="noise")
    with pytest.raises(RebuildError, match=r"Rate 0.25 cannot be kept for layer 'noisy'"):
        freeze_and_merge([with_noise(Noisy(0.5, name="noisy"))], 1, dropout=0.25, loss="mse")


class Keep(Noisy):
    """Keeps with a probability, as layers do that are silent at 1."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        live = training and self.zeta < 1
        return keras.random.dropout(inputs, 1 - self.zeta, seed=self.seed_generator) if live else inputs


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_a_probability_to_keep_is_no_rate(rate: float) -> None:
    register_layer(Keep, effect="noise", rates={"zeta": 1.0}, only_noise=True)
    base = with_noise(Keep(0.9, name="keep"))
    with pytest.raises(RebuildError, match=rf"Rate {rate} cannot be kept for layer 'keep'.*no argument of it that is"):
        freeze_and_merge([base], 1, dropout=rate, loss="mse")
    model = freeze_and_merge([base], 1, dropout="keep", loss="mse", optimizer="sgd")
    with pytest.raises(ValueError, match="knows no rate of layer 'base/keep'"):
        unfreeze(model, "base", learning_rate=0.1, dropout=rate)
    assert with_dropout(base, 0).get_layer("keep").zeta == 1.0


def test_what_was_kept_comes_back_however_often_it_was_silenced() -> None:
    register_layer(Keep, effect="noise", rates={"zeta": 1.0}, only_noise=True)
    base = with_noise(Keep(0.9, name="keep"))
    silent = with_dropout(with_dropout(base, "off"), "off")
    assert silent.get_layer("keep").zeta == 1.0
    assert with_dropout(silent, "keep").get_layer("keep").zeta == 0.9
    model = freeze_and_merge([base], 1, dropout="keep", loss="mse", optimizer="sgd")
    for dropout, kept in (("off", 1.0), ("keep", 0.9)):
        unfreeze(model, "base", learning_rate=0.1, dropout=dropout)
        assert model.get_layer("base").get_layer("keep").zeta == kept


class AlwaysDraws(Keep):
    """Drops half, whatever it was made with."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        return keras.random.dropout(inputs, 0.5, seed=self.seed_generator) if training else inputs


def test_a_probability_to_keep_of_1_that_still_drops_is_seen() -> None:
    register_layer(AlwaysDraws, effect="noise", rates={"zeta": 1.0}, only_noise=True)
    with pytest.raises(RebuildError, match=r"cannot be removed from layer 'keep'.*still draws random numbers"):
        with_dropout(with_noise(AlwaysDraws(0.9, name="keep")), "off")


class DrawsInBothModes(layers.Layer):
    """The sampling layer of a variational encoder."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs: Any) -> Any:
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.seed_generator)


class HoldsOne(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = DrawsInBothModes(name="inner")

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)


@pytest.mark.parametrize("within", [None, DrawsInBothModes, HoldsOne])
def test_a_layer_that_is_alike_in_both_modes_and_draws_is_not_computed_ahead(within: Any) -> None:
    x = zoo.vectors(64, 4)

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        inputs = keras.Input((4,))
        hidden = layers.Dense(4, trainable=False)(inputs)
        drawn = (DrawsInBothModes if within is None else within)(name="drawn")(hidden)
        model = keras.Model(inputs, layers.Dense(1)(drawn))
        model.compile(keras.optimizers.SGD(0.0), "mse")
        return model

    for cls in {DrawsInBothModes, within} - {None} if within else ():
        register_layer(cls, effect="nothing")
    arguments: dict[str, Any] = {"x": x, "y": x[:, :1], "epochs": 3, "shuffle": False, "verbose": 0}
    expected = make().fit(**arguments).history["loss"]
    assert len(set(expected)) == 3
    model = make()
    assert "draws random numbers" in split(model).in_the_way["drawn"] + split(model).in_the_way.get("drawn/inner", "")
    np.testing.assert_allclose(fit_head(model, **arguments).history["loss"], expected, rtol=1e-5)

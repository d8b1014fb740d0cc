"""Every way out that a message names works for the very layer that it speaks of: each is tried."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import zoo
from helpers import array
from keras import layers, ops

from keras_graft import Branch, ModeLock, _keras, freeze_and_merge, register_layer
from keras_graft import with_dropout as set_dropout
from keras_graft._behaviour import table as _behaviour
from keras_graft._engine import policy as _policy
from keras_graft._engine import proof as _proof
from keras_graft._engine import rebuild as _rebuild

OFF, KEEP, CUT, FREEZE, REGISTER = '"off"', '"keep"', "Branch(output=", "reeze it first", "register_layer"
WAYS = (OFF, KEEP, CUT, FREEZE, REGISTER)


@keras.saving.register_keras_serializable(package="ways_out")
class Fixed(layers.Layer):
    """Drops at a rate that is written into its code."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense, self.drop = layers.Dense(6), layers.Dropout(0.5)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.drop(self.dense(x), training=training)


@keras.saving.register_keras_serializable(package="ways_out")
class CountsAndDrops(zoo.Counter):
    """Moves its state whenever it drops."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.drop(super().call(inputs, training=training), training=training)


@keras.saving.register_keras_serializable(package="ways_out")
class HalfSilent(layers.Layer):
    """Drops at a rate in its config, and at one that is written into its code."""

    def __init__(self, rate: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.dense, self.drop = rate, layers.Dense(6), layers.Dropout(rate)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.drop(self.dense(x), training=training)
        return keras.random.dropout(x, 0.5) if training else x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable(package="ways_out")
class Picky(HalfSilent):
    """Fails on data that was made up."""

    def call(self, x: Any, training: bool = False) -> Any:
        if x.shape[0] == 2:
            raise ValueError("too few examples")
        return self.drop(self.dense(x), training=training)


@keras.saving.register_keras_serializable(package="ways_out")
class Untraceable(layers.Layer):
    """Asks for values while it runs."""

    def call(self, x: Any, training: bool = False) -> Any:
        return x + ops.cast(np.isfinite(np.asarray(x)).all(), x.dtype)

    def compute_output_spec(self, x: Any, training: bool = False) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


def around(layer: keras.Layer) -> keras.Model:
    x = keras.Input((6,))
    return keras.Model(x, layer(layers.Dense(6, name="first")(x)), name="base")


def vae(nested: bool = False) -> keras.Model:
    """A variational encoder that samples in a Lambda layer."""

    def sampled(moments: Any) -> Any:
        mean, deviation = moments
        return mean + deviation * keras.random.normal(ops.shape(mean))

    x = keras.Input((6,))
    moments = [layers.Dense(3, name="first")(x), layers.Dense(3, name="deviation")(x)]
    base = keras.Model(x, layers.Lambda(sampled, name="layer")(moments), name="base")
    if not nested:
        return base
    outer = keras.Input((6,))
    return keras.Model(outer, layers.Dense(3)(base(outer)), name="outer")


def merged(base: Any, policy: Any) -> keras.Model:
    return freeze_and_merge({"branch": base}, 1, dropout=policy, loss="mse")


def locked_block() -> keras.Model:
    class Holds(layers.Layer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.lock, self.drop = ModeLock(layers.Dropout(0.5), training=False), layers.Dropout(0.5)

        def call(self, x: Any) -> Any:
            return self.drop(self.lock(x))

    return around(Holds(name="layer"))


@dataclasses.dataclass(frozen=True)
class Case:
    """A message that names ways out."""

    raised_by: str
    make: Callable[[], keras.Model]
    policy: Any
    compose: Callable[[Any, Any], keras.Model]
    ways: set[str]
    register: Callable[[], Any] | None = None


def identity(layer: Any) -> keras.Layer:
    return layers.Identity()


def linear(layer: Any) -> keras.Layer:
    return Fixed0(name=layer.name)


@keras.saving.register_keras_serializable(package="ways_out")
class Fixed0(layers.Layer):
    """A Fixed or HalfSilent without noise."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(6)

    def call(self, x: Any) -> Any:
        return self.dense(x)


@keras.saving.register_keras_serializable(package="ways_out")
class Raises(layers.Layer):
    """An Untraceable that can be traced."""

    def call(self, x: Any) -> Any:
        return x + 1.0


def raised(layer: Any) -> keras.Layer:
    return Raises()


def named(cls: Any) -> Callable[[], keras.Model]:
    return lambda: around(cls(name="layer"))


def noise(cls: Any, replacement: Any) -> Callable[[], Any]:
    return lambda: register_layer(cls, effect="noise", replacement=replacement)


CASES = {
    "sampling, off": Case("_check_still", vae, "off", merged, {KEEP, CUT}),
    "sampling, remove": Case("_refused", vae, "remove", merged, {KEEP, CUT}),
    "sampling in an inner model": Case("_check_still", lambda: vae(nested=True), "off", merged, {KEEP}),
    "sampling that trains": Case("_check_still", vae, "off", set_dropout, {KEEP}),
    "deaf": Case(
        "_check_still", named(zoo.Stubborn), "off", merged, {KEEP, CUT, REGISTER}, noise(zoo.Stubborn, identity)
    ),
    "no rates": Case("_refused", named(Fixed), "remove", merged, {OFF, KEEP, CUT, REGISTER}, noise(Fixed, linear)),
    "trains": Case(
        "_refuse_to_freeze", named(Fixed), "off", set_dropout, {FREEZE, KEEP, REGISTER}, noise(Fixed, linear)
    ),
    "trains, live": Case("_refuse_to_freeze", named(Fixed), "always", set_dropout, {FREEZE, KEEP}),
    "trains, of Keras": Case(
        "_refuse_to_freeze",
        lambda: around(keras.Sequential([layers.Reshape((2, 3)), layers.LSTM(3, dropout=0.5, name="layer")])),
        "always",
        set_dropout,
        {FREEZE, KEEP},
    ),
    "state": Case("_refused", named(CountsAndDrops), "keep", merged, {OFF, CUT}),
    "state, live": Case("_refused", named(CountsAndDrops), "always", merged, {OFF, CUT}),
    "locked within": Case("_refused", locked_block, "always", merged, {OFF, KEEP, CUT}),
    "half silent": Case(
        "_check_changed", named(HalfSilent), "remove", merged, {OFF, KEEP, CUT, REGISTER}, noise(HalfSilent, linear)
    ),
    "half silent, trains": Case(
        "_check_changed", named(HalfSilent), "off", set_dropout, {FREEZE, KEEP, REGISTER}, noise(HalfSilent, linear)
    ),
    "no comparison": Case("_on_made_up_data", named(Picky), "remove", merged, {OFF, KEEP, CUT}),
    "no trace": Case("_observed", named(Untraceable), "off", merged, {KEEP, CUT, REGISTER}, noise(Untraceable, raised)),
}


def where_told(message: str, word: str, policy: Any) -> Callable[[keras.Layer], Any]:
    """The callable that a message tells to pass."""
    found = re.search(r"where the layer is in (\[.*?\])", message)
    assert found is not None
    names = ast.literal_eval(found[1])
    return lambda layer: word if layer.name in names else policy


@pytest.fixture(autouse=True)
def registrations() -> Iterator[None]:
    """Takes back what a test registers."""
    before = dict(_behaviour._TABLE)
    yield
    _behaviour._TABLE.clear()
    _behaviour._TABLE.update(before)


def tried(case: Case, way: str, message: str) -> keras.Model:
    """What comes of a way out."""
    keras.utils.clear_session()  # the same names again
    base = case.make()
    if way == CUT:
        return case.compose(Branch(base, output="first"), case.policy)
    if way == FREEZE:
        next(part for part in _keras.walk(base) if part.name == "layer").trainable = False
        return case.compose(base, case.policy)
    if way == REGISTER:
        assert case.register is not None
        case.register()
        return case.compose(base, case.policy)
    return case.compose(base, where_told(message, way.strip('"'), case.policy))


@pytest.mark.once
@pytest.mark.parametrize("name", CASES)
def test_every_way_out_that_a_message_names_works(name: str) -> None:
    case = CASES[name]
    with pytest.raises(ValueError) as caught:
        keras.utils.clear_session()
        case.compose(case.make(), case.policy)
    assert caught.traceback[-1].frame.code.name in (case.raised_by, "__call__", "_silenced", "unknown")
    ways = str(caught.value).replace(f'Policy "{case.policy}"', "").partition("Received:")[0]
    assert case.ways <= {way for way in WAYS if way in ways}
    for way in [way for way in WAYS if way in ways]:
        model = tried(case, way, ways)
        if way == OFF or (way in (FREEZE, REGISTER, CUT) and case.policy in ("off", "remove")):
            x = np.full((8, 6), -0.5, "float32")
            once, again = (array(model(x, training=True)) for _ in range(2))
            np.testing.assert_array_equal(once, again)


def test_every_message_with_a_way_out_is_tried() -> None:
    naming = set()
    for module in (_policy, _proof, _rebuild):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef):
                source = ast.unparse(node)
                if "way_out(" in source and ("raise " in source or "RebuildError(" in source):
                    naming.add(node.name)
    assert naming - {"__call__"} == {case.raised_by for case in CASES.values()}

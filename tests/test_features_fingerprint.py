"""Fingerprints: what is not equal by value has another one, and what cannot be compared has none."""

from __future__ import annotations

import array as arrays
import collections
import copy
import dataclasses
import decimal
import enum
import fractions
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array
from keras import layers

from keras_graft import fit_head, predict_samples
from keras_graft._features.fingerprint import Uncomparable, _Digest, fingerprint_of_data, fingerprint_of_model

HERE = str(pathlib.Path(__file__).parent)
X = zoo.vectors(8, 4)


def number_of(*values: Any) -> str:
    digest = _Digest()
    digest.value(*values)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("__secret", "factor", "never_set")

    def __init__(self, factor: float, secret: float = 0.0) -> None:
        self.factor, self.__secret = factor, secret


class SlottedOnly:
    __slots__ = "factor"  # noqa: PLC0205  as some write it

    def __init__(self, factor: float) -> None:
        self.factor = factor


class OwnNumber(decimal.Decimal):
    factor = 1.0


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


@dataclasses.dataclass(frozen=True)
class Settings:
    factor: float


Point = collections.namedtuple("Point", "x y")


def table_of(value: float) -> Any:
    pairs = tf.lookup.KeyValueTensorInitializer(tf.constant(["a"]), tf.constant([value]))
    return tf.lookup.StaticHashTable(pairs, -1.0)


def own_number(factor: float) -> OwnNumber:
    made = OwnNumber(1)
    made.factor = factor
    return made


def scaling(factor: float) -> Callable[[Any], Any]:
    return lambda x: x * factor


def own_class(factor: float) -> type:
    return type("Own", (), {"factor": factor, "__module__": __name__})


def held_by_itself(last: Any) -> list[Any]:
    made: list[Any] = [1, last]
    made.append(made)
    return made


class Scaler:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def scale(self, x: Any) -> Any:
        return x * self.factor


class Referred:
    """Can be referred to weakly."""

    def __init__(self, factor: float) -> None:
        self.factor = factor


REFERRED = [Referred(1.0), Referred(2.0)]

UNEQUAL: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "numbers": (lambda: 1, lambda: 1.0),
    "truths": (lambda: 1, lambda: True),
    "zeros": (lambda: 0.0, lambda: -0.0),
    "long_numbers": (lambda: 10**5000, lambda: 10**5000 + 1),
    "texts": (lambda: "a", lambda: b"a"),
    "bytes": (lambda: b"a", lambda: bytearray(b"a")),
    "order_of_dicts": (lambda: {"a": 1, "b": 2}, lambda: {"b": 2, "a": 1}),
    "sets_of_long_numbers": (lambda: {1234567890123, 1}, lambda: {1234567890124, 1}),
    "sets_of_floats": (lambda: {0.12345678901234567}, lambda: {0.12345678901234568 + 1e-16}),
    "decimals": (lambda: decimal.Decimal("1.123456789012"), lambda: decimal.Decimal("1.123456789013")),
    "own_decimals": (lambda: own_number(1.0), lambda: own_number(2.0)),
    "fractions": (lambda: fractions.Fraction(1, 1234567890123), lambda: fractions.Fraction(1, 1234567890124)),
    "arrays": (lambda: arrays.array("d", [1.0]), lambda: arrays.array("d", [2.0])),
    "namespaces": (lambda: types.SimpleNamespace(a=10**12), lambda: types.SimpleNamespace(a=10**12 + 1)),
    "string_arrays": (lambda: np.array(["id-123456789"]), lambda: np.array(["id-123456780"])),
    "object_arrays": (lambda: np.array(["0x12f", None], object), lambda: np.array(["0x13f", None], object)),
    "masks": (lambda: np.ma.array([1.0, 2.0], mask=[0, 1]), lambda: np.ma.array([1.0, 2.0], mask=[1, 0])),
    "fills": (lambda: np.ma.array([1.0], fill_value=1), lambda: np.ma.array([1.0], fill_value=2)),
    "orders_of_bytes": (lambda: np.array([1], "<i4"), lambda: np.array([2**24], "<i4").view(">i4")),
    "fields": (lambda: np.zeros(1, [("a", "i4")]), lambda: np.zeros(1, [("b", "i4")])),
    "shapes": (lambda: np.float32(1), lambda: np.ones(1, "float32")),
    "matrices": (lambda: np.ones((2, 2)), lambda: np.ones((2, 2)).view(type("Matrix", (np.ndarray,), {}))),
    "tensors": (lambda: tf.constant(["a1234567890"]), lambda: tf.constant(["a1234567891"])),
    "sparse_tensors": (lambda: tf.sparse.from_dense([0.0, 1.0]), lambda: tf.sparse.from_dense([1.0, 0.0])),
    "variables": (lambda: tf.Variable(1.0), lambda: tf.Variable(2.0)),
    "tables": (lambda: table_of(1.0), lambda: table_of(2.0)),
    "slots": (lambda: Slotted(1.0), lambda: Slotted(2.0)),
    "private_slots": (lambda: Slotted(1.0, 1.0), lambda: Slotted(1.0, 2.0)),
    "one_slot": (lambda: SlottedOnly(1.0), lambda: SlottedOnly(2.0)),
    "enums": (lambda: Kind.ONE, lambda: Kind.TWO),
    "dataclasses": (lambda: Settings(1.0), lambda: Settings(2.0)),
    "named_tuples": (lambda: Point(1, 2), lambda: (1, 2)),
    "deques": (lambda: collections.deque([1]), lambda: collections.deque([2])),
    "defaults": (lambda: collections.defaultdict(int), lambda: collections.defaultdict(float)),
    "ranges": (lambda: range(3), lambda: range(4)),
    "slices": (lambda: slice(3), lambda: slice(4)),
    "iterators": (lambda: iter([1]), lambda: iter([2])),
    "closures": (lambda: scaling(1.0), lambda: scaling(2.0)),
    "traced_functions": (lambda: tf.function(scaling(1.0)), lambda: tf.function(scaling(2.0))),
    "cached_functions": (lambda: functools.lru_cache(scaling(1.0)), lambda: functools.lru_cache(scaling(2.0))),
    "vectorized_functions": (lambda: keras.ops.vectorize(scaling(1.0)), lambda: keras.ops.vectorize(scaling(2.0))),
    "partials": (lambda: functools.partial(max, 1), lambda: functools.partial(max, 2)),
    "methods": (lambda: Scaler(1.0).scale, lambda: Scaler(2.0).scale),
    "methods_of_values": (lambda: decimal.Decimal(1).fma, lambda: decimal.Decimal(2).fma),
    "methods_of_dicts": (lambda: {1: 2}.get, lambda: {1: 3}.get),
    "class_attributes": (own_class(1.0), own_class(2.0)),
    "references": (lambda: weakref.ref(REFERRED[0]), lambda: weakref.ref(REFERRED[1])),
    "holding_themselves": (lambda: held_by_itself(1), lambda: held_by_itself(2)),
    "generators": (lambda: np.random.default_rng(1), lambda: np.random.default_rng(2)),
    "initializers": (lambda: keras.initializers.Constant(1.0), lambda: keras.initializers.Constant(2.0)),
    "patterns": (lambda: __import__("re").compile("a"), lambda: __import__("re").compile("b")),
}


@pytest.mark.parametrize("kind", UNEQUAL)
def test_equal_values_have_one_number_and_others_have_another(kind: str) -> None:
    one, other = UNEQUAL[kind]
    assert number_of(one()) == number_of(one())
    assert number_of(one()) != number_of(other())


def _print_numbers() -> None:
    print(json.dumps({kind: number_of(one()) for kind, (one, _) in UNEQUAL.items()}))


@pytest.mark.once
def test_numbers_are_the_same_in_processes_that_order_sets_otherwise() -> None:
    code = "import test_features_fingerprint; test_features_fingerprint._print_numbers()"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([*sys.path, HERE])}
    command = [sys.executable, "-W", "ignore", "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert json.loads(printed.splitlines()[-1]) == {kind: number_of(one()) for kind, (one, _) in UNEQUAL.items()}


def test_sets_are_equal_in_every_order() -> None:
    words = [f"word {number}" for number in range(50)]
    backwards = words[::-1]
    assert number_of(set(words)) == number_of(set(backwards))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (number for number in range(3)),
        lambda: open(os.devnull),  # noqa: SIM115
        threading.local,
        lambda: np.frompyfunc(scaling(2.0), 1, 1),
        lambda: memoryview(b"a"),
    ],
    ids=["generator", "file", "local", "ufunc", "memory"],
)
def test_what_is_not_known_by_value_cannot_be_compared(make: Callable[[], Any]) -> None:
    with pytest.raises(Uncomparable, match="an object of type"):
        value = make()
        try:
            number_of(value)
        finally:
            getattr(value, "close", lambda: None)()


@pytest.mark.quick
def test_ids_of_examples_count_whole() -> None:
    one = [(np.array([["user-123456789"], ["0xabc"]]), None)]
    for other in ("user-123456788", "0xabd"):
        changed = np.array([[other], ["0xabc"]] if other[0] == "u" else [["user-123456789"], [other]])
        assert fingerprint_of_data(one, []) != fingerprint_of_data([(changed, None)], [])


# ---------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------


class Scale(layers.Layer):
    """Multiplies by what a function makes of what it holds."""

    def __init__(self, held: Any, read: Callable[[Any], Any], attribute: str = "held_value") -> None:
        super().__init__()
        self.attribute, self.read = attribute, read
        setattr(self, attribute, held)

    def call(self, x: Any) -> Any:
        return x * keras.ops.cast(self.read(getattr(self, self.attribute)), x.dtype)


class ScaleOp(keras.Operation):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.state = {"factor": factor}

    def call(self, x: Any) -> Any:
        return x * self.state["factor"]

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"kind": "scale"}


class Named(keras.Model):
    """A model that keeps a number under a name that Keras uses for what it is compiled with."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.loss = factor

    def call(self, x: Any) -> Any:
        return x * self.loss


def with_held(make: Callable[[float], Any], read: Callable[[Any], Any], attribute: str = "held_value") -> Any:
    return lambda x, factor: Scale(make(factor), read, attribute)(x)


HOLDERS: dict[str, Callable[[Any, float], Any]] = {
    "table": with_held(table_of, lambda table: table.lookup(tf.constant("a"))),
    "set_of_long_numbers": with_held(lambda factor: {10**12 + int(factor)}, lambda held: next(iter(held)) - 10**12),
    "decimal": with_held(decimal.Decimal, float),
    "fraction": with_held(lambda factor: fractions.Fraction(int(factor), 7), float),
    "array": with_held(lambda factor: arrays.array("d", [factor]), lambda held: held[0]),
    "namespace": with_held(lambda factor: types.SimpleNamespace(a=factor), lambda held: held.a),
    "strings": with_held(lambda factor: np.array([f"{factor:.0f}00000000"]), lambda held: float(held[0]) / 1e8),
    "masked": with_held(lambda factor: np.ma.array([1.0, 2.0], mask=[factor > 2, factor <= 2]), np.ma.sum),
    "slots": with_held(Slotted, lambda held: held.factor),
    "loss": with_held(float, float, "loss"),
    "underscored_name": with_held(float, float, "_name"),
    "operation": lambda x, factor: ScaleOp(factor)(x),
    "vectorized": lambda x, factor: keras.ops.vectorized_map(lambda row: row * factor, x),
    "model": lambda x, factor: Named(factor)(x),
    "argument": lambda x, factor: layers.Lambda(
        lambda v, by: v * float(by), arguments={"by": decimal.Decimal(factor)}, output_shape=(4,)
    )(x),
    "lookup": lambda x, factor: layers.Lambda(
        functools.partial(lambda get, v: v * get(1), {1: factor}.get), output_shape=(4,)
    )(x),
}


def headed(name: str, factor: float) -> keras.Model:
    """A model with a new head that does not learn, so that its loss tells what the head got."""
    x = keras.Input((4,))
    frozen = layers.Dense(4, kernel_initializer="ones", trainable=False)(HOLDERS[name](x, factor))
    model = keras.Model(x, layers.Dense(1, kernel_initializer="ones")(frozen))
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    return model


@pytest.mark.once
@pytest.mark.parametrize("name", HOLDERS)
def test_a_folder_never_serves_what_another_held_value_gives(name: str, tmp_path: pathlib.Path) -> None:
    y = X[:, :1]
    losses = []
    for factor in (2.0, 3.0, 2.0):
        model = headed(name, factor)
        expected = float(np.mean((array(model(X, training=False)) - y) ** 2))
        found = fit_head(model, X, y, shuffle=False, verbose=0, cache=tmp_path).history["loss"][0]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        losses.append(found)
    assert losses[0] == losses[2] != losses[1]
    assert len(list(tmp_path.iterdir())) == 2  # the third was found again


def test_string_ids_that_differ_in_digits_are_other_data(tmp_path: pathlib.Path) -> None:
    words = [["user-123456789"], ["user-123456780"], ["0xabc"], ["0xabd"]]
    lookup = layers.StringLookup(vocabulary=[word for (word,) in words])
    x = keras.Input((1,), dtype="string")
    factors = layers.Rescaling(10.0)(keras.ops.cast(lookup(x), "float32"))
    model = keras.Model(x, layers.Dense(1, kernel_initializer="ones")(factors))
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    for word in words:
        data = tf.constant([word])
        expected = float(array(model(data)).item() ** 2)
        found = fit_head(model, data, np.zeros((1, 1)), verbose=0, cache=tmp_path).history["loss"][0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def sampled_model(holder: Any) -> keras.Model:
    x = keras.Input((4,))
    return keras.Model(x, layers.GaussianNoise(1e-6)(layers.Dense(2, kernel_initializer="ones")(holder(x))))


@pytest.mark.parametrize("held", [decimal.Decimal, lambda value: {value}, lambda value: Slotted(float(value))])
def test_samples_follow_what_a_layer_holds(held: Callable[[Any], Any]) -> None:
    def read(value: Any) -> float:
        whole = value.factor if isinstance(value, Slotted) else value
        return float(next(iter(whole)) if isinstance(whole, set) else whole)

    layer = Scale(held(1234567890123), read)
    model = sampled_model(layer)
    for value in (1234567890123, 9876543210987):
        layer.held_value = held(value)
        expected = array(keras.ops.matmul(X * np.float32(value), np.ones((4, 2), "float32")))
        np.testing.assert_allclose(predict_samples(model, X, 2, seed=0).mean, expected, rtol=1e-4)


class Counting:
    """It gives another number to each that asks, and does not say by which rule."""

    def __init__(self, factor: float) -> None:
        self.factors = (factor for _ in range(1000))


def test_samples_are_computed_afresh_where_nothing_can_be_compared() -> None:
    layer = Scale(Counting(2.0), lambda held: next(held.factors))
    model = sampled_model(layer)
    for factor in (2.0, 3.0):
        layer.held_value = Counting(factor)
        expected = array(keras.ops.matmul(X * factor, np.ones((4, 2), "float32")))
        np.testing.assert_allclose(predict_samples(model, X, 2, seed=0).mean, expected, atol=1e-3)


def test_what_cannot_be_compared_is_computed_in_each_run_and_said(tmp_path: pathlib.Path) -> None:
    y = X[:, :1]
    for factor in (2.0, 3.0):
        x = keras.Input((4,))
        layer = Scale(Counting(factor), lambda held: next(held.factors))
        model = keras.Model(x, layers.Dense(1, kernel_initializer="ones")(layer(x)))
        model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
        expected = float(np.mean((factor * X.sum(axis=1, keepdims=True) - y) ** 2))
        with pytest.warns(UserWarning, match=r"no later run.*type `builtins.generator` in 'held_value' of.*\"memory\""):
            found = fit_head(model, X, y, shuffle=False, verbose=0, cache=tmp_path).history["loss"][0]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        with warnings.catch_warnings():  # the way out that it names
            warnings.simplefilter("error")
            fit_head(model, X, y, verbose=0, cache="memory")
    assert len(list(tmp_path.iterdir())) == 2


HELPERS = """
import package_of_mine.tables

def by_submodule(x):
    return x * package_of_mine.tables.FACTOR

def by_import(x):
    from package_of_mine.tables import FACTOR
    return x * FACTOR

def by_relative_import(x):
    from .tables import FACTOR
    return x * FACTOR
"""


@pytest.mark.parametrize("name", ["by_submodule", "by_import", "by_relative_import"])
def test_what_a_function_reads_of_submodules_and_imports_when_it_runs_counts(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package_of_mine"
    folder.mkdir()
    for file, text in {"__init__.py": "", "tables.py": "FACTOR = 2.0", "helpers.py": HELPERS}.items():
        (folder / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    helpers = importlib.import_module("package_of_mine.helpers")
    try:
        function, tables = getattr(helpers, name), sys.modules["package_of_mine.tables"]
        before = number_of(function)
        assert number_of(function) == before
        monkeypatch.setattr(tables, "FACTOR", 3.0)
        assert number_of(function) != before
    finally:
        for module in [module for module in sys.modules if module.startswith("package_of_mine")]:
            del sys.modules[module]


def test_the_code_of_modules_of_ones_own_counts() -> None:
    module = types.ModuleType("helpers_of_mine")
    space = {"helpers_of_mine": module}
    exec("def step(x): return helpers_of_mine.scale(x)", space)
    module.scale = scaling(2.0)  # type: ignore[attr-defined]
    before = number_of(space["step"])
    module.scale = scaling(3.0)  # type: ignore[attr-defined]
    assert number_of(space["step"]) != before


def test_the_models_number_is_not_that_of_its_compilation() -> None:
    x = keras.Input((4,))
    model = keras.Model(x, Named(2.0)(x))
    before = fingerprint_of_model(model)
    model.compile("adam", "mse")
    assert fingerprint_of_model(model) == before


def test_what_a_function_reads_counts_though_a_decorator_gave_it_the_name_of_another_one() -> None:
    space: dict[str, Any] = {"functools": functools, "keras": keras, "OFFSET": 0.0, "__name__": "mine"}
    exec("@functools.wraps(keras.ops.relu)\ndef shifted(x): return x + OFFSET", space)
    assert space["shifted"].__module__.startswith("keras.")
    before = number_of(space["shifted"])
    space["OFFSET"] = 5.0
    assert number_of(space["shifted"]) != before


def test_a_module_of_ones_own_that_is_held_cannot_be_compared() -> None:
    settings = types.ModuleType("settings_of_mine")
    with pytest.raises(Uncomparable, match="the module `settings_of_mine` as a value"):
        number_of({"lib": settings})
    assert number_of(np) == number_of(np)


def test_a_package_of_ones_own_with_the_name_of_one_of_pythons_counts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sunau.py").write_text("LIMIT = 100.0\ndef bounded(x): return min(x, LIMIT)")
    spec = importlib.util.spec_from_file_location("sunau", tmp_path / "sunau.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sunau", module)
    spec.loader.exec_module(module)
    before = number_of(module.bounded)
    module.LIMIT = 5.0
    assert number_of(module.bounded) != before


class SaysItsName(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * (2.0 if self.name == "twice" else 1.0)


def test_the_name_of_a_layer_counts_where_its_code_reads_it() -> None:
    numbers = set()
    for name in ("once", "twice"):
        x = keras.Input((4,))
        numbers.add(fingerprint_of_model(keras.Model(x, SaysItsName(name=name)(x))))
    assert len(numbers) == 2


# ---------------------------------------------------------------------------------------------------------
# What was set on layers of Keras since they were made
# ---------------------------------------------------------------------------------------------------------

# One column is 0 in the first two batches, so that the check of the first batch cannot see it.
RARE = np.random.default_rng(0).normal(size=(96, 8)).astype("float32")
RARE[:64, 7] = 0.0
NARROW = np.ones((1, 8), "float32")
NARROW[0, 7] = 0.01


def adapt_and_assign(layer: Any) -> None:
    """Keras goes on computing with what `adapt` left."""
    before = [keras.ops.convert_to_numpy(weight) for weight in layer.weights]
    data = RARE.copy()
    data[:, 7] *= 0.1
    layer.adapt(data)
    for weight, value in zip(layer.weights, before):
        weight.assign(value)


def adapted() -> Any:
    layer = keras.layers.Normalization()
    layer.adapt(RARE)
    return layer


class Reads(layers.Layer):
    """Multiplies with a number that it reads off what it holds."""

    def __init__(self, held: Any, read: Callable[[Any], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.held, self.read = [held], read

    def call(self, inputs: Any) -> Any:
        return inputs * tf.cast(self.read(self.held[0]), "float32")


def partial_with_an_attribute() -> Any:
    made = functools.partial(max, 1)
    made.gain = 2.0  # type: ignore[attr-defined]
    return made


def told() -> Any:
    def function() -> None:
        pass

    function.__doc__ = "2"
    return function


HELD_AND_SET: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "the seed of an initialiser": (
        lambda: keras.initializers.RandomNormal(1.0, seed=1),
        lambda held: held(()),
        lambda held: setattr(held, "seed", 3),
    ),
    "an attribute of a loss": (
        lambda: keras.losses.Huber(2.0),
        lambda held: getattr(held, "gain", 2.0),
        lambda held: setattr(held, "gain", 3.0),
    ),
    "an argument of a loss": (
        lambda: keras.losses.Huber(0.1),
        lambda held: held(np.ones((1, 1)), np.zeros((1, 1))),
        lambda held: held._fn_kwargs.update(delta=0.5),
    ),
    "an attribute of a partial function": (
        partial_with_an_attribute,
        lambda held: held.gain,
        lambda held: setattr(held, "gain", 3.0),
    ),
    "what a function says of itself": (
        told,
        lambda held: float(held.__doc__),
        lambda held: setattr(held, "__doc__", "3"),
    ),
}


@pytest.mark.parametrize(("make", "read", "change"), HELD_AND_SET.values(), ids=HELD_AND_SET)
def test_what_was_set_on_an_object_that_a_layer_holds_is_in_its_number(make: Any, read: Any, change: Any) -> None:
    x, layer = keras.Input((4,)), Reads(make(), read)
    model = keras.Model(x, layer(x))
    before = fingerprint_of_model(model)
    assert fingerprint_of_model(model) == before
    change(layer.held[0])
    assert fingerprint_of_model(model) != before


def test_an_initialiser_without_a_seed_has_one_number() -> None:
    numbers = set()
    for _ in range(2):
        x = keras.Input((4,))
        layer = Reads(keras.initializers.RandomNormal(), lambda held: held.stddev)
        numbers.add(fingerprint_of_model(keras.Model(x, layer(x))))
    assert len(numbers) == 1


class Plain:
    def __init__(self) -> None:
        self.gain = 2.0


def test_to_copy_an_object_changes_no_number() -> None:
    x, layer = keras.Input((4,)), Reads(Plain(), lambda held: held.gain)
    model = keras.Model(x, layer(x))
    before = fingerprint_of_model(model)
    copy.deepcopy(Plain())
    assert fingerprint_of_model(model) == before


SET_SINCE: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "number": (keras.layers.ELU, lambda layer: setattr(layer, "alpha", 0.1)),
    "tensor": (
        lambda: keras.layers.Normalization(mean=[0.0] * 8, variance=[1.0] * 8),
        lambda layer: setattr(layer, "variance", keras.ops.convert_to_tensor(NARROW)),
    ),
    "tensor of other weights": (adapted, adapt_and_assign),
    "array for a weight": (
        lambda: keras.layers.BatchNormalization(trainable=False),
        lambda layer: setattr(layer, "moving_variance", NARROW[0]),
    ),
}


@pytest.mark.parametrize(("make", "change"), SET_SINCE.values(), ids=SET_SINCE)
def test_what_was_set_on_a_layer_of_keras_is_seen(make: Any, change: Any, tmp_path: pathlib.Path) -> None:
    keras.utils.set_random_seed(0)
    x, layer = keras.Input((8,)), make()
    still = keras.layers.Dense(16, trainable=False)
    model = keras.Model(x, keras.layers.Dense(1)(keras.layers.Dropout(1e-6)(still(layer(x)))))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    data = (RARE if layer.name[:3] != "elu" else np.concatenate([abs(RARE[:32]), RARE[32:]]), RARE[:, :1])
    fit_head(model, *data, cache=tmp_path, verbose=0)
    predict_samples(model, data[0], 2, seed=0)
    change(layer)
    found = fit_head(model, *data, cache=tmp_path, verbose=0).history["loss"]
    samples = predict_samples(model, data[0], 2, seed=0).mean
    model.compile(keras.optimizers.SGD(0.0), "mse")
    np.testing.assert_allclose(found, model.fit(*data, verbose=0).history["loss"], rtol=1e-5)
    np.testing.assert_allclose(samples, keras.ops.convert_to_numpy(model(data[0])), rtol=1e-3, atol=1e-4)

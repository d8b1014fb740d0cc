"""Calls that must fail: what their errors say, and that they leave everything as it was."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import pytest
from helpers import (
    grafted,
    originals_in,
    snapshot,
)
from keras import layers
from zoo import sequential

NO_RETURN = {"expected": "must return one symbolic Keras tensor", "change": "Did it forget its `return`?"}
STAGE = {
    "expected": "a Keras layer or model, a list of layers, or a callable",
    "change": "from tensor to tensor",
}
IN_USE = {
    "expected": "already in use by another model",
    "change": "Pass a new layer, or a callable that makes one",
}


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A call that must fail.

    Attributes:
        call: Gets a stand-in for `freeze_and_merge`, and calls it once.
        error: The type of the error.
        says: What came, what was expected and what to change, as the message has it.
        copies: The values of `copy` with which it must fail.
    """

    call: Callable[[Callable[..., Any]], Any]
    error: type[Exception]
    says: tuple[str, str, str]
    copies: tuple[bool, ...] = (True, False)


def entering(refusals: dict[str, Refusal]) -> Callable[..., Any]:
    """A decorator that enters a call into the list of those that must fail."""

    def refused(error: type[Exception], *, came: str, expected: str, change: str, **notes: Any) -> Callable[..., Any]:
        def enter(call: Callable[..., Any]) -> Callable[..., Any]:
            refusals[call.__name__] = Refusal(call, error, (came, expected, change), **notes)
            return call

        return enter

    return refused


class Witness:
    """Stands in for `freeze_and_merge`, and knows what the originals were like before the call."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.originals: list[Any] = []
        self.before: dict[str, Any] = {}

    def __call__(self, models: Any, head: Any = 3, **options: Any) -> Any:
        options = {**self.options, **options}
        self.originals = originals_in(models, options)
        for original in self.originals:
            if isinstance(original, keras.Model) and original.built:
                lived_in(original)
        self.before = snapshot(*self.originals)
        return grafted(models, head, **options)

    def changes(self) -> dict[str, Any]:
        """What became of the originals: what it was and what it is, where these differ."""
        after = snapshot(*self.originals)
        return {
            what: (self.before.get(what), after.get(what))
            for what in {**self.before, **after}
            if self.before.get(what) != after.get(what)
        }


def lived_in(model: keras.Model) -> None:
    """Compiles `model` and freezes a part of it: state that must come through."""
    with_weights = [layer for layer in model.layers if layer.weights]
    for layer in with_weights[:-1]:
        layer.trainable = False
    model.compile(optimizer="adam", loss="mse")


@functools.cache
def outcome(call: Callable[..., Any], copy: bool) -> tuple[type[Exception] | None, str, dict[str, Any]]:
    """The type and message of the error, and what it changed in the originals."""
    witness = Witness(copy=copy)
    try:
        call(witness)
    except Exception as error:  # whichever it is: the test looks at it
        return type(error), str(error), witness.changes()
    return None, "", {}


def checks_of(refusals: dict[str, Refusal]) -> tuple[Callable[..., None], Callable[..., None]]:
    """What is tested of each of them: what its error says, and that it leaves the originals as they were."""
    cases = [
        pytest.param(refusal, copy, id=f"{name}-{'copy' if copy else 'itself'}")
        for name, refusal in refusals.items()
        for copy in refusal.copies
    ]

    @pytest.mark.parametrize(("refusal", "copy"), cases)
    def says_what_came_what_was_expected_and_what_to_change(refusal: Refusal, copy: bool) -> None:
        kind, message, _ = outcome(refusal.call, copy)
        assert kind is not None, "nothing was raised"
        assert issubclass(kind, refusal.error), message
        for piece in refusal.says:
            assert piece in message

    @pytest.mark.parametrize(("refusal", "copy"), cases)
    def leaves_the_originals_as_they_were(refusal: Refusal, copy: bool) -> None:
        _, _, changes = outcome(refusal.call, copy)
        assert changes == {}

    return says_what_came_what_was_expected_and_what_to_change, leaves_the_originals_as_they_were


@keras.saving.register_keras_serializable(package="test_compose")
class Composed(keras.Model):
    """A subclassed model."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top = layers.Dense(2, name="top")

    def build(self, input_shape: Any) -> None:
        self.top.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.top(inputs)


def composed() -> keras.Model:
    model = Composed(name="composed")
    model.build((None, 3))
    return model


class TwoOutputs(Composed):
    """A subclassed model that returns two tensors."""

    def call(self, inputs: Any) -> Any:
        return {"one": inputs, "two": self.top(inputs)}


def two_outputs() -> keras.Model:
    model = TwoOutputs()
    model.build((None, 3))
    return model


class WithoutShapes(keras.Model):
    """A subclassed model that says it is built, and does not know with which shapes."""

    def __init__(self) -> None:
        super().__init__(name="shapeless")
        self.top = layers.Dense(2)
        self.top.build((None, 3))
        self.built = True

    def call(self, inputs: Any) -> Any:
        return self.top(inputs)


class TwoArguments(keras.Model):
    """A subclassed model that takes two tensors, one by one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top = layers.Dense(2)

    def call(self, left: Any, right: Any) -> Any:
        return self.top(left) + self.top(right)


def ids_base() -> keras.Model:
    return sequential(keras.Input((3,), dtype="int32"), layers.Embedding(9, 2), layers.Flatten())


class Unfaithful(layers.Layer):
    """A layer whose config lacks an argument of its constructor."""

    def __init__(self, units: int) -> None:
        super().__init__(name="unfaithful")
        self.inner = layers.Dense(units)

    def build(self, input_shape: Any) -> None:
        self.inner.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


class Secretive(layers.Layer):
    """A layer that drops at a rate of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5, name="hidden_drop")

    def call(self, inputs: Any) -> Any:
        return self.drop(inputs)

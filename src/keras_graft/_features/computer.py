"""What a model gives for batches of data in inference mode, whatever computes it.

It must not know what the results are for.
"""

from __future__ import annotations

import abc
import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from .. import _keras
from .._keras import Structure
from .data import numbers, tensors

__all__ = ["AT_A_TIME", "Computer", "Function", "kind_of"]

# How many batches are computed at a time: few operations keep all cores busy from beginning to end.
AT_A_TIME = 2

# Computes the features of one batch, in a row.
Function = Callable[[Structure], list[Any]]


@dataclasses.dataclass(frozen=True)
class Computer(abc.ABC):
    """Computes the features of batches.

    Attributes:
        model: The model that gives them.
    """

    model: keras.Model

    @property
    def engine(self) -> str:
        """What it computes with, as callers name it."""
        return "tensorflow"

    @property
    def exact(self) -> bool:
        """Whether its features are those of the model to the last bit."""
        return not self.label

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """What tells its features from those of `predict`, which are equal to the last bit; empty where none does."""

    @abc.abstractmethod
    def like(self, model: keras.Model) -> Computer:
        """Computes the features of another model in this way."""

    @abc.abstractmethod
    def function_for(self, batch: Structure) -> Function:
        """What computes such a batch, made in this thread: scopes of Keras hold for a thread."""

    def begin(self) -> Callable[[], None]:
        """Begins a pass over data, and gives what each thread calls before it computes for that."""
        return lambda: None

    @functools.cached_property
    def parts(self) -> list[Computer]:
        """What computes the features of each part of the model that shares no weights with the others."""
        _keras.put_on_record(self.model)  # other models are built on its tensors
        parts = _keras.parts_without_common_weights(self.model)
        return [self] if len(parts) == 1 else [self.like(part) for part in parts]

    @functools.cached_property
    def is_coarse(self) -> bool:
        """Whether numbers of half precision, or whole ones, stand between inputs and features."""
        return any(_keras.is_coarse(layer) for layer in _keras.walk(self.model))

    def over(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[list[Any], Any]]:
        """The features of each batch with what came with it."""
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME, initializer=self.begin()) as pool:
            running: collections.deque[Any] = collections.deque()
            for batch, targets in batches:
                data = tensors(batch)
                running.append((pool.submit(self, self.function_for(data), data), numbers(targets)))
                if len(running) > AT_A_TIME:
                    computed, came = running.popleft()
                    yield computed.result(), came
            yield from ((computed.result(), came) for computed, came in running)

    def __call__(self, function: Function, batch: Structure) -> list[Any]:
        """The features of one batch of a pass, by one of the functions."""
        return self._checked(function(batch))

    def once(self, batch: Structure) -> list[Any]:
        """The features of one batch."""
        data = tensors(batch)
        self.begin()()
        return self._checked(self.function_for(data)(data))

    def _checked(self, computed: list[Any]) -> list[Any]:
        """The features, if they are what the layers declared: what is behind takes that for granted."""
        for (key, declared), tensor in zip(_keras.outputs_by_key(self.model).items(), computed):
            said, got = (f"as {keras.backend.standardize_dtype(one.dtype)}" for one in (declared, tensor))
            if said == got and len(tensor.shape) != len(declared.shape):
                said, got = (f"with shape {tuple(one.shape)}" for one in (declared, tensor))
            if said != got:
                raise ValueError(
                    f"What crosses the frontier at '{key}' is declared {said} and computed {got}. "
                    "Let the layer that gives it declare what it gives (a Lambda without `output_shape` is traced), or "
                    "use `fit` and `predict`."
                )
        return computed


def kind_of(structure: Structure) -> str:
    """What batches that one function computes have in common, of tensors or of their specs."""
    leaves = keras.tree.flatten(structure)
    return str([f"{type(leaf).__name__} {getattr(leaf, 'shape', '')} {getattr(leaf, 'dtype', '')}" for leaf in leaves])

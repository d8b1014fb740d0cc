"""An optimizer with a learning rate of its own for each group of variables.

It must not know of branches and layers: a group is a name, with a factor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from .. import _keras
from .._keras import Variable

__all__ = ["GroupedRates", "as_a_file_keeps_it"]


def as_a_file_keeps_it(rate: Any) -> Any:
    """A learning rate as JSON; of code it says no more than that it was code."""
    if rate is None or isinstance(rate, (str, dict)):
        return rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        try:
            return keras.saving.serialize_keras_object(rate)
        except NotImplementedError:
            return "code"
    return "code" if callable(rate) else float(np.float32(rate))  # as an optimizer keeps it


class _Hidden:
    """Optimizers that Keras must not find: it saves what is in lists and dicts a second time."""

    def __init__(self) -> None:
        self.inner: dict[str, Any] = {}
        self.group_of: dict[int, str] = {}
        self.observed: dict[int, float] = {}


# Where a file has the values that a schedule goes by.
_OBSERVED = "observed"


@keras.saving.register_keras_serializable(package="keras_graft")
class GroupedRates(keras.optimizers.Optimizer):
    """A copy of an optimizer for each group of variables, at a share of one learning rate.

    Each group trains as by a plain optimizer at its own rate: scaling gradients instead would be the same for plain
    SGD alone. Every group counts its own steps. Schedules, callbacks and `learning_rate` speak of the whole rate.

    Args:
        optimizer: Any Keras optimizer that is not built: the pattern of those of the groups.
        factors: The share of the learning rate of each group.
        groups: The group of each trainable variable, in the order of `model.trainable_variables`.
        name: Its name.
        asked: The learning rate that it was made for, as a file keeps it, where somebody wants to know that later.

    Raises:
        ValueError: If `optimizer` clips the global norm of gradients that it accumulates, which no group sees whole.
    """

    def __init__(
        self,
        optimizer: Any,
        factors: Mapping[str, float],
        groups: Sequence[str],
        name: str | None = None,
        asked: Any = None,
    ) -> None:
        if optimizer.global_clipnorm and optimizer.gradient_accumulation_steps:
            raise ValueError(
                "`global_clipnorm` and `gradient_accumulation_steps` do not go together with a learning rate per "
                "depth: no group sees all gradients that were accumulated. Use `clipnorm`, or leave one of them out. "
                f"Received: optimizer={optimizer!r}"
            )
        rate = _keras.learning_rate_given(optimizer)
        super().__init__(rate, name=name or f"grouped_{optimizer.name}")
        self._pattern = type(optimizer), {**_keras.settings_of(optimizer), "learning_rate": 0.0}
        self._exclusions = _keras.exclusions_of(optimizer)
        self.factors, self.groups, self.asked = dict(factors), list(groups), asked
        self._clips_together, self._steps = optimizer.global_clipnorm, optimizer.gradient_accumulation_steps
        self._hidden = _Hidden()
        self.use_ema = optimizer.use_ema
        self.loss_scale_factor = optimizer.loss_scale_factor

    def plain(self) -> Any:
        """An optimizer of the class and the settings of those of the groups, at the whole learning rate."""
        kind, config = self._pattern
        new = kind.from_config({**config, "learning_rate": _keras.learning_rate_given(self)})
        vars(new).update(self._exclusions)
        return new

    def rates(self) -> dict[str, float]:
        """The learning rate of each group."""
        rate = float(keras.ops.convert_to_numpy(self.learning_rate))
        return {group: rate * factor for group, factor in self.factors.items()}

    @property
    def members(self) -> dict[str, list[Variable]]:
        """The variables of each group that has states, in the order in which it was given them."""
        return {group: _keras.trained_by(inner) for group, inner in self._hidden.inner.items()}

    @property
    def observed(self) -> dict[int, float]:
        """Values by epoch that a schedule goes by; files keep them, so that it goes on after a restart."""
        return self._hidden.observed

    def build(self, variables: Sequence[Variable]) -> None:
        """Makes an optimizer for each group, with states for its variables."""
        if len(variables) != len(self.groups):
            raise ValueError(
                f"{len(self.groups)} variables have a group, and {len(variables)} train. Call `unfreeze` or `freeze` "
                "after what trains was changed by hand, so that the groups are made anew."
            )
        self.add(variables, self.groups)
        _keras.note_trained(self, variables)
        self.built = True

    def add(self, variables: Sequence[Variable], groups: Sequence[str]) -> None:
        """Makes an optimizer for each group that has none yet: its variables may train now, or join later."""
        for group in dict.fromkeys(groups):
            if group not in self._hidden.inner:
                members = [variable for variable, other in zip(variables, groups) if other == group]
                self._hidden.inner[group] = self._for_group(group, members)
                self._hidden.group_of.update({id(variable): group for variable in members})

    def train(self, variables: Sequence[Variable]) -> None:
        """Says anew what trains, of all that has a group. States and step counts stay.

        The moving averages of what joins begin with its values: with zeros, SwapEMAWeights would swap these in.
        """
        self.groups = [self._hidden.group_of[id(variable)] for variable in variables]
        for inner in [self._hidden.inner[group] for group in dict.fromkeys(self.groups)]:
            if self.use_ema and not _keras.has_stepped(inner):
                for variable, average in zip(_keras.trained_by(inner), _keras.moving_averages(inner)):
                    average.assign(variable)
        _keras.note_trained(self, variables)

    def _for_group(self, group: str, members: list[Variable]) -> Any:
        kind, config = self._pattern
        settings = {"name": f"{self.name}_{group}", **({"global_clipnorm": None} if self._clips_together else {})}
        inner = kind.from_config({**config, **settings})
        vars(inner).update(self._exclusions)
        inner.loss_scale_factor = self.loss_scale_factor
        inner.build(members)
        return inner

    def apply(self, grads: Iterable[Any], trainable_variables: Iterable[Variable] | None = None) -> Any:
        """Takes a step in every group."""
        variables = list(_keras.trained_by(self) if trainable_variables is None else trainable_variables)
        if not self.built:
            self.build(variables)
        gradients = list(grads)
        if self._clips_together:
            gradients = _keras.clipped_together(gradients, variables, self._clips_together, self.loss_scale_factor)
        for group, inner in self._hidden.inner.items():
            pairs = [(g, v) for g, v in zip(gradients, variables) if self._hidden.group_of[id(v)] == group]
            if not pairs:
                continue
            if all(gradient is None for gradient, _ in pairs):
                warnings.warn(f"No gradients reach group '{group}'.", stacklevel=2)
                continue
            inner.learning_rate = keras.ops.multiply(self.learning_rate, self.factors[group])
            inner.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])
        self._iterations.assign_add(1)

    @property
    def iterations(self) -> Any:
        """The number of steps of the groups."""
        return self._iterations // self._steps if self._steps else self._iterations

    @property
    def loss_scale_factor(self) -> Any:
        """By how much losses, and so gradients, are scaled."""
        return self._loss_scale

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: Any) -> None:
        self._loss_scale = value
        for inner in self._hidden.inner.values() if hasattr(self, "_hidden") else ():
            inner.loss_scale_factor = value

    def finalize_variable_values(self, var_list: Iterable[Variable]) -> None:
        """Puts moving averages into the variables at the end of training, where the groups keep such."""
        for inner in self._hidden.inner.values():
            if _keras.has_stepped(inner):
                inner.finalize_variable_values(_keras.trained_by(inner))

    @property
    def _model_variables_moving_average(self) -> list[Variable]:
        """The moving averages of what trains: SwapEMAWeights asks for them."""
        averages = {
            id(variable): average
            for inner in self._hidden.inner.values()
            for variable, average in zip(_keras.trained_by(inner), _keras.moving_averages(inner))
        }
        return [averages[id(variable)] for variable in _keras.trained_by(self)]

    @property
    def variables(self) -> list[Any]:
        """Its own variables, and those of all groups."""
        return list(self._variables_by_key().values())

    def save_own_variables(self, store: Any) -> None:
        """Writes the variables of all groups."""
        for key, variable in self._variables_by_key().items():
            store[key] = keras.ops.convert_to_numpy(variable)
        if self.observed:
            store[_OBSERVED] = np.array(list(self.observed.items()), "float64")

    def load_own_variables(self, store: Any) -> None:
        """Reads the variables of all groups; where they do not fit, a warning says that training begins anew.

        A group of which nothing was saved had not joined.
        """
        saved = set(store.keys())
        numbers = [number for number in self._held() if f"{number}_0" in saved or self._has_stepped(number)]
        variables = self._variables_by_key(numbers)
        fits = variables.keys() <= saved and all(
            tuple(store[key].shape) == tuple(variable.shape) for key, variable in variables.items()
        )
        if not fits:
            warnings.warn(
                f"The saved state of optimizer '{self.name}' does not fit what trains, and is not used.", stacklevel=2
            )
            return
        for key, variable in variables.items():
            variable.assign(store[key][()])
        observed = store[_OBSERVED][()] if _OBSERVED in saved else ()
        self._hidden.observed = {int(epoch): float(value) for epoch, value in observed}

    def _held(self) -> dict[int, list[Any]]:
        """The variables of each group that has states, by its number; those of its own by 0."""
        inner = self._hidden.inner
        groups = {number: inner[group].variables for number, group in enumerate(self.factors, 1) if group in inner}
        return {0: self._variables, **groups}

    def _variables_by_key(self, numbers: Iterable[int] | None = None) -> dict[str, Any]:
        """The variables of some groups, or of all: the key says the number of the group and the place in it."""
        held = self._held()
        chosen = held if numbers is None else numbers
        return {f"{number}_{place}": v for number in chosen for place, v in enumerate(held[number])}

    def _has_stepped(self, number: int) -> bool:
        return number == 0 or _keras.has_stepped(self._hidden.inner[list(self.factors)[number - 1]])

    def get_config(self) -> dict[str, Any]:
        """The config of the pattern, with factors and groups."""
        return {
            "optimizer": keras.saving.serialize_keras_object(self.plain()),
            "factors": self.factors,
            "groups": self.groups,
            "name": self.name,
            "asked": as_a_file_keeps_it(self.asked),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> GroupedRates:
        """The same groups around a new optimizer."""
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects=custom_objects)
        return cls(**{**config, "optimizer": optimizer})

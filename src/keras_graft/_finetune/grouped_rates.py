"""An optimizer with a learning rate of its own for each group of variables.

It must not know of branches and layers: a group is a name, with a factor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from .. import _keras
from .._keras import Variable

__all__ = ["GroupedRates"]


class _Hidden:
    """Optimizers that Keras must not find: it saves what is in lists and dicts a second time."""

    def __init__(self) -> None:
        self.inner: dict[str, Any] = {}


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

    Raises:
        ValueError: If `optimizer` clips the global norm of gradients that it accumulates, which no group sees whole.
    """

    def __init__(
        self, optimizer: Any, factors: Mapping[str, float], groups: Sequence[str], name: str | None = None
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
        self.factors, self.groups = dict(factors), list(groups)
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

    def build(self, variables: Sequence[Variable]) -> None:
        """Makes an optimizer for each group, with states for its variables."""
        if len(variables) != len(self.groups):
            raise ValueError(
                f"{len(self.groups)} variables have a group, and {len(variables)} train. Call `unfreeze` or `freeze` "
                "after what trains was changed by hand, so that the groups are made anew."
            )
        for group in dict.fromkeys(self.groups):
            members = [variable for variable, other in zip(variables, self.groups) if other == group]
            self._hidden.inner[group] = self._for_group(group, members)
        _keras.note_trained(self, variables)
        self.built = True

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
        group_of = {id(variable): group for variable, group in zip(_keras.trained_by(self), self.groups)}
        for group, inner in self._hidden.inner.items():
            pairs = [(g, v) for g, v in zip(gradients, variables) if group_of[id(v)] == group]
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
            inner.finalize_variable_values(_keras.trained_by(inner))

    @property
    def variables(self) -> list[Any]:
        """Its own variables, and those of all groups."""
        return [*self._variables, *(v for inner in self._hidden.inner.values() for v in inner.variables)]

    def save_own_variables(self, store: Any) -> None:
        """Writes the variables of all groups."""
        for index, variable in enumerate(self.variables):
            store[str(index)] = keras.ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        """Reads the variables of all groups; where they do not fit, a warning says that training begins anew."""
        variables = self.variables
        values = [store[key][()] for key in sorted(store.keys(), key=int)]
        if [tuple(value.shape) for value in values] != [tuple(variable.shape) for variable in variables]:
            warnings.warn(
                f"The saved state of optimizer '{self.name}' does not fit what trains, and is not used.", stacklevel=2
            )
            return
        for variable, value in zip(variables, values):
            variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        """The config of the pattern, with factors and groups."""
        return {
            "optimizer": keras.saving.serialize_keras_object(self.plain()),
            "factors": self.factors,
            "groups": self.groups,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> GroupedRates:
        """The same groups around a new optimizer."""
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects=custom_objects)
        return cls(**{**config, "optimizer": optimizer})

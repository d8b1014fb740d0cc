"""`Unfreezing`: a callback of `fit` that lets more of the branches train, epoch by epoch.

What trains is a function of the epoch, and of the values that were monitored before it. It must not know of features.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras

from .. import _keras
from .._arguments import check_option, integer
from .checks import check_can_train, checked_parts, warn_of_constraints, warn_of_files
from .decay import Grouping, LayerDecay, checked_decay, grouped
from .flags import BATCH_NORM, BatchNorm, close_part, open_part, undone_on_error, variables_to_train
from .grouped_rates import GroupedRates, as_a_file_keeps_it
from .optimizer import LearningRate, build_optimizer, check_compiled, check_learning_rate, optimizer_like
from .parts import Part
from .selection import Layers, chosen

__all__ = ["Unfreezing"]

_MODES = ("auto", "min", "max")


class Unfreezing(keras.callbacks.Callback):
    """Lets layers of the branches train from given epochs of `fit` on: gradual unfreezing.

    The layers nearest to the head join first, those below them later, so that what they know is not overwritten while
    the head is untrained (Howard and Ruder, 2018, arXiv:1801.06146). Each stage trains as by `unfreeze`: the same
    layers, flags and learning rates, and everything that joins begins with step counts and moments of its own.

    **An interrupted run goes on as if it had not been interrupted**, with `keras.callbacks.BackupAndRestore` anywhere
    in the list or from a `.keras` file, because what trains depends on the epoch alone, and on monitored values that
    the optimizer keeps in every file. (Keras saves no seeds: live dropout and shuffling draw other numbers.)

    When `fit` begins, the model is compiled with a fresh optimizer that has states for every stage. Where it has that
    already, from an earlier `fit` or a file, for the same stages and the same `learning_rate`, it goes on with it, at
    the rate that callbacks have made of that. Layers that no stage names stay as they are.

    Args:
        stages: From which epoch on which layers train, as `{2: "base/top", 4: ["base/mid", "other"]}`: epochs count
            from 0, and layers are meant as in `unfreeze`. Or, with `monitor`, a list of stages: each begins when the
            monitored value has stopped improving.
        learning_rate: That of the fresh optimizer, a number, a schedule or a callable. `None` (default): that which
            the model was compiled with.
        layer_decay: A learning rate per depth, as in `unfreeze`.
        batch_norm: What becomes of BatchNormalization among the layers, as in `unfreeze`.
        monitor: The value that decides when the next stage begins, such as `"val_loss"`.
        patience: The number of epochs without improvement after which the next stage begins.
        min_delta: The least change that is an improvement.
        mode: `"min"` or `"max"`, the direction of improvement, or `"auto"`: known for losses and metrics of Keras.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If there are no stages, or arguments do not go together; and, when `fit` begins, if the model is
            not compiled or has no branches, or a stage means none of their layers or none that can train. Nothing has
            been changed then.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import Unfreezing, freeze_and_merge
    >>> base = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(16, name="low"), keras.layers.Dense(4, name="top")], name="base"
    ... )
    >>> model = freeze_and_merge([base], head=1, loss="mse")
    >>> schedule = Unfreezing({1: "base/top", 2: "base"}, learning_rate=1e-4)
    >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 1)), epochs=2, callbacks=[schedule], verbose=0)
    >>> [variable.path for variable in model.get_layer("base").trainable_variables]
    ['top/kernel', 'top/bias']
    """

    def __init__(
        self,
        stages: Mapping[int, Layers] | Sequence[Layers],
        *,
        learning_rate: LearningRate | None = None,
        layer_decay: LayerDecay | None = None,
        batch_norm: BatchNorm = "inference",
        monitor: str | None = None,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Literal["auto", "min", "max"] = "auto",
    ) -> None:
        super().__init__()
        check_option("batch_norm", batch_norm, BATCH_NORM)
        check_option("mode", mode, _MODES)
        if learning_rate is not None:
            check_learning_rate(learning_rate)
        self.epochs, self.stages = _checked_stages(stages, monitor)
        self.learning_rate, self.layer_decay, self.batch_norm = learning_rate, layer_decay, batch_norm
        self.monitor, self.mode = monitor, mode
        self.patience = integer("patience", patience, least=1)
        self.min_delta = _checked_delta(min_delta)
        self._parts: list[list[Part]] = []
        self._begun: int | None = None
        self._epoch = 0

    def set_model(self, model: keras.Model) -> None:
        """Compiles the model with groups for all stages: before any callback loads what was saved of them."""
        super().set_model(model)
        if _keras.is_in_evaluation(model):
            return
        check_compiled(model)
        every_part = checked_parts(model)
        self._parts = [chosen(layers, every_part) for layers in self.stages]
        for parts, layers in zip(self._parts, self.stages):
            check_can_train(model, parts, layers, self.batch_norm)
        if self.layer_decay is not None:
            checked_decay(self.layer_decay, every_part)
        self._begun = None
        groups = grouped(every_part, self.layer_decay, self._parts)
        joining = self._joining()
        if not _has_groups(model, groups, joining) or self._asks_for_another_rate(model):
            warn_of_constraints([part for parts in self._parts for part in parts])
            warn_of_files(every_part)
            with undone_on_error(model):
                self._let_train(0)
                rates = dict(groups.factors), groups.of(model.trainable_variables)
                _keras.compile_anew(model, optimizer_like(model, self.learning_rate, rates))
                _optimizer(model).asked = self.learning_rate
        build_optimizer(model)
        with model.distribute_strategy.scope():
            _optimizer(model).add(joining, groups.of(joining))

    def _asks_for_another_rate(self, model: keras.Model) -> bool:
        """Whether the optimizer of a model was made for another rate; what that became since is of no account."""
        asked, rate = _optimizer(model).asked, self.learning_rate
        if rate is None or asked is rate:
            return False
        one, other = as_a_file_keeps_it(asked), as_a_file_keeps_it(rate)
        return bool(one != other or (one == "code" and callable(asked)))  # a file does not say which code

    def _joining(self) -> list[Any]:
        """What trains once all stages have begun, in the order in which it trains then, and in a loaded model."""
        joining = [v for parts in self._parts for part in parts for v in variables_to_train(part, self.batch_norm)]
        wanted = set(map(id, joining))
        return [variable for variable in self.model.variables if id(variable) in wanted]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Lets train what is due."""
        observed = _optimizer(self.model).observed
        for later in [other for other in observed if other >= epoch]:
            del observed[later]
        self._epoch = epoch
        begun = self._stages_due(epoch, observed)
        if begun == self._begun:
            return
        self._let_train(begun)
        _optimizer(self.model).train(self.model.trainable_variables)
        self.model.make_train_function(force=True)
        self._begun = begun

    def _stages_due(self, epoch: int, observed: Mapping[int, float]) -> int:
        if self.monitor is None:
            return sum(at <= epoch for at in self.epochs)
        sign = _keras.direction_of(self.model, self.monitor, self.mode) if observed else 1
        best, waited, begun = math.inf, 0, 0
        for value in [-sign * observed[at] for at in sorted(observed)]:
            improved = value < best - self.min_delta
            best, waited = (value, 0) if improved else (best, waited + 1)
            if waited == self.patience:
                begun, waited = begun + 1, 0
        return min(begun, len(self.stages))

    def _let_train(self, begun: int) -> None:
        """Lets the first stages train, and freezes the parts of the others."""
        due = {id(part.layer) for parts in self._parts[:begun] for part in parts}
        for part in {id(part): part for parts in self._parts for part in parts}.values():
            if id(part.layer) in due:
                open_part(part, self.batch_norm)
            else:
                close_part(part)
        if due:
            _keras.set_own_trainable(self.model, True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes what is monitored in training: before other callbacks save at the end of the epoch."""
        self._observe(logs, "")

    def on_test_end(self, logs: Any = None) -> None:
        """Notes what is monitored in validation."""
        self._observe(logs, "val_")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Notes what other callbacks added, and warns where the monitored value is not there."""
        self._observe(logs, "")
        if self.monitor is not None and epoch not in _optimizer(self.model).observed:
            warnings.warn(
                f"`Unfreezing` monitors '{self.monitor}', which is not available, so no stage begins by it. Available "
                f"are: {sorted(logs or {})}",
                stacklevel=2,
            )

    def _observe(self, logs: Any, prefix: str) -> None:
        values = {f"{prefix}{name}": value for name, value in (logs or {}).items()}
        if self.monitor in values and isinstance(_optimizer(self.model), GroupedRates):
            _optimizer(self.model).observed[self._epoch] = float(values[self.monitor])


def _optimizer(model: keras.Model) -> Any:
    return _keras.within_loss_scale(model.optimizer)


def _has_groups(model: keras.Model, groups: Grouping, joining: Sequence[Any]) -> bool:
    """Whether the optimizer of a model has the groups of a schedule, from an earlier `fit` or from a file."""
    optimizer = _optimizer(model)
    if not isinstance(optimizer, GroupedRates) or optimizer.factors != dict(groups.factors) or not optimizer.built:
        return False
    expected: dict[str, set[int]] = {}
    every = [*model.trainable_variables, *joining]
    for variable, group in zip(every, groups.of(every)):
        expected.setdefault(group, set()).add(id(variable))
    with_states = {group: set(map(id, members)) for group, members in optimizer.members.items()}
    same = all(expected.get(group) == members for group, members in with_states.items())
    return same and with_states.keys() >= set(groups.of(model.trainable_variables))


def _checked_stages(stages: Any, monitor: Any) -> tuple[list[int], list[Any]]:
    """The epochs at which stages begin, and the layers of each."""
    if isinstance(stages, Mapping):
        if monitor is not None:
            raise ValueError(
                "With `monitor`, `stages` is a list: each stage begins when the value has stopped improving, and no "
                f"epoch can be given. Received: stages={stages!r}, monitor={monitor!r}"
            )
        if not all(isinstance(epoch, numbers.Integral) and int(epoch) >= 0 for epoch in stages):
            raise ValueError(f"The keys of `stages` must be epochs, counted from 0. Received: stages={stages!r}")
        pairs = sorted(stages.items(), key=lambda pair: pair[0])
    elif isinstance(stages, Sequence) and not isinstance(stages, str):
        if monitor is None:
            raise ValueError(
                '`stages` says no epochs. Give them, as in `{2: "base/top"}`, or give `monitor`, as in '
                f'`monitor="val_loss"`. Received: stages={stages!r}'
            )
        pairs = list(enumerate(stages))
    else:
        raise TypeError(
            '`stages` must be a mapping from epochs to layers, such as `{2: "base/top"}`, or with `monitor` a list of '
            f"layers. Received: {stages!r} (of type {type(stages).__name__})"
        )
    if monitor is not None and not isinstance(monitor, str):
        raise TypeError(
            '`monitor` must be the name of a value in the logs of `fit`, such as "val_loss". '
            f"Received: {monitor!r} (of type {type(monitor).__name__})"
        )
    if not pairs:
        raise ValueError(f"`stages` must hold at least one stage. Received: stages={stages!r}")
    return [epoch for epoch, _ in pairs], [layers for _, layers in pairs]


def _checked_delta(min_delta: Any) -> float:
    if not isinstance(min_delta, numbers.Real) or isinstance(min_delta, bool):
        raise TypeError(
            "`min_delta` must be a number, the least change that is an improvement. "
            f"Received: {min_delta!r} (of type {type(min_delta).__name__})"
        )
    return abs(float(min_delta))

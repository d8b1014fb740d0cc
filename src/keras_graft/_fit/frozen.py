"""What features were computed with, and whether it is still what it was."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._arguments import callbacks_in
from .._behaviour.untouched import same_bits
from .._features.fingerprint import Uncomparable, fingerprint_of_model
from .._keras import Variable
from .._split.obstacles import variables_read_by
from .steps import is_quiet

__all__ = ["Frozen"]


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What the features were computed with.

    Attributes:
        features: What computed them.
        values: Its weights, and other variables that it reads, with tensors of what they were then. A tensor shares the
            memory of its variable until that is written to.
        code: A number for its code, and for what its layers hold beside variables; None where there is none.
        seen_changed: What was changed at some epoch, in words.
    """

    features: keras.Model
    values: list[tuple[Any, Any]]
    code: str | None
    seen_changed: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, features: keras.Model) -> Frozen:
        graphs = {id(graph): graph for graph in map(_keras.call_graph, _keras.walk(features)) if graph is not None}
        nodes = [node for graph in graphs.values() for node in _keras.nodes(graph)]
        read = [variable for node in nodes for variable in variables_read_by(node)]
        seeds = {id(state) for state in _keras.seed_states(features)}
        variables = [variable for variable in (*features.weights, *read) if id(variable) not in seeds]
        used = {id(_content(variable)): variable for variable in reversed(variables)}
        values = [(variable, tf.convert_to_tensor(_content(variable))) for variable in used.values()]
        return cls(features, values, _number_of_code(features))

    def changed(self) -> str:
        """What is not what it was, in words; empty where all is."""
        code = _number_of_code(self.features)
        return self.changed_variables() or ("" if code == self.code else "what frozen layers hold beside their weights")

    def changed_variables(self) -> str:
        """Likewise of the variables alone."""
        changed = [
            getattr(variable, "path", variable.name)
            for variable, old in self.values
            if not same_bits(np.asarray(_content(variable)), np.asarray(old))
        ]
        return f"{len(changed)} frozen weights ({', '.join(changed[:5])})" if changed else ""

    def watched(self, callbacks: Any) -> Any:
        """The callbacks, with one that raises where others changed the frozen part before the first step."""

        def check(logs: Any = None) -> None:
            changed = self.changed()
            if changed:
                raise ValueError(
                    f"A callback changed {changed} at the beginning of the training, when the features were computed "
                    "already. Load weights, restore backups and set attributes before `fit_head`, or use `fit`."
                )

        def note(epoch: int, logs: Any = None) -> None:
            changed = self.changed_variables()
            if changed:
                self.seen_changed.append(changed)

        if isinstance(callbacks, keras.callbacks.CallbackList):
            return callbacks
        theirs = callbacks_in(callbacks)
        by_epoch = {} if all(map(is_quiet, theirs)) else {"on_epoch_begin": note, "on_epoch_end": note}
        return [*theirs, keras.callbacks.LambdaCallback(on_train_begin=check, **by_epoch)]

    def warn_if_changed(self, model: keras.Model) -> None:
        changed = self.seen_changed[0] if self.seen_changed else self.changed()
        if changed:
            warnings.warn(
                f"Model '{model.name}': {changed} changed while `fit_head` trained it on features that were computed "
                "before. Train it with `fit` where a callback changes what is frozen.",
                stacklevel=3,
            )


def _number_of_code(features: keras.Model) -> str | None:
    try:
        return fingerprint_of_model(features, weights=False)
    except Uncomparable:
        return None


def _content(variable: Variable) -> Any:
    """The variable of TensorFlow that holds the value."""
    return variable.value if isinstance(variable, keras.Variable) else variable

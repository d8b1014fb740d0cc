"""What becomes of one layer. It must not know why: that is `policy.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from .errors import RebuildError

__all__ = ["TRAINING", "Decide", "Decision", "Mode", "no_way_out", "together"]


class Mode(Enum):
    """The mode that a layer must run in."""

    ANY = "any"  # it computes the same in all of them
    OUTER = "outer"
    INFERENCE = "inference"
    TRAINING = "training"


TRAINING = {Mode.ANY: False, Mode.OUTER: None, Mode.INFERENCE: False, Mode.TRAINING: True}


def no_way_out(*, comparable: bool = True) -> str:
    return ""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of one layer.

    Attributes:
        mode: The mode that it must run in. Inference and training mode are held by a `ModeLock`.
        changes: Constructor arguments that the copy gets in place of those of the layer.
        replacement: Makes from the layer another one to put in its place, with the values of its variables.
        bypass: Leave the layer out; its input goes on.
        unwrap: Put the inner layer of this wrapper in its place.
        reuse: Take the very layer instead of a copy.
        lock: Hold the layer in a `ModeLock` also where no mode asks for it, because saving and loading
            would forget that it is frozen.
        verify: Check, once the model stands, that what became of the layer does what it is there for.
        way_out: Tells what can be done where this cannot, in words; also where no two layers can be compared.
        otherwise: What to do where this cannot be done, or does not have the effect that it is there for.
        over_stored: A `ModeLock` lets the outer mode through also to calls in the layer that another one is stored in.
        trains: A `ModeLock` that holds the mode leaves the layer as trainable as it is.
        opened: The variables that train although the layer stands in a `ModeLock`.
    """

    mode: Mode = Mode.ANY
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    replacement: Callable[[Any], Any] | None = None
    bypass: bool = False
    unwrap: bool = False
    reuse: bool = False
    lock: bool = False
    verify: bool = False
    over_stored: bool = False
    trains: bool = False
    opened: tuple[str, ...] = ()
    way_out: Callable[..., str] = no_way_out
    otherwise: Decision | None = None

    @property
    def holds_mode(self) -> bool:
        """Whether a `ModeLock` has to hold the mode, whatever the model around it does."""
        return self.mode in (Mode.INFERENCE, Mode.TRAINING)


Decide = Callable[[Any, str], Decision]


def together(decisions: Iterable[Decision], path: str) -> Decision:
    """The decision for a wrapper, from its own and those of the layers in it."""
    decisions = list(decisions)
    if len(decisions) == 1:
        return decisions[0]
    modes = {decision.mode for decision in decisions} - {Mode.ANY}
    if len(modes) > 1:
        asked = " and ".join(sorted(f"'{mode.value}'" for mode in modes))
        raise RebuildError(
            f"The layers inside '{path}' would have to run in different modes at once ({asked}), and a wrapper "
            "runs in one. Choose policies that agree within the wrapper: 'off' and 'remove' go with "
            "everything, 'keep' does not go with 'always'."
        )
    return dataclasses.replace(
        decisions[0],
        mode=modes.pop() if modes else Mode.ANY,
        changes={name: value for decision in reversed(decisions) for name, value in decision.changes.items()},
        lock=any(decision.lock for decision in decisions),
        verify=any(decision.verify for decision in decisions),
        over_stored=any(decision.over_stored for decision in decisions),
        trains=any(decision.trains for decision in decisions),
    )

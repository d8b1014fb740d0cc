"""What becomes of one layer, and of a wrapper with those in it, against decisions that are put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import zoo

from keras_graft._engine.decision import TRAINING, Decision, Mode, no_way_out, together
from keras_graft._engine.errors import RebuildError
from keras_graft._engine.policy import decider
from keras_graft._engine.rebuild import rebuild


@pytest.mark.quick
@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ([Mode.ANY, Mode.ANY], Mode.ANY),
        ([Mode.ANY, Mode.OUTER, Mode.ANY], Mode.OUTER),
        ([Mode.INFERENCE, Mode.INFERENCE], Mode.INFERENCE),
        ([Mode.TRAINING, Mode.ANY], Mode.TRAINING),
        ([Mode.OUTER, Mode.TRAINING], None),
        ([Mode.ANY, Mode.INFERENCE, Mode.OUTER], None),
    ],
)
def test_a_wrapper_runs_in_the_mode_that_those_in_it_agree_on(modes: list[Mode], expected: Mode | None) -> None:
    decisions = [Decision(mode) for mode in modes]
    if expected is None:
        with pytest.raises(RebuildError, match=r"inside 'a/b' would have to run in different modes at once"):
            together(decisions, "a/b")
    else:
        assert together(decisions, "a/b").mode is expected


def test_the_changes_of_a_wrapper_go_before_those_of_what_is_in_it() -> None:
    outer, inner = Decision(changes={"rate": 0.0, "a": 1}), Decision(changes={"rate": 0.5, "b": 2})
    assert together([outer, inner], "").changes == {"rate": 0.0, "a": 1, "b": 2}


@pytest.mark.parametrize("flag", ["lock", "verify", "over_stored", "trains"])
def test_what_one_of_them_asks_for_is_done(flag: str) -> None:
    asking: Any = {flag: True}
    assert getattr(together([Decision(), Decision(**asking)], ""), flag)
    assert not getattr(together([Decision(), Decision()], ""), flag)


def test_a_decision_alone_is_what_it_is() -> None:
    alone = Decision(Mode.OUTER, reuse=True)
    assert together([alone], "") is alone


def test_a_lock_has_to_hold_two_of_the_modes() -> None:
    assert [mode for mode in Mode if Decision(mode).holds_mode] == [Mode.INFERENCE, Mode.TRAINING]
    assert TRAINING == {Mode.ANY: False, Mode.OUTER: None, Mode.INFERENCE: False, Mode.TRAINING: True}
    assert Decision().way_out(comparable=False) == no_way_out() == ""


def test_decisions_that_disagree_within_a_wrapper_are_refused() -> None:
    model = zoo.make_bidirectional()
    chosen = iter(["keep", "always", "keep", "always"])
    with pytest.raises(RebuildError, match=r"different modes at once \('outer' and 'training'\)"):
        rebuild(model, decider(lambda layer: next(chosen), "keep", copy=True, frozen=True))

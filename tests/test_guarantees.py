"""The guarantees, over every policy and the whole zoo, and for bases that were frozen or loaded before."""

from __future__ import annotations

from collections.abc import Iterator

import guarantees
import helpers
import keras
import pytest
from guarantees import POLICIES, Evidence
from zoo import HARD, ZOO, if_quick

CASES = [(name, policy) for name in ZOO for policy in POLICIES]


# Two bases and single steps are seen of most models where it must be quick, and not three bases and `fit`; of the two
# policies that are built from the other two, one base.
WHOLE = ["fresh", "frozen", "loaded"]
PREPARED = {"keep": ["fresh", "loaded"], "off": ["fresh", "loaded"], "remove": ["loaded"], "always": ["loaded"]}


def is_seen_whole(name: str, policy: str) -> bool:
    return name in HARD and policy in ("keep", "off")


def is_quick(name: str, policy: str) -> bool:
    """Whether a run stays in the fast tests: `always` is `keep` with locks, so it is seen of the hard models alone."""
    return policy != "always" or name in HARD


def a_run(name: str, policy: str, *, quick: bool = True, **options: bool) -> object:
    """A run of the model `name`; those that are not quick are left to the slow tests."""
    return pytest.param((name, policy, options), marks=if_quick(quick), id="-".join([name, policy, *options]))


RUNS = [
    *(
        a_run(name, policy, quick=is_quick(name, policy), **{} if is_seen_whole(name, policy) else {"on_batch": True})
        for name, policy in CASES
    ),
    *(a_run(name, policy, reuse=True, quick=policy == "keep" and name in HARD) for name, policy in CASES),
    *(a_run(name, policy, traced=True, quick=policy == "off" and name in HARD) for name, policy in CASES),
]


@pytest.fixture(scope="module", params=RUNS)
def seen(request: pytest.FixtureRequest) -> Iterator[Evidence]:
    name, policy, options = request.param
    bases = guarantees.originals(ZOO[name], PREPARED[policy] if "on_batch" in options else WHOLE)
    yield guarantees.run(ZOO[name], policy, bases=bases, **options)
    keras.backend.clear_session()


def test_frozen_means_frozen(seen: Evidence) -> None:
    guarantees.check_frozen(seen)


def test_dropout_does_what_was_asked(seen: Evidence) -> None:
    guarantees.check_as_chosen(seen)


def test_the_head_follows_fit_and_predict(seen: Evidence) -> None:
    guarantees.check_head_follows_the_outer_mode(seen)


def test_activity_losses_of_a_base_are_dropped(seen: Evidence) -> None:
    guarantees.check_no_activity_losses(seen)


def test_only_the_head_trains(seen: Evidence) -> None:
    guarantees.check_only_the_head_trains(seen)


def test_the_originals_are_untouched(seen: Evidence) -> None:
    guarantees.check_originals(seen)


def test_no_mode_is_stored_in_a_graph(seen: Evidence) -> None:
    guarantees.check_no_stored_mode(seen)


@pytest.mark.parametrize("trained", ["original", "merged"])
def test_training_one_does_not_change_the_other(trained: str) -> None:
    """The copies share memory with the originals until one of them is written to; then each has its own."""
    base = ZOO["convolutional"].make()
    model = guarantees.compose(ZOO["convolutional"], {"base": base}, "keep")
    branch = model.get_layer("base")
    written, kept = (base, branch) if trained == "original" else (branch, base)
    before = [helpers.array(v) for v in kept.weights]
    for variable in written.trainable_variables if trained == "original" else branch.weights:
        variable.assign_add(keras.ops.ones_like(variable))
    base.compile("sgd", "mse")
    if trained == "original":
        base.fit(ZOO["convolutional"].data(8), guarantees.np.ones((8, 4)), verbose=0)
    assert all((helpers.array(v) == b).all() for v, b in zip(kept.weights, before))
    assert not all((helpers.array(v) == b).all() for v, b in zip(written.weights, before))

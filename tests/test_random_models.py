"""The guarantees, over every policy, on random models: each holds, or a clear error says why it cannot."""

from __future__ import annotations

import collections
import functools
import re
import traceback
from typing import Any

import guarantees
import helpers
import keras
import numpy as np
import pytest
import random_models
import tensorflow as tf
import zoo
from guarantees import POLICIES, Evidence
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from random_models import BATCH, CHOSEN, Recipe, Variant

from keras_graft import ModeLock, _keras

HOLDS, CLEAR_ERROR = "holds", "clear error"

# The features that must not be rare.
COUNTED = (
    "nesting|deep nesting|sequential|a shared layer|a shared model|a layer in several graphs|several inputs|"
    "several outputs|noise|normalisation|rnn|attention|mask|wrapper|custom|mode lock|reshape or operation|dtypes|"
    "activity regularizer|frozen parts|rate 0|a stored mode|copy=False|a base frozen|a base loaded|"
    "ignores the mode|hidden state"
).split("|")

# Those that only a merged model shows.
SHOWN = ("a lock", "a live head")

# What Keras says of models that are as people write them.
EXPECTED_WARNINGS = (
    "ignore:Layer '.*was passed an input with a mask attached to it:UserWarning",
    "ignore:You are using a softmax over axis:UserWarning",
    "ignore:Branch '.*' ends in .*, the classifier of its old head:UserWarning",
)

# What an error must say besides the name of the layer: a way out.
WAY_OUT = re.compile(r"\b(Use|Choose|Pass|pass|Give|Let|Freeze|Return|End|Put|Tell)\b")


def case_of(recipe: Recipe, policy: str) -> zoo.Case:
    """The recipe as a case of the zoo. Its oracle has no stored modes, and no rates that `policy` sets to 0."""
    zeroed = recipe.copy and policy in ("off", "remove")
    variant = Variant(stored=False, fused=not zeroed, locks=policy == "keep")
    return zoo.Case(
        make=functools.partial(random_models.build, recipe.graph),
        data=functools.partial(random_models.data, recipe.graph),
        output=None if recipe.graph.gives == "one" else _output(recipe.graph.gives),
        batch=BATCH,
        exact=not random_models.features(recipe) & {"rnn", "attention"},
        oracle=functools.cache(lambda: guarantees.oracle_of(random_models.build(recipe.graph, variant))),
    )


def _output(structure: str) -> Any:
    return CHOSEN if structure == "dict" else lambda model: model.outputs[0]


@functools.lru_cache(maxsize=1)
def reloads(recipe: Recipe) -> bool:
    """Whether plain Keras can save and load the base itself. It cannot with a layer that stands in two graphs."""
    case = case_of(recipe, "keep")
    base = case.make()
    expected = outputs_of(base, case)
    assume(all(np.isfinite(values).all() for values in expected))
    assume(trains(case))
    try:
        loaded = helpers.reloaded(base)
        guarantees.same_seeds(base, loaded)
        return dtypes_of(base) == dtypes_of(loaded) and all(
            map(np.array_equal, outputs_of(base, case), outputs_of(loaded, case))
        )
    except Exception:  # whatever Keras raises
        return False


@functools.lru_cache(maxsize=1)
def originals(recipe: Recipe) -> dict[str, keras.Model]:
    states = [state for state in recipe.prepared if state != "loaded" or reloads(recipe)] or ["frozen"]
    return guarantees.originals(case_of(recipe, "keep"), states)


def outcome(recipe: Recipe, policy: str) -> tuple[str, set[str]]:
    """`HOLDS` or `CLEAR_ERROR`, with the features that only the merged model shows; anything else raises."""
    if not recipe.copy:
        originals.cache_clear()  # they became part of another merged model
    loads = reloads(recipe)  # which passes over models that Keras itself cannot run
    case, bases = case_of(recipe, policy), originals(recipe)
    before = {name: helpers.snapshot(base) for name, base in bases.items()}
    try:
        seen = guarantees.run(case, policy, reuse=not recipe.copy, bases=bases, on_batch=True)
    except (ValueError, TypeError) as error:
        check_clear(error, recipe)
        for name, base in bases.items():
            np.testing.assert_equal(helpers.snapshot(base), before[name], err_msg=f"'{name}' after the error")
        return CLEAR_ERROR, set()
    ignored = recipe.copy and policy in ("off", "remove") and "ignores the mode" in random_models.features(recipe)
    check(seen, None if ignored else case.oracle(), reloads=loads)
    return HOLDS, shown(seen)


def check(seen: Evidence, oracle: keras.Model | None, *, reloads: bool) -> None:
    """All guarantees. Noise that ignores the mode is silenced in the branch alone: no plain model does the same."""
    guarantees.check_frozen(seen)
    if oracle is None:
        guarantees.check_silent(seen)
    else:
        guarantees.check_like_the_oracle(seen, oracle, guarantees.tensors(seen.case.data(BATCH)))
    guarantees.check_head_follows_the_outer_mode(seen)
    guarantees.check_no_activity_losses(seen)
    guarantees.check_only_the_head_trains(seen)
    guarantees.check_no_stored_mode(seen)
    if seen.copied:
        guarantees.check_originals_untouched(seen)
        guarantees.check_nothing_shared(seen)
    if reloads:
        guarantees.check_survives_saving(seen)


def trains(case: zoo.Case) -> bool:
    """Whether Keras can run the base in training mode: not recurrent cells of one dtype in a layer of another."""
    try:
        case.make()(guarantees.tensors(case.data(BATCH)), training=True)
    except tf.errors.InvalidArgumentError:
        return False
    return True


def dtypes_of(model: keras.Model) -> list[str]:
    return sorted(part.dtype_policy.name for part in _keras.walk(model))


def outputs_of(base: keras.Model, case: zoo.Case) -> list[np.ndarray]:
    inputs = guarantees.tensors(case.data(BATCH))
    return [helpers.array(t) for t in keras.tree.flatten(base(inputs, training=False))]


def check_clear(error: Exception, recipe: Recipe) -> None:
    """Raises the error again unless composing raised it, for a layer of the user's own, and it helps."""
    composing = any(frame.name == "freeze_and_merge" for frame in traceback.extract_tb(error.__traceback__))
    strangers = random_models.features(recipe) & {"custom"}
    if not (composing and strangers and re.search(r"'[^']+'", str(error)) and WAY_OUT.search(str(error))):
        raise error


def shown(seen: Evidence) -> set[str]:
    """Features that only the merged model shows."""
    features = {
        "a lock": any(type(part) is ModeLock for part in _keras.walk(seen.model)),
        "a live head": seen.head_dropped["training"] > 0,
    }
    return {name for name, there in features.items() if there}


# ---------------------------------------------------------------------------------------------------------
# Tests
# ---------------------------------------------------------------------------------------------------------


def examples(few: int, *, first_seed: int, slow: bool = True) -> Any:
    return pytest.param(first_seed, few, marks=zoo.if_quick(not slow), id=f"{few}-from-seed-{first_seed}")


@pytest.mark.filterwarnings(*EXPECTED_WARNINGS)
@pytest.mark.parametrize(
    "first_seed, count", [examples(3, first_seed=0, slow=False), *(examples(100, first_seed=n) for n in range(1, 6))]
)
def test_random_models_hold_or_say_why_not(
    first_seed: int, count: int, record_property: Any, request: pytest.FixtureRequest
) -> None:
    """`--hypothesis-seed=N` draws other models."""
    tally: collections.Counter[str] = collections.Counter()
    phases = [Phase.generate, *([Phase.shrink] if count >= 100 else [])]  # shrinking takes minutes

    @seed(first_seed + 1000 * int(request.config.getoption("--hypothesis-seed") or 0))
    @settings(max_examples=count, phases=phases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(random_models.recipes())
    def each(recipe: Recipe) -> None:
        found = random_models.features(recipe)
        for policy in POLICIES:
            result, more = outcome(recipe, policy)
            found |= more
            tally[result] += 1
        tally.update([*found, "models"])
        keras.backend.clear_session()

    each()
    record_property("random models", dict(tally))
    if count >= 100:
        rare = [feature for feature in SHOWN if tally[feature] < 0.05 * tally["models"]]
        assert not rare, f"too few of the models have {rare}: {tally}"


@pytest.mark.slow
@pytest.mark.filterwarnings(*EXPECTED_WARNINGS)
def test_no_feature_of_the_random_models_is_rare() -> None:
    tally: collections.Counter[str] = collections.Counter()

    @seed(0)
    @settings(max_examples=500, phases=[Phase.generate], deadline=None, database=None)
    @given(random_models.recipes())
    def each(recipe: Recipe) -> None:
        tally.update([*random_models.features(recipe), "models"])

    each()
    rare = [feature for feature in COUNTED if tally[feature] < 0.05 * tally["models"]]
    assert not rare, f"too few of the models have {rare}: {tally}"

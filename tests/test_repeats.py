"""Composing again and again, and in several threads at once, from the same base models."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import guarantees
import keras
import numpy as np
import pytest
from helpers import array, snapshot
from zoo import ZOO, if_quick

from keras_graft import _keras, freeze_and_merge

WARM_UP, REPEATS = 2, 4
KINDS = ("nested", "shared_model", "attention", "custom", "recurrent")


def composed(base: keras.Model, policy: Any) -> keras.Model:
    return freeze_and_merge({"a": base, "b": base}, None, dropout=policy)


def alive() -> tuple[int, int, int]:
    """How many layers, variables and nodes of graphs there are."""
    gc.collect()
    things = gc.get_objects()
    kinds = (keras.Layer, keras.Variable, _keras.Node)
    return tuple(sum(isinstance(thing, kind) for thing in things) for kind in kinds)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *((name, "off") for name in KINDS),
        *(pytest.param(name, "always", marks=if_quick(name == "custom")) for name in KINDS),
    ],
)
@pytest.mark.once
def test_composing_again_leaves_nothing_behind(name: str, policy: str) -> None:
    base = ZOO[name].make()
    for _ in range(WARM_UP):
        composed(base, policy)
    objects, before = alive(), snapshot(base)
    for _ in range(REPEATS):
        composed(base, policy)
    # What an earlier test left may go meanwhile.
    assert all(now <= then for now, then in zip(alive(), objects))
    assert snapshot(base) == before


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.once
def test_threads_compose_from_the_same_base_at_once(name: str) -> None:
    case = ZOO[name]
    base, data = case.make(), guarantees.tensors(case.data(4))
    before = snapshot(base)
    policies = ["off", "remove", "keep", "off"]
    start = threading.Barrier(len(policies))

    def compose(policy: str) -> keras.Model:
        start.wait()
        return composed(base, policy)

    with ThreadPoolExecutor(len(policies)) as threads:
        models = list(threads.map(compose, policies))
    assert snapshot(base) == before
    for policy, model in zip(policies, models):
        expected = array(composed(base, policy)(data, training=False))
        np.testing.assert_array_equal(array(model(data, training=False)), expected)
        live = not np.array_equal(array(model(data, training=True)), array(model(data, training=True)))
        assert live == (policy == "keep")


def test_a_thread_that_fails_takes_nothing_from_one_that_succeeds() -> None:
    base = ZOO["nested"].make()
    start = threading.Barrier(2)

    def compose(optimizer: str) -> Any:
        start.wait()
        return [attempt(base, optimizer) for _ in range(5)]

    with ThreadPoolExecutor(2) as threads:
        failed, models = threads.map(compose, ["no such optimizer", "adam"])
    assert not any(failed)
    data = ZOO["nested"].data(4)
    expected = array(models[0](data))
    for model in models[1:]:
        model.set_weights(models[0].get_weights())
        np.testing.assert_array_equal(array(model(data)), expected)


def attempt(base: keras.Model, optimizer: str) -> keras.Model | None:
    try:
        return freeze_and_merge({"a": base}, 2, loss="mse", optimizer=optimizer)
    except ValueError:
        return None

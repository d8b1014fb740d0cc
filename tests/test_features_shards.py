"""Features read portion by portion, as many shards at a time as memory may hold, against whole arrays."""

from __future__ import annotations

import numpy as np
import pytest

from keras_graft._features import shards as _shards
from keras_graft._features.features import Features
from keras_graft._features.shards import Shards


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_tensorflow_gets_shares_no_memory_with_what_is_kept(shuffled: bool) -> None:
    kept = [np.arange(6.0), np.arange(12.0).reshape(6, 2)]
    random = np.random.default_rng(0) if shuffled else None
    for portion in Shards([lambda: kept]).portions(random):
        assert not any(np.shares_memory(ours, theirs) for ours, theirs in zip(kept, portion))


NUMBERS = np.arange(20.0)


def numbered(*sizes: int) -> Shards:
    """Shards of some sizes that hold numbers and their squares, in order."""
    ends = np.cumsum(sizes)
    return Shards(
        [lambda a=a, b=b: (NUMBERS[a:b], {"square": NUMBERS[a:b] ** 2}, None) for a, b in zip(ends - sizes, ends)]
    )


@pytest.mark.quick
@pytest.mark.parametrize(("limit", "sizes"), [(1, [3, 7, 2, 8]), (100, [10, 10]), (10**6, [20])])
def test_as_many_shards_make_a_portion_as_memory_may_hold(
    limit: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shards, "PORTION_BYTES", limit)
    portions = list(numbered(3, 7, 2, 8).portions(None))
    assert [len(numbers) for numbers, _ in portions] == sizes
    np.testing.assert_array_equal(np.concatenate([numbers for numbers, _ in portions]), NUMBERS)
    np.testing.assert_array_equal(np.concatenate([squares for _, squares in portions]), NUMBERS**2)


def test_a_drawn_order_holds_each_example_once_with_what_goes_with_it() -> None:
    orders = []
    for seed in (0, 0, 1):
        ((numbers, squares),) = numbered(3, 7, 2, 8).portions(np.random.default_rng(seed))
        np.testing.assert_array_equal(squares, numbers**2)
        assert sorted(numbers) == NUMBERS.tolist()
        orders.append(numbers.tolist())
    assert orders[0] == orders[1] != orders[2] != NUMBERS.tolist()


def test_targets_that_did_not_come_with_features_are_cut_as_these_are() -> None:
    shards = [(3, lambda: ([NUMBERS[:3]], ())), (2, lambda: ([NUMBERS[3:5]], ()))]
    features = Features(["feature"], shards, [5])
    found = Shards.of(features, (NUMBERS[:5] * 10, None), lambda keys, tensors: dict(zip(keys, tensors)))
    for reader, part in zip(found.readers, (slice(0, 3), slice(3, 5)), strict=True):
        inputs, targets, *_ = reader()
        np.testing.assert_array_equal(inputs["feature"], NUMBERS[part])
        np.testing.assert_array_equal(targets, NUMBERS[part] * 10)
    np.testing.assert_array_equal(found.example[0]["feature"], NUMBERS[:3])

"""Fixtures for all tests."""

from __future__ import annotations

import collections
import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import keras
import pytest

from keras_graft._features import in_folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def spared() -> Iterator[None]:
    """Spares the collector what the tests of a module leave in the caches of Keras and TensorFlow."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 20 examples, where batches of 10 come in and features are small."""
    monkeypatch.setattr(in_folder, "SHARD_BYTES", 600)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", default="1/1", help="of the cases of each test, run the second of three shares by 2/3")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the cases of other shares: those of tests that have at least one case for each."""
    number, shares = map(int, config.getoption("--share").split("/"))
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    many = [cases for cases in by_test.values() if len(cases) >= shares]
    others = {id(case) for cases in many for place, case in enumerate(cases) if place % shares != number - 1}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in others])
    items[:] = [item for item in items if id(item) not in others]


def pytest_collection_finish() -> None:
    """Spares the collector what was imported: Keras calls it often, and would have it look at all of TensorFlow."""
    with contextlib.suppress(ImportError):
        import hypothesis  # noqa: F401, PLC0415  it asks the collector who holds generators, which must not be frozen yet
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what the random models were like, over all processes."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    found = [dict(report.user_properties).get("random models") for report in calls]
    tally = sum((collections.Counter(counts) for counts in found if counts), collections.Counter())
    if models := tally.pop("models", 0):
        outcomes = [f"{what}: {tally.pop(what, 0)}" for what in ("holds", "clear error")]
        terminalreporter.section(f"{models} random models, 4 policies each")
        terminalreporter.line(", ".join(outcomes))
        terminalreporter.line(", ".join(f"{feature} {count / models:.0%}" for feature, count in tally.most_common()))

"""The plots of `Samples`: what is drawn is what the samples say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from keras_graft import Samples

pytest.importorskip("matplotlib")
from matplotlib import pyplot as plt

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def off_screen() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def line(ax: Any, label: str) -> Any:
    (found,) = (line for line in ax.lines if line.get_label() == label)
    return found.get_xydata()


def band(ax: Any) -> np.ndarray:
    return ax.collections[0].get_paths()[0].vertices


@pytest.mark.quick
@pytest.mark.parametrize("column", [True, False])
def test_the_spread_is_a_band_of_two_standard_deviations_around_the_mean(column: bool) -> None:
    values, x, y = rng.normal(size=(50, 9)), rng.normal(size=9), rng.normal(size=9)
    ax = Samples(values[..., None] if column else values).plot_spread(x[:, None] if column else x, y)
    order = np.argsort(x)
    mean, std = values.mean(axis=0), values.std(axis=0)
    np.testing.assert_allclose(line(ax, "mean"), np.stack([x, mean], axis=1)[order])
    np.testing.assert_allclose(line(ax, "target"), np.stack([x, y], axis=1)[order])
    for edge in (mean - 2 * std, mean + 2 * std):
        for point in zip(x, edge):
            assert np.isclose(band(ax), point).all(axis=1).any()


def test_without_x_the_examples_stand_from_the_lowest_mean_to_the_highest() -> None:
    values = rng.normal(size=(50, 9))
    ax = Samples(values).plot_spread()
    np.testing.assert_allclose(line(ax, "mean")[:, 0], np.arange(9))
    np.testing.assert_allclose(line(ax, "mean")[:, 1], np.sort(values.mean(axis=0)))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["± 2 standard deviations", "mean"]


def shares(ax: Any) -> list[np.ndarray]:
    return [np.array([bar.get_height() for bar in bars]) for bars in ax.containers]


@pytest.mark.parametrize("from_logits", [False, True])
def test_the_entropies_of_right_and_of_wrong_predictions_are_counted_apart(from_logits: bool) -> None:
    logits = 3 * rng.normal(size=(20, 300, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    labels = rng.integers(0, 4, size=300)
    samples = Samples(logits if from_logits else p)
    ax = samples.plot_entropy(labels, from_logits=from_logits)
    right = p.mean(axis=0).argmax(axis=-1) == labels
    entropy = samples.predictive_entropy(from_logits=from_logits)
    for drawn, which in zip(shares(ax), (right, ~right), strict=True):
        counted, _ = np.histogram(entropy[which], bins=20, range=(0, np.log(4)))
        np.testing.assert_allclose(drawn, counted / which.sum(), atol=1e-12)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [f"right ({right.sum()})", f"wrong ({(~right).sum()})"]


def test_one_probability_is_that_of_the_second_of_two_classes() -> None:
    p = np.array([[[0.9], [0.2], [0.6]]])
    ax = Samples(p).plot_entropy([[1], [0], [0]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["right (2)", "wrong (1)"]


def test_what_is_most_uncertain_is_counted_and_nothing_may_be_wrong() -> None:
    for classes in range(2, 12):
        ax = Samples(np.full((3, 5, classes), 1 / classes)).plot_entropy(np.zeros(5, int))
        right, wrong = shares(ax)
        assert (right[-1], wrong.sum()) == (1.0, 0.0)
        plt.close("all")


def test_axes_can_be_given() -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert Samples(np.ones((2, 3))).plot_spread(ax=left) is left
    assert Samples(np.full((2, 3, 2), 0.5)).plot_entropy([0, 1, 0], ax=right) is right
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize(
    "plot, message",
    [
        (lambda: Samples(np.ones((2, 3, 4))).plot_spread(), r"one prediction.*Received: values of shape \(2, 3, 4\)"),
        (lambda: Samples([np.ones((2, 3))]).plot_spread(), r"shows one output.*samples\.values\[0\].*Received"),
        (lambda: Samples(np.ones((2, 3))).plot_spread(x=np.ones(4)), r"`x` .* 3 examples.*x of shape \(4,\)"),
        (lambda: Samples(np.ones((2, 3))).plot_spread(y=5), r"`y` .* 3 examples.*y of shape \(\)"),
        (lambda: Samples(np.ones((2, 3))).plot_entropy([0, 0, 0]), r"\(samples, examples, classes\).*\(2, 3\)"),
        (lambda: Samples(np.full((2, 3, 2), 0.5)).plot_entropy(np.eye(3)), r"`labels` .*labels of shape \(3, 3\)"),
        (lambda: Samples(np.ones((2, 3, 4))).plot_entropy([0, 0, 0]), r"Pass `from_logits=True`"),
    ],
)
def test_what_cannot_be_plotted_is_refused(plot: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot()
    assert not plt.get_fignums()


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    with pytest.raises(ImportError, match=r"pip install 'keras-graft\[plot\]'"):
        Samples(np.ones((2, 3))).plot_spread()

"""Plots of predictions and of how uncertain they are, on matplotlib.

They get arrays, and must not know how samples are drawn, nor what a model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axes", "entropy_histogram", "spread"]

_BINS = 20


def axes(ax: Axes | None) -> Axes:
    """Those given, or those of a new figure."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ImportError("Plots need matplotlib. Install it with `pip install 'keras-graft[plot]'`.") from error
    return plt.subplots()[1]


def spread(x: np.ndarray | None, mean: np.ndarray, std: np.ndarray, y: np.ndarray | None, ax: Axes) -> Axes:
    """The mean over `x`, or over the examples from the lowest to the highest, in a band of two standard deviations."""
    order = np.argsort(mean if x is None else x, kind="stable")
    place = np.arange(len(order)) if x is None else x[order]
    low, high = (mean - 2 * std)[order], (mean + 2 * std)[order]
    ax.fill_between(place, low, high, alpha=0.3, linewidth=0, label="± 2 standard deviations")
    ax.plot(place, mean[order], label="mean")
    if y is not None:
        ax.plot(place, y[order], ".", markersize=4, label="target")
    ax.set_xlabel("examples, by their mean" if x is None else "x")
    ax.set_ylabel("prediction")
    ax.legend()
    return ax


def entropy_histogram(entropy: np.ndarray, right: np.ndarray, most: float, ax: Axes) -> Axes:
    """How the entropies of right and of wrong predictions are spread: each of both sums to 1, so that few compare."""
    bins = np.linspace(0.0, most, _BINS + 1).tolist()
    within = np.minimum(entropy, most)  # above it by rounding alone
    for name, values, hatch in (("right", within[right], ""), ("wrong", within[~right], "///")):
        share = np.full(len(values), 1.0 / max(len(values), 1))
        ax.hist(values, bins, weights=share, alpha=0.6, hatch=hatch, label=f"{name} ({len(values):,})")
    ax.set_xlabel("predictive entropy (nats)")
    ax.set_ylabel("share of the right, of the wrong")
    ax.legend()
    return ax

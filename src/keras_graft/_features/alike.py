"""Whether two computations of the same features differ by rounding alone.

It must not know how they were computed.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

__all__ = ["alike"]


def alike(actual: Any, expected: Any, among: Any = None, *, coarse: bool = False) -> bool:
    """Whether features are the same but for rounding, each channel on its own scale.

    Args:
        actual: The features of some examples.
        expected: What they should be.
        among: Features of more examples, which show the scale of each channel better.
        coarse: Whether numbers of half precision, or whole ones, stood in between.
    """
    one, other = (np.asarray(values) for values in (actual, expected))
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if other.dtype.kind in "biu":
        return bool(np.array_equal(one, other))
    half = other.dtype.itemsize == 2  # noqa: PLR2004  the bytes of a number of half precision
    error = _ERROR_OF_HALF if coarse or half else _ERROR
    one, other = _real(one), _real(other)
    tolerance = _tolerance(other if among is None else _real(np.asarray(among)), error)
    finite = np.isfinite(other)
    differences = np.abs(np.subtract(one, other, where=finite, out=np.zeros_like(other)))
    return np.array_equal(one[~finite], other[~finite], equal_nan=True) and bool((differences <= tolerance).all())


# By how much of its scale a channel may differ: 0.1%, as documented; some units of the coarsest numbers in use.
_ERROR, _ERROR_OF_HALF = 1e-3, 2.0**-5

# How much rounding may leave of a sum that is nothing, as a share of what most channels hold: some units of float32.
_ROUNDING = 2.0**-20


def _real(values: np.ndarray) -> np.ndarray:
    """Numbers in double precision: the real parts of complex ones, then the imaginary ones."""
    if values.dtype.kind == "c":
        values = np.concatenate([values.real, values.imag])
    return values.astype("float64")


def _tolerance(values: np.ndarray, error: float) -> Any:
    """By how much each number may differ: the channels lie on the last axis, or on the second."""
    sizes = np.abs(values, where=np.isfinite(values), out=np.zeros_like(values))
    if sizes.ndim <= 1:
        return error * sizes.max(initial=0.0)
    return functools.reduce(np.minimum, (_tolerance_along(sizes, axis, error) for axis in {1, sizes.ndim - 1}))


def _tolerance_along(sizes: np.ndarray, axis: int, error: float) -> np.ndarray:
    others = tuple(number for number in range(sizes.ndim) if number != axis)
    scales = sizes.max(axis=others, keepdims=True, initial=0.0)
    alive = np.sort(scales[scales > 0])
    typical = alive[(len(alive) - 1) // 2] if len(alive) else 0.0
    return np.maximum(error * scales, _ROUNDING * typical)

"""Whether a file computes what its model does, on made-up data: the same numbers, or noise of the same distribution.

It must not know how the file was written.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._behaviour.made_up import MADE_UP, SIGNED, USUAL, Made, closed
from .inference import Inference, Run

__all__ = ["Comparison", "compare"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was seen.

    Attributes:
        difference: The largest difference between a number of the file and that of the model; where they draw, between
            means over samples.
        draws: Whether the model draws in inference mode.
        fault: What is not as it should be, in words; empty where all is.
    """

    difference: float
    draws: bool
    fault: str = ""


def compare(inference: Inference, run: Run) -> Comparison:
    """Runs the model and its file on the same data. The model is called as by `model(x, training=False)`."""
    call = _without_traces(inference)
    sizes = _sizes_it_takes(inference, call)
    taken = _integers_it_takes(inference, call, sizes[0])
    if _draws(inference, call, taken):
        of_kinds = [_distributions(inference, call, run, made, taken) for made in (USUAL, SIGNED)]
        return _summed([one for of_kind in of_kinds for one in of_kind], draws=True)
    calls = _data_by_kind(inference, call, taken, sizes)
    pairs = [[(call(arrays), run(arrays)) for arrays in of_kind] for of_kind in calls]
    by_output = [
        _same(name, [[(one[place], other[place]) for one, other in of_kind] for of_kind in pairs], inference.model)
        for place, name in enumerate(inference.outputs)
    ]
    return _summed(by_output, draws=False)


def _summed(by_output: list[tuple[float, str]], *, draws: bool) -> Comparison:
    faults = [fault for _, fault in by_output if fault]
    return Comparison(max(distance for distance, _ in by_output), draws, faults[0] if faults else "")


def _without_traces(inference: Inference) -> Run:
    """Calls the model; what its variables become is known to these calls alone."""
    scope = keras.StatelessScope()

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        tensors = [tf.convert_to_tensor(array, spec.dtype) for array, spec in zip(arrays, inference.inputs)]
        with scope:
            outputs = keras.tree.flatten(inference.call(*tensors))
        return [output.numpy() for output in map(tf.convert_to_tensor, outputs)]

    return call


# ---------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------

# Floats at which functions overflow that are written without care: a softplus by an exponential, say.
_FAR = Made(-500.0, 500.0)

# For how many examples at a time.
_ROWS = (3, 1)

# The ranges of integers that are tried: what a model does not take (more than it has words for, say) is an error of it.
_INTEGERS = ((-100, 1000), (0, 1000), (0, 100), (0, 10), (0, 3), (0, 2))

# What is tried for axes whose sizes are open, and at how many of those that a model takes it is compared.
_SIZES, _COMPARED = (8, 5, 20, 64, 256), 3


@dataclasses.dataclass(frozen=True)
class _Taken:
    """Data that a model takes.

    Attributes:
        integers: The range of whole numbers of each input.
        size: That of all axes whose sizes are open.
    """

    integers: list[tuple[int, int]]
    size: int


def _data_by_kind(inference: Inference, call: Run, taken: _Taken, sizes: list[int]) -> list[list[list[np.ndarray]]]:
    """Data of several kinds, sizes and numbers of examples, and whole numbers one by one."""
    kinds = [(made, taken) for made in (*MADE_UP, _FAR)]
    kinds += [(USUAL, _Taken(taken.integers, size)) for size in sizes[1:]]
    by_kind = [[_data(inference, made, of_size, examples) for examples in _ROWS] for made, of_size in kinds]
    if any(spec.dtype.is_integer for spec in inference.inputs):
        by_kind += [[arrays] for arrays in _whole_numbers(inference, call, taken)]
    return by_kind


def _sizes_it_takes(inference: Inference, call: Run) -> list[int]:
    """Some sizes of open axes; the first counts wherever one is enough.

    Raises:
        ValueError: If it takes none of those that are tried.
    """
    is_open = {spec.name: tuple(spec.shape) for spec in inference.inputs if None in spec.shape[1:]}
    if not is_open:
        return [_SIZES[0]]
    narrow = [_INTEGERS[-1]] * len(inference.inputs)
    taken = (size for size in _SIZES if _takes(call, _data(inference, USUAL, _Taken(narrow, size), 3)))
    sizes = list(itertools.islice(taken, _COMPARED))
    if not sizes:
        raise ValueError(
            f"what the inputs {is_open} leave open can be none of the sizes {list(_SIZES)}, at which a file is "
            "compared; give sizes that the model takes, by `input_signature`"
        )
    return sizes


def _takes(call: Run, arrays: list[np.ndarray]) -> bool:
    try:
        call(arrays)
    except Exception:  # whatever code of others may raise
        return False
    return True


# Whole numbers at which runtimes are known to count otherwise: below 0, and where floats have gaps.
_NEAR = tuple(range(-8, 9))
_FAR_OFF = tuple(
    sign * 2**power + off for power in (8, 16, 24, 31, 40, 53, 62) for sign in (1, -1) for off in (-1, 0, 1)
)


def _whole_numbers(inference: Inference, call: Run, taken: _Taken) -> list[list[np.ndarray]]:
    """Data that hold each of some whole numbers at each place; those that are far off where an input takes them."""
    named = {number + off for number in _integers_in(inference) for off in (-1, 0, 1)}
    near = [
        sorted(number for number in {*_NEAR, low, high - 1, *named} if low <= number < high)
        for low, high in taken.integers
    ]
    far = sorted({*_NEAR, *_FAR_OFF, *named})
    found = [_each_at_each_place(inference, near, taken)]
    for place, spec in enumerate(inference.inputs):
        if spec.dtype.is_integer:
            pools = [*near[:place], far, *near[place + 1 :]]
            arrays = _each_at_each_place(inference, pools, taken)
            found += [arrays] if _takes(call, arrays) else []
    return found


def _integers_in(inference: Inference) -> set[int]:
    """The whole numbers that a model compares with, or computes with."""
    lists = _keras.lists_of_nodes(inference.traced.graph.as_graph_def())
    constants = [node for nodes in lists for node in nodes if node.op == "Const"]
    values = [tf.make_ndarray(node.attr["value"].tensor) for node in constants]
    return {value.item() for value in values if value.dtype.kind in "iu" and value.size == 1}


def _each_at_each_place(inference: Inference, pools: list[list[int]], taken: _Taken) -> list[np.ndarray]:
    examples = max(map(len, pools))
    arrays = _data(inference, USUAL, taken, examples)
    rng = np.random.default_rng(examples)
    return [
        _shuffled(pool, array, rng) if spec.dtype.is_integer else array
        for spec, pool, array in zip(inference.inputs, pools, arrays)
    ]


def _shuffled(pool: list[int], array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    limits = np.iinfo(array.dtype)
    numbers = np.array([number for number in pool if limits.min <= number <= limits.max], array.dtype)
    column = np.resize(numbers, (len(array), 1))
    places = array.size // max(1, len(array))
    return rng.permuted(np.tile(column, (1, places)), axis=0).reshape(array.shape)


def _integers_it_takes(inference: Inference, call: Run, size: int) -> _Taken:
    """The widest range of each input, while the others have the narrowest, or what was found for them."""
    found = [_INTEGERS[-1]] * len(inference.inputs)
    for place, spec in enumerate(inference.inputs):
        tried = [[*found[:place], bounds, *found[place + 1 :]] for bounds in _INTEGERS] if spec.dtype.is_integer else []
        found = next((one for one in tried if _takes(call, _data(inference, USUAL, _Taken(one, size), 16))), found)
    return _Taken(found, size)


def _data(inference: Inference, made: Made, taken: _Taken, examples: int) -> list[np.ndarray]:
    kind = MADE_UP.index(made) if made in MADE_UP else len(MADE_UP)
    rng = np.random.default_rng([examples, taken.size, kind])
    return [
        _values(spec, made, bounds, closed(spec.shape, taken.size, examples), rng)
        for spec, bounds in zip(inference.inputs, taken.integers)
    ]


def _values(
    spec: tf.TensorSpec, made: Made, integers: tuple[int, int], shape: list[int], rng: np.random.Generator
) -> np.ndarray:
    if spec.dtype == tf.string:
        return rng.choice(np.array([b"1", b"a b", b"c", b""], object), shape)
    kind = spec.dtype.as_numpy_dtype
    if spec.dtype.is_floating:
        return rng.uniform(made.low, made.high, shape).astype(kind)
    low, high = (0, 2) if spec.dtype == tf.bool else integers
    if spec.dtype.is_integer:
        low, high = max(low, int(spec.dtype.min)), min(high, int(spec.dtype.max))
    return rng.integers(low, high, shape).astype(kind)


# ---------------------------------------------------------------------------------------------------------
# The same numbers
# ---------------------------------------------------------------------------------------------------------

# How far numbers may be off: of the largest in their column, and where columns are nothing, of the largest of all.
_OF_COLUMN, _OF_ALL = 1e-4, 2e-6

# The same for models that compute in half precision somewhere, which their outputs need not show.
_HALF = 300.0


def _same(name: str, by_kind: list[list[tuple[np.ndarray, np.ndarray]]], model: keras.Model) -> tuple[float, str]:
    """The largest difference of an output over data of all kinds, and what is wrong."""
    pairs = [pair for of_kind in by_kind for pair in of_kind]
    for one, other in pairs:
        if one.shape != other.shape:
            return 0.0, f"output '{name}' has the shape {other.shape}, that of the model is {one.shape}"
    largest = max(_distance(one, other) for one, other in pairs)
    if pairs[0][0].dtype == object or not np.issubdtype(pairs[0][0].dtype, np.inexact):
        fault = largest != 0
    else:
        half = any("16" in str(getattr(part, "compute_dtype", "")) for part in _keras.walk(model))
        fault = not all(_close(of_kind, _HALF if half else 1.0) for of_kind in by_kind)
    return largest, f"output '{name}' differs by up to {largest:.3g}" if fault else ""


def _close(pairs: list[tuple[np.ndarray, np.ndarray]], factor: float) -> bool:
    """Whether numbers for data of one kind are the same but for rounding; what is no number has to be the very same."""
    columns = np.max([_largest_in_columns(one) for one, _ in pairs], axis=0)
    scale = max(_size(one) for one, _ in pairs)
    limit = factor * np.maximum(_OF_COLUMN * columns, _OF_ALL * scale)
    for expected, actual in pairs:
        finite = np.isfinite(expected)
        if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True):
            return False
        off = np.where(finite, actual, 0.0).astype("float64") - np.where(finite, expected, 0.0)
        if not np.all(np.abs(off) <= limit):  # what is no number is not less
            return False
    return True


def _largest_in_columns(values: np.ndarray) -> np.ndarray:
    finite = np.where(np.isfinite(values), values, 0.0).astype("float64")
    return np.max(np.abs(finite), axis=0, initial=0.0)


def _size(values: np.ndarray) -> float:
    return float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0))


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference between numbers, or how many strings are others."""
    if one.dtype == object:
        return float(np.sum(one != other))
    one, other = one.astype("float64"), other.astype("float64")
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        return float(np.max(np.where(equal, 0.0, np.abs(one - other)), initial=0.0))


# ---------------------------------------------------------------------------------------------------------
# The same distribution
# ---------------------------------------------------------------------------------------------------------

# How often a model is called to see whether it draws.
_CALLS = 3


def _draws(inference: Inference, call: Run, taken: _Taken) -> bool:
    if _keras.assignments_in(inference.traced):
        return False  # it gives something else because it has moved
    arrays = _data(inference, USUAL, taken, 3)
    first, *others = (call(arrays) for _ in range(_CALLS + 1))
    return not all(_distance(one, other) == 0 for outputs in others for one, other in zip(first, outputs))


# How many examples are drawn for, how often in each call, and in how many calls.
_EXAMPLES, _TIMES, _DRAWN = 3, 8, 24

# By how many standard errors means and spreads may differ: by chance they never do.
_ERRORS, _ERRORS_OF_SPREAD = 9.0, 7.0


def _distributions(inference: Inference, call: Run, run: Run, made: Made, taken: _Taken) -> list[tuple[float, str]]:
    """Compares means and spreads over many samples of a few examples, output by output."""
    fixed = inference.inputs[0].shape[0]
    times = 1 if fixed else _TIMES
    rows = _data(inference, made, taken, fixed or _EXAMPLES)
    arrays = [np.tile(array, (times, *[1] * (array.ndim - 1))) for array in rows]
    drawn = [[draw(arrays) for _ in range(_DRAWN)] for draw in (call, run)]
    values = [[np.stack(outputs) for outputs in zip(*one)] for one in drawn]
    samples = [[_by_example(of_output, times) for of_output in one] for one in values]
    numbers = [[np.isfinite(of_output).all(axis=0) for of_output in one] for one in values]
    return [
        _same_distribution(name, one, other) if np.array_equal(*finite) else (np.inf, f"output '{name}' has other gaps")
        for name, one, other, finite in zip(inference.outputs, *samples, zip(*numbers))
    ]


def _by_example(values: np.ndarray, times: int) -> np.ndarray:
    """Samples of the shape (calls, times, numbers of all examples), with sums of those by which masks are compared."""
    flat = values.reshape(len(values), times, -1).astype("float64")
    flat = np.where(np.isfinite(flat), flat, _NO_NUMBER)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (flat.shape[-1], _SUMS - 1))
    return np.concatenate([flat, flat.sum(axis=-1, keepdims=True), flat @ signs], axis=-1)


# How many sums of all numbers are compared beside them: the plain one, and some with signs.
_SUMS = 5

# What stands for what is no number, such as the mean of nothing: it has to be none in the file, too.
_NO_NUMBER = 0.0


def _same_distribution(name: str, expected: np.ndarray, actual: np.ndarray) -> tuple[float, str]:
    """The largest difference of means, and what is wrong. Draws within a call may depend on each other."""
    distance = np.abs(expected.mean(axis=(0, 1)) - actual.mean(axis=(0, 1)))
    of_calls = [samples.mean(axis=1).var(axis=0) for samples in (expected, actual)]
    error = np.sqrt((of_calls[0] + of_calls[1]) / _DRAWN)
    largest = float(distance.max(initial=0.0))
    if not np.all(distance <= _ERRORS * error + 1e-3 * max(1e-6, _size(expected))):
        return largest, f"the means of output '{name}' differ by up to {largest:.3g}"
    for spread, other, share in _spreads(expected, actual):
        if not spread / (1 + share) <= other <= spread * (1 + share):
            return largest, f"output '{name}' spreads by {other:.3g}, that of the model by {spread:.3g}"
    return largest, ""


def _spreads(expected: np.ndarray, actual: np.ndarray) -> Iterator[tuple[float, float, float]]:
    """The spreads of all numbers together and of each of their sums, and by which share they may differ."""
    variances = [samples.var(axis=(0, 1)) for samples in (expected, actual)]
    of_calls = expected.mean(axis=1).var(axis=0)
    in_a_call = np.clip(variances[0] / np.maximum(of_calls, 1e-30), 1, expected.shape[1])
    share = _ERRORS_OF_SPREAD / np.sqrt(2 * _DRAWN * np.median(in_a_call))
    yield float(np.sqrt(variances[0][:-_SUMS].mean())), float(np.sqrt(variances[1][:-_SUMS].mean())), share
    for one, other in zip(variances[0][-_SUMS:], variances[1][-_SUMS:]):
        yield float(np.sqrt(one)), float(np.sqrt(other)), share

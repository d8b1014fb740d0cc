"""Made-up data, and whether calls on them repeat themselves, against layers that do so or do not."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import zoo
from helpers import array
from keras import layers

from keras_graft import _keras
from keras_graft._behaviour.made_up import (
    LARGE,
    SIGNED,
    SIZES,
    USUAL,
    Made,
    close,
    closed,
    equal,
    made_up,
    repeats,
    with_masks,
    with_sizes,
)


@pytest.mark.parametrize("made", [USUAL, SIGNED, LARGE], ids=["usual", "signed", "large"])
def test_floats_lie_in_the_range_of_their_kind_and_what_is_no_tensor_stays(made: Made) -> None:
    other = object()
    values, (rest, number) = made_up((keras.KerasTensor((None, 64)), [other, 3]), 8, made)
    assert (rest, number) == (other, 3)
    assert made.low <= array(values).min() < array(values).max() <= made.high
    assert (array(values).min() < 0) == (made.low < 0)
    np.testing.assert_array_equal(array(values), array(made_up(keras.KerasTensor((None, 64)), 8, made)))


@pytest.mark.parametrize("dtype", ["int32", "bool", "string"])
def test_what_is_no_float_is_one_but_for_padding(dtype: str) -> None:
    found = array(made_up(keras.KerasTensor((None, 5), dtype=dtype), 8, SIGNED))
    one = b"1" if dtype == "string" else 1
    np.testing.assert_array_equal(found[1], [one] * 5)
    np.testing.assert_array_equal(found[0], [one] * 5 if dtype == "string" else [1, 1, 1, 0, 0])


def test_masks_are_made_up_where_tensors_carry_them() -> None:
    masked = layers.Masking()(keras.Input((4, 3)))
    padded, usual = (_keras.get_keras_mask(made_up(masked, 8, made)) for made in (SIGNED, USUAL))
    np.testing.assert_array_equal(array(padded), [[True, True, False, False], [True] * 4])
    assert usual is None


def test_open_sizes_are_closed() -> None:
    assert closed((None, 3, None), 8) == [2, 3, 8]
    assert closed((5, None), 8, examples=32) == [5, 8]
    assert closed((), 8) == []


def test_the_first_size_that_an_action_runs_with_is_taken() -> None:
    def only(*sizes: int) -> int:
        def action(size: int) -> int:
            if size not in sizes:
                raise ValueError(f"not {size}")
            return size

        return with_sizes(action)

    assert only(*SIZES[2:]) == SIZES[2]
    with pytest.raises(ValueError, match=f"not {SIZES[0]}"):
        only()


def of(layer: Any, *shape: int) -> tuple[Any, Any, Any]:
    """A layer with the arguments of a call of it."""
    x = keras.Input(shape or (6,))
    layer(x)
    return layer, (x,), {}


class Rarely(layers.Layer):
    """Drops one example of a hundred."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any) -> Any:
        return x * keras.ops.cast(keras.random.uniform((keras.ops.shape(x)[0], 1), seed=self.seeds) > 0.01, x.dtype)


@pytest.mark.quick
def test_calls_that_draw_do_not_repeat_themselves_however_seldom() -> None:
    for layer, training, expected in (
        (layers.Dropout(0.5), True, False),
        (layers.Dropout(0.5), False, True),
        (Rarely(), False, False),
        (zoo.Counter(), True, True),
    ):
        called, args, kwargs = of(layer)
        before = [array(variable) for variable in called.variables]
        assert repeats(called, training, args, kwargs) is expected
        np.testing.assert_equal([array(variable) for variable in called.variables], before)


def test_a_call_that_fails_on_made_up_data_is_not_known_to_repeat_itself() -> None:
    class Fails(layers.Layer):
        def call(self, x: Any) -> Any:
            if not keras.ops.is_tensor(x) or hasattr(x, "numpy"):
                raise RuntimeError("not with numbers")
            return x

        def compute_output_spec(self, x: Any) -> Any:
            return x

    called, args, kwargs = of(Fails())
    assert not repeats(called, False, args, kwargs)


CLOSE: dict[str, tuple[Any, Any, bool]] = {
    "the last places": (np.float32([1.0, 100.0]), np.float32([1.0, 100.001]), True),
    "more than that": (np.float32([1.0, 100.0]), np.float32([1.0, 100.1]), False),
    "half precision": (np.float16([1.0, 2.0]), np.float16([1.0, 2.01]), True),
    "whole numbers": (np.int32([1, 100_000]), np.int32([1, 100_001]), False),
    "NaN": (np.float32([np.nan, 1.0]), np.float32([np.nan, 1.0]), True),
    "NaN elsewhere": (np.float32([np.nan, 1.0]), np.float32([1.0, np.nan]), False),
    "shapes": (np.float32([[1.0]]), np.float32([1.0]), False),
    "dtypes": (np.float32([1.0]), np.float16([1.0]), False),
    "nothing": (np.zeros((0,), "float32"), np.zeros((0,), "float32"), True),
}


@pytest.mark.parametrize(("one", "other", "expected"), CLOSE.values(), ids=CLOSE)
def test_tensors_are_close_in_the_places_of_their_dtype(one: Any, other: Any, expected: bool) -> None:
    assert close(*map(keras.ops.convert_to_tensor, (one, other))) is expected


def test_equal_is_to_the_bit_and_nan_equals_itself() -> None:
    nan = np.float32([np.nan, 1.0])
    assert equal(nan, nan.copy())
    assert equal(np.array(["a"]), np.array(["a"]))
    assert not equal(np.float32([1.0]), np.nextafter(np.float32([1.0]), np.float32(2)))
    assert not equal(nan, np.float32([1.0, np.nan]))


def test_the_masks_of_outputs_stand_behind_them() -> None:
    data = np.float32([[[1.0], [0.0]]])
    output, mask = with_masks(layers.Masking()(data))
    np.testing.assert_array_equal(array(output), data)
    np.testing.assert_array_equal(array(mask), [[True, False]])
    assert len(with_masks({"a": layers.Dense(1)(data)})) == 1

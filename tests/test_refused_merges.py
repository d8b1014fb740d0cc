"""Merges and heads that `freeze_and_merge` does not take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from helpers import dense_base, image_base, nested_base
from keras import layers
from refusals import IN_USE, NO_RETURN, STAGE, Refusal, checks_of, entering
from zoo import functional, sequential

from keras_graft import Branch

REFUSALS: dict[str, Refusal] = {}
refused = entering(REFUSALS)


MERGES = {
    "expected": "`merge` must be one of",
    "change": "a Keras layer, or a callable from a list of tensors",
}

VECTORS = {"expected": "(batch, features)", "change": "`Branch(..., output=...)`"}


@refused(ValueError, came="merge='sum'", **MERGES)
def an_unknown_merge(graft):
    graft([dense_base()], merge="sum")


@refused(ValueError, came="merge=None", **MERGES)
def no_merge(graft):
    graft([dense_base()], merge=None)


@refused(
    (TypeError, ValueError),
    came="(of type type)",
    **MERGES,
)
def a_class_for_the_merge(graft):
    graft([dense_base(), dense_base()], merge=layers.Add)


@refused(TypeError, came="`merge`", **NO_RETURN)
def a_merge_callable_that_returns_nothing(graft):
    graft([dense_base()], merge=lambda tensors: None)


@refused(TypeError, came="It returned [<KerasTensor shape=(None, 4)", **NO_RETURN)
def a_merge_callable_that_returns_a_list(graft):
    graft([dense_base()], merge=lambda tensors: tensors)


@refused(ValueError, came="`merge` holds the layer 'theirs' (of type Add)", **IN_USE)
def a_merge_layer_in_use(graft):
    x, theirs = keras.Input((4,)), layers.Add(name="theirs")
    keras.Model(x, theirs([x, x]))
    graft([dense_base(), dense_base()], merge=theirs)


def unequal_widths(merge: str, graft: Callable[..., Any]) -> None:
    graft({"a": dense_base(units=4), "b": dense_base(units=2)}, merge=merge)


for word in ("add", "average", "multiply", "maximum", "stack", "weighted", "attention"):
    REFUSALS[f"unequal_widths_for_{word}"] = Refusal(
        functools.partial(unequal_widths, word),
        ValueError,
        (
            "a: 4, b: 2",
            f'merge="{word}" needs branches with equally many features',
            "`Branch(..., projection=units)`",
        ),
    )


@refused(
    ValueError,
    came="branch 'base' have shape (None, 3, 3, 3), of rank 4",
    expected="(batch, features)",
    change='`Branch(..., pooling="avg")`',
)
def maps_without_pooling(graft):
    graft([image_base()])


RANKS = {"expected": "merges (batch, features)", "came": "of rank 4"}


@refused(ValueError, change="`Branch(..., projection=[...])`", **RANKS)
def maps_without_projection(graft):
    graft([image_base()])


@refused(ValueError, change="`merge=lambda tensors: tensors[0]`", **RANKS)
def maps_of_one_branch(graft):
    graft([image_base()])


@refused(ValueError, change="by add, average, multiply, maximum, weighted", **RANKS)
def maps_to_stack(graft):
    graft([image_base(), image_base()], merge="stack")


@refused(ValueError, came="branch 'base' have shape (None,)", **VECTORS)
def features_of_rank_1(graft):
    x = keras.Input((3,))
    graft([functional(x, keras.ops.sum(x, axis=-1))])


@refused(ValueError, came="branch 'base' have shape (None, None)", **VECTORS)
def features_of_an_unknown_number(graft):
    graft([Branch(sequential(keras.Input((None, 2)), layers.Dense(2)), pooling="flatten")])


MISSES = {
    "expected": "must be computed from the features that it gets",
    "change": "The head and the branches",
}

OF_ANOTHER = {"expected": "already in use by another model", "change": "Make a new layer inside the callable"}

OUTPUT_NAME = {"expected": "`head`", "change": "string"}


@refused(TypeError, came="head=True (of type bool)", **STAGE)
def a_bool_for_the_head(graft):
    graft([dense_base()], True)


@refused(ValueError, came="head=0", expected="counts units", change="at least 1")
def a_head_of_no_units(graft):
    graft([dense_base()], 0)


@refused(ValueError, came="head=-3", expected="counts units", change="at least 1")
def a_head_of_less_than_no_units(graft):
    graft([dense_base()], -3)


@refused(TypeError, came="head=3.0 (of type float)", **STAGE)
def a_float_for_the_head(graft):
    graft([dense_base()], 3.0)


@refused(TypeError, came="head='3' (of type str)", **STAGE)
def a_string_for_the_head(graft):
    graft([dense_base()], "3")


@refused(TypeError, came="(of type type)", **STAGE)
def a_class_for_the_head(graft):
    graft([dense_base()], layers.Dense)


@refused(TypeError, came="head=[] (of type list)", **STAGE)
def an_empty_list_for_the_head(graft):
    graft([dense_base()], [])


@refused(TypeError, came="head=[8, 3] (of type list)", **STAGE)
def a_list_of_ints_for_the_head(graft):
    graft([dense_base()], [8, 3])


@refused(ValueError, came="head={}", expected="at least one output", change="{'digit': 10}")
def an_empty_mapping_for_the_head(graft):
    graft([dense_base()], {})


@refused(TypeError, came="head['digit']=None", **STAGE)
def none_for_an_output_of_the_head(graft):
    graft([dense_base()], {"digit": None})


@refused((TypeError, ValueError), came="0", **OUTPUT_NAME)
def a_number_for_the_name_of_an_output(graft):
    graft([dense_base()], {0: 3})


@refused(ValueError, came="'a/b'", **OUTPUT_NAME)
def a_slash_in_the_name_of_an_output(graft):
    graft([dense_base()], {"a/b": 3})


@refused(TypeError, came="It returned None", **NO_RETURN)
def a_head_callable_that_returns_nothing(graft):
    graft([dense_base()], lambda x: None)


@refused(TypeError, came="`head['a']`", **NO_RETURN)
def an_output_callable_of_the_head_that_returns_nothing(graft):
    graft([dense_base()], {"a": lambda x: None})


@refused(TypeError, came="It returned <tf.Tensor", **NO_RETURN)
def a_head_callable_that_returns_a_constant(graft):
    graft([dense_base()], lambda x: keras.ops.ones((1, 3)))


@refused(
    ValueError,
    came="Keras says",
    **MISSES,
)
def a_head_that_misses_its_input(graft):
    graft([dense_base()], lambda x: layers.Dense(3)(keras.Input((4,))))


@refused(ValueError, came="Keras says", **MISSES)
def a_head_on_the_output_of_the_original(graft):
    base = nested_base()
    graft([base], lambda x: layers.Dense(3)(base.output))


@refused(ValueError, came="`head` holds the layer 'top' (of type Dense)", **IN_USE)
def a_layer_of_a_base_for_the_head(graft):
    base = dense_base()
    graft([base], base.get_layer("top"))


@refused(ValueError, came="`head` holds the layer 'top' (of type Dense)", **IN_USE)
def a_layer_of_a_base_in_a_list_for_the_head(graft):
    base = dense_base()
    graft([base], [layers.Dense(5), base.get_layer("top")])


@refused(ValueError, came="'top' (of type Dense)", **OF_ANOTHER)
def a_layer_of_a_base_within_the_head_callable(graft):
    base = dense_base(units=5)
    graft([base], lambda x: base.get_layer("top")(x) * 2.0)


@refused(ValueError, came="'base' (of type Sequential)", **OF_ANOTHER)
def a_base_for_the_head(graft):
    base = dense_base(units=3)
    graft({"a": base}, base)


@refused(
    ValueError,
    came="'top' (of type Dense)",
    **OF_ANOTHER,
)
def a_head_model_that_holds_a_layer_of_a_base(graft):
    base = dense_base(units=5)
    graft([base], keras.Sequential([base.get_layer("top")], name="head"))


@refused(ValueError, came="`head` holds the layer 'theirs' (of type Dense)", **IN_USE)
def a_layer_of_another_model_for_the_head(graft):
    x, theirs = keras.Input((4,)), layers.Dense(3, name="theirs")
    keras.Model(x, theirs(x))
    graft([dense_base()], theirs)


@refused(ValueError, came="'theirs' (of type Dense)", **OF_ANOTHER)
def a_layer_of_another_model_within_the_head_callable(graft):
    x, theirs = keras.Input((4,)), layers.Dense(3, name="theirs")
    keras.Model(x, theirs(x))
    graft([dense_base()], lambda x: theirs(x) * 2.0)


@refused(ValueError, came="`head['b']` holds the layer 'mine' (of type Dense)", **IN_USE)
def one_layer_for_two_outputs_of_the_head(graft):
    mine = layers.Dense(3, name="mine")
    graft([dense_base()], {"a": mine, "b": mine})


@refused(
    ValueError,
    came="shape=(None, 4)",
    expected="shape=(None, 5)",
    change="`head`",
)
def a_head_model_for_other_features(graft):
    graft([dense_base(units=4)], dense_base(inputs=5, name="head"))


test_an_error_says_what_came_what_was_expected_and_what_to_change, test_an_error_leaves_the_originals_as_they_were = (
    checks_of(REFUSALS)
)

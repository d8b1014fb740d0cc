"""Options of the call that `freeze_and_merge` does not take."""

from __future__ import annotations

import keras
from helpers import dense_base, two_inputs_base
from keras import layers
from refusals import Refusal, checks_of, entering, ids_base
from zoo import vectors

from keras_graft import Branch

REFUSALS: dict[str, Refusal] = {}
refused = entering(REFUSALS)


POLICIES = {
    "expected": '"keep", "off", "remove", "always"',
    "change": "or a callable that returns one of them",
}

ANSWERS = {
    "expected": '"keep", "off", "remove", "always"',
    "change": "for every layer that it is asked about",
}

AUGMENTATION = {"expected": "`augmentation` must be one of", "change": '"keep", "off"'}

INPUTS = {
    "expected": "`inputs` must be",
    "change": '"shared", "separate", or one or more `keras.Input` tensors',
}

UNEQUAL = {"expected": "'a' and 'b' cannot share one input", "change": '`inputs="separate"`'}


@refused(ValueError, came="dropout='none'", **POLICIES)
def an_unknown_policy(graft):
    graft([dense_base()], dropout="none")


MEANT = {
    '"off"': (False, None, "none", "False"),
    '"keep"': (True,),
}


for word, given in MEANT.items():
    for value in given:
        REFUSALS[f"{value!r}_for_the_policy_meant_as_{word}"] = Refusal(
            lambda graft, value=value: graft([dense_base()], dropout=value),
            ValueError,
            (f"dropout={value!r}", '"keep", "off", "remove", "always"', f"You mean {word}"),
        )


for rate in (1.0, 1, -0.1, 30, float("nan")):
    REFUSALS[f"a_rate_of_{rate!r}"] = Refusal(
        lambda graft, rate=rate: graft([dense_base()], dropout=rate),
        ValueError,
        (f"dropout={rate!r}", '"keep", "off", "remove", "always"', "a rate of 0 or more and less than 1"),
    )


@refused(ValueError, came="dropout='Off'", expected='"off"', change='Did you mean "off"?')
def a_policy_in_capitals(graft):
    graft([dense_base()], dropout="Off")


@refused(ValueError, came="inputs='seperate'", expected="`inputs` must be", change='Did you mean "separate"?')
def a_misspelt_word_for_the_inputs(graft):
    graft([dense_base()], inputs="seperate")


@refused(ValueError, came="merge='avg'", expected="`merge` must be one of", change='Did you mean "average"?')
def a_misspelt_merge(graft):
    graft([dense_base(), dense_base()], merge="avg")


@refused(ValueError, came="dropout=None", **POLICIES)
def no_policy(graft):
    graft([dense_base()], dropout=None)


@refused(ValueError, came="dropout={'drop': 'off'}", **POLICIES)
def a_mapping_for_a_policy(graft):
    graft([dense_base()], dropout={"drop": "off"})


@refused(ValueError, came="dropout='none'", **POLICIES)
def an_unknown_policy_of_a_branch(graft):
    graft([dense_base(), Branch(dense_base(), dropout="none")])


@refused(ValueError, came="layer 'drop' (of type Dropout) it returned None", **ANSWERS)
def a_policy_callable_that_returns_nothing(graft):
    graft([dense_base()], dropout=lambda layer: None)


@refused(ValueError, came="layer 'drop' (of type Dropout) it returned True", **ANSWERS)
def a_policy_callable_that_returns_a_bool(graft):
    graft([dense_base()], dropout=lambda layer: layer.rate > 0)


@refused(ValueError, came="layer 'drop' (of type Dropout) it returned 1.5", **ANSWERS)
def a_policy_callable_that_returns_no_share(graft):
    graft([dense_base()], dropout=lambda layer: 3 * layer.rate)


@refused(ValueError, came="layer 'drop' (of type Dropout) it returned 'Off'", **ANSWERS)
def a_policy_callable_of_a_branch_that_returns_nonsense(graft):
    graft([dense_base(), Branch(dense_base(), dropout=lambda layer: "Off")])


@refused(ValueError, came="augmentation='remove'", **AUGMENTATION)
def an_unknown_augmentation(graft):
    graft([dense_base()], augmentation="remove")


@refused(ValueError, came="augmentation=True", **AUGMENTATION)
def an_unknown_augmentation_of_a_branch(graft):
    graft([dense_base(), Branch(dense_base(), augmentation=True)])


@refused(TypeError, came="copy='no'", expected="`copy` must be", change="True or False", copies=(True,))
def a_string_for_copy(graft):
    graft([dense_base()], copy="no")


@refused(TypeError, came="copy=0", expected="`copy` must be", change="True or False", copies=(True,))
def a_number_for_copy(graft):
    graft([dense_base()], copy=0)


@refused(ValueError, came="name='a/b'", expected="`name` must be", change="a string without '/'")
def a_model_name_with_a_slash(graft):
    graft([dense_base()], name="a/b")


@refused(ValueError, came="name=3", expected="`name` must be", change="a string without '/'")
def a_number_for_the_model_name(graft):
    graft([dense_base()], name=3)


@refused(ValueError, came="name=''", expected="`name` must be", change="string")
def an_empty_model_name(graft):
    graft([dense_base()], name="")


@refused(ValueError, came="inputs='seperate'", **INPUTS)
def an_unknown_word_for_the_inputs(graft):
    graft([dense_base()], inputs="seperate")


@refused(ValueError, came="inputs=None", **INPUTS)
def none_for_the_inputs(graft):
    graft([dense_base()], inputs=None)


@refused(ValueError, came="inputs=[]", **INPUTS)
def no_inputs(graft):
    graft([dense_base()], inputs=[])


@refused(ValueError, came="inputs=ndarray[2, 3] of float32", **INPUTS)
def data_for_the_inputs(graft):
    graft([dense_base()], inputs=vectors(2, 3))


@refused(ValueError, came="inputs=<KerasTensor shape=(None, 3)", **INPUTS)
def a_computed_tensor_for_the_inputs(graft):
    graft([dense_base()], inputs=layers.Dense(3)(keras.Input((2,))))


@refused(ValueError, came="'a' takes (None, 3) float32, 'b' takes (None, 5) float32", **UNEQUAL)
def shared_inputs_of_unequal_shape(graft):
    graft({"a": dense_base(inputs=3), "b": dense_base(inputs=5)})


@refused(ValueError, came="'a' takes (None, 3) float32, 'b' takes (None, 3) int32", **UNEQUAL)
def shared_inputs_of_unequal_dtype(graft):
    graft({"a": dense_base(), "b": ids_base()})


@refused(ValueError, came="'b' takes ['(None, 3) float32', '(None, 2) float32']", **UNEQUAL)
def shared_inputs_of_unequal_structure(graft):
    graft({"a": two_inputs_base(dict), "b": two_inputs_base(list)})


@refused(
    ValueError,
    came="Received: [((None, 7), 'float32')]",
    expected="Expected: (None, 3) float32",
    change="Adapt it with `Branch(preprocess=...)`",
)
def own_inputs_that_do_not_fit(graft):
    graft([dense_base()], inputs=keras.Input((7,)))


@refused(
    ValueError,
    came="Received: [((None, 3), 'float32')]",
    expected="Expected: ['(None, 3) float32', '(None, 2) float32']",
    change="give the merged model other `inputs`",
)
def too_few_own_inputs(graft):
    graft([two_inputs_base()], inputs=keras.Input((3,)))


test_an_error_says_what_came_what_was_expected_and_what_to_change, test_an_error_leaves_the_originals_as_they_were = (
    checks_of(REFUSALS)
)

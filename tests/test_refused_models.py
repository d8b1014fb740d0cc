"""Models that `freeze_and_merge` does not take."""

from __future__ import annotations

import keras
from helpers import dense_base
from keras import layers
from refusals import Composed, Refusal, checks_of, entering

from keras_graft import Branch

REFUSALS: dict[str, Refusal] = {}
refused = entering(REFUSALS)


NO_LIST = {"expected": "list of Keras models or Branch objects", "change": "dict from names to them"}

NO_MODEL = {"expected": "must be a keras.Model", "change": "keras.models.load_model(path)"}

UNBUILT = {
    "expected": "must be built",
    "change": "Call it on a batch of data, give it a keras.Input, or call",
}

BAD_NAME = {"expected": "A branch name must be", "change": "non-empty string without '/'"}


@refused(ValueError, came="models=[]", expected="`models` must hold", change="at least one model")
def no_models(graft):
    graft([])


@refused(ValueError, came="models={}", expected="`models` must hold", change="at least one model")
def no_models_in_a_mapping(graft):
    graft({})


@refused(TypeError, came="models=<Sequential name=base", expected="a list or a dict of models", change="[model]")
def a_model_outside_a_list(graft):
    graft(dense_base())


@refused(TypeError, came="models=Branch(", expected="a list or a dict of models", change="[model]")
def a_branch_outside_a_list(graft):
    graft(Branch(dense_base()))


@refused(TypeError, came="models='model_a.keras' (of type str)", **NO_LIST)
def a_string_for_the_models(graft):
    graft("model_a.keras")


@refused(
    TypeError,
    came="models='model_a.keras'",
    expected="list of Keras models",
    change="[keras.models.load_model('model_a.keras')]",
)
def a_path_for_the_models(graft):
    graft("model_a.keras")


@refused(TypeError, came="models=<class", expected="list of Keras models", change="make an instance of it")
def a_class_for_the_models(graft):
    graft(keras.Sequential)


@refused(TypeError, came="(of type generator)", expected="list of Keras models", change="list(models)")
def a_generator_to_make_a_list_of(graft):
    graft(dense_base() for _ in range(2))


@refused(TypeError, came="models[0]=<class", expected="must be a keras.Model", change="as in Sequential(...)")
def a_class_among_the_models(graft):
    graft([keras.Sequential])


@refused(TypeError, came="(of type generator)", **NO_LIST)
def a_generator_for_the_models(graft):
    graft(dense_base() for _ in range(2))


@refused(TypeError, came="(of type set)", **NO_LIST)
def a_set_for_the_models(graft):
    graft({dense_base(name="a"), dense_base(name="b")})


@refused(TypeError, came="models=None", **NO_LIST)
def none_for_the_models(graft):
    graft(None)


@refused(TypeError, came="models[1]='model_b.keras' (of type str)", **NO_MODEL)
def a_string_for_a_model(graft):
    graft([dense_base(), "model_b.keras"])


@refused(TypeError, came="models['b']='model_b.keras' (of type str)", **NO_MODEL)
def a_string_for_a_model_in_a_mapping(graft):
    graft({"a": dense_base(), "b": "model_b.keras"})


@refused(TypeError, came="models[0]='model_a.keras' (of type str)", **NO_MODEL)
def a_string_for_a_model_in_a_branch(graft):
    graft([Branch("model_a.keras")])


@refused(
    TypeError,
    came="models[1]=<Dense name=",
    expected="must be a keras.Model",
    change="keras.Sequential([keras.Input(...), layer])",
)
def a_layer_for_a_model(graft):
    graft([dense_base(), layers.Dense(2)])


@refused(TypeError, came="(of type type)", **NO_MODEL)
def a_class_for_a_model(graft):
    graft([keras.Sequential])


@refused(TypeError, came="models[0]=[<Sequential name=base", **NO_MODEL)
def a_list_for_a_model(graft):
    graft([[dense_base(), dense_base()]])


@refused(TypeError, came="(of type Branch)", **NO_MODEL)
def a_branch_within_a_branch(graft):
    graft([Branch(Branch(dense_base()))])


@refused(ValueError, came="models[0]=<Sequential name=unbuilt, built=False>", **UNBUILT)
def a_model_that_is_not_built(graft):
    graft([keras.Sequential([layers.Dense(3)], name="unbuilt")])


@refused(
    ValueError,
    came="models['a']=<Composed name=",
    expected="must be built",
    change="Call it on a batch of data first, as in `models['a'](x)`",
)
def a_subclassed_model_that_is_not_built(graft):
    graft({"a": Composed()})


@refused(
    ValueError,
    came="names=['a', 'a']",
    expected="Two branches are named 'a'",
    change="Give each `Branch(name=...)`",
)
def equal_names_that_the_caller_wrote(graft):
    graft([Branch(dense_base(), name="a"), Branch(dense_base(), name="a")])


@refused(
    ValueError,
    came="key='a', name='b'",
    expected="a Branch with another name",
    change="once, as the key or as `Branch(name=...)`",
)
def a_key_and_a_branch_of_another_name(graft):
    graft({"a": Branch(dense_base(), name="b")})


@refused(ValueError, came="name='a/b'", **BAD_NAME)
def a_key_with_a_slash(graft):
    graft({"a/b": dense_base()})


@refused(ValueError, came="name='a/b'", **BAD_NAME)
def a_branch_name_with_a_slash(graft):
    graft([Branch(dense_base(), name="a/b")])


@refused(ValueError, came="name=''", **BAD_NAME)
def an_empty_branch_name(graft):
    graft([Branch(dense_base(), name="")])


@refused(ValueError, came="name=1", **BAD_NAME)
def a_number_for_a_branch_name(graft):
    graft({1: dense_base()})


@refused(
    ValueError,
    came='"a" is used 2 times',
    expected="every layer needs a name",
    change="that no branch, input or other layer of the merged model has",
)
def a_branch_named_as_an_input(graft):
    graft({"a": dense_base()}, inputs=keras.Input((3,), name="a"))


@refused(
    ValueError,
    came='"a" is used 2 times',
    expected="every layer needs a name",
    change="that no branch, input or other layer of the merged model has",
)
def a_head_layer_named_as_a_branch(graft):
    graft({"a": dense_base()}, layers.Dense(3, name="a"))


test_an_error_says_what_came_what_was_expected_and_what_to_change, test_an_error_leaves_the_originals_as_they_were = (
    checks_of(REFUSALS)
)

"""Options of a branch that `freeze_and_merge` does not take."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from helpers import dense_base, image_base, nested_base
from keras import layers
from refusals import IN_USE, NO_RETURN, STAGE, Refusal, checks_of, composed, entering, two_outputs
from zoo import functional, sequential

from keras_graft import Branch

REFUSALS: dict[str, Refusal] = {}
refused = entering(REFUSALS)


NO_SUCH_LAYER = {"expected": "has no layer"}

NO_TENSOR = {
    "expected": "must return a symbolic tensor of the model of branch 'base' itself",
    "change": "pass its path",
}

POOLINGS = {
    "expected": '"avg", "max", "flatten", a Keras layer',
    "change": "or a callable from tensor to tensor",
}


@refused(ValueError, came="output='hiden'", change="Did you mean 'hidden'", **NO_SUCH_LAYER)
def an_output_that_is_misspelt(graft):
    graft([Branch(dense_base(), output="hiden")])


@refused(ValueError, came="output='deep'", change="'encoder/block/deep'", **NO_SUCH_LAYER)
def an_output_without_the_path_to_it(graft):
    graft([Branch(nested_base(), output="deep")])


@refused(ValueError, came="output='encoder/block/dep'", change="'encoder/block/deep'", **NO_SUCH_LAYER)
def a_path_that_is_misspelt(graft):
    graft([Branch(nested_base(), output="encoder/block/dep")])


@refused(ValueError, came="output='avg_pool'", change="It has ['vector', 'hidden', 'drop', 'top']", **NO_SUCH_LAYER)
def an_output_that_is_like_no_layer(graft):
    graft([Branch(dense_base(), output="avg_pool")])


@refused(ValueError, came="output=3", expected="an index into the 3 layers", change="of the model of branch 'base'")
def an_index_behind_the_last_layer(graft):
    graft([Branch(dense_base(), output=3)])


@refused(
    TypeError,
    came="output=True (of type bool)",
    expected="`output` must be",
    change="an index into `model.layers`",
)
def a_bool_for_the_output(graft):
    graft([Branch(dense_base(), output=True)])


@refused(
    TypeError,
    came="output=1.0 (of type float)",
    expected="`output` must be",
    change="an index into `model.layers`",
)
def a_float_for_the_output(graft):
    graft([Branch(dense_base(), output=1.0)])


LISTED = {"expected": "must list one or more tensors of its model", "change": "each once"}


@refused(ValueError, came="output=[]", **LISTED)
def an_empty_list_for_the_output(graft):
    graft([Branch(dense_base(), output=[])])


@refused(ValueError, came="output=['top', -1]", **LISTED)
def a_list_that_names_a_tensor_twice(graft):
    graft([Branch(dense_base(), output=["top", -1])])


@refused(ValueError, came="output=['hidden', <function", **LISTED)
def a_list_of_a_callable_that_returns_a_list(graft):
    graft([Branch(dense_base(), output=["hidden", lambda model: model.outputs])])


@refused(TypeError, came="None in output=['hidden', None]", expected="An item of `output`", change="a name, an index")
def a_list_with_nothing_in_it(graft):
    graft([Branch(dense_base(), output=["hidden", None])])


@refused(ValueError, came="output='hiden'", expected="has no layer 'hiden'", change="Did you mean 'hidden'")
def a_list_with_a_name_that_is_misspelt(graft):
    graft([Branch(dense_base(), output=["hidden", "hiden"])])


@refused(
    ValueError,
    came="'encoder/last' in output=['top', 'encoder/last']",
    expected="a nested model can be cut in one place alone",
    change="`Branch(preprocess=...)`",
)
def a_list_with_a_layer_of_a_nested_model(graft):
    graft([Branch(nested_base(), output=["top", "encoder/last"])])


UNITS = {"expected": "is a Dense layer on one tensor", "change": "Pass a callable that gets the list"}


@refused(ValueError, came="head=3", **UNITS)
def units_on_several_outputs(graft):
    graft([Branch(dense_base(), output=["hidden", "top"])])


@refused(ValueError, came="projection=3", **UNITS)
def a_projection_of_several_outputs_to_units(graft):
    graft([Branch(dense_base(), output=["hidden", "top"], projection=3)])


BOTH = {"expected": "[(None, 5), (None, 4)]", "change": "Pass"}


@refused(ValueError, came="`head`: the layer 'add'", **BOTH)
def a_head_that_cannot_take_several_outputs(graft):
    graft([Branch(dense_base(), output=["hidden", "top"])], keras.layers.Add(name="add"))


@refused(ValueError, came="`pooling`: the layer 'reshape'", **BOTH)
def a_pooling_that_cannot_take_several_outputs(graft):
    graft([Branch(dense_base(), output=["hidden", "top"], pooling=keras.layers.Reshape((1, -1), name="reshape"))])


@refused(ValueError, came="`projection`: the layer 'relu'", expected="takes one tensor", change="makes one tensor of")
def a_projection_that_hands_several_outputs_through(graft):
    graft([Branch(dense_base(), output=["hidden", "top"], projection=keras.layers.ReLU(name="relu"))])


@refused(ValueError, came='pooling="avg"', expected="lists 2", change="Pass a callable that makes one tensor")
def a_word_to_pool_several_outputs(graft):
    graft([Branch(dense_base(), output=["hidden", "top"], pooling="avg")])


SEVERAL = {"expected": "merges one tensor of each branch", "change": "Pass a callable that gets the tensors"}


@refused(ValueError, came="tensors per branch {'base': 2, 'base_1': 1}", **SEVERAL)
def a_word_to_merge_several_outputs(graft):
    graft([Branch(dense_base(), output=["hidden", "top"]), dense_base()])


@refused(ValueError, came="tensors per branch {'base': 2}", **SEVERAL)
def a_word_to_add_the_outputs_of_one_branch(graft):
    graft([Branch(dense_base(), output=["hidden", "top"])], merge="add")


@refused(
    TypeError,
    came="output=<Dense name=hidden",
    expected="`output` must be",
    change="the name or path of a layer",
)
def a_layer_for_the_output(graft):
    base = dense_base()
    graft([Branch(base, output=base.get_layer("hidden"))])


@refused(ValueError, came="It returned None", **NO_TENSOR)
def an_output_callable_that_returns_nothing(graft):
    graft([Branch(dense_base(), output=lambda model: None)])


@refused(ValueError, came="It returned <Dense name=hidden", **NO_TENSOR)
def an_output_callable_that_returns_a_layer(graft):
    graft([Branch(dense_base(), output=lambda model: model.get_layer("hidden"))])


@refused(ValueError, came="It returned <KerasTensor shape=(None, 4)", **NO_TENSOR)
def an_output_callable_that_returns_a_tensor_of_a_nested_model(graft):
    graft([Branch(nested_base(), output=lambda model: model.get_layer("encoder").get_layer("last").output)])


@refused(
    ValueError,
    came="output='top'",
    expected="needs a model that is a graph of layers",
    change="Choose one of its outputs yourself",
)
def an_output_of_a_subclassed_model(graft):
    graft([Branch(composed(), output="top")])


@refused(ValueError, came="'two'", expected="a branch has one", change="Choose one of its outputs yourself")
def a_subclassed_model_of_two_outputs(graft):
    graft([two_outputs()])


@refused(ValueError, came="'twice'", expected="called 2 times", change="Pass a callable that returns the tensor")
def an_output_that_is_called_twice(graft):
    x, twice = keras.Input((3,)), layers.Dense(3, name="twice")
    graft([Branch(functional(x, twice(twice(x))), output="twice")])


@refused(ValueError, came="'states'", expected="makes 3 tensors", change="Pass a callable that returns the tensor")
def an_output_of_several_tensors(graft):
    x = keras.Input((4, 3))
    graft([Branch(functional(x, layers.LSTM(2, return_state=True, name="states")(x)[0]), output="states")])


@refused(
    ValueError,
    came="branch 'base' has 2 outputs",
    expected="a branch has one",
    change="`Branch(..., output=...)`, one of ['first', 'second']",
)
def several_outputs_without_a_choice(graft):
    x = keras.Input((3,))
    graft([functional(x, [layers.Dense(2, name="first")(x), layers.Dense(2, name="second")(x)])])


@refused(
    ValueError,
    came="branch 'base' has 2 outputs",
    expected="a branch has one",
    change="['first', 'second']",
)
def several_named_outputs_without_a_choice(graft):
    x = keras.Input((3,))
    graft([functional(x, {"first": layers.Dense(2)(x), "second": layers.Dense(2)(x)})])


@refused(ValueError, came="pooling='mean'", **POOLINGS)
def an_unknown_pooling(graft):
    graft([Branch(image_base(), pooling="mean")])


@refused(TypeError, came="pooling=3", **POOLINGS)
def an_int_for_the_pooling(graft):
    graft([Branch(dense_base(), pooling=3)])


@refused(TypeError, came="pooling=True", **POOLINGS)
def a_bool_for_the_pooling(graft):
    graft([Branch(image_base(), pooling=True)])


@refused(TypeError, came="`pooling`", **NO_RETURN)
def a_pooling_callable_that_returns_nothing(graft):
    graft([Branch(image_base(), pooling=lambda x: None)])


@refused(
    ValueError,
    came="branch 'base' have shape (None, 1, 1, 1, 1, 2)",
    expected="rank 3, 4 or 5",
    change="Pass a layer or a callable",
)
def pooling_of_too_high_a_rank(graft):
    graft([Branch(sequential(keras.Input((1, 1, 1, 1, 2)), layers.Dense(2)), pooling="avg")])


@refused(TypeError, came="preprocess='resize' (of type str)", **STAGE)
def a_string_for_the_preprocessing(graft):
    graft([Branch(dense_base(), preprocess="resize")])


@refused(TypeError, came="(of type type)", **STAGE)
def a_class_for_the_preprocessing(graft):
    graft([Branch(dense_base(), preprocess=layers.Rescaling)])


@refused(TypeError, came="preprocess=3", **STAGE)
def an_int_for_the_preprocessing(graft):
    graft([Branch(dense_base(), preprocess=3)])


SYMBOLIC = {"expected": "fails on the symbolic Keras tensor that it gets", "change": "write it with `keras.ops`"}


@refused(ValueError, came="`preprocess` of branch 'base' ('log')", **SYMBOLIC)
def a_numpy_function_for_the_preprocessing(graft):
    graft([Branch(dense_base(), preprocess=np.log)])


@refused(ValueError, came="`preprocess` of branch 'base' ('<lambda>')", **SYMBOLIC)
def a_method_of_arrays_for_the_preprocessing(graft):
    graft([Branch(dense_base(), preprocess=lambda x: x.astype("float32") / 255)])


@refused(ValueError, came="`preprocess` of branch 'base' ('per_image_standardization')", **SYMBOLIC)
def a_tensorflow_function_for_the_preprocessing(graft):
    graft([Branch(image_base(), preprocess=tf.image.per_image_standardization, pooling="avg")])


@refused(ValueError, came="`pooling` of branch 'base'", **SYMBOLIC)
def a_numpy_function_for_the_pooling(graft):
    graft([Branch(image_base(), pooling=lambda x: np.mean(np.asarray(x), axis=(1, 2)))])


@refused(ValueError, came="`merge` ('concatenate')", **SYMBOLIC)
def a_numpy_function_for_the_merge(graft):
    graft([dense_base(), dense_base()], merge=np.concatenate)


@refused(TypeError, came="`preprocess`", **NO_RETURN)
def a_preprocessing_callable_that_returns_nothing(graft):
    graft([Branch(dense_base(), preprocess=lambda x: None)])


@refused(
    ValueError,
    came="`preprocess`",
    expected="must",
    change="the one that it gets",
)
def a_preprocessing_that_misses_its_input(graft):
    graft([Branch(dense_base(), preprocess=lambda x: keras.Input((3,)))])


@refused(
    ValueError,
    came="Received: [((None, 2), 'float32')]",
    expected="Expected: (None, 3) float32",
    change="Adapt it with `Branch(preprocess=...)`",
)
def a_preprocessing_of_another_shape(graft):
    graft([Branch(dense_base(), preprocess=lambda x: x[:, :2])])


@refused(ValueError, came="projection=0", expected="counts units", change="at least 1")
def a_projection_to_nothing(graft):
    graft([Branch(dense_base(), projection=0)])


@refused(TypeError, came="projection=True (of type bool)", **STAGE)
def a_bool_for_the_projection(graft):
    graft([Branch(dense_base(), projection=True)])


@refused(TypeError, came="projection='8' (of type str)", **STAGE)
def a_string_for_the_projection(graft):
    graft([Branch(dense_base(), projection="8")])


@refused(TypeError, came="`projection`", **NO_RETURN)
def a_projection_callable_that_returns_nothing(graft):
    graft([Branch(dense_base(), projection=lambda x: None)])


@refused(ValueError, came="`projection` holds the layer 'mine' (of type Dense)", **IN_USE)
def one_projection_layer_for_two_branches(graft):
    mine = layers.Dense(2, name="mine")
    graft([Branch(dense_base(), projection=mine), Branch(dense_base(), projection=mine)])


test_an_error_says_what_came_what_was_expected_and_what_to_change, test_an_error_leaves_the_originals_as_they_were = (
    checks_of(REFUSALS)
)

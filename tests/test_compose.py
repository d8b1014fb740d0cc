"""`freeze_and_merge` end to end, what reaches `compile`, and errors: what they say and leave alone."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    array,
    dense_base,
    ensemble,
    grafted,
    image_base,
    nested_base,
    originals_in,
    outputs,
    reloaded,
    snapshot,
    two_inputs_base,
    values,
)
from keras import layers
from zoo import functional, sequential, vectors

from keras_graft import Branch, freeze_and_merge

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# ---------------------------------------------------------------------------------------------------------
# End to end
# ---------------------------------------------------------------------------------------------------------


FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "one_model": lambda: {"models": [dense_base()]},
    "a_list": lambda: {"models": [dense_base(), dense_base()]},
    "a_mapping": lambda: {"models": {"a": dense_base(), "b": nested_base()}},
    "branches": lambda: {"models": [Branch(dense_base(), output="hidden"), Branch(dense_base(), projection=2)]},
    "originals": lambda: {"models": {"a": dense_base(), "b": dense_base()}, "copy": False},
    "own_inputs": lambda: {"models": [dense_base(), dense_base()], "inputs": keras.Input((3,))},
    "separate_inputs": lambda: {"models": [dense_base(), dense_base()], "inputs": "separate"},
    "a_learned_merge": lambda: {
        "models": [dense_base(), Branch(nested_base(), projection=4)],
        "merge": "attention",
    },
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_only_the_head_learns_from(form, tmp_path):
    options = form()
    model = grafted(options.pop("models"), optimizer=keras.optimizers.SGD(0.01), **options)
    branches = [layer for layer in model.layers if not layer.trainable_variables]
    frozen = [values(layer) for layer in branches]
    learned = [array(v) for v in model.trainable_variables]
    x = vectors(16, 3) if len(model.inputs) == 1 else [vectors(16, 3)] * len(model.inputs)
    losses = model.fit(x, vectors(16, 3, seed=1), epochs=3, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert [values(layer) for layer in branches] == frozen
    assert all((array(v) != old).any() for v, old in zip(model.trainable_variables, learned, strict=True))
    loaded = reloaded(model, tmp_path)
    np.testing.assert_array_equal(outputs(loaded, x), outputs(model, x))


def test_the_first_step_is_that_of_plain_keras_on_the_features():
    bases, x, y = [dense_base(), dense_base(units=2)], vectors(8, 3), vectors(8, 1)
    model = grafted(bases, [layers.Dense(4, activation="relu"), layers.Dense(1)], optimizer="sgd")
    plain = keras.models.clone_model(keras.Model(model.get_layer("merge").output, model.output))
    plain.set_weights(model.trainable_variables)
    plain.compile(optimizer="sgd", loss="mse", jit_compile=False)
    features = np.concatenate([outputs(base, x) for base in bases], axis=-1)
    np.testing.assert_allclose(model.train_on_batch(x, y), plain.train_on_batch(features, y), rtol=1e-5)
    for ours, theirs in zip(model.trainable_variables, plain.trainable_variables, strict=True):
        np.testing.assert_allclose(array(ours), array(theirs), rtol=1e-5, atol=1e-6)


def test_a_merged_model_can_be_a_base():
    inner = grafted({"a": dense_base(), "b": dense_base()}, name="inner")
    inner.fit(vectors(8, 3), vectors(8, 3), verbose=0)
    model = grafted({"inner": inner, "c": dense_base()})
    expected = np.concatenate([outputs(inner, vectors(4, 3)), outputs(dense_base(), vectors(4, 3))], axis=-1)
    merged = keras.Model(model.inputs, model.get_layer("merge").output)
    np.testing.assert_allclose(outputs(merged, vectors(4, 3)), expected, rtol=1e-5)
    assert len(model.trainable_variables) == 2


def test_models_that_cannot_be_copied_serve_themselves():
    base = sequential(keras.Input((3,)), Unfaithful(2))
    model = ensemble([base], copy=False)
    np.testing.assert_array_equal(outputs(model, vectors(4, 3)), outputs(base, vectors(4, 3)))


# ---------------------------------------------------------------------------------------------------------
# What comes out, and what reaches compile
# ---------------------------------------------------------------------------------------------------------


def test_the_result_is_a_plain_compiled_keras_model():
    model = grafted([dense_base()])
    assert type(model) is type(nested_base())
    assert model.compiled


def test_the_result_has_the_name_that_was_given():
    assert grafted([dense_base()], name="model_ab").name == "model_ab"


def test_a_branch_is_found_by_its_name():
    base = dense_base()
    branch = grafted({"a": base}).get_layer("a")
    assert isinstance(branch, keras.Model)
    assert not branch.trainable_weights
    np.testing.assert_array_equal(outputs(branch, vectors(4, 3)), outputs(base, vectors(4, 3)))


COMPILE_ARGS: dict[str, Any] = {
    "optimizer": keras.optimizers.SGD(0.1),
    "loss": "mae",
    "loss_weights": [0.5],
    "metrics": ["mse"],
    "weighted_metrics": ["mae"],
    "run_eagerly": True,
    "steps_per_execution": 2,
    "jit_compile": False,
    "auto_scale_loss": False,
}


def compile_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(keras.Model, "compile", lambda self, **given: calls.append(given))
    return calls


def test_compile_arguments_reach_compile_as_they_are(monkeypatch):
    calls = compile_calls(monkeypatch)
    freeze_and_merge([dense_base()], 3, **COMPILE_ARGS)
    assert [{name: id(value) for name, value in call.items()} for call in calls] == [
        {name: id(value) for name, value in COMPILE_ARGS.items()}
    ]


def test_compile_gets_nothing_that_was_not_given(monkeypatch):
    calls = compile_calls(monkeypatch)
    freeze_and_merge([dense_base()], 3, loss="mse")
    assert calls == [{"loss": "mse"}]


def test_every_argument_of_compile_is_taken():
    assert {"self", *COMPILE_ARGS} == {*inspect.signature(keras.Model.compile).parameters}


def test_metrics_are_computed():
    model = grafted([dense_base()], metrics=["mae"])
    x, y = vectors(8, 3), vectors(8, 3, seed=1)
    expected = np.abs(outputs(model, x) - y).mean()
    assert model.evaluate(x, y, verbose=0, return_dict=True)["mae"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        pytest.param(3, CROSSENTROPY, id="logits"),
        pytest.param(3, keras.losses.CategoricalCrossentropy(from_logits=True), id="one_hot_logits"),
        pytest.param(1, keras.losses.BinaryCrossentropy(from_logits=True), id="a_binary_logit"),
        pytest.param(1, keras.losses.BinaryFocalCrossentropy(from_logits=True), id="a_focal_logit"),
        pytest.param(
            lambda x: keras.ops.softmax(layers.Dense(3)(x)),
            "sparse_categorical_crossentropy",
            id="probabilities",
        ),
        pytest.param({"a": 3, "b": 1}, {"a": CROSSENTROPY, "b": "mse"}, id="logits_of_one_output"),
        pytest.param({"a": 3, "b": 1}, {"a": CROSSENTROPY, "b": None}, id="an_output_without_a_loss"),
        pytest.param(3, "categorical_hinge", id="a_loss_on_scores"),
        pytest.param(3, lambda y, p: keras.ops.mean((y - p) ** 2), id="a_loss_of_ones_own"),
    ],
)
def test_losses_that_fit_the_head_are_welcome(head, loss):
    assert grafted([dense_base()], head, loss=loss).compiled


# ---------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A call that must fail.

    Attributes:
        call: Gets a stand-in for `freeze_and_merge`, and calls it once.
        error: The type of the error.
        says: What came, what was expected and what to change, as the message has it.
        copies: The values of `copy` with which it must fail.
    """

    call: Callable[[Callable[..., Any]], Any]
    error: type[Exception]
    says: tuple[str, str, str]
    copies: tuple[bool, ...] = (True, False)


REFUSALS: dict[str, Refusal] = {}


def refused(error: type[Exception], *, came: str, expected: str, change: str, **notes: Any) -> Callable[..., Any]:
    """Enters a call into the list of those that must fail."""

    def enter(call: Callable[..., Any]) -> Callable[..., Any]:
        REFUSALS[call.__name__] = Refusal(call, error, (came, expected, change), **notes)
        return call

    return enter


# -- models -----------------------------------------------------------------------------------------------


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


# -- options of the call ----------------------------------------------------------------------------------


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
    '"off"': (False, None, 0.0, 0, "none", "False"),
    '"keep"': (True, 0.5),
}
for word, given in MEANT.items():
    for value in given:
        REFUSALS[f"{value!r}_for_the_policy_meant_as_{word}"] = Refusal(
            lambda graft, value=value: graft([dense_base()], dropout=value),
            ValueError,
            (f"dropout={value!r}", '"keep", "off", "remove", "always"', f"You mean {word}"),
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


@refused(ValueError, came="dropout=0.5", **POLICIES)
def a_rate_for_a_policy(graft):
    graft([dense_base()], dropout=0.5)


@refused(ValueError, came="dropout={'drop': 'off'}", **POLICIES)
def a_mapping_for_a_policy(graft):
    graft([dense_base()], dropout={"drop": "off"})


@refused(ValueError, came="dropout='none'", **POLICIES)
def an_unknown_policy_of_a_branch(graft):
    graft([dense_base(), Branch(dense_base(), dropout="none")])


@refused(ValueError, came="layer 'drop' (of type Dropout) it returned None", **ANSWERS)
def a_policy_callable_that_returns_nothing(graft):
    graft([dense_base()], dropout=lambda layer: None)


@refused(ValueError, came="layer 'drop' (of type Dropout) it returned 0.5", **ANSWERS)
def a_policy_callable_that_returns_nonsense(graft):
    graft([dense_base()], dropout=lambda layer: layer.rate)


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


# -- options of a branch ----------------------------------------------------------------------------------


NO_SUCH_LAYER = {"expected": "has no layer"}
NO_TENSOR = {
    "expected": "must return a symbolic tensor of the model of branch 'base' itself",
    "change": "pass its path",
}
NO_RETURN = {"expected": "must return one symbolic Keras tensor", "change": "Did it forget its `return`?"}
STAGE = {
    "expected": "a Keras layer or model, a list of layers, or a callable",
    "change": "from tensor to tensor",
}
IN_USE = {
    "expected": "already in use by another model",
    "change": "Pass a new layer, or a callable that makes one",
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


@refused(TypeError, came="output=['hidden']", expected="`output` must be", change="the name or path of a layer")
def a_list_for_the_output(graft):
    graft([Branch(dense_base(), output=["hidden"])])


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


# -- merges -----------------------------------------------------------------------------------------------


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


@refused(ValueError, change="`merge=keras.layers.Average()`", **RANKS)
def maps_to_average(graft):
    graft([image_base(), image_base()], merge="average")


@refused(ValueError, came="branch 'base' have shape (None,)", **VECTORS)
def features_of_rank_1(graft):
    x = keras.Input((3,))
    graft([functional(x, keras.ops.sum(x, axis=-1))])


@refused(ValueError, came="branch 'base' have shape (None, None)", **VECTORS)
def features_of_an_unknown_number(graft):
    graft([Branch(sequential(keras.Input((None, 2)), layers.Dense(2)), pooling="flatten")])


# -- heads ------------------------------------------------------------------------------------------------


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


# -- compile ----------------------------------------------------------------------------------------------


PROBABILITIES = {"expected": "gives logits, and this loss takes probabilities"}
OUTPUTS = {"expected": "`loss` must name every output of the head", "change": "Expected: ['a', 'b']"}


@refused(
    TypeError,
    came="['optimiser']",
    expected="neither it nor `keras.Model.compile` takes",
    change="'optimizer'",
)
def an_unknown_argument(graft):
    graft([dense_base()], optimiser="adam")


def instead(name: str, way_out: str) -> None:
    REFUSALS[f"{name}_for_an_argument"] = Refusal(
        lambda graft: graft([dense_base()], **{name: "x"}),
        TypeError,
        (f"['{name}']", "neither it nor `keras.Model.compile` takes", way_out),
    )


instead("dropuot", 'Did you mean "dropout"?')
instead("optimiser", 'Did you mean "optimizer"?')
instead("metric", 'Did you mean "metrics"?')
instead("learning_rate", "pass optimizer=keras.optimizers.Adam(learning_rate=...)")
instead("lr", "pass optimizer=keras.optimizers.Adam(learning_rate=...)")
instead("pooling", "Branch(model, pooling=...)")
instead("epochs", "model.fit(..., epochs=...)")


@refused(TypeError, came="optimizer=<class", expected="must be an optimizer", change="as in Adam(...)")
def a_class_for_the_optimizer(graft):
    graft([dense_base()], optimizer=keras.optimizers.Adam)


@refused(ValueError, came="loss=['mse', 'mae']", expected="must be one loss", change="pass a mapping as `head`")
def two_losses_for_one_output(graft):
    graft([dense_base()], loss=["mse", "mae"])


@refused(ValueError, came="loss={'other': 'mse'}", expected="one output, 'head'", change="pass a mapping as `head`")
def a_loss_for_another_output(graft):
    graft([dense_base()], loss={"other": "mse"})


UNKNOWN_NAME = {"expected": "names something that Keras does not know"}


@refused(ValueError, came="loss='msse'", change="Pass an object of `keras.losses`", **UNKNOWN_NAME)
def unknown_loss(graft):
    graft([dense_base()], loss="msse")


@refused(ValueError, came="loss='msse'", change="Pass an object of `keras.losses`", **UNKNOWN_NAME)
def unknown_loss_of_an_output(graft):
    graft([dense_base()], {"a": 3, "b": 1}, loss={"a": "mse", "b": "msse"})


@refused(ValueError, came="metrics='acuracy'", change='Did you mean "accuracy"?', **UNKNOWN_NAME)
def misspelt_metric(graft):
    graft([dense_base()], metrics=["acuracy"])


@refused(ValueError, came="metrics='acuracy'", change="Pass an object of `keras.metrics`", **UNKNOWN_NAME)
def unknown_metric(graft):
    graft([dense_base()], metrics=["acc", "acuracy"])


@refused(ValueError, came="loss=None", expected="`loss` must be given", change="head=None")
def no_loss(graft):
    graft([dense_base()], loss=None)


@refused(
    ValueError,
    came="optimizer=<",
    expected="already built for the variables of another model",
    change="SGD(...)",
)
def an_optimizer_in_use(graft):
    optimizer = keras.optimizers.SGD()
    optimizer.build(dense_base().trainable_variables)
    graft([dense_base()], optimizer=optimizer)


@refused(ValueError, came="Received: ['a']", **OUTPUTS)
def an_output_that_has_no_loss(graft):
    graft([dense_base()], {"a": 3, "b": 1}, loss={"a": "mse"})


@refused(ValueError, came="Received: ['a', 'b', 'c']", **OUTPUTS)
def a_loss_that_has_no_output(graft):
    graft([dense_base()], {"a": 3, "b": 1}, loss={"a": "mse", "b": "mse", "c": "mse"})


@refused(ValueError, came="Received: ['a']", **OUTPUTS)
def a_list_of_too_few_losses(graft):
    graft([dense_base()], {"a": 3, "b": 1}, loss=["mse"])


@refused(ValueError, came="Received", **OUTPUTS)
def a_list_of_too_many_losses(graft):
    graft([dense_base()], {"a": 3, "b": 1}, loss=["mse", "mse", "mse"])


SOFTMAX = 'keras.layers.Dense(3, activation="softmax")'
SIGMOID = 'keras.layers.Dense(1, activation="sigmoid")'


@refused(ValueError, came="loss='sparse_categorical_crossentropy'", change=SOFTMAX, **PROBABILITIES)
def an_int_head_with_a_crossentropy_on_probabilities(graft):
    graft([dense_base()], 3, loss="sparse_categorical_crossentropy")


@refused(
    ValueError,
    came="loss='sparse_categorical_crossentropy'",
    change="keras.losses.SparseCategoricalCrossentropy(from_logits=True)",
    **PROBABILITIES,
)
def a_crossentropy_on_probabilities_that_the_loss_could_mend(graft):
    graft([dense_base()], 3, loss="sparse_categorical_crossentropy")


@refused(ValueError, came="loss='CategoricalCrossentropy'", change=SOFTMAX, **PROBABILITIES)
def a_crossentropy_under_the_name_of_its_class(graft):
    graft([dense_base()], 3, loss="CategoricalCrossentropy")


@refused(ValueError, came="loss='binary_crossentropy'", change=SIGMOID, **PROBABILITIES)
def a_binary_crossentropy(graft):
    graft([dense_base()], 1, loss="binary_crossentropy")


@refused(ValueError, came="loss='bce'", change=SIGMOID, **PROBABILITIES)
def a_binary_crossentropy_under_its_short_name(graft):
    graft([dense_base()], 1, loss="bce")


@refused(ValueError, came="loss='binary_focal_crossentropy'", change=SIGMOID, **PROBABILITIES)
def a_focal_crossentropy(graft):
    graft([dense_base()], 1, loss="binary_focal_crossentropy")


@refused(ValueError, came="loss=<", change=SOFTMAX, **PROBABILITIES)
def a_crossentropy_object(graft):
    graft([dense_base()], 3, loss=keras.losses.SparseCategoricalCrossentropy())


@refused(ValueError, came="loss=<", change=SOFTMAX, **PROBABILITIES)
def a_crossentropy_object_of_a_subclass(graft):
    class Mine(keras.losses.SparseCategoricalCrossentropy):
        pass

    graft([dense_base()], 3, loss=Mine())


@refused(ValueError, came="loss=<class", change=SOFTMAX, **PROBABILITIES)
def a_crossentropy_class(graft):
    graft([dense_base()], 3, loss=keras.losses.CategoricalCrossentropy)


@refused(ValueError, came="loss=<function", change=SOFTMAX, **PROBABILITIES)
def a_crossentropy_function(graft):
    graft([dense_base()], 3, loss=keras.losses.categorical_crossentropy)


@refused(
    ValueError,
    came="categorical_crossentropy",
    change=SOFTMAX,
    **PROBABILITIES,
)
def a_crossentropy_in_a_list(graft):
    graft([dense_base()], 3, loss=["categorical_crossentropy"])


@refused(
    ValueError,
    came="categorical_crossentropy",
    change=SOFTMAX,
    **PROBABILITIES,
)
def a_crossentropy_under_the_name_of_its_output(graft):
    graft([dense_base()], 3, loss={"head": "categorical_crossentropy"})


@refused(ValueError, came="`head['b']`=3", change=SOFTMAX, **PROBABILITIES)
def a_crossentropy_on_one_of_several_outputs(graft):
    graft([dense_base()], {"a": 1, "b": 3}, loss={"a": "mse", "b": "categorical_crossentropy"})


@refused(ValueError, came="`head['b']`=3", change=SOFTMAX, **PROBABILITIES)
def a_crossentropy_in_the_list_for_several_outputs(graft):
    graft([dense_base()], {"a": 1, "b": 3}, loss=["mse", "categorical_crossentropy"])


@refused(ValueError, came="`head['a']`=3", change=SOFTMAX, **PROBABILITIES)
def one_crossentropy_for_several_outputs(graft):
    graft([dense_base()], {"a": 3, "b": 3}, loss="categorical_crossentropy")


# -- layers that stand in the way -------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_compose")
class Composed(keras.Model):
    """A subclassed model."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top = layers.Dense(2, name="top")

    def build(self, input_shape: Any) -> None:
        self.top.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.top(inputs)


def composed() -> keras.Model:
    model = Composed(name="composed")
    model.build((None, 3))
    return model


class TwoOutputs(Composed):
    """A subclassed model that returns two tensors."""

    def call(self, inputs: Any) -> Any:
        return {"one": inputs, "two": self.top(inputs)}


def two_outputs() -> keras.Model:
    model = TwoOutputs()
    model.build((None, 3))
    return model


class WithoutShapes(keras.Model):
    """A subclassed model that says it is built, and does not know with which shapes."""

    def __init__(self) -> None:
        super().__init__(name="shapeless")
        self.top = layers.Dense(2)
        self.top.build((None, 3))
        self.built = True

    def call(self, inputs: Any) -> Any:
        return self.top(inputs)


class TwoArguments(keras.Model):
    """A subclassed model that takes two tensors, one by one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top = layers.Dense(2)

    def call(self, left: Any, right: Any) -> Any:
        return self.top(left) + self.top(right)


def ids_base() -> keras.Model:
    return sequential(keras.Input((3,), dtype="int32"), layers.Embedding(9, 2), layers.Flatten())


class Unfaithful(layers.Layer):
    """A layer whose config lacks an argument of its constructor."""

    def __init__(self, units: int) -> None:
        super().__init__(name="unfaithful")
        self.inner = layers.Dense(units)

    def build(self, input_shape: Any) -> None:
        self.inner.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


class Secretive(layers.Layer):
    """A layer that drops at a rate of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5, name="hidden_drop")

    def call(self, inputs: Any) -> Any:
        return self.drop(inputs)


@refused(
    ValueError,
    came="Layer 'unfaithful' (of type Unfaithful)",
    expected="cannot be rebuilt from its config: TypeError",
    change="pass `copy=False`",
    copies=(True,),
)
def a_layer_that_cannot_be_rebuilt(graft):
    graft([dense_base(), sequential(keras.Input((3,)), Unfaithful(2), name="other")])


@refused(
    ValueError,
    came="'shapeless'",
    expected="was built without input shapes",
    change="wrap it: `x = keras.Input(...)`, then `keras.Model(x, model(x))`",
)
def a_subclassed_model_that_does_not_know_its_inputs(graft):
    graft([WithoutShapes()])


@refused(
    (TypeError, ValueError),
    came="'two'",
    expected="one",
    change="`keras.Model(x, model(x))`",
    copies=(False,),
)
def a_subclassed_model_of_two_arguments(graft):
    model = TwoArguments(name="two")
    model(vectors(2, 3), vectors(2, 3))
    graft([model])


@refused(
    ValueError,
    came="layer 'secretive' (of type Secretive): its noise ('hidden_drop')",
    expected='Policy "remove" cannot be kept',
    change='Use "off" or "keep" for it',
    copies=(True,),
)
def noise_that_cannot_be_removed(graft):
    graft([sequential(keras.Input((3,)), Secretive(name="secretive"))], dropout="remove")


@refused(
    ValueError,
    came="the layer 'base' would stand in both branch",
    expected="Keras saves such a model but cannot load it",
    change="Use copy=True",
    copies=(False,),
)
def one_model_in_two_branches_without_copies(graft):
    base = dense_base()
    graft({"a": base, "b": base})


@refused(
    ValueError,
    came="the layer 'common' would stand in both branch",
    expected="Keras saves such a model but cannot load it",
    change="Use copy=True",
    copies=(False,),
)
def one_layer_in_two_branches_without_copies(graft):
    common = layers.Dense(2, name="common")
    graft({"a": sequential(keras.Input((3,)), common), "b": sequential(keras.Input((3,)), common)})


# -- the tests --------------------------------------------------------------------------------------------


class Witness:
    """Stands in for `freeze_and_merge`, and knows what the originals were like before the call."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.originals: list[Any] = []
        self.before: dict[str, Any] = {}

    def __call__(self, models: Any, head: Any = 3, **options: Any) -> Any:
        options = {**self.options, **options}
        self.originals = originals_in(models, options)
        for original in self.originals:
            if isinstance(original, keras.Model) and original.built:
                lived_in(original)
        self.before = snapshot(*self.originals)
        return grafted(models, head, **options)

    def changes(self) -> dict[str, Any]:
        """What became of the originals: what it was and what it is, where these differ."""
        after = snapshot(*self.originals)
        return {
            what: (self.before.get(what), after.get(what))
            for what in {**self.before, **after}
            if self.before.get(what) != after.get(what)
        }


def lived_in(model: keras.Model) -> None:
    """Compiles `model` and freezes a part of it: state that must come through."""
    with_weights = [layer for layer in model.layers if layer.weights]
    for layer in with_weights[:-1]:
        layer.trainable = False
    model.compile(optimizer="adam", loss="mse")


@functools.cache
def outcome(name: str, copy: bool) -> tuple[type[Exception] | None, str, dict[str, Any]]:
    """The type and message of the error, and what it changed in the originals."""
    witness = Witness(copy=copy)
    try:
        REFUSALS[name].call(witness)
    except Exception as error:  # whichever it is: the test looks at it
        return type(error), str(error), witness.changes()
    return None, "", {}


ALL_REFUSALS = [
    pytest.param(name, copy, id=f"{name}-{'copy' if copy else 'itself'}")
    for name, refusal in REFUSALS.items()
    for copy in refusal.copies
]


@pytest.mark.parametrize(("name", "copy"), ALL_REFUSALS)
def test_an_error_says_what_came_what_was_expected_and_what_to_change(name, copy):
    kind, message, _ = outcome(name, copy)
    assert kind is not None, "nothing was raised"
    assert issubclass(kind, REFUSALS[name].error), message
    for piece in REFUSALS[name].says:
        assert piece in message


@pytest.mark.parametrize(("name", "copy"), ALL_REFUSALS)
def test_an_error_leaves_the_originals_as_they_were(name, copy):
    _, _, changes = outcome(name, copy)
    assert changes == {}


def failing(*_: Any) -> Any:
    raise ZeroDivisionError("a mistake of the user's own")


FAILURES: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "dropout": lambda graft: graft([dense_base(), Branch(dense_base(), dropout=failing)]),
    "output": lambda graft: graft([dense_base(), Branch(dense_base(), output=failing)]),
    "pooling": lambda graft: graft([dense_base(), Branch(dense_base(), pooling=failing)]),
    "preprocess": lambda graft: graft([dense_base(), Branch(dense_base(), preprocess=failing)]),
    "projection": lambda graft: graft([dense_base(), Branch(dense_base(), projection=failing)]),
    "merge": lambda graft: graft([dense_base(), dense_base()], merge=failing),
    "head": lambda graft: graft([dense_base(), dense_base()], failing),
    "one_of_several_heads": lambda graft: graft([dense_base(), dense_base()], {"a": 3, "b": failing}),
}


@pytest.mark.parametrize("copy", [True, False], ids=["copy", "itself"])
@pytest.mark.parametrize("call", FAILURES.values(), ids=FAILURES)
def test_a_mistake_in_a_callable_passes_through_and_leaves_the_originals_as_they_were(call, copy):
    witness = Witness(copy=copy)
    with pytest.raises(ZeroDivisionError, match="a mistake of the user's own"):
        call(witness)
    assert witness.changes() == {}


NEW: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "a_head_layer": lambda: ([dense_base()], {"head": layers.Dense(3)}),
    "a_list_of_head_layers": lambda: ([dense_base()], {"head": [layers.Dense(4), layers.Dense(3)]}),
    "a_head_model": lambda: ([dense_base()], {"head": dense_base(inputs=4, name="head")}),
    "a_merge_layer": lambda: ([dense_base(), dense_base()], {"merge": layers.Add()}),
    "a_projection_layer": lambda: ([Branch(dense_base(), projection=layers.Dense(2))], {}),
    "a_pooling_layer": lambda: ([Branch(image_base(), pooling=layers.Flatten())], {}),
    "a_preprocessing_layer": lambda: ([Branch(dense_base(), preprocess=layers.Rescaling(2.0))], {}),
    "inputs": lambda: ([dense_base()], {"inputs": keras.Input((3,))}),
}


@pytest.mark.parametrize("make", NEW.values(), ids=NEW)
def test_after_an_error_serves_again(make):
    models, options = make()
    with pytest.raises(ValueError, match="no_such_optimizer"):
        grafted(models, **options, optimizer="no_such_optimizer")
    assert grafted(models, **options, optimizer="sgd").compiled


@pytest.mark.parametrize("argument", ["metrics", "weighted_metrics"])
@pytest.mark.parametrize("given", [["mae"], ["mae", "mse", "mape"]], ids=["too_short", "too_long"])
def test_a_list_that_does_not_match_the_outputs_is_refused(argument, given):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        grafted([dense_base()], {"a": 3, "b": 1}, **{argument: given})


def test_an_error_leaves_inputs_of_the_callers_own_as_they_were():
    x = keras.Input((3,))
    before = snapshot(x)
    with pytest.raises(ValueError, match="no_such_optimizer"):
        grafted([dense_base()], inputs=x, optimizer="no_such_optimizer")
    assert snapshot(x) == before


# ---------------------------------------------------------------------------------------------------------
# Ways out that the errors name
# ---------------------------------------------------------------------------------------------------------


def sequence_base() -> keras.Model:
    return sequential(keras.Input((5, 2)), layers.LSTM(3, return_sequences=True))


WAYS_OUT: dict[str, Callable[[], Any]] = {
    "a_list_of_a_generator": lambda: grafted(list(map(dense_base, (4, 4)))),
    "a_learning_rate": lambda: grafted([dense_base()], optimizer=keras.optimizers.Adam(learning_rate=0.1)),
    "pooling_in_a_branch": lambda: grafted([Branch(image_base(), pooling="avg")]),
    "projection_of_maps": lambda: grafted(
        [Branch(image_base(), projection=[layers.Conv2D(2, 1), layers.GlobalMaxPooling2D()])]
    ),
    "maps_of_one_branch": lambda: grafted(
        [image_base()], [layers.Flatten(), layers.Dense(3)], merge=lambda tensors: tensors[0]
    ),
    "average_of_maps": lambda: grafted(
        [image_base(), image_base()], [layers.GlobalMaxPooling2D(), layers.Dense(3)], merge=layers.Average()
    ),
    "a_sequence_for_an_LSTM": lambda: grafted([sequence_base()], [layers.LSTM(3)], merge=lambda tensors: tensors[0]),
    "sequences_for_an_LSTM": lambda: grafted(
        [sequence_base(), sequence_base()], [layers.LSTM(3)], merge=layers.Concatenate()
    ),
    "preprocessing_by_operations": lambda: grafted(
        [Branch(image_base(), preprocess=lambda x: keras.ops.image.resize(x / 255, (4, 4)), pooling="avg")]
    ),
    "preprocessing_by_a_layer": lambda: grafted([Branch(dense_base(), preprocess=layers.Rescaling(1 / 255))]),
}


@pytest.mark.parametrize("call", WAYS_OUT.values(), ids=WAYS_OUT)
def test_a_way_out_works(call):
    assert call().output_shape == (None, 3)


# ---------------------------------------------------------------------------------------------------------
# Other backends, another Keras
# ---------------------------------------------------------------------------------------------------------


NO_BACKEND = 'and the backend of Keras is \'jax\'. Set os.environ["KERAS_BACKEND"] = "tensorflow" before'


def test_another_backend_is_refused_in_a_line_when_the_package_is_imported():
    command = [sys.executable, "-c", "import keras_graft"]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert NO_BACKEND in ran.stderr.strip().splitlines()[-1]


def test_another_backend_that_keras_already_runs_on_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.delitem(sys.modules, "keras_graft._backend")
    with pytest.raises(ImportError, match=re.escape(NO_BACKEND)):
        importlib.import_module("keras_graft._backend")


def of_keras_2(module: str, kind: str = "Sequential") -> Any:
    """An object whose class derives from one that stands in for a class of Keras 2."""
    base = type(kind, (), {"__module__": module, "__call__": lambda self, x: x})
    return type("Mine", (base,), {"__module__": "__main__"})()


@pytest.mark.parametrize(
    "module", ["tf_keras.src.engine.sequential", "keras.engine.training", "keras.src.engine.training"]
)
def test_a_model_of_keras_2_is_told_apart(module):
    given = of_keras_2(module)
    for call in (lambda: grafted(given), lambda: grafted([given]), lambda: grafted({"a": Branch(given)})):
        with pytest.raises(TypeError, match=r"Keras 2 \(tf_keras\).*new.set_weights\(old.get_weights\(\)\)"):
            call()


PLACES: dict[str, Callable[[Any], Any]] = {
    "head": lambda layer: grafted([dense_base()], layer),
    "head_in_a_list": lambda layer: grafted([dense_base()], [layers.Dense(3), layer]),
    "head_in_a_mapping": lambda layer: grafted([dense_base()], {"a": layer}),
    "merge": lambda layer: grafted([dense_base(), dense_base()], merge=layer),
    "preprocess": lambda layer: grafted([Branch(dense_base(), preprocess=layer)]),
    "pooling": lambda layer: grafted([Branch(image_base(), pooling=layer)]),
    "projection": lambda layer: grafted([Branch(dense_base(), projection=layer)]),
    "optimizer": lambda layer: grafted([dense_base()], optimizer=layer),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_layer_of_keras_2_is_told_apart_as(place):
    with pytest.raises(TypeError, match=r"This is one of Keras 2 \(tf_keras\), and this library works with Keras 3"):
        place(of_keras_2("tf_keras.src.engine.base_layer", "Layer"))


# ---------------------------------------------------------------------------------------------------------
# Subclassed models that are not built, or claim to be
# ---------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="compose")
class NoBuild(keras.Model):
    """Makes its layers in its constructor, and leaves their weights to the first call."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense, self.drop, self.unused = layers.Dense(4), layers.Dropout(0.5), layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.drop(self.dense(x))


@keras.saving.register_keras_serializable(package="compose")
class OverABackbone(NoBuild):
    """Holds a layer that is built beside one that is not."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first = layers.Dense(3)
        self.first.build((None, 3))

    def call(self, x: Any) -> Any:
        return super().call(self.first(x))


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called:UserWarning")
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("told_to_build", [True, False])
def test_a_subclassed_model_without_weights_is_to_be_called_first_and_composes_then(copy, told_to_build):
    base = NoBuild()
    if told_to_build:
        base.build((None, 3))
    with pytest.raises(
        ValueError, match=r"must be built.*Call it on a batch of data first, as in `models\[0\]"
    ) as seen:
        grafted([base], copy=copy, inputs=keras.Input((3,)))
    assert "build(input_shape)" not in str(seen.value) and "copy=False" not in str(seen.value)
    called = NoBuild()
    expected = array(called(vectors(4, 3)))
    model = ensemble([called], copy=copy)
    np.testing.assert_array_equal(outputs(model, vectors(4, 3)), expected)


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called:UserWarning")
def test_a_part_without_weights_is_named_with_its_own_name_and_type():
    base = OverABackbone()
    base.build((None, 3))
    with pytest.raises(ValueError, match=rf"'{base.dense.name}' \(of type Dense\).*Call the model on a batch") as seen:
        grafted([base], inputs=keras.Input((3,)))
    assert "copy=False" not in str(seen.value)


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called:UserWarning")
def test_a_loaded_subclassed_model_with_an_unused_part_composes_without_a_call(tmp_path):
    base = NoBuild()
    expected = array(base(vectors(4, 3)))
    base.save(tmp_path / "base.keras")
    loaded = keras.models.load_model(tmp_path / "base.keras")
    np.testing.assert_array_equal(outputs(ensemble([loaded]), vectors(4, 3)), expected)


# ---------------------------------------------------------------------------------------------------------
# What people write at first, and the way out that the message names
# ---------------------------------------------------------------------------------------------------------


def test_a_used_layer_as_merge_names_a_callable_that_works():
    used = layers.Concatenate()
    used([keras.Input((3,)), keras.Input((3,))])
    with pytest.raises(ValueError, match=r"already in use by another model") as seen:
        grafted([dense_base(), dense_base()], merge=used)
    (way_out,) = re.findall(r"`merge=(lambda [^`]*)`", str(seen.value))
    merge = eval(way_out, {"keras": keras})
    assert grafted([dense_base(), dense_base()], merge=merge).output_shape == (None, 3)
    assert grafted([dense_base()], merge=merge).output_shape == (None, 3)


def test_data_as_inputs_are_told_to_go_to_fit_in_a_short_message():
    x = vectors(500, 3)
    with pytest.raises(ValueError, match=r"no values, .*data go to `fit`.*inputs=ndarray\[500, 3\]") as seen:
        grafted([dense_base()], inputs=x)
    assert len(str(seen.value)) < 400
    assert grafted([dense_base()], inputs=keras.Input((3,))).predict(x, verbose=0).shape == (500, 3)


@pytest.mark.parametrize("dropout", [["off", "keep"], ("off", "keep"), {"a": "off", "b": "keep"}])
def test_several_policies_are_told_to_go_to_branches(dropout):
    with pytest.raises(ValueError, match=r"of each branch, `Branch\(model, dropout=...\)`"):
        grafted({"a": dense_base(), "b": dense_base()}, dropout=dropout)
    branches = {"a": Branch(dense_base(), dropout="off"), "b": Branch(dense_base(), dropout="keep")}
    assert grafted(branches).compiled


@pytest.mark.parametrize("dropout", [lambda: "off", lambda layer, path: "off"])
def test_a_policy_that_does_not_take_a_layer_is_told_what_it_gets(dropout):
    with pytest.raises(TypeError, match=r'must take one argument, the layer .*`dropout=lambda layer: "off"`'):
        grafted([dense_base()], dropout=dropout)
    assert grafted([dense_base()], dropout=lambda layer: "off").compiled
    assert grafted([dense_base()], dropout=lambda layer, path="": "off").compiled


def test_a_misspelt_optimizer_is_refused_with_the_name_that_was_meant():
    with pytest.raises(ValueError, match=r"Did you mean \"adam\"\? Received: optimizer='adamm'"):
        grafted([dense_base()], optimizer="adamm")
    assert isinstance(grafted([dense_base()], optimizer="adam").optimizer, keras.optimizers.Adam)
    assert isinstance(grafted([dense_base()], optimizer="SGD").optimizer, keras.optimizers.SGD)


@keras.saving.register_keras_serializable(package="compose")
class OwnOptimizer(keras.optimizers.SGD):
    """An optimizer that Keras knows by its registered name."""


def test_the_registered_name_of_an_optimizer_is_taken_where_keras_takes_it():
    with keras.saving.custom_object_scope({"mine": OwnOptimizer}):
        try:
            dense_base().compile("mine")
        except ValueError:  # from Keras 3.16 on
            with pytest.raises(ValueError, match="`optimizer` names one that Keras does not know"):
                grafted([dense_base()], optimizer="mine")
        else:
            assert isinstance(grafted([dense_base()], optimizer="mine").optimizer, OwnOptimizer)


def test_pairs_of_names_and_models_are_told_to_become_a_dict():
    pairs = [("a", dense_base()), ("b", dense_base())]
    with pytest.raises(TypeError, match=r"Make a dict of the pairs: dict\(models\)"):
        grafted(pairs)
    assert grafted(dict(pairs)).compiled


def test_a_path_in_a_list_is_told_to_be_loaded(tmp_path):
    path = str(tmp_path / "a.keras")
    dense_base().save(path)
    with pytest.raises(TypeError, match=r"Load a file with keras\.models\.load_model\(path\) first"):
        grafted([path])
    assert grafted([keras.models.load_model(path)]).compiled


def test_a_head_that_trains_a_variable_of_a_base_is_refused() -> None:
    base = dense_base(inputs=3)
    kernel = next(variable for variable in base.trainable_variables if "kernel" in variable.path)

    class Tied(layers.Layer):
        def build(self, input_shape: Any) -> None:
            self.kernel = kernel

        def call(self, x: Any) -> Any:
            return x * keras.ops.sum(self.kernel)

    before = array(kernel)
    with pytest.raises(ValueError, match=r"The head trains the variable .*kernel.* would not stand still"):
        freeze_and_merge([base], head=Tied(), loss="mse")
    np.testing.assert_array_equal(array(kernel), before)

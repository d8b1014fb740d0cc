"""Layers that stand in the way of `freeze_and_merge`."""

from __future__ import annotations

import keras
from helpers import dense_base
from keras import layers
from refusals import Refusal, Secretive, TwoArguments, Unfaithful, WithoutShapes, checks_of, entering
from zoo import sequential, vectors

REFUSALS: dict[str, Refusal] = {}
refused = entering(REFUSALS)


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


test_an_error_says_what_came_what_was_expected_and_what_to_change, test_an_error_leaves_the_originals_as_they_were = (
    checks_of(REFUSALS)
)

"""What `freeze_and_merge` does not hand on to `compile`: losses that do not fit, names that nobody knows."""

from __future__ import annotations

import keras
from helpers import dense_base
from refusals import Refusal, checks_of, entering

REFUSALS: dict[str, Refusal] = {}
refused = entering(REFUSALS)


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


test_an_error_says_what_came_what_was_expected_and_what_to_change, test_an_error_leaves_the_originals_as_they_were = (
    checks_of(REFUSALS)
)

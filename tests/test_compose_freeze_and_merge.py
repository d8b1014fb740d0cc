"""`freeze_and_merge` end to end, what reaches `compile`, and what is left after errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from helpers import array, dense_base, ensemble, grafted, image_base, nested_base, outputs, reloaded, snapshot, values
from keras import layers
from refusals import Unfaithful, Witness
from zoo import sequential, vectors

from keras_graft import Branch, freeze_and_merge

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

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


@pytest.mark.quick
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

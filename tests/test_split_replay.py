"""Cutting models whose names, inputs, batches or records are out of the ordinary: plain Keras says what is right."""

from __future__ import annotations

import gc
import pathlib
import threading
from typing import Any

import keras
import numpy as np
import pytest
from helpers import array, grafted
from keras import layers
from zoo import functional, sequential

from keras_graft import Branch, _keras, audit, fit_head, freeze_and_merge, predict_samples, split
from keras_graft._split.replay import Names

X = np.random.default_rng(0).normal(size=(12, 8)).astype("float32")
LEFT, RIGHT = X[:, :3], X[:, 3:6]


def assert_cut_computes_the_model(model: keras.Model, x: Any) -> None:
    """The two parts one behind the other give what the model gives, also where features are computed by `predict`."""
    found, expected = split(model), model.predict(x, verbose=0)
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    for features in (found.features(inputs), found.features.predict(x, verbose=0)):
        np.testing.assert_allclose(array(found.rest(features)), expected, rtol=1e-5, atol=1e-6)


def assert_trained_alike(model: keras.Model, x: Any, again: keras.Model) -> None:
    """`fit_head` of a model gives the weights that `fit` gives another one of the same weights."""
    again.set_weights(model.get_weights())
    for one, train in ((model, fit_head), (again, keras.Model.fit)):
        one.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        train(one, x, X[:, :1], epochs=2, batch_size=4, shuffle=False, verbose=0)
    for ours, theirs in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# Names are for people
# ---------------------------------------------------------------------------------------------------------


def base(name: str, layer: str) -> keras.Sequential:
    parts = [layers.Dense(5, activation="tanh", name=layer), layers.Dropout(0.5), layers.Dense(4)]
    return sequential(keras.Input((8,)), *parts, name=name)


def dotted() -> keras.Model:
    """Two branches in which "a.b.c" is the dotted path of a layer."""
    return grafted([base("a", "b.c"), base("a.b", "c")], 1, dropout="keep")


def numbered() -> keras.Model:
    """A shared layer beside one that is called as a call of it would be."""
    x = keras.Input((8,))
    shared, other = layers.Dense(8, name="s", activation="tanh"), layers.Dense(8, name="s.call_1")
    shared.trainable = other.trainable = False
    first = shared(x)
    second = other(first)
    third = shared(second)
    live = [number * layers.Dropout(0.5)(part) for number, part in enumerate((first, second, third), 1)]
    return keras.Model(x, layers.Dense(1)(layers.Concatenate()(live)))


def numbered_models() -> keras.Model:
    """The same with a shared model that the frontier passes through."""
    x = keras.Input((8,))
    shared, other = base("s", "d"), layers.Dense(8, name="s.call_1")
    shared.trainable = other.trainable = False
    return keras.Model(x, layers.Dense(1)(layers.Concatenate()([shared(x), shared(other(x)), other(x)])))


def masked_names() -> keras.Model:
    """A layer that is called as the mask of another one's features would be, and one as what joins both."""
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    embedded = layers.Embedding(9, 4, mask_zero=True, name="e")(tokens)
    named = layers.Dense(4, name="e.mask")(embedded)
    joined = layers.Dense(4, name="e.with_mask")(layers.Dropout(0.5)(embedded) + named)
    model = keras.Model(tokens, layers.Dense(1)(layers.LSTM(3)(joined)))
    model.get_layer("e").trainable = model.get_layer("e.mask").trainable = False
    return model


def input_twice() -> keras.Model:
    """Gives its input two times as it is, beside a layer that is called as what stands for that."""
    x = keras.Input((8,), name="x")
    drop = layers.Dropout(0.5, name="x.as_it_is")(x)
    same = [layers.Identity()(x), layers.Identity()(x)]
    return keras.Model(x, layers.Dense(1)(layers.Concatenate()([drop, *same])))


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning")
@pytest.mark.parametrize("make", [dotted, numbered, numbered_models, input_twice])
def test_features_are_told_apart_by_what_they_are_and_not_by_names(make: Any) -> None:
    assert_cut_computes_the_model(make(), X)


@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning")
def test_masks_are_told_apart_by_what_they_are_and_not_by_names() -> None:
    tokens = np.random.default_rng(1).integers(0, 9, size=(12, 6))
    assert_cut_computes_the_model(masked_names(), tokens)


def test_a_head_trains_on_the_features_of_its_own_branch() -> None:
    def without_noise() -> keras.Model:
        model = dotted()
        for part in _keras.walk(model):
            if isinstance(part, layers.Dropout):
                part.rate = 0.0
        return model

    assert_trained_alike(without_noise(), X, without_noise())


def test_a_layer_of_any_name_may_lie_ahead() -> None:
    frozen = layers.Dense(4, name="vector.as_it_is")
    frozen.trainable = False
    model = sequential(keras.Input((8,), name="vector"), frozen, layers.Dense(1))
    found = split(model)
    assert not found.empty
    assert found.share == pytest.approx(32 / 36)
    assert split(sequential(keras.Input((8,)), layers.Dense(1))).empty


# ---------------------------------------------------------------------------------------------------------
# Inputs are bound as Keras binds them
# ---------------------------------------------------------------------------------------------------------


def inner(structure: Any, names: str = "za") -> keras.Model:
    """Takes two vectors, and tells them apart."""
    first, second = (keras.Input((3,), name=name) for name in names)
    features = layers.Dense(4, name="deep")(layers.Concatenate()([first, -2.0 * second]))
    inputs = dict(zip(names, (first, second))) if structure is dict else structure((first, second))
    return functional(inputs, layers.Dense(3)(layers.Dropout(0.5)(features)), "inner")


CALLS = {
    "a list by name": (list, lambda u, v: {"z": u, "a": v}),
    "a list by name, in another order": (list, lambda u, v: {"a": v, "z": u}),
    "a list by name, with more": (list, lambda u, v: {"a": v, "more": u, "z": u}),
    "a tuple by name": (tuple, lambda u, v: {"a": v, "z": u}),
    "a tuple by a list": (tuple, lambda u, v: [u, v]),
    "a dict": (dict, lambda u, v: {"z": u, "a": v}),
    "one tensor twice": (list, lambda u, v: [v, v]),
}


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("structure, given", CALLS.values(), ids=CALLS.keys())
@pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")
def test_a_nested_model_gets_the_inputs_that_keras_gives_it(structure: Any, given: Any, keyword: bool) -> None:
    nested = inner(structure)
    nested.trainable = False
    u, v = keras.Input((3,), name="u"), keras.Input((3,), name="v")
    features = nested(inputs=given(u, v)) if keyword else nested(given(u, v))
    model = keras.Model([u, v], layers.Dense(1)(layers.Concatenate()([features, u])))
    assert_cut_computes_the_model(model, [LEFT, RIGHT])
    if given(u, v) != {"a": v, "more": u, "z": u}:
        assert (None, 4) in {tensor.shape for tensor in split(model).features.outputs}  # it was cut inside


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras warns of the structure, and computes
def test_a_model_of_one_input_may_be_called_with_a_list_or_by_name() -> None:
    for given in (lambda x: [x], lambda x: {"vector": x}):
        nested = sequential(keras.Input((8,), name="vector"), *base("b", "d").layers, name="nested")
        nested.trainable = False
        x = keras.Input((8,))
        model = keras.Model(x, layers.Dense(1)(nested(given(x))))
        assert_cut_computes_the_model(model, X)


# ---------------------------------------------------------------------------------------------------------
# Records of layers
# ---------------------------------------------------------------------------------------------------------


def records(model: keras.Model) -> list[tuple[int, int]]:
    return [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in _keras.walk(model)]


def trainable_head() -> keras.Model:
    model = grafted([base("one", "a"), base("two", "b")], 1, dropout="keep")
    return model


def test_a_model_built_around_a_branch_during_the_training_can_be_saved(tmp_path: pathlib.Path) -> None:
    model, built = trainable_head(), list[keras.Model]()

    class Builds(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            x = keras.Input((8,))
            built.append(keras.Model(x, layers.Dense(2)(model.get_layer("one")(x))))

    fit_head(model, X, X[:, :1], epochs=2, callbacks=[Builds()], verbose=0)
    split(model)
    for number, other in enumerate([*built, model]):
        path = tmp_path / f"{number}.keras"
        other.save(path)
        np.testing.assert_array_equal(keras.saving.load_model(path).predict(X, verbose=0), other.predict(X, verbose=0))


def test_samples_are_drawn_in_several_threads() -> None:
    x = keras.Input((8,))
    named = layers.Lambda(lambda tensor: tensor * 2.0, output_shape=(8,), name="double")  # it is shared with the copy
    model = keras.Model(x, layers.Dense(2)(layers.Dropout(0.5)(named(layers.Dropout(0.5)(x)))))
    before, expected = records(model), predict_samples(model, X, 3, seed=0).values
    found: list[Any] = [None] * 6

    def draw(number: int) -> None:
        found[number] = predict_samples(model, X, 3, seed=0).values

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for values in found:
        np.testing.assert_array_equal(values, expected)
    assert records(model) == before


@pytest.mark.once
def test_no_call_is_left_in_the_layers_of_a_model_that_is_cut_many_times() -> None:
    model = trainable_head()
    before = records(model)
    for _ in range(5):
        fit_head(model, X, X[:, :1], verbose=0)
    for _ in range(5):
        predict_samples(model, X, 2)
    assert records(model) == before


def test_a_split_that_is_gone_leaves_no_calls() -> None:
    model = trainable_head()
    before = records(model)
    for _ in range(3):
        found = [split(model) for _ in range(3)]  # which go at once, in any order
        assert found[0].share is not None
        del found
        gc.collect()
    assert records(model) == before


@pytest.mark.parametrize("on_top", ["a part", "a layer", "a tensor"])
def test_what_is_built_on_a_split_that_is_gone_can_be_saved(on_top: str, tmp_path: pathlib.Path) -> None:
    model = trainable_head()
    found = split(model)
    inputs, output = found.features.input, next(iter(found.features.output.values()))
    built = None
    if on_top != "a tensor":
        built = keras.Model(inputs, output if on_top == "a part" else layers.Dense(2)(output))
    del found
    if built is not None:
        del inputs, output
    gc.collect()
    built = built or keras.Model(inputs, layers.Dense(2)(output))
    split(model)
    gc.collect()
    built.save(tmp_path / "built.keras")
    loaded = keras.saving.load_model(tmp_path / "built.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), built.predict(X, verbose=0))


def test_what_others_recorded_meanwhile_keeps_its_place() -> None:
    layer = layers.Dense(2)
    x = keras.Input((3,))
    layer(x)
    with _keras.unrecorded():
        _keras.connect(layer, (x,), {}, [layer.output])
        theirs = layer(x)
    operation, number = _keras.tensor_history(theirs)
    assert theirs in operation._inbound_nodes[number].outputs


def test_parts_of_a_cut_are_models_as_any_other(tmp_path: pathlib.Path) -> None:
    model = trainable_head()
    found = split(model)
    on_top = keras.Model(found.features.inputs, layers.Concatenate()(list(found.features.output.values())))
    on_top.save(tmp_path / "top.keras")
    expected = on_top.predict(X, verbose=0)
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "top.keras").predict(X, verbose=0), expected)
    for part in (found.features, found.rest):
        assert type(part).from_config(part.get_config()).count_params() == part.count_params()


# ---------------------------------------------------------------------------------------------------------
# Inputs that several bases share
# ---------------------------------------------------------------------------------------------------------


def of_inputs(names: str, name: str) -> keras.Model:
    inputs = {letter: keras.Input((3,), name=letter) for letter in sorted(names)}
    scaled = [number * inputs[letter] for number, letter in enumerate(sorted(names), 1)]
    return keras.Model([inputs[letter] for letter in names], layers.Dense(4)(layers.Concatenate()(scaled)), name=name)


@pytest.mark.parametrize("structure", [list, tuple])
def test_inputs_of_one_name_are_shared_in_whatever_order(structure: Any) -> None:
    first, second = of_inputs("lr", "first"), of_inputs("rl", "second")
    second = keras.Model(structure(second.inputs), second.outputs[0], name="second")
    first = keras.Model(structure(first.inputs), first.outputs[0], name="first")
    merged = freeze_and_merge([first, second], None)
    expected = [first.predict([LEFT, RIGHT], verbose=0), second.predict([RIGHT, LEFT], verbose=0)]
    np.testing.assert_allclose(merged.predict([LEFT, RIGHT], verbose=0), np.concatenate(expected, 1), rtol=1e-5)


@pytest.mark.parametrize("names", ["lr", "rl", "xy"])
def test_inputs_of_the_callers_own_go_to_each_base_by_its_names(names: str) -> None:
    first, second = of_inputs("lr", "first"), of_inputs("rl", "second")
    inputs = [keras.Input((3,), name=name) for name in names]
    merged = freeze_and_merge([first, second], None, inputs=inputs)
    given = [RIGHT, LEFT] if names == "rl" else [LEFT, RIGHT]
    expected = [first.predict([LEFT, RIGHT], verbose=0), second.predict([RIGHT, LEFT], verbose=0)]
    np.testing.assert_allclose(merged.predict(given, verbose=0), np.concatenate(expected, 1), rtol=1e-5)


def test_inputs_of_other_names_are_shared_by_their_places() -> None:
    first, second = of_inputs("lr", "first"), of_inputs("pq", "second")
    merged = freeze_and_merge([first, second], None)
    expected = [model.predict([LEFT, RIGHT], verbose=0) for model in (first, second)]
    np.testing.assert_allclose(merged.predict([LEFT, RIGHT], verbose=0), np.concatenate(expected, 1), rtol=1e-5)


def test_inputs_that_cannot_be_told_apart_are_not_shared() -> None:
    with pytest.raises(ValueError, match=r"the inputs \['r'\] stand at different places"):
        freeze_and_merge([of_inputs("lr", "first"), of_inputs("rx", "second")], None)
    separate = freeze_and_merge([of_inputs("lr", "first"), of_inputs("rx", "second")], None, inputs="separate")
    assert len(separate.inputs) == 4


# ---------------------------------------------------------------------------------------------------------
# What users hold
# ---------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_cuts")
class Table(layers.Layer):
    """Gives its own dict as config, which `from_config` empties, and counts its calls in it."""

    def __init__(self, table: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        vars(self)["table"] = table
        vars(self)["log"] = {"calls": [], "seen": set()}

    def call(self, inputs: Any) -> Any:
        self.log["calls"].append(inputs.shape)
        self.log["seen"].add("called")
        return inputs * self.table["factor"]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "table": self.table}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Table:
        table = config.pop("table")
        return cls({"factor": table.pop("factor")}, **config)


def test_dicts_that_a_layer_holds_stay_as_they_were() -> None:
    table = {"factor": 2.0}
    layer = Table(table, name="table")
    model = sequential(keras.Input((8,)), layer, layers.Dropout(0.5), layers.Dense(2), name="base")
    log = {"calls": list(layer.log["calls"]), "seen": set(layer.log["seen"])}
    merged = grafted([model], 1, dropout="off")
    audit(model)
    split(merged)
    assert (table, layer.log) == ({"factor": 2.0}, log)
    assert layer.table is table
    audit(model, X)
    assert (table, layer.log) == ({"factor": 2.0}, log)
    np.testing.assert_allclose(merged.get_layer("base").predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# Names that TensorFlow refuses
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my model", "größe", "_x", "-y"])
def test_a_model_of_any_name_is_cut_where_plain_keras_trains_it(name: str) -> None:
    model = sequential(keras.Input((8,)), *base("b", "d").layers, layers.Dense(1), name=name)
    model.get_layer("d").trainable = False
    model.compile("sgd", "mse", run_eagerly=True)  # without a graph, names are no scopes
    model.fit(X, X[:, :1], verbose=0)
    fit_head(model, X, X[:, :1], verbose=0)
    found = split(model)
    features = found.features.predict(X, verbose=0)
    np.testing.assert_allclose(array(found.rest(features)), array(model(X)), rtol=1e-5)
    assert predict_samples(model, X, 2).values.shape == (2, 12, 1)


@pytest.mark.parametrize("name", ["my model", "größe"])
def test_a_branch_whose_name_no_graph_takes_is_refused_with_a_way_out(name: str) -> None:
    model = base(name, "d")
    with pytest.raises(ValueError, match=r"Branch\(model, name=\.\.\.\)"):
        freeze_and_merge([model], 1, loss="mse")
    grafted({"fine": model}, 1).fit(X, X[:, :1], verbose=0)
    grafted([Branch(model, name="fine")], 1).predict(X, verbose=0)
    with pytest.raises(ValueError, match="for a scope"):
        freeze_and_merge({"fine": model}, 1, loss="mse", name=name)
    grafted([base("_x", "d")], 1).fit(X, X[:, :1], verbose=0)


def test_a_name_that_is_taken_gets_the_first_number_that_is_free() -> None:
    names = Names({"a", "b"}, {}, {})
    assert [names.new(name) for name in ("a", "a", "b", "c")] == ["a_1", "a_2", "b_1", "c"]

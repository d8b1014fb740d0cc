"""What a layer of Keras is made of, and which of it are Keras's own books, against layers whose parts are known."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import zoo
from helpers import nested_base
from keras import layers

from keras_graft._keras.parts import (
    attributes,
    bare_operations,
    begins_masks,
    drop_activity_regularizers,
    held,
    is_built_by_calling,
    is_of_keras,
    named_parts,
    objects_given,
    own_trainable,
    own_variables,
    put,
    replaced_methods,
    same_policy,
    saved_variables,
    seed_states,
    set_own_trainable,
    walk,
)


@pytest.mark.quick
def test_a_walk_goes_from_the_parents_down_and_meets_each_layer_once() -> None:
    base = nested_base()
    x = keras.Input((3,), name="outer_in")
    model = keras.Model(x, layers.Add(name="add")([base(x), base(x * 2)]), name="outer")
    names = [layer.name for layer in walk(model)]
    assert len(names) == len(set(names))
    assert set(names) >= {"outer", "base", "encoder", "block", "deep", "deeper", "last", "top"}
    order = [names.index(name) for name in ("outer", "base", "encoder", "block", "deep")]
    assert order == sorted(order)
    assert walk(base.get_layer("top")) == [base.get_layer("top")]


def test_variables_and_seeds_are_told_by_the_layer_that_owns_them() -> None:
    drop = layers.Dropout(0.5)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), drop, layers.BatchNormalization()])
    assert own_variables(model) == []
    assert [len(own_variables(layer)) for layer in model.layers] == [2, 0, 4]
    assert [id(state) for state in seed_states(model)] == [id(drop.seed_generator.state)]


class Holder(layers.Layer):
    """Holds things in attributes of every kind."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number, self.things = 3, {"a": [layers.Dense(2), np.zeros(3)]}

    def call(self, x: Any) -> Any:
        return x


def test_what_a_layer_holds_is_named_and_the_books_of_keras_are_not_among_it() -> None:
    layer = Holder()
    assert {"number", "things"} <= held(layer).keys()
    assert not {"_layers", "_losses", "_inbound_nodes", "_tracker", "built", "name"} & held(layer).keys()
    names = named_parts(layer)
    assert names[id(layer.things["a"][0])] == "things[a][0]"
    assert names[id(layer.things["a"][1])] == "things[a][1]"


def test_what_a_layer_was_given_are_objects_no_weights_and_no_books() -> None:
    layer = layers.Dense(2, activation="relu", kernel_constraint="max_norm")
    layer.build((None, 3))
    given = objects_given(layer).keys()
    assert {"activation", "kernel_initializer", "kernel_constraint"} <= given
    assert not {"units", "use_bias", "bias_constraint", "_kernel", "bias", "name", "_layers", "_tracker"} & given


def test_slots_are_attributes_too_and_private_ones_carry_the_name_of_their_class() -> None:
    class Base:
        __slots__ = ("__hidden", "open")

        def __init__(self) -> None:
            self.__hidden = 1

    class Derived(Base):
        pass

    thing = Derived()
    thing.more = 2  # type: ignore[attr-defined]
    assert attributes(thing) == {"_Base__hidden": 1, "more": 2}


def test_an_attribute_of_a_layer_that_is_built_can_be_put_and_keras_tracks_it() -> None:
    layer, inner = layers.Dense(2), layers.Dense(2)
    layer.build((None, 3))
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        layer.inner = inner
    put(layer, "inner", inner)
    assert inner in walk(layer)
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        layer.other = layers.Dense(2)  # it is as closed as before


def with_lora(layer: Any) -> Any:
    layer.build((None, 6))
    layer.enable_lora(2)
    return layer


SAVED: dict[str, tuple[Callable[[], Any], int]] = {
    "dense": (lambda: layers.Dense(2), 2),
    "dense with LoRA": (lambda: with_lora(layers.Dense(2)), 2),
    "embedding with LoRA": (lambda: with_lora(layers.Embedding(3, 2)), 1),
    "normalisation": (layers.BatchNormalization, 4),
    "composite": (zoo.Block, 6),
}


@pytest.mark.parametrize(("make", "count"), SAVED.values(), ids=SAVED)
def test_as_many_variables_are_counted_as_a_file_of_weights_holds(
    make: Any, count: int, tmp_path: pathlib.Path
) -> None:
    layer = make()
    keras.Sequential([keras.Input((6,)), layer]).save_weights(tmp_path / "x.weights.h5")
    found: list[str] = []
    with h5py.File(tmp_path / "x.weights.h5") as file:
        file.visititems(lambda path, item: found.append(path) if isinstance(item, h5py.Dataset) else None)
    assert saved_variables(layer) == len([path for path in found if "seed" not in path]) == count


def test_the_flag_of_a_layer_alone_is_set() -> None:
    base = nested_base()
    set_own_trainable(base, False)
    assert not own_trainable(base)
    assert all(own_trainable(part) for part in walk(base)[1:])
    assert base.trainable_variables == []
    set_own_trainable(base, True)
    assert len(base.trainable_variables) == 8


def test_activity_losses_are_taken_from_all_that_lies_below() -> None:
    model = zoo.make_regularized_activity()
    assert model(zoo.vectors(4), training=False) is not None
    assert model.losses
    drop_activity_regularizers(model)
    model(zoo.vectors(4), training=False)
    assert len(model.losses) == 0


def test_methods_that_were_put_on_a_model_are_found() -> None:
    model = nested_base()
    assert replaced_methods(model) == []
    model.compile("sgd", "mse")
    model.fit(zoo.vectors(4, 3), zoo.vectors(4, 2), verbose=0)
    assert replaced_methods(model) == []
    model.call, model.note = lambda inputs: inputs, lambda: 1
    assert replaced_methods(model) == ["call"]


def test_operations_that_are_no_layers_are_found_in_graphs() -> None:
    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2)(keras.ops.relu(x)) + 1.0)
    assert [type(operation).__name__ for operation in bare_operations(model)] == ["Relu", "Add"]
    assert bare_operations(layers.Dense(2)) == []


def test_what_is_built_by_calling_alone_has_parts_and_no_build() -> None:
    layer = Holder()
    assert is_built_by_calling(layer)
    assert not is_built_by_calling(zoo.Block())
    assert not is_built_by_calling(layers.Dense(2))


def test_what_is_of_keras_is_told_by_where_it_is_defined() -> None:
    assert [is_of_keras(thing) for thing in (layers.Dense(2), keras.activations.relu, Holder(), zoo.vectors)] == [
        *(True, True),
        *(False, False),
    ]


def test_masks_begin_where_keras_makes_them() -> None:
    asked = [layers.Masking(), layers.Embedding(3, 2, mask_zero=True), layers.Embedding(3, 2), layers.LSTM(2)]
    assert [begins_masks(layer) for layer in asked] == [True, True, False, False]


def test_policies_of_other_names_may_say_the_same() -> None:
    one, other = (keras.dtype_policies.DTypePolicy("mixed_float16") for _ in range(2))
    other._name = "lost"
    assert same_policy(one, other)
    assert not same_policy(one, keras.dtype_policies.DTypePolicy("float16"))

"""Branches, the layers in them that can be unfrozen, and the blocks that these stand in."""

from __future__ import annotations

import keras
import pytest
from helpers import grafted
from keras import layers
from zoo import Backbone

from keras_graft._finetune.parts import Part, branches_of, is_normalisation, parts_of


def blocks(*bases: keras.Model, **options) -> dict[str, int]:
    return {part.path: part.block for part in parts_of(grafted(list(bases), head=2, **options))}


def chain() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.BatchNormalization(name="first"),
            layers.Dense(4, name="a"),
            layers.LayerNormalization(name="norm"),
            layers.ReLU(),
            layers.Dense(4, name="b"),
        ],
        name="chain",
    )


@pytest.mark.quick
def test_blocks_are_counted_from_the_top_and_normalisations_with_what_they_follow():
    assert blocks(chain()) == {"chain/first": 1, "chain/a": 1, "chain/norm": 1, "chain/b": 0}


def residual() -> keras.Model:
    x = inputs = keras.Input((4,))
    x = layers.Dense(4, name="stem")(x)
    for number in (1, 2):
        y = layers.Dense(4, name=f"in_{number}")(x)
        y = layers.Dense(4, name=f"out_{number}")(layers.ReLU()(y))
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(3, name="last")(x), name="residual")


def test_a_residual_block_is_one_block():
    assert blocks(residual()) == {
        "residual/stem": 3,
        "residual/in_1": 2,
        "residual/out_1": 2,
        "residual/in_2": 1,
        "residual/out_2": 1,
        "residual/last": 0,
    }


def test_a_tensor_that_no_weights_made_holds_no_blocks_together():
    tokens = keras.Input((5,), dtype="int32")
    mask = keras.ops.not_equal(tokens, 0)
    x = layers.Embedding(9, 4, name="embedding")(tokens)
    for number in (0, 1):
        x = layers.MultiHeadAttention(1, 4, name=f"attention_{number}")(x, x, attention_mask=mask[:, None])
    base = keras.Model(tokens, x[:, 0], name="text")
    assert blocks(base) == {"text/embedding": 2, "text/attention_0": 1, "text/attention_1": 0}


def test_the_blocks_of_a_nested_model_are_those_of_a_chain():
    x = keras.Input((6,))
    nested = keras.Model(x, layers.Dense(2, name="top")(chain()(x)), name="outer")
    assert blocks(nested) == {
        "outer/chain/first": 2,
        "outer/chain/a": 2,
        "outer/chain/norm": 2,
        "outer/chain/b": 1,
        "outer/top": 0,
    }


def test_a_layer_that_is_called_twice_counts_once_where_it_stands_first():
    x = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    base = keras.Model(x, shared(layers.Dense(4, name="between")(shared(x))), name="base")
    assert blocks(base) == {"base/shared": 1, "base/between": 0}


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "DenseNet121"])
@pytest.mark.once
def test_blocks_of_large_models(name):
    base = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg")
    found = blocks(base)
    expected = {"ResNet50": 1 + 16, "MobileNetV2": 2 + 10 + 3 * 6 + 2, "DenseNet121": 1 + 58 + 3}[name]
    assert len(set(found.values())) == max(found.values()) + 1 == expected
    assert all(number == 0 for path, number in found.items() if path.rsplit("/", 1)[1] in ("Conv_1", "Conv_1_bn"))


def test_layers_within_a_lock_are_parts_by_their_own_names():
    inputs = keras.Input((6,))
    model = grafted([keras.Model(inputs, Backbone(name="backbone")(inputs), name="base")], head=1, dropout="always")
    parts = parts_of(model)
    assert all(isinstance(part, Part) and part.path.startswith("base/backbone") for part in parts)
    assert any(part.locks for part in parts)


def test_branches_stand_in_front_of_all_else_with_weights():
    head = keras.Sequential([layers.Dense(3), layers.Dense(1)], name="head_model")
    model = grafted([chain(), residual_of(6)], head=head)
    assert [branch.name for branch in branches_of(model)] == ["chain", "other"]


def residual_of(size: int) -> keras.Model:
    return keras.Sequential([keras.Input((size,)), layers.Dense(2)], name="other")


def test_what_only_computes_in_front_of_a_branch_hides_nothing():
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(1)(chain()(layers.Rescaling(2.0)(x))))
    assert [branch.name for branch in branches_of(model)] == ["chain"]
    assert branches_of(chain()) == []


def test_normalisations_are_known_by_their_class():
    assert is_normalisation(layers.GroupNormalization(2))
    assert not is_normalisation(layers.Dense(2, name="layer_normalization"))

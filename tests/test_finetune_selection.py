"""What a name, a pattern, a count, a layer or a callable means among the parts of a model."""

from __future__ import annotations

import keras
import pytest
from keras import layers

from keras_graft._finetune.parts import Part
from keras_graft._finetune.selection import chosen

LAYERS = {path: layers.Dense(1, name=path.rsplit("/", 1)[1]) for path in ("a/low", "a/top", "a/block_1/x", "ab/low")}
PARTS = [Part(path, layer, (), block=number) for number, (path, layer) in zip((2, 0, 1, 0), LAYERS.items())]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("meant", "paths"),
    [
        ("a", ["a/low", "a/top", "a/block_1/x"]),
        ("a/block_*", ["a/block_1/x"]),
        ("a/block_1", ["a/block_1/x"]),
        ("*/low", ["a/low", "ab/low"]),
        ("a?/low", ["ab/low"]),
        (1, ["a/top", "ab/low"]),
        (2, ["a/top", "a/block_1/x", "ab/low"]),
        (99, list(LAYERS)),
        (["a/top", "ab"], ["a/top", "ab/low"]),
        (("a/top", 1), ["a/top", "ab/low"]),
        (LAYERS["a/low"], ["a/low"]),
        ([LAYERS["a/low"], "a/top"], ["a/low", "a/top"]),
        (lambda layer: layer.name == "low", ["a/low", "ab/low"]),
    ],
)
def test_what_is_meant(meant, paths):
    assert [part.path for part in chosen(meant, PARTS)] == paths


def test_each_item_of_a_list_must_mean_something():
    with pytest.raises(ValueError, match=r"No layer of the branches is meant by 'a/lwo'. Did you mean 'a/low'"):
        chosen(["a/top", "a/lwo"], PARTS)


@pytest.mark.parametrize("item", [1.5, None, b"a", keras.layers.Dense, {"a": 1}])
def test_other_kinds_are_refused(item):
    with pytest.raises(TypeError, match="must be the name of a branch"):
        chosen(item, PARTS)


def test_a_layer_of_another_model_is_refused_by_its_name():
    with pytest.raises(ValueError, match="Layer 'stranger' is no layer with weights in a branch"):
        chosen(layers.Dense(1, name="stranger"), PARTS)


def test_a_long_list_of_paths_is_cut():
    many = [Part(f"a/layer_{number}", layers.Dense(1), ()) for number in range(50)]
    with pytest.raises(ValueError, match=r"'a/layer_5', '\.\.\.', 'a/layer_44'"):
        chosen("x", many)


def test_a_path_that_is_there_counts_as_it_stands():
    odd = [Part(path, layers.Dense(1), ()) for path in ("a/conv[1]", "a/conv1")]
    assert [part.path for part in chosen("a/conv[1]", odd)] == ["a/conv[1]"]
    assert [part.path for part in chosen("a/conv[2]*", [Part("a/conv2x", layers.Dense(1), ())])] == ["a/conv2x"]

"""Which layers masks may reach, where attention without its dropout computes otherwise, against inference mode."""

from __future__ import annotations

from typing import Any

import helpers
import keras
import numpy as np
import pytest
import zoo
from keras import layers, ops
from test_engine_proof import frozen_branch

from keras_graft import ModeLock, _keras, with_dropout
from keras_graft._engine.behind_masks import lets_masks_in, makes_masks


def by_mask_zero(ids: Any) -> Any:
    h = layers.Embedding(10, 4, mask_zero=True)(ids)
    return h + layers.MultiHeadAttention(2, 4, dropout=0.3, name="attention")(h, h)


def by_argument(ids: Any) -> Any:
    h, seen = layers.Embedding(10, 4)(ids), ops.not_equal(ids, 0)
    mask = ops.logical_and(ops.expand_dims(seen, 1), ops.expand_dims(seen, 2))
    return layers.GroupQueryAttention(4, 2, 1, dropout=0.3, name="attention")(h, h, attention_mask=mask)


class Block(layers.Layer):
    """As in tutorials: attention in a layer of its own, with the masks that its inputs carry."""

    def __init__(self, rate: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.attention = layers.MultiHeadAttention(2, 4, dropout=rate)
        self.drop = layers.Dropout(rate)

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)

    def call(self, x: Any, training: bool = False) -> Any:
        return x + self.drop(self.attention(x, x, training=training), training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


def by_block(ids: Any) -> Any:
    return Block(name="attention")(layers.Embedding(10, 4, mask_zero=True)(ids))


MASKED = {"mask_zero": by_mask_zero, "argument": by_argument, "block": by_block}


def masked_model(masked: Any) -> tuple[keras.Model, Any, Any]:
    """The model, ids with padding, and what it computes for them in inference mode."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((6,), dtype="int32")
    h = layers.Lambda(lambda x: x * 1.0)(masked(ids))  # which takes no mask
    model = keras.Model(ids, layers.Flatten()(layers.Dense(8, activation="tanh")(h)), name="base")
    data = np.random.default_rng(0).integers(1, 10, (16, 6))
    data[:, 4:] = 0
    return model, data, helpers.array(model(data, training=False))


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask attached to it:UserWarning")
@pytest.mark.parametrize("masked", MASKED.values(), ids=MASKED)
def test_attention_over_padding_computes_in_a_branch_what_it_does_in_inference_mode(masked: Any) -> None:
    model, data, expected = masked_model(masked)
    silent = frozen_branch(model, "off")
    for training in (True, False):
        np.testing.assert_array_equal(helpers.array(silent(data, training=training)), expected)
    with pytest.raises(ValueError, match="'attention'"):
        frozen_branch(model, "remove")


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask attached to it:UserWarning")
@pytest.mark.parametrize("masked", [by_mask_zero, by_argument], ids=["mask_zero", "argument"])
def test_attention_over_padding_still_trains_without_its_dropout(masked: Any) -> None:
    model, data, expected = masked_model(masked)
    silent = with_dropout(model, "off")
    for training in (True, False):
        np.testing.assert_array_equal(helpers.array(silent(data, training=training)), expected)
    assert len(silent.trainable_variables) == len(model.trainable_variables)


def test_attention_that_no_mask_can_reach_is_not_locked_by_with_dropout() -> None:
    image = keras.Input((8, 8, 3))
    x = layers.Reshape((16, 4))(layers.Conv2D(4, 2, 2)(image))
    model = keras.Model(image, layers.MultiHeadAttention(2, 4, dropout=0.3)(x, x, use_causal_mask=True))
    for policy in ("off", "remove"):
        silent = with_dropout(model, policy)
        assert not any(isinstance(part, ModeLock) for part in _keras.walk(silent))


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning")
def test_attention_computes_the_same_behind_a_mask_that_comes_with_its_inputs() -> None:
    x = keras.Input((6, 8))
    inner = keras.Input((6, 8))
    attention = layers.MultiHeadAttention(2, 4, dropout=0.1)
    encoder = keras.Model(
        x, keras.Sequential([keras.Model(inner, attention(inner, inner))])(layers.Activation("tanh")(x))
    )
    tokens = np.array([[1, 2, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    embedding = layers.Embedding(9, 8, mask_zero=True)
    mask = embedding.compute_mask(tokens)

    def behind_the_mask(model: keras.Model) -> np.ndarray:
        embedded = embedding(tokens)
        _keras.set_keras_mask(embedded, mask)
        return np.asarray(model(embedded, training=False))

    expected = behind_the_mask(encoder)
    for policy in ("keep", "off"):
        np.testing.assert_allclose(behind_the_mask(with_dropout(encoder, policy)), expected, rtol=1e-5, atol=1e-6)
    with pytest.warns(UserWarning, match="Behind a mask .* may compute something else.*multi_head_attention"):
        with_dropout(encoder, "remove")


class MarksPadding(layers.Layer):
    """Puts a mask on what it gives in its `call`."""

    def call(self, x: Any) -> Any:
        y = x * 1
        y._keras_mask = ops.any(ops.not_equal(x, 0), axis=-1)
        return y


def marks_on_the_instance() -> Any:
    layer = layers.Identity()
    layer.compute_mask = lambda x, mask=None: ops.any(ops.not_equal(x, 0), axis=-1)
    return layer


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning")
@pytest.mark.parametrize("marker", [MarksPadding, marks_on_the_instance])
def test_attention_behind_a_mask_of_a_layers_own_making_computes_the_same(marker: Any) -> None:
    data = zoo.vectors(4, 6, 8)
    data[:2, 3:] = 0
    data[0] = 0
    x = keras.Input((6, 8))
    marked = marker()(x)
    model = keras.Model(x, layers.MultiHeadAttention(2, 4, dropout=0.1)(marked, marked))
    np.testing.assert_allclose(with_dropout(model, "off")(data), model(data, training=False), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r'"remove" cannot be kept .*it gets a mask'):
        with_dropout(model, "remove")


def passing(*behind: Any) -> keras.Model:
    """A model whose inputs, which may come with masks, go through some layers before attention."""
    x = h = keras.Input((6, 8))
    for layer in behind:
        h = layer(h)
    return keras.Model(x, layers.MultiHeadAttention(2, 4)(h, h))


def through_a_model(*stack: Any) -> keras.Model:
    return keras.Sequential([keras.Input((6, 8)), *stack])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(passing, True, id="as they come"),
        pytest.param(lambda: passing(layers.Activation("relu")), True, id="through a layer that passes masks on"),
        pytest.param(lambda: passing(layers.Conv1D(8, 1)), False, id="not through a convolution"),
        pytest.param(lambda: passing(through_a_model(layers.Dropout(0.5))), True, id="through a model"),
        pytest.param(lambda: passing(through_a_model(layers.Conv1D(8, 1))), False, id="not through all models"),
        pytest.param(lambda: through_a_model(layers.LSTM(3)), False, id="no attention"),
        pytest.param(lambda: passing().layers[1], False, id="no graph"),
    ],
)
def test_masks_of_inputs_reach_attention_as_far_as_layers_pass_them_on(make: Any, expected: bool) -> None:
    assert lets_masks_in(make()) is expected


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.Masking(), True),
        (layers.Embedding(3, 2, mask_zero=True), True),
        (layers.Embedding(3, 2), False),
        (layers.Lambda(lambda x: x, mask=lambda x, mask=None: x > 0), True),
        (layers.Lambda(lambda x: x), False),
        (MarksPadding(), True),
        (marks_on_the_instance(), True),
        (zoo.Block(), False),  # its class says nothing of masks
        (layers.LSTM(2, return_sequences=True), False),  # it passes masks on and makes none
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_layers_that_may_make_masks_are_known(layer: Any, expected: bool) -> None:
    assert makes_masks(layer) is expected

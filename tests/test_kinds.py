"""Kinds of base models: what was done to them, how they came from a file, what they take.

Those that fit into the zoo are there, and every guarantee is checked on them; here stands what is special about
them, and kinds that take data which no file of arrays holds.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import distributed
import guarantees
import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from guarantees import POLICIES
from helpers import array
from keras import layers
from zoo import ZOO, Case

from keras_graft import _keras, freeze_and_merge, with_dropout

QUANTIZED = ("int8", "int4", "float8")
TWO_QUICK = ["keep", "off", *(pytest.param(policy, marks=pytest.mark.slow) for policy in ("remove", "always"))]


def check(case: Case, policy: str, folder: pathlib.Path, *, traced: bool = False) -> None:
    """All guarantees, and what a file keeps of them, for one kind of base model."""
    seen = guarantees.run(case, policy, traced=traced)
    for holds in guarantees.CHECKS:
        holds(seen)
    if policy != "always":
        check_file(seen, folder)


def check_file(seen: guarantees.Evidence, folder: pathlib.Path) -> None:
    loaded = helpers.reloaded(seen.model, folder)
    data = keras.tree.flatten([seen.case.data(seen.case.batch or 16)] * len(seen.bases))
    np.testing.assert_array_equal(outputs(loaded, data), outputs(seen.model, data))
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in seen.model.trainable_variables]
    before = [helpers.values(loaded.get_layer(name)) for name in seen.bases]
    loaded.compile("sgd", "mse", run_eagerly=True)
    loaded.train_on_batch(guarantees.tensors(data), np.zeros((len(outputs(loaded, data)), 2)))
    assert [helpers.values(loaded.get_layer(name)) for name in seen.bases] == before


def outputs(model: keras.Model, data: Any) -> np.ndarray:
    return array(model(guarantees.tensors(data), training=False))


def named(model: keras.Model, name: str) -> Any:
    return next(part for part in _keras.walk(model) if part.name == name)


def trained_by(model: keras.Model) -> list[str]:
    return [variable.path for variable in model.trainable_variables]


# ---------------------------------------------------------------------------------------------------------
# Quantized
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", QUANTIZED)
def test_the_copy_of_a_quantized_base_is_quantized(mode: str, policy: Any) -> None:
    base = ZOO[mode].make()
    quantized = [part for part in _keras.walk(base) if part.quantization_mode == mode]
    copies = [freeze_and_merge({"a": base}, 1, dropout=policy, loss="mse").get_layer("a"), with_dropout(base, policy)]
    for copy in copies:
        assert sorted(v.dtype for v in copy.weights) == sorted(v.dtype for v in base.weights)
        assert sum(part.quantization_mode == mode for part in _keras.walk(copy)) == len(quantized)


@pytest.mark.parametrize("mode", QUANTIZED)
def test_layers_that_were_quantized_inside_a_composite_layer_are_quantized_in_the_copy(mode: str) -> None:
    base = zoo.make_attention_alone()
    named(base, "attention").query_dense.quantize(mode)
    copy = with_dropout(base, "off")
    attention = named(copy, "attention").layer  # locked: masks may come with the inputs
    assert attention.query_dense.quantization_mode == mode
    assert attention.key_dense.quantization_mode is None
    guarantees.assert_same(outputs(copy, zoo.steps(4)), outputs(base, zoo.steps(4)), exact=False)


# ---------------------------------------------------------------------------------------------------------
# LoRA
# ---------------------------------------------------------------------------------------------------------


def make_lora_convolution() -> keras.Model:
    stack = [layers.Conv2D(4, 3), layers.Dropout(0.5), layers.Flatten()]
    return zoo.with_lora(zoo.sequential(keras.Input((8, 8, 3)), *stack))


def make_lora_composite() -> keras.Model:
    return zoo.with_lora(zoo.make_custom())


LORA = {
    "projections": (zoo.make_lora, zoo.tokens),
    "attention": (zoo.make_lora_attention, zoo.steps),
    "convolution": (make_lora_convolution, zoo.images),
    "composite": (make_lora_composite, zoo.vectors),
}


@pytest.mark.parametrize("kind", LORA)
def test_a_copy_of_a_base_with_lora_trains_what_the_base_trains(kind: str) -> None:
    make, data = LORA[kind]
    base = make()
    before = trained_by(base)
    copy = with_dropout(base, "keep")
    assert [p.rsplit("/", 1)[-1] for p in trained_by(copy)] == [p.rsplit("/", 1)[-1] for p in before]
    assert any("lora" in path for path in trained_by(copy))
    assert trained_by(base) == before
    guarantees.assert_same(outputs(copy, data(4)), outputs(base, data(4)), exact=False)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", LORA)
def test_a_branch_knows_all_about_the_lora_weights_of_its_base(kind: str, policy: Any) -> None:
    base = LORA[kind][0]()
    branch = freeze_and_merge({"a": base}, 1, dropout=policy, loss="mse").get_layer("a")
    theirs, ours = lora_state(base), lora_state(branch)
    assert theirs
    assert ours == theirs
    assert trained_by(branch) == []


def lora_state(model: keras.Model) -> list[Any]:
    names = ("lora_kernel_a", "lora_kernel_b", "lora_embeddings_a", "lora_embeddings_b")
    return [
        (
            part.lora_rank,
            part.lora_alpha,
            [array(getattr(part, n)).tobytes() for n in names if n in vars(part)],
        )
        for part in _keras.walk(model)
        if getattr(part, "lora_enabled", False)
    ]


# ---------------------------------------------------------------------------------------------------------
# Tied by hand
# ---------------------------------------------------------------------------------------------------------


def tied_kernels(model: keras.Model) -> tuple[Any, Any]:
    decoders = [part for part in _keras.walk(model) if isinstance(part, zoo.Backwards)]
    if decoders:
        return named(model, "encoder").kernel, decoders[0].encoder.kernel
    return named(model, "first").kernel, named(model, "second").kernel


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["tied", "autoencoder"])
def test_copies_of_layers_that_share_a_weight_share_one(kind: str, policy: Any) -> None:
    base = ZOO[kind].make()
    branch = freeze_and_merge({"a": base}, 1, dropout=policy, loss="mse").get_layer("a")
    for copy in (branch, with_dropout(base, policy)):
        ours, theirs = tied_kernels(copy), tied_kernels(base)
        assert ours[0] is ours[1]
        assert ours[0] is not theirs[0]
        assert len(copy.weights) == len(base.weights)


def test_copies_of_a_layer_in_a_wrapper_and_in_the_graph_share_their_weights() -> None:
    dense, x = layers.Dense(6, name="dense"), keras.Input((5, 6))
    base = zoo.functional(x, layers.Add()([dense(x), layers.TimeDistributed(dense, name="steps")(x)]))
    copy = with_dropout(base, "keep")
    assert named(copy, "steps").layer.kernel is copy.get_layer("dense").kernel
    assert len(copy.weights) == len(base.weights) == 2


@pytest.mark.parametrize("kind", ["tied", "autoencoder", "tied_embedding"])
def test_a_copy_with_shared_weights_trains_as_its_base_does(kind: str) -> None:
    base, data = ZOO[kind].make(), ZOO[kind].data(8)
    copy = with_dropout(base, "off")
    silent = ZOO[kind].make()
    named(silent, next(p.name for p in _keras.walk(silent) if isinstance(p, layers.Dropout))).rate = 0.0
    for model in (silent, copy):
        model.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)
        model.train_on_batch(data, np.zeros(model(data).shape))
    np.testing.assert_allclose(outputs(copy, data), outputs(silent, data), rtol=1e-5, atol=1e-5)


class Rows(layers.Layer):
    """Holds its weights in a list."""

    def build(self, shape: Any) -> None:
        self.rows = [self.add_weight(shape=(shape[-1],), name="row")]

    def call(self, x: Any) -> Any:
        return x * self.rows[0]


def test_a_shared_weight_that_the_copy_cannot_share_is_an_error() -> None:
    first, second = Rows(name="first"), Rows(name="second")
    x = keras.Input((6,))
    base = keras.Model(x, second(first(x)))
    second._untrack_variable(second.rows[0])
    second._tracker.unlock()
    second.rows = [first.rows[0]]
    second._tracker.lock()
    with pytest.raises(ValueError, match=r"'second'.*shares its variable 'first/row' with another layer.*copy=False"):
        with_dropout(base, "keep")


# ---------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------


def make_sparse() -> keras.Model:
    x = keras.Input((6,), sparse=True)
    return zoo.functional(x, layers.Dropout(0.5)(layers.Dense(5)(x)))


def sparse(batch: int) -> Any:
    return tf.sparse.from_dense(np.where(np.abs(zoo.vectors(batch)) < 0.7, 0, zoo.vectors(batch)))


def make_ragged() -> keras.Model:
    x = keras.Input((None,), dtype="int32", ragged=True)
    h = layers.GlobalAveragePooling1D()(layers.Embedding(10, 6)(x))
    return zoo.functional(x, layers.Dense(4)(layers.Dropout(0.5)(h)))


def ragged(batch: int) -> Any:
    return tf.ragged.constant([[1 + i % 9] * (1 + i % 4) for i in range(batch)], dtype="int32")


@pytest.mark.parametrize("policy", TWO_QUICK)
def test_sparse_inputs(policy: str, tmp_path: pathlib.Path) -> None:
    check(Case(make_sparse, sparse), policy, tmp_path)


@pytest.mark.parametrize("policy", TWO_QUICK)
def test_ragged_inputs(policy: str, tmp_path: pathlib.Path) -> None:
    check(Case(make_ragged, ragged), policy, tmp_path)


@pytest.mark.parametrize("policy", ["off", "remove"])
@pytest.mark.parametrize("given", [True, False])
def test_an_optional_input_may_be_given_or_not(given: bool, policy: Any) -> None:
    base = zoo.make_optional()
    data = {"given": zoo.vectors(4), "extra": zoo.vectors(4, seed=1) if given else None}
    model = freeze_and_merge({"a": base, "b": zoo.make_optional()}, 1, dropout=policy, loss="mse")
    np.testing.assert_array_equal(array(model.get_layer("a")(data, training=True)), outputs(base, data))
    assert model(data).shape == (4, 1)


def make_reader(cell: Callable[..., keras.layers.Layer]) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        x = keras.Input((5,), dtype="int32")
        h = layers.Dropout(0.5)(layers.Embedding(10, 6, mask_zero=True)(x))
        return zoo.functional(x, cell(4)(h))

    return make


@pytest.mark.parametrize("policy", POLICIES)
def test_a_mask_reaches_the_recurrent_layers_of_every_branch(policy: Any) -> None:
    bases = {
        "lstm": make_reader(layers.LSTM)(),
        "gru": make_reader(layers.GRU)(),
        "both": make_reader(lambda units: layers.Bidirectional(layers.SimpleRNN(units)))(),
    }
    model = freeze_and_merge(bases, 1, dropout=policy, loss="mse", inputs="shared")
    assert len(model.inputs) == 1
    data = zoo.tokens(4)
    longer = np.concatenate([data[:, :3], np.zeros((4, 2), data.dtype)], axis=1)
    shorter = data[:, :3]
    if policy != "always":
        for name, base in bases.items():
            expected = array(base(tf.constant(longer), training=False))
            np.testing.assert_array_equal(array(model.get_layer(name)(tf.constant(longer), training=False)), expected)
    unmasked = [array(base.layers[-1](base.layers[1](shorter))) for base in bases.values()]
    silent = freeze_and_merge(bases, None, dropout="off")
    np.testing.assert_allclose(outputs(silent, longer), np.concatenate(unmasked, axis=-1), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------


def through_h5(model: keras.Model, folder: pathlib.Path) -> keras.Model:
    model.save(folder / "base.h5")
    return keras.models.load_model(folder / "base.h5")


def through_json(model: keras.Model, folder: pathlib.Path) -> keras.Model:
    model.save_weights(folder / "base.weights.h5")
    loaded = keras.models.model_from_json(model.to_json())
    loaded.load_weights(folder / "base.weights.h5")
    return loaded


@pytest.mark.parametrize("policy", TWO_QUICK)
@pytest.mark.parametrize("load", [through_h5, through_json])
@pytest.mark.parametrize("kind", ["convolutional", "nested", "bidirectional"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_base_from_a_file(
    kind: str, load: Callable[[keras.Model, pathlib.Path], keras.Model], policy: Any, tmp_path: pathlib.Path
) -> None:
    case = ZOO[kind]
    base, data = load(case.make(), tmp_path), case.data(4)
    expected = outputs(base, data)
    before = helpers.snapshot(base)
    np.testing.assert_allclose(expected, outputs(case.make(), data), rtol=1e-6)
    model = freeze_and_merge({"a": base}, 1, dropout=policy, loss="mse", run_eagerly=True)
    if policy in ("off", "remove"):
        seen = array(model.get_layer("a")(guarantees.tensors(data), training=True))
        guarantees.assert_same(seen, expected, exact=case.exact)
    weights = helpers.values(model.get_layer("a"))
    model.fit(data, np.ones((4, 1)), verbose=0)
    assert helpers.values(model.get_layer("a")) == weights
    assert len(model.trainable_variables) == 2
    assert helpers.snapshot(base) == before


# ---------------------------------------------------------------------------------------------------------
# Trained before
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_trained_base_keeps_its_optimizer_and_trains_on(policy: Any) -> None:
    base, data = zoo.make_convolutional(), zoo.images(8)
    targets = np.zeros((8, 4))
    base.compile("adam", "mse", metrics=["mae"], run_eagerly=True)
    base.fit(data, targets, verbose=0)
    before = helpers.snapshot(base, base.optimizer)
    model = freeze_and_merge([base], 2, dropout=policy, loss="mse", run_eagerly=True)
    model.fit(data, np.zeros((8, 2)), verbose=0)
    assert helpers.snapshot(base, base.optimizer) == before
    branch = helpers.values(model.get_layer(base.name))
    base.fit(data, targets, verbose=0)
    assert helpers.snapshot(base, base.optimizer) != before
    assert int(base.optimizer.iterations) == 2
    assert helpers.values(model.get_layer(base.name)) == branch


def test_a_normalization_that_does_not_use_its_weights_is_an_error_until_it_does() -> None:
    original = zoo.make_adapted()
    base = keras.models.clone_model(original)
    base.set_weights(original.get_weights())
    with pytest.raises(ValueError, match=r"'normalization.*was derived.*Call `finalize_state\(\)`"):
        freeze_and_merge([base], 1, loss="mse")
    next(part for part in base.layers if isinstance(part, layers.Normalization)).finalize_state()
    branch = freeze_and_merge([base], 1, loss="mse").get_layer(base.name)
    np.testing.assert_array_equal(outputs(branch, zoo.vectors(4)), outputs(original, zoo.vectors(4)))


# ---------------------------------------------------------------------------------------------------------
# Two devices
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.once
def test_training_on_two_devices_matches_one() -> None:
    one, *others = distributed.in_a_new_process()
    assert one["frozen"]
    for two in others:
        assert two["replicas"] == 2
        assert two["frozen"]
        np.testing.assert_allclose(two["head"], one["head"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)

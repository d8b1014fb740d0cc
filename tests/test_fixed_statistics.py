"""BatchNormalization whose scale and offset train while its statistics stand still."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import array, grafted, reloaded
from keras import layers
from zoo import vectors

from keras_graft import audit, with_dropout
from keras_graft._fixed_statistics import FixedStatistics, fix_statistics, release_statistics

X = vectors(64, 3)


def model() -> keras.Model:
    made = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(name="norm"), layers.Dense(1)])
    made.layers[0].moving_variance.assign([4.0, 1.0, 0.25])
    made.compile("sgd", "mse", jit_compile=False)
    return made


@pytest.mark.quick
def test_statistics_stand_still_while_scale_and_offset_train():
    made = model()
    expected = array(made(X, training=False))
    fix_statistics(made.layers[0])
    np.testing.assert_array_equal(array(made(X, training=True)), expected)
    before = [array(v) for v in made.layers[0].weights]
    made.fit(X, X[:, :1], verbose=0)
    moved = [v.name for v, old in zip(made.layers[0].weights, before) if (array(v) != old).any()]
    assert moved == ["gamma", "beta"]


def test_files_keep_it():
    made = model()
    fix_statistics(made.layers[0])
    loaded = reloaded(made)
    assert type(loaded.layers[0]) is FixedStatistics
    np.testing.assert_array_equal(array(loaded(X, training=True)), array(made(X)))


def test_weights_files_fit_whether_statistics_are_fixed_or_not(tmp_path):
    def stack(fixed: int | None) -> keras.Model:
        norms = [layers.BatchNormalization(name=f"norm_{number}") for number in range(3)]
        made = keras.Sequential([keras.Input((3,)), *norms])
        if fixed is not None:
            fix_statistics(norms[fixed])
        return made

    for saved, loaded in ((None, 1), (1, None), (0, 2)):
        first, second = stack(saved), stack(loaded)
        for number, variable in enumerate(first.weights):
            variable.assign(np.full(3, number))
        first.save_weights(tmp_path / "a.weights.h5")
        second.load_weights(tmp_path / "a.weights.h5")
        for expected, actual in zip(first.weights, second.weights):
            np.testing.assert_array_equal(array(actual), array(expected))


def test_an_audit_finds_nothing_that_moves():
    made = model()
    fix_statistics(made.layers[0])
    (row,) = [row for row in audit(made).rows if row.path.endswith("norm")]
    assert not row.live


def test_it_is_taken_back():
    made = model()
    fix_statistics(made.layers[0])
    release_statistics(made.layers[0])
    assert type(made.layers[0]) is layers.BatchNormalization
    release_statistics(made.layers[1])
    assert type(made.layers[1]) is layers.Dense


@keras.saving.register_keras_serializable(package="test_fixed_statistics")
class Composite(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.norm = layers.Dense(4, name="dense"), layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 4))
        self.built = True

    def call(self, x, training=False):
        return self.norm(self.dense(x), training=training)


def fine_tuned(layer: layers.Layer) -> keras.Model:
    made = keras.Sequential([keras.Input((3,)), layer, layers.Dense(2)], name="base")
    for part in layer._flatten_layers():
        if isinstance(part, layers.BatchNormalization):
            fix_statistics(part)
            part.moving_mean.assign(np.full(part.moving_mean.shape, 0.5))
    return made


@pytest.mark.parametrize("make", [layers.BatchNormalization, Composite])
def test_a_base_that_was_fine_tuned_is_composed_again_as_a_plain_one(make):
    base = fine_tuned(make(name="layer"))
    merged = grafted([base], head=1, dropout="keep")
    np.testing.assert_allclose(array(merged.get_layer("base")(X)), array(base(X)), rtol=1e-5, atol=1e-6)
    assert not [part for part in merged._flatten_layers() if type(part) is FixedStatistics]
    copy = with_dropout(base, "off")
    assert [type(part) for part in copy._flatten_layers()].count(FixedStatistics) == 1
    np.testing.assert_allclose(array(copy(X, training=True)), array(base(X)), rtol=1e-5, atol=1e-6)

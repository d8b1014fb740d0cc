"""What is said before layers train: of models without branches, layers that cannot train, and files that forget."""

from __future__ import annotations

import keras
import pytest
from helpers import grafted
from keras import layers

from keras_graft import _keras
from keras_graft._finetune.checks import check_can_train, checked_parts, warn_of_constraints, warn_of_files


def merged(*stack: keras.Layer, **options: object) -> keras.Model:
    base = keras.Sequential([keras.Input((8,)), *stack, layers.Dense(3, name="top")], name="base")
    return grafted([base], head=1, **options)


@pytest.mark.quick
def test_layers_that_can_train_are_found_and_nothing_is_said_of_them():
    model = merged(layers.Dense(4, name="low"))
    parts = checked_parts(model)
    assert [part.path for part in parts] == ["base/low", "base/top"]
    check_can_train(model, parts, "base", "inference")
    warn_of_constraints(parts)
    warn_of_files(parts)


def test_a_model_without_branches_is_refused():
    with pytest.raises(ValueError, match="no model with weights is called in it"):
        checked_parts(keras.Sequential([keras.Input((8,)), layers.Dense(2)]))


@pytest.mark.parametrize("batch_norm", ["affine", "train"])
def test_batch_normalisation_alone_can_train_where_it_is_said(batch_norm):
    model = merged(layers.BatchNormalization(name="norm"), dropout="keep")
    parts = [part for part in checked_parts(model) if "norm" in part.path]
    check_can_train(model, parts, "base/norm", batch_norm)
    with pytest.raises(ValueError, match=r"\['base/norm'\], and none of that can train"):
        check_can_train(model, parts, "base/norm", "inference")


def test_a_bound_that_is_gone_is_named():
    parts = checked_parts(merged(layers.SpectralNormalization(layers.Dense(4), name="bound")))
    with pytest.warns(UserWarning, match=r"\['base/bound'\] stood in a SpectralNormalization"):
        warn_of_constraints(parts)


@pytest.mark.skipif(not _keras.obeys_stored_modes(), reason="`fit` overrides what is stored")
def test_statistics_that_a_stored_call_holds_do_not_follow_the_mode():
    base = keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.BatchNormalization(name="norm")], name="base")
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(1)(base(x, training=False)))
    parts = [part for part in checked_parts(model) if "norm" in part.path]
    check_can_train(model, parts, "base/norm", "affine")
    with pytest.raises(ValueError, match="'base/norm' cannot follow the mode"):
        check_can_train(model, parts, "base/norm", "train")

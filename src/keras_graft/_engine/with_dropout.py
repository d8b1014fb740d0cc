"""Copies of a model in which dropout behaves as chosen: `with_dropout`, and those from which samples are drawn."""

from __future__ import annotations

import dataclasses
import warnings

import keras

from .. import _keras
from .._arguments import check_model
from .._behaviour import untouched
from .._keras import Model
from .._mode_lock import ModeLock
from .decision import Decision
from .policy import DropoutPolicy, decider
from .rebuild import rebuild

__all__ = ["with_dropout", "with_live_noise"]


def with_dropout(model: Model, policy: DropoutPolicy) -> keras.Model:
    """A copy of a model in which dropout behaves as chosen.

    `trainable=False` does not stop dropout, and up to Keras 3.15 a stored `training=False` does not stop it
    in `fit` either. This sets it for good, for all regularising noise: Dropout and its relatives, Gaussian
    noise, the dropout of recurrent and attention layers, in nested models and wrappers too. Nothing is
    frozen or unfrozen, and `model` is not changed. A `ModeLock` in it is opened, and its layer decided about
    anew; with `"keep"` it stays as it is.

    Args:
        model: A built `keras.Model`.
        policy: What becomes of dropout. One of `"keep"` (it drops in `fit`), `"off"` (it never drops; every
            layer is still there, with rate 0), `"remove"` (the layers are gone) and `"always"` (it drops in
            `predict` as well: Monte Carlo dropout, see Gal and Ghahramani, 2016, arXiv:1506.02142); a number
            from 0 to below 1: it drops in `fit` at that rate (where a layer has two, as recurrent ones have,
            at each that it drops at; of GaussianNoise it is the `stddev`); or a callable that gets each noise
            layer of `model` and returns one of these. Rates that `"off"` set to 0 in this process come back
            with `"keep"` and `"always"`; of a file they are not known. A recurrent or attention layer whose rates
            are 0 is no noise layer, in a file of a model with `"off"` too: it stays as it is.

    Returns:
        A new, uncompiled model of the same structure and name, with the same weights and trainable flags. It is a plain
        `keras.Model`: a warning names what a class of your own does in `train_step` and the like.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `model` is not built, has a `__call__` that does more than its graph, `policy` is none of
            the above or cannot be kept, or a layer that has to be locked has trainable weights, or moves its
            own statistics: a locked layer is frozen. That is the case for `"always"` on recurrent, attention
            and custom layers that drop, and for `"off"` on custom layers that no dropout argument silences.
            A rate is refused for a layer of which the library knows no argument that sets it.
            Freeze the layer first, or choose another policy for it with a callable.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import with_dropout
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5)])
    >>> np.asarray(with_dropout(model, "off")(np.ones((1, 4)), training=True)).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    check_model(model, "model")
    decide = decider(policy, "keep", copy=True, frozen=False, model=model, argument="policy")
    with _keras.nothing_left_behind([model]):
        new = rebuild(model, decide)
    if decide.other_behind_masks:
        warnings.warn(
            f"Behind a mask the copy of model '{model.name}' may compute something else: without its dropout Keras "
            f"computes {decide.other_behind_masks} by another kernel, which gives other numbers for queries that see "
            "no key, such as those of padding. Where masks come with the inputs of the model, use "
            '"off" for layers of Keras and "keep" for others.',
            stacklevel=2,
        )
    lost = _keras.overridden(model, (*_keras.METHODS_OF_FIT, *_keras.METHODS_OF_PREDICT))
    if lost:
        warnings.warn(
            f"The copy of model '{model.name}' is a plain keras.Model, without what {type(model).__name__} does in "
            f"{lost}. Build a {type(model).__name__} around it where that is needed.",
            stacklevel=2,
        )
    return new


def with_live_noise(rest: keras.Model) -> keras.Model:
    """A copy of a model whose noise layers run in training mode, and all others in inference mode."""
    live = dataclasses.replace(decider("always", "off", copy=True, frozen=True, model=rest), takes_back=False)

    def decide(layer: keras.Layer, path: str) -> Decision:
        locked = type(layer) is ModeLock and layer.training is not None  # it was locked on purpose
        return Decision() if locked else live(layer, path)

    # New layers draw seeds, which are replaced.
    with untouched.random_states_kept(), _keras.nothing_left_behind([rest], always=True), _keras.unrecorded():
        return rebuild(rest, decide, frozen=True)

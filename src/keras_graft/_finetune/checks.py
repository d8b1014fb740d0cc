"""What must hold before layers of branches train, or stand still again, and what is said of them beforehand."""

from __future__ import annotations

import warnings

import keras

from .. import _keras
from .._behaviour.modes import follow
from .._behaviour.table import Effect, behaviour
from .._engine.memory import wrapper_taken
from .flags import BatchNorm, variables_to_train
from .parts import Part, parts_of
from .selection import Layers

__all__ = ["check_can_train", "checked_parts", "warn_of_constraints", "warn_of_files", "warn_of_what_moves"]


def checked_parts(model: keras.Model) -> list[Part]:
    parts = parts_of(model)
    if not parts:
        raise ValueError(
            "`model` has no branches: no model with weights is called in it, in front of its head. Call the base "
            "model, as in `keras.Model(x, head(base(x)))`, instead of taking its layers apart, or use "
            f"`freeze_and_merge`. Received: model={model!r}"
        )
    return parts


def check_can_train(model: keras.Model, parts: list[Part], layers: Layers, batch_norm: BatchNorm) -> None:
    if not any(variables_to_train(part, batch_norm) for part in parts):
        paths = [part.path for part in parts]
        still = 'BatchNormalization, which batch_norm="affine" or "train" lets train'
        raise ValueError(
            f"`layers` means {paths}, and none of that can train: it holds only {still}, or quantized kernels and "
            f'statistics. Received: layers={layers!r}, batch_norm="{batch_norm}"'
        )
    if batch_norm == "train":
        _check_can_follow(parts)
        _check_is_called_in_training(model, parts)


def _check_is_called_in_training(model: keras.Model, parts: list[Part]) -> None:
    """Raises where calls that are stored in the model hold BatchNormalization in inference mode (Keras 3.16)."""
    run = follow(model, True)
    for part in parts:
        for layer in part.batch_normalisations:
            calls = run.of(layer)
            if calls and not any(call.training is None or call.training for call in calls):
                raise ValueError(
                    f"BatchNormalization in '{part.path}' cannot follow the mode: {calls[0].cause}. Use "
                    'batch_norm="affine" or "inference", or call the model without a `training` argument. '
                    'Received: batch_norm="train"'
                )


def _check_can_follow(parts: list[Part]) -> None:
    """Raises where BatchNormalization shall follow the mode, and a lock holds another one."""
    for part in parts:
        holding = [lock for lock in [*part.locks, *part.locks_within] if lock.training is not None]
        if holding and part.batch_normalisations:
            raise ValueError(
                f"BatchNormalization in '{part.path}' cannot follow the mode: ModeLock '{holding[0].name}' holds it "
                f'(training={holding[0].training}). Use batch_norm="affine" or "inference", or compose with '
                'dropout="keep" and `copy=True`, which takes no such lock. Received: batch_norm="train"'
            )


def warn_of_constraints(parts: list[Part]) -> None:
    """Warns of layers that train without what bounds their kernels, because composing took it or a lock stills it."""
    bare = [part.path for part in parts if any(map(wrapper_taken, part.layers)) or _is_still_spectral(part)]
    if bare:
        warnings.warn(
            f"{bare} stood in a SpectralNormalization, which does not work in a branch, so the kernels train without "
            "its bound. Leave these layers frozen where that is needed.",
            stacklevel=3,
        )


def _is_still_spectral(part: Part) -> bool:
    spectral = any(isinstance(layer, keras.layers.SpectralNormalization) for layer in part.layers)
    return spectral and any(lock.training is False for lock in part.locks)


def warn_of_files(parts: list[Part]) -> None:
    """Warns of layers that come back from a file otherwise than they are: no lock says what trains in them."""
    without_lock = [part for part in parts if not part.locks]
    composite = [part.path for part in without_lock if _is_forgotten(part)]
    if composite:
        warnings.warn(
            f"What trains in {composite} is in no file: these layers are made of others, and Keras forgets their flags "
            "when it saves. Call `unfreeze` or `freeze` again after loading, or compose with `freeze_and_merge`, which "
            "locks them.",
            stacklevel=3,
        )


def _is_forgotten(part: Part) -> bool:
    """Whether Keras makes a part, or a model that holds it, anew from a config that says nothing of flags within."""
    return not behaviour(part.layer).keeps_flags or any(_keras.graph_of(holder) is None for holder in part.holders)


def warn_of_what_moves(parts: list[Part]) -> None:
    """Warns of layers that move while frozen, where no lock stops them."""
    moving = [part.path for part in parts if not part.locks and behaviour(part.layer).effect is Effect.STATE]
    if moving:
        warnings.warn(
            f"{moving} move in `fit` although they are frozen, because they ignore it. Compose with "
            "`freeze_and_merge`, which puts what stands still in their places.",
            stacklevel=3,
        )

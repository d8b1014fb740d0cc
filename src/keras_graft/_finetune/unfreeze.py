"""`unfreeze` and `freeze`: what trains of a merged model, once its head is trained."""

from __future__ import annotations

import keras

from .. import _keras
from .._arguments import check_model, check_option
from .._keras import Model
from .checks import check_can_train, checked_parts, warn_of_constraints, warn_of_files, warn_of_what_moves
from .decay import LayerDecay, checked_decay, grouped
from .dropout import Dropout, changes_of_noise, noise_kept, set_noise
from .flags import BATCH_NORM, BatchNorm, freeze_branch, open_part, undone_on_error
from .optimizer import LearningRate, build_optimizer, check_compiled, check_learning_rate, optimizer_like
from .parts import branches_of
from .selection import Layers, chosen

__all__ = ["freeze", "unfreeze"]


def unfreeze(
    model: Model,
    layers: Layers,
    *,
    learning_rate: LearningRate,
    layer_decay: LayerDecay | None = None,
    batch_norm: BatchNorm = "inference",
    dropout: Dropout | None = None,
) -> keras.Model:
    """Lets layers of the branches train, and compiles the model again.

    Once the head is trained, the top of the base models is usually fine-tuned with a small learning rate (Howard and
    Ruder, 2018, arXiv:1801.06146). Setting `trainable = True` by hand does not do that: on a loaded file it changes
    nothing, it moves the statistics of BatchNormalization, it trains the kernels below LoRA, and it opens no
    `ModeLock`. Here every variable is set by itself: what was meant trains, and nothing else. Statistics, quantized
    kernels and the kernels below LoRA never train. Dropout stays as the model was composed. A file keeps what trains.

    Args:
        model: A compiled `keras.Model` with branches: models that stand in front of its head, as `freeze_and_merge`
            makes it, or a base model called in a functional model.
        layers: What shall train, besides what trains already. The name of a branch; a pattern over layer paths, such
            as `"resnet/conv5_*"`; a count of blocks from the top of each branch; a layer; a callable that gets a
            layer and returns whether it trains; or a list of these. A block is what lies between two places where all
            that a branch computes goes through a single tensor: a residual block, say. Normalisations count with the
            layer that they follow.
        learning_rate: That of the fresh optimizer, which is of the class and the settings of the old one: a float, a
            schedule, or a callable. Step counts and moments begin anew.
        layer_decay: A learning rate per depth (discriminative fine-tuning, the same paper): the head trains at
            `learning_rate`, the top block of each branch at `layer_decay` times that, the block below it at
            `layer_decay ** 2` times, and so on, at least at 0.01 times. Or a mapping from patterns of layer paths to
            factors. `model.optimizer.rates()` are the rates. `None` (default): one rate for all.
        batch_norm: What becomes of BatchNormalization among `layers`. `"inference"` (default): it stands still
            altogether. `"affine"`: scale and offset train, on statistics that stand still. `"train"`: it follows the
            mode, so that its statistics move in `fit`.
        dropout: What becomes of the dropout of the branches, of layers that stay frozen too. `None` (default): it stays
            as it is. `"keep"`: it drops in `fit`, at the rates that a policy set to 0. `"off"`: it never drops.
            `"always"`: it drops in `predict` too, where the layer stands in a `ModeLock`. A number: it drops in `fit`
            at that rate. Or a callable that gets each noise layer and returns one of these. Rates are remembered as
            long as the process lives: of a loaded model give a number.

    Returns:
        `model` itself, changed, and compiled with the arguments that it was compiled with.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `model` is not compiled or has no branches, `layers` means none of their layers or none that can
            train, or BatchNormalization or dropout cannot do what was said. Nothing has been changed then.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import freeze_and_merge, unfreeze
    >>> base = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(16, name="low"), keras.layers.Dense(4, name="top")], name="base"
    ... )
    >>> model = freeze_and_merge([base], head=1, loss="mse")
    >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 1)), verbose=0)  # the head, first
    >>> model = unfreeze(model, "base/top", learning_rate=1e-5)
    >>> [variable.path for variable in model.get_layer("base").trainable_variables]
    ['top/kernel', 'top/bias']
    """
    check_model(model, "model")
    check_option("batch_norm", batch_norm, BATCH_NORM)
    check_learning_rate(learning_rate)
    check_compiled(model)
    every_part = checked_parts(model)
    parts = chosen(layers, every_part)
    check_can_train(model, parts, layers, batch_norm)
    changes = [] if dropout is None else changes_of_noise(branches_of(model), dropout)
    if layer_decay is not None:
        checked_decay(layer_decay, every_part)
    optimizer_like(model, learning_rate)  # if none can be made, it is said before anything is changed
    warn_of_constraints(parts)
    warn_of_files(every_part)
    with undone_on_error(model), noise_kept(changes):
        set_noise(changes)
        for part in parts:
            open_part(part, batch_norm)
        _keras.set_own_trainable(model, True)
        rates = (
            None if layer_decay is None else grouped(every_part, layer_decay).for_training(model.trainable_variables)
        )
        _keras.compile_anew(model, optimizer_like(model, learning_rate, rates))
        if rates is not None:
            build_optimizer(model)
        if changes:
            for branch in branches_of(model):
                _keras.forget_traces(branch)
    return model


def freeze(model: Model) -> keras.Model:
    """Freezes the branches of a model again, all of them, and compiles it with a fresh optimizer.

    It takes `unfreeze` back: the head trains, and nothing else. What the branches learned meanwhile stays.

    Args:
        model: A compiled `keras.Model` with branches.

    Returns:
        `model` itself, changed, and compiled with the arguments that it was compiled with.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `model` is not compiled or has no branches. Nothing has been changed then.

    Example:

    >>> import keras
    >>> from keras_graft import audit, freeze, freeze_and_merge, unfreeze
    >>> base = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)], name="base")
    >>> model = freeze_and_merge([base], head=1, loss="mse")
    >>> _ = unfreeze(model, "base", learning_rate=1e-5)
    >>> audit(freeze(model)).assert_frozen()
    """
    check_model(model, "model")
    check_compiled(model)
    parts = checked_parts(model)
    optimizer = optimizer_like(model, None)
    warn_of_files(parts)
    warn_of_what_moves(parts)
    with undone_on_error(model):
        for branch in branches_of(model):
            freeze_branch(branch)
        _keras.compile_anew(model, optimizer)
    return model

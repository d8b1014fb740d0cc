"""From a `Branch` to a frozen submodel and its feature tensor. It must not know of heads or losses."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from .. import _keras
from .._arguments import hint_about
from .._engine.decision import Decide
from .._engine.memory import take_activity_regularizers
from .._engine.policy import Augmentation, DropoutPolicy, decider
from .._engine.rebuild import rebuild
from .._keras import Structure, Tensor
from .._mode_lock import freeze
from .branch import Branch
from .inputs import signature_of
from .layout import data_format_of, data_formats_in
from .output import WRAP_IT, cuts_of
from .stages import RANK_OF_VECTORS, apply_layer, apply_stage, called, checked_result, dtype_for, free_name

__all__ = ["POOLINGS", "graft"]


POOLINGS = ("avg", "max", "flatten")


def graft(
    branch: Branch, inputs: Structure, *, dropout: DropoutPolicy, augmentation: Augmentation, copy: bool
) -> tuple[keras.Model, Any]:
    """Makes the frozen submodel of a branch and calls it.

    Args:
        branch: The branch, with its final name.
        inputs: What it gets, in the structure that its model (or its `preprocess`) takes.
        dropout: Policy of the call, where the branch has none.
        augmentation: Likewise.
        copy: Whether the base model is copied or used itself.

    Returns:
        The frozen submodel, and its symbolic feature tensor: a list of them for a list of outputs.
    """
    decide = decider(
        dropout if branch.dropout is None else branch.dropout,
        augmentation if branch.augmentation is None else branch.augmentation,
        copy=copy,
        frozen=True,
        model=branch.model,
        preprocess=branch.preprocess,
    )
    assert branch.name is not None
    alone = branch.preprocess is None and branch.pooling is None
    entries = _keras.new_inputs(inputs)
    name = branch.name if alone else free_name(branch.model.name, [t.name for t in keras.tree.flatten(entries)])
    cuts = cuts_of(branch)
    several = isinstance(cuts.get(id(branch.model)), list)
    base = rebuild(branch.model, decide, frozen=True, name=name, cuts=cuts)
    submodel = base
    if not alone:
        decide = dataclasses.replace(decide, copy=True)
        submodel, inputs = _surrounded(base, branch, entries, inputs, decide, several=several)
    freeze(submodel)
    if copy:
        take_activity_regularizers(submodel)
    return submodel, _call(submodel, inputs, branch, several=several and branch.pooling is None)


def _surrounded(
    base: keras.Model, branch: Branch, entries: Any, inputs: Structure, decide: Decide, *, several: bool
) -> tuple[keras.Model, Any]:
    """The base model between its preprocessing and its pooling, as one submodel, and what it uses of the inputs."""
    tensors = entries
    if branch.preprocess is not None:
        name = free_name("preprocess", [base.name])
        tensors = _apply_copy(branch.preprocess, entries, decide, "preprocess", name, branch)
    features = _call(base, tensors, branch, several=several)
    if branch.pooling is not None:
        name = free_name("pooling", [base.name, "preprocess"])
        features = _pool(branch, base, features, decide, name)
    used, features = _used_inputs(entries, features)
    return keras.Model(used, features, name=branch.name), _same_of(used, entries, inputs)


def _apply_copy(stage: Any, tensors: Structure, decide: Decide, argument: str, name: str, branch: Branch) -> Any:
    """Applies a copy of a stage, made as that of a base model is; the stage itself stays as it was."""
    entries = _keras.new_inputs(tensors)
    with _keras.nothing_left_behind(stage, always=True):
        results, copies = entries, dict[int, Any]()
        for step in stage if isinstance(stage, (list, tuple)) else [stage]:
            results = _step(step, results, argument, copies, branch)
        used, results = _used_inputs(entries, results)
        try:
            model = _keras.connected_model(used, results, name)
        except ValueError as error:
            raise ValueError(
                f"`{argument}` must return what it computes from the one that it gets, with layers of names that are "
                f"all different. Keras says: {error} Received: {argument}={stage!r}"
            ) from error
        if argument == "pooling":
            _check_no_new_weights(stage, model)
        copy = rebuild(model, decide, frozen=True)
        _keras.forget_calls(model)
    return copy(_same_of(used, entries, tensors))


def _same_of(used: Any, entries: Any, tensors: Structure) -> Any:
    """Of `tensors`, those that stand where `used` stand among `entries`."""
    given = {id(entry): tensor for entry, tensor in zip(keras.tree.flatten(entries), keras.tree.flatten(tensors))}
    return keras.tree.map_structure(lambda entry: given[id(entry)], used)


def _used_inputs(entries: Any, results: Any) -> tuple[Any, Any]:
    """The inputs that a stage uses, and its results, none of them an input itself: Keras 3.12 builds no such models."""
    flat = keras.tree.flatten(entries)
    inputs = {id(entry) for entry in flat}

    def computed(tensor: Tensor) -> Any:
        return keras.layers.Identity(dtype=dtype_for([tensor]))(tensor) if id(tensor) in inputs else tensor

    results = keras.tree.map_structure(computed, results)
    behind = _keras.names_behind(results)
    used = [entry for entry in flat if _keras.tensor_history(entry)[0].name in behind]
    return (entries if len(used) in (0, len(flat)) else used), results


def _step(step: Any, tensors: Structure, argument: str, copies: dict[int, Any], branch: Branch) -> Any:
    """One layer or callable of a stage. A layer may be in use elsewhere, or not be built: it is copied, once."""
    if isinstance(step, keras.Layer):
        known = step.built or _keras.with_state(step)  # adapted text layers know their vocabulary before they are built
        if not known and id(step) not in copies:
            copies[id(step)] = _keras.copy_from_config(step, step.get_config())
        return apply_layer(copies.get(id(step), step), tensors, argument)
    if not callable(step) or isinstance(step, type):
        return apply_stage(step, tensors, argument, units=False)
    results = called(step, tensors, argument, f" of branch '{branch.name}'")
    if argument == "pooling" or not keras.tree.is_nested(results):
        return checked_result(results, argument)
    return keras.tree.map_structure(lambda tensor: checked_result(tensor, argument), results)


def _pool(branch: Branch, base: keras.Model, features: Structure, decide: Decide, name: str) -> Any:
    pooling = branch.pooling
    if isinstance(pooling, (list, tuple)) or (callable(pooling) and not isinstance(pooling, type)):
        return _apply_copy(pooling, features, decide, "pooling", name, branch)
    _check_pooling(branch, features)
    rank = len(features.shape)
    if rank == RANK_OF_VECTORS:
        return features
    kinds = {"avg": "GlobalAveragePooling", "max": "GlobalMaxPooling"}
    kind = "Flatten" if pooling == "flatten" else f"{kinds[str(pooling)]}{rank - 2}D"
    layer = getattr(keras.layers, kind)
    return layer(name=name, data_format=_data_format(branch, base, kind), dtype=dtype_for([features]))(features)


def _check_pooling(branch: Branch, features: Structure) -> None:
    pooling = branch.pooling
    if pooling not in POOLINGS:
        words = ", ".join(f'"{word}"' for word in POOLINGS)
        kind = ValueError if isinstance(pooling, str) else TypeError
        raise kind(
            f"`pooling` must be one of {words}, a Keras layer, or a callable from tensor to tensor. "
            f"{hint_about(pooling)}Received: pooling={pooling!r}"
        )
    if isinstance(features, list):
        raise ValueError(
            f"pooling=\"{pooling}\" makes a vector of one tensor, and `output` of branch '{branch.name}' lists "
            f"{len(features)}. Pass a callable that makes one tensor of the list. "
            f'Received: pooling="{pooling}", output={branch.output!r}'
        )
    if pooling != "flatten" and len(features.shape) not in (2, 3, 4, 5):
        raise ValueError(
            f"pooling=\"{pooling}\" needs features of rank 3, 4 or 5, and those of branch '{branch.name}' have shape "
            f"{features.shape}. Pass a layer or a callable as `pooling`."
        )


def _data_format(branch: Branch, base: keras.Model, layer: str) -> str:
    """On which side the channels of a base model stand, whatever was set globally after it was made."""
    data_format = data_format_of(base)
    current = keras.config.image_data_format()
    if data_format is not None:
        return data_format
    if current == "channels_last" and "channels_first" not in data_formats_in(base):
        return current
    raise ValueError(
        f"On which axis the channels of branch '{branch.name}' stand cannot be told from its layers, so "
        f'pooling="{branch.pooling}" might take the wrong axes. Say it: '
        f'`Branch(..., pooling=keras.layers.{layer}(data_format="channels_last"))`, or "channels_first". '
        f'Received: pooling="{branch.pooling}", keras.config.image_data_format()="{current}"'
    )


def _check_no_new_weights(pooling: Any, stage: keras.Model) -> None:
    given = {id(v) for layer in keras.tree.flatten(pooling) if isinstance(layer, keras.Layer) for v in layer.variables}
    if any(id(weight) not in given for weight in stage.weights):
        raise ValueError(
            "`pooling` must not make new weights: a branch is frozen, so they would keep the random values that they "
            f"start with. Use `Branch(projection=...)` for layers that train. Received: pooling={pooling!r}"
        )


def _call(submodel: keras.Model, inputs: Structure, branch: Branch, *, several: bool) -> Any:
    """Calls the submodel, with an error in the user's words where the inputs do not fit."""
    expected = signature_of(submodel)
    given = [(t.shape, t.dtype) for t in keras.tree.flatten(inputs)]
    try:
        features = submodel(inputs)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The model of branch '{branch.name}' cannot take what reaches it. Adapt it with "
            "`Branch(preprocess=...)`, or give the merged model other `inputs`. "
            f"Expected: {expected}. Received: {given}"
        ) from error
    if not several and not isinstance(features, keras.KerasTensor):
        raise ValueError(
            f"The subclassed model of branch '{branch.name}' returns several tensors, and a branch has one. "
            f"{WRAP_IT}. Received: outputs={features!r}"
        )
    return features

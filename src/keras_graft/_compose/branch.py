"""What is said of one base model, and the branches of a call under their final names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import keras

from .. import _keras
from .._arguments import check_model, described, hint_about
from .._engine.policy import Augmentation, DropoutPolicy
from .._keras import Layer, Model
from .stages import free_name

__all__ = ["Branch", "Models", "name_branches"]


Output: TypeAlias = str | int | Callable[[keras.Model], Any]


@dataclasses.dataclass(frozen=True)
class Branch:
    """One base model, with options of its own, for `freeze_and_merge`.

    The submodel that `get_layer` gives for the branch holds its preprocessing and its pooling, and not its
    projection, which trains. Nothing is checked until `freeze_and_merge` gets the branch.

    Args:
        model: The base model, a built `keras.Model`.
        name: Name of the branch, and of the frozen submodel in the merged model, without `/`. Defaults to the
            key in the mapping, or to the name of the model.
        dropout: Dropout policy of this branch. Defaults to that of the call.
        augmentation: `"keep"` or `"off"`, for the image augmentation of this branch. Defaults to that of
            the call.
        output: Where the base model ends, to cut off an old head: the name of a layer (`"avg_pool"`), the
            path of a nested one (`"encoder/avg_pool"`), the key of an output, an index into `model.layers`
            (`-2`), or a callable that gets the model and returns a symbolic tensor of it. Defaults to the
            model's own output. A layer that is called several times needs a callable. A model with a `call`
            of its own cannot be cut; a subclass of Functional without one stays whole, under its own class,
            where `output` is one of its outputs, and is rebuilt layer by layer where it is cut inside.
            Several, in a list of these, or a callable that returns a list of tensors: one copy of the base
            gives them all, as a list, which a head that is no int takes, as for a decoder on several
            levels. Not for layers of nested models.
        pooling: What makes a vector of features of a higher rank: `"avg"` or `"max"` (global pooling),
            `"flatten"`, a layer, or a callable from tensor to tensor. The words follow the data format of
            the base. It is copied and frozen with the base, so it must not make new weights. A list of
            outputs goes to a layer or a callable as it is, which makes one tensor of it.
        preprocess: What stands before the base model: a layer, a list of layers, a model, or a callable
            from tensor to tensor. It is copied and frozen with the base, and the dropout policy holds for
            it too.
        projection: New trainable layers between the branch and the merge: an int (units of a linear Dense
            layer), a layer, a list of layers, a model, or a callable from tensor to tensor. A list of outputs
            goes to it as it is, unless it is an int.

    Example:

    >>> import keras
    >>> from keras_graft import Branch, freeze_and_merge
    >>> base = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(4, name="features"), keras.layers.Dense(2, name="old_head")]
    ... )
    >>> model = freeze_and_merge([Branch(base, name="a", output="features")], head=3, loss="mse")
    >>> [layer.name for layer in model.get_layer("a").layers]
    ['input_layer', 'features']
    """

    model: Model
    _: dataclasses.KW_ONLY
    name: str | None = None
    dropout: DropoutPolicy | None = None
    augmentation: Augmentation | None = None
    output: Output | Sequence[Output] | None = None
    pooling: Literal["avg", "max", "flatten"] | Layer | Callable[[Any], Any] | None = None
    preprocess: Layer | Sequence[Layer] | Callable[[Any], Any] | None = None
    projection: int | Layer | Sequence[Layer] | Callable[[Any], Any] | None = None


Models: TypeAlias = Sequence[Model | Branch] | Mapping[str, Model | Branch]


def name_branches(models: Models) -> dict[str, Branch]:
    """The branches under their final names, every model checked."""
    unnamed = _as_branches(models)
    chosen = [branch.name for branch in unnamed if branch.name is not None]
    for name in chosen:
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"A branch name must be a non-empty string without '/'. Received: name={name!r}")
        if chosen.count(name) > 1:
            raise ValueError(
                f"Two branches are named '{name}', and a branch is found by its name. Give each `Branch(name=...)` of "
                f"its own. Received: names={chosen}"
            )
    named: dict[str, Branch] = {}
    for branch in unnamed:
        name = branch.name or free_name(branch.model.name, {*chosen, *named})
        named[name] = dataclasses.replace(branch, name=name)
    refused = [name for name in named if not _keras.is_scope(name, inner=True)]
    if refused:
        raise ValueError(
            f"TensorFlow takes no branch called {refused[0]!r}, because `fit` and `predict` open a scope of that name. "
            "Give it another: `Branch(model, name=...)`, or a key in a dict of models, of letters from a to z, digits, "
            f"'.', '_' and '-'. Received: names={list(named)}"
        )
    return named


def _as_branches(models: Models) -> list[Branch]:
    if isinstance(models, (keras.Model, Branch)):
        raise TypeError(
            f"`models` must be a list or a dict of models, also for one: [model]. Received: models={models!r}"
        )
    if not isinstance(models, (Mapping, Sequence)) or isinstance(models, str):
        raise TypeError(
            "`models` must be a list of Keras models or Branch objects, or a dict from names to them. "
            f"{_hint_about_models(models)}Received: models={described(models)} (of type {type(models).__name__})"
        )
    if not models:
        raise ValueError(f"`models` must hold at least one model. Received: models={models!r}")
    if not isinstance(models, Mapping) and all(map(_is_named_pair, models)):
        raise TypeError(
            "`models` must be a list of Keras models or Branch objects, or a dict from names to them. Make a dict of "
            f"the pairs: dict(models). Received: models={described(models)}"
        )
    if isinstance(models, Mapping):
        return [_named_by_key(key, _as_branch(model, f"models['{key}']")) for key, model in models.items()]
    return [_as_branch(model, f"models[{index}]") for index, model in enumerate(models)]


def _is_named_pair(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str)  # noqa: PLR2004


def _hint_about_models(models: Any) -> str:
    if isinstance(models, (str, os.PathLike)):
        return f"Load the file first, and put the model into a list: [keras.models.load_model({str(models)!r})]. "
    if isinstance(models, Iterable) and not isinstance(models, type):
        return "Make a list of them: list(models). "
    return hint_about(models)


def _as_branch(model: Any, argument: str) -> Branch:
    branch = model if isinstance(model, Branch) else Branch(model)
    check_model(branch.model, argument)
    return branch


def _named_by_key(key: str, branch: Branch) -> Branch:
    if branch.name not in (None, key):
        raise ValueError(
            f"`models['{key}']` is a Branch with another name. Write the name once, as the key or as "
            f"`Branch(name=...)`. "
            f"Received: key='{key}', name='{branch.name}'"
        )
    return dataclasses.replace(branch, name=key)

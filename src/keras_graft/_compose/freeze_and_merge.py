"""`freeze_and_merge`: reads as the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from typing_extensions import Unpack

from .. import _keras
from .._engine.policy import Augmentation, DropoutPolicy, decider
from .._engine.rebuild import strip_modes
from .._keras import Model, Structure
from .._losses.ending import Head
from .._losses.loss import CompileArgs, check_compile_args, check_endings, check_loss_of_one, per_output
from .branch import Branch, name_branches
from .graft import graft
from .head import attach_head
from .inputs import Inputs, make_inputs
from .merge import Merge, merge_features
from .output import warn_of_old_heads
from .stages import apply_stage, free_name

__all__ = ["freeze_and_merge"]


def freeze_and_merge(
    models: Sequence[Model | Branch] | Mapping[str, Model | Branch],
    head: Head,
    *,
    dropout: DropoutPolicy = "off",
    augmentation: Augmentation = "keep",
    inputs: Inputs = "shared",
    merge: Merge = "concat",
    copy: bool = True,
    name: str | None = None,
    **compile_args: Unpack[CompileArgs],
) -> keras.Model:
    """Joins pretrained models under a new head, the only part that trains.

    The base models are copied, frozen and merged; the head is put on top; the result is compiled. Two
    things hold that plain Keras leaves to chance. *Frozen means frozen*: after any `fit`, every variable
    of a base model is bit-identical. *Dropout does what you asked*: `trainable=False` does not stop it, and
    up to Keras 3.15 neither does `base(x, training=False)`, which `fit` overrides.

    Args:
        models: The base models, each a built `keras.Model` or a `Branch`: a sequence, or a mapping from
            branch names to them. One is enough. The same model twice is two branches. Equal names of
            models get `_1`, `_2`, as in Keras; equal names that you wrote are an error.
        head: What trains on the merged features, of shape (batch, features): an int (that many units,
            linear: logits, on vectors only), a layer, a list of layers, a model, a callable from tensor to
            tensor, a mapping from output names to any of these, or `None` for an ensemble with nothing to
            train. Layers must be new, because the merged model trains them.
        dropout: What becomes of the dropout of the base models. One of `"keep"` (it drops in `fit`),
            `"off"` (it never drops), `"remove"` (its layers are gone) and `"always"` (it drops in `predict`
            too: Monte Carlo dropout); a number from 0 to below 1, the rate at which it drops in `fit` from now
            on; or a callable that gets each noise layer of the base models and returns one of these; layers
            inside one wrapper must agree, and `"keep"` or a number does not go with `"always"` there. It is
            about all regularising noise: see `with_dropout`.
        augmentation: `"keep"` or `"off"`: whether image augmentation inside a base model augments in `fit`.
        inputs: `"shared"` (one input feeds every branch; the models must take the same), `"separate"` (one
            input, or set of inputs, for each branch, named after it: `"<branch>_input"`, or
            `"<branch>_<input>"` where it has several, numbered where that name is taken), or `keras.Input`
            tensors of your own, which every branch gets, and adapts in its `preprocess`. Several in a list
            go by their names where these are the same, and else by their places.
        merge: How the features of the branches become one tensor: `"concat"`, `"add"`, `"average"`,
            `"multiply"`, `"maximum"`, `"stack"` (a new axis 1), `"weighted"` (a learned scalar per branch),
            `"attention"` (a learned softmax over branches, per example), a layer, or a callable from a list
            of tensors to a tensor. What a merge learns counts as head. `"add"`, `"average"`, `"multiply"`,
            `"maximum"` and `"weighted"` take maps and sequences of equal shape too, for a head that does.
        copy: `True` leaves the base models untouched. `False` saves the memory of a second copy: the
            branches hold the original variables, so **the originals are frozen too**, and their layers
            must not stand in two branches. An original that is compiled goes on training in the step that
            Keras made then, until it is compiled again.
        name: Name of the merged model.
        **compile_args: The arguments of `keras.Model.compile`: `optimizer` (`"rmsprop"` as in Keras), `loss`,
            `loss_weights`, `metrics`, `weighted_metrics`, `run_eagerly`, `steps_per_execution`,
            `jit_compile`, `auto_scale_loss`. `loss` must be given unless `head` is `None`. For a mapping as
            `head`, lists (of losses, weights, metrics) go by its order, and a `loss` must name every output.

    Returns:
        A compiled `keras.Model`. `model.get_layer("<branch>")` is a branch, a frozen submodel. For a
        mapping as `head` the outputs are a dict.

    Raises:
        TypeError: If a model, a head or an option is of the wrong kind.
        ValueError: If models, features, names or arguments do not go together, or a layer cannot be
            rebuilt from its config. Every message says what to change. Nothing that you passed has been
            altered then.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import freeze_and_merge
    >>> def pretrained():
    ...     return keras.Sequential(
    ...         [keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dropout(0.5)]
    ...     )
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model = freeze_and_merge({"a": pretrained(), "b": pretrained()}, head=3, dropout="off", loss=loss)
    >>> len(model.trainable_variables)  # kernel and bias of the head
    2
    >>> model.predict(np.ones((5, 8)), verbose=0).shape
    (5, 3)
    """
    branches = name_branches(models)
    _check_arguments(branches, head, dropout, augmentation, copy, name, compile_args)
    if head is not None:
        warn_of_old_heads(branches)
    originals = [branch.model for branch in branches.values()]
    with _keras.nothing_left_behind([list(map(_handed_in, branches.values())), head, merge, inputs]):
        entries, each = make_inputs(inputs, branches, {*branches, *_names_given(head, merge, branches)})
        submodels, features = {}, {}
        for branch_name, branch in branches.items():
            submodels[branch_name], features[branch_name] = graft(
                branch, each[branch_name], dropout=dropout, augmentation=augmentation, copy=copy
            )
        taken = {*branches, *_names(entries)}
        projected = {key: _project(branches[key], tensor, taken) for key, tensor in features.items()}
        merged = merge_features(merge, projected, taken)
        # Whoever stacks asks for units along the branches.
        outputs = attach_head(head, merged, _keras.names_behind(merged), units_on_maps=merge == "stack")
        if head is not None:
            check_endings(head, outputs, compile_args["loss"])
        model = _assemble(entries, outputs, name)
        check_loss_of_one(outputs, model.output_names[0], compile_args.get("loss"))
        _seal(model, submodels, originals)
        model.compile(**per_output(head, compile_args))
    return model


def _handed_in(branch: Branch) -> list[Any]:
    return [branch.model, branch.preprocess, branch.pooling, branch.projection]


def _project(branch: Branch, features: Structure, taken: set[str]) -> Any:
    if branch.projection is None:
        return features
    name = free_name(f"{branch.name}_projection", taken)
    return apply_stage(branch.projection, features, "projection", name=name)


def _names_given(head: Head, merge: Merge, branches: Mapping[str, Branch]) -> set[str]:
    """The names of the layers that will stand beside the branches, as far as the caller handed them in."""
    stages = [head, merge, *(branch.projection for branch in branches.values())]
    return {layer.name for layer in keras.tree.flatten(stages) if isinstance(layer, keras.Layer)}


def _names(entries: Any) -> list[str]:
    return [_keras.tensor_history(tensor)[0].name for tensor in keras.tree.flatten(entries)]


def _assemble(entries: Any, outputs: Structure, name: str | None) -> keras.Model:
    try:
        return _keras.connected_model(entries, outputs, name)
    except ValueError as error:
        raise ValueError(
            "The head and the branches do not make one model. The head must be computed from the features that it "
            "gets, and every layer needs a name that no branch, input or other layer of the merged model has. "
            f"Keras says: {error}"
        ) from error


# ---------------------------------------------------------------------------------------------------------
# Making sure
# ---------------------------------------------------------------------------------------------------------


def _seal(model: keras.Model, submodels: Mapping[str, keras.Model], originals: list[keras.Model]) -> None:
    """Removes stored modes from every graph, and makes sure that the head alone trains."""
    strip_modes(model, originals)
    branches = {id(submodel) for submodel in submodels.values()}
    inputs = keras.layers.InputLayer
    head = [layer for layer in model.layers if id(layer) not in branches and not isinstance(layer, inputs)]
    _check_head_is_new(model, head, originals)
    _check_head_trains_no_base(head, [*originals, *submodels.values()])
    _check_frozen(submodels)


def _check_frozen(submodels: Mapping[str, keras.Model]) -> None:
    live = [v.path for submodel in submodels.values() for v in submodel.variables if v.trainable]
    if live:
        raise AssertionError(f"Variables of a branch would train: {live}. Please report this with the model.")


def _check_head_is_new(model: keras.Model, head: list[Any], originals: list[keras.Model]) -> None:
    theirs = {id(part) for original in originals for part in _keras.walk(original)}
    ours = {id(node) for node in _keras.nodes(model)}
    for layer in head:
        elsewhere = any(id(node) not in ours for node in _keras.inbound_nodes(layer))
        culprits = [part for part in _keras.walk(layer) if id(part) in theirs] or [layer] * elsewhere
        for culprit in culprits[:1]:
            raise ValueError(
                f"The head uses the layer '{culprit.name}' (of type {type(culprit).__name__}), which is already in use "
                "by another model. Both models would share and train its weights. Make a new layer inside the "
                f"callable. Received: layer={culprit!r}"
            )


def _check_head_trains_no_base(head: list[Any], bases: list[keras.Model]) -> None:
    theirs = {id(variable): base.name for base in bases for variable in base.variables}
    for variable in [variable for layer in head for variable in layer.trainable_variables]:
        if id(variable) in theirs:
            raise ValueError(
                f"The head trains the variable '{variable.path}' of model '{theirs[id(variable)]}', which would not "
                "stand still. Give the head a variable of its own that starts with the same value, or freeze the "
                f"layer of the head that holds it. Received: variable={variable!r}"
            )


# ---------------------------------------------------------------------------------------------------------
# Arguments, checked before anything is built
# ---------------------------------------------------------------------------------------------------------


def _check_arguments(
    branches: Mapping[str, Branch],
    head: Head,
    dropout: DropoutPolicy,
    augmentation: Augmentation,
    copy: bool,
    name: str | None,
    compile_args: Mapping[str, Any],
) -> None:
    decider(dropout, augmentation, copy=copy, frozen=True)
    if not isinstance(copy, bool):
        raise TypeError(f"`copy` must be True or False. Received: copy={copy!r}")
    if name is not None and (not isinstance(name, str) or not name or "/" in name):
        raise ValueError(f"`name` must be a string without '/', and not empty. Received: name={name!r}")
    if name is not None and not _keras.is_scope(name, inner=False):
        raise ValueError(
            "`name` must be one that TensorFlow takes for a scope, as `predict` needs it: letters from a to z, digits, "
            f"'.', '_' and '-', not beginning with '_' or '-'. Received: name={name!r}"
        )
    if not copy:
        _check_no_layer_twice(branches)
    check_compile_args(head, compile_args)


def _check_no_layer_twice(branches: Mapping[str, Branch]) -> None:
    owner: dict[int, str] = {}
    for name, branch in branches.items():
        for layer in {id(part): part for part in _keras.walk(branch.model)}.values():
            other = owner.setdefault(id(layer), name)
            if other != name:
                raise ValueError(
                    f"With copy=False the layer '{layer.name}' would stand in both branch '{other}' and "
                    f"branch '{name}'. "
                    "Keras saves such a model but cannot load it. Use copy=True, or separate the models. "
                    f"Received: layer={layer!r}"
                )

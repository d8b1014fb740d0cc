"""A new layer from the config of another one, with its weights and with what no config carries.

It must not know of graphs and calls.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.saving.serialization_lib import SafeModeScope

from .aliases import Variable
from .parts import (
    BOOKS,
    FUNCTIONS,
    PLAIN,
    beneath,
    is_built_by_calling,
    is_of_keras,
    objects_given,
    own_variables,
    put,
    same_policy,
    sublayers,
    walk,
)

__all__ = [
    "adapt_like",
    "build_like",
    "config_of",
    "copy_from_config",
    "copy_of_operation",
    "copy_of_variable",
    "copy_policy",
    "derives_the_same",
    "finalize_state",
    "policy_of",
    "restore_unserialized",
    "serialized",
    "tie",
    "with_new_containers",
]


def copy_from_config(layer: keras.Layer, changes: dict[str, Any]) -> Any:
    """A new object of the class of `layer` from its config, with some entries changed, not initialised at random.

    The initialisers are put back by `restore_unserialized`: the values that they would draw are thrown
    away anyhow, and drawing them is most of the time that copying a large model takes.
    """
    given = objects_given(layer)
    with (
        _quiet_about_building(layer),
        keras.saving.custom_object_scope(_in_scope(layer, given)),
        SafeModeScope(safe_mode=False),
    ):
        try:
            config = with_new_containers(_with_objects(layer, config_of(layer, given)))
            new = type(layer).from_config({**config, **changes})
        except Exception as error:
            new = _from_config_without_strangers(layer, changes, error)
    _share_alike(layer, new)
    for part in walk(new) if sublayers(new) or not is_of_keras(new) else ():
        attributes = vars(part)
        for attribute in [name for name, value in objects_given(part).items() if _draws_values(value)]:
            attributes[attribute] = keras.initializers.Zeros()
    return new


def _with_objects(layer: keras.Layer, config: dict[str, Any]) -> dict[str, Any]:
    """The config of a layer of Keras with objects in it that Keras would make from their configs, and none that draws.

    What is at hand need not be made, and values that are thrown away need not be drawn.
    """
    if not is_of_keras(layer):
        return config
    attributes = vars(layer)
    if sublayers(layer):  # what is handed in would be shared by layers that are made from their configs
        drawing = [name for name in config if _draws_values(attributes.get(name))]
        return {**config, **dict.fromkeys(drawing, keras.initializers.Zeros())} if drawing else config
    at_hand = {name: _at_hand(attributes[name]) for name in config if _starts_weights(attributes.get(name))}
    policy = layer._dtype_policy
    if type(policy) is keras.DTypePolicy and isinstance(config.get("dtype"), dict):
        at_hand["dtype"] = policy
    return {**config, **at_hand} if at_hand else config


def _starts_weights(value: Any) -> bool:
    return type(value) not in PLAIN and isinstance(value, keras.initializers.Initializer) and is_of_keras(value)


def _at_hand(initializer: Any) -> Any:
    """An initialiser in the place of one of Keras that draws nothing."""
    return keras.initializers.Zeros() if _draws_values(initializer) else _clone(initializer)


@contextlib.contextmanager
def _quiet_about_building(layer: keras.Layer) -> Iterator[None]:
    """Without what Keras says where it builds `layer` without its parts (all): a call builds these later."""
    if not sublayers(layer):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`build\(\)` was called on layer", UserWarning)
        yield


def _share_alike(layer: keras.Layer, new: Any) -> None:
    """Lets `new` hold one layer where `layer` does, which a config names twice (StackedRNNCells: all)."""
    for name in vars(layer).keys() - BOOKS if sublayers(layer) else ():
        value, other = vars(layer)[name], vars(new).get(name)
        if isinstance(value, keras.Layer) and isinstance(other, keras.Layer):
            _share_alike(value, other)
        elif (
            isinstance(value, list) and isinstance(other, list) and len(set(map(id, value))) < len(value) == len(other)
        ):
            first = {id(part): mine for part, mine in reversed(list(zip(value, other)))}
            shared = [first[id(part)] for part in value]
            for part in other:
                if isinstance(part, keras.Layer) and id(part) not in map(id, shared):
                    new._tracker.untrack(part)
            put(new, name, shared)


def serialized(layer: keras.Layer) -> dict[str, Any]:
    """The config that a wrapper names `layer` by, found again in `copy_from_config` even if others have its name."""
    config: dict[str, Any] = keras.saving.serialize_keras_object(layer)
    return config if is_of_keras(layer) else {**config, "registered_name": _unmistakable(type(layer))}


def _unmistakable(kind: type) -> str:
    return f"{kind.__module__}>{kind.__qualname__}@{id(kind)}"


def config_of(layer: keras.Layer, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """The config of a layer, with dtype policies of its own in it.

    The config of a `DTypePolicyMap` takes their names from the policies in it, which may stand in other layers, or be
    the global one (all); and which of them a layer has hangs on its path, which its copy has not.
    """
    maps = [part._dtype_policy for part in walk(layer) if isinstance(getattr(part, "_dtype_policy", None), _PolicyMap)]
    if not maps:
        return _config(layer, given)
    policies = [policy for policy_map in maps for policy in policy_map._policy_map.values()]
    before = [dict(vars(policy)) for policy in policies]
    try:
        config = _config(layer, given)
    finally:
        for policy, attributes in zip(policies, before):
            vars(policy).update(attributes)
    if "dtype" in config and isinstance(layer._dtype_policy, _PolicyMap):
        config["dtype"] = policy_of(layer)
    return config


def _config(layer: keras.Layer, given: dict[str, Any] | None) -> dict[str, Any]:
    """The config of a layer; where it holds what no config can name, such as a lambda, with others in its place."""
    given = objects_given(layer) if given is None else given
    nameless = is_of_keras(layer) and any(map(_is_nameless, given.values()))
    bare = _without_strangers(layer) if nameless else None
    try:
        config = (layer if bare is None else bare).get_config()
    except Exception:
        bare = _without_strangers(layer)
        if bare is None:
            raise
        config = bare.get_config()
    return _with_functions_serialized(layer, config)


def _with_functions_serialized(layer: keras.Layer, config: dict[str, Any]) -> dict[str, Any]:
    """The config of a layer as its `from_config` takes it: TextVectorization leaves functions in its own (all)."""
    if not isinstance(layer, keras.layers.TextVectorization):
        return config
    functions = {name: value for name, value in config.items() if isinstance(value, FUNCTIONS)}
    return {**config, **{name: keras.saving.serialize_keras_object(value) for name, value in functions.items()}}


def _is_nameless(value: Any) -> bool:
    if is_of_keras(value) or inspect.isclass(value) or not callable(value):
        return False
    return not (hasattr(value, "get_config") or (inspect.isfunction(value) and value.__name__ != "<lambda>"))


def _of_equal_attributes(value: Any, **changed: Any) -> Any:
    """An object of the same class that holds the same, but for some attributes; no code of the class runs."""
    new = object.__new__(type(value))
    vars(new).update(vars(value), **changed)
    return new


def copy_policy(policy: Any) -> Any:
    """A dtype policy like another one, which may be the global one of Keras."""
    new = _of_equal_attributes(policy)
    if isinstance(policy, _PolicyMap):
        new._policy_map = {path: copy_policy(inner) for path, inner in policy._policy_map.items()}
    return new


def policy_of(layer: keras.Layer) -> Any:
    """The dtype policy that holds for `layer`: of a map of policies, that of its path (all)."""
    policy = layer._dtype_policy
    return policy[layer.path] if isinstance(policy, _PolicyMap) and layer.path else policy


def _in_scope(layer: keras.Layer, given: dict[str, Any]) -> dict[str, Any]:
    """What Keras finds by name while `layer` is copied: what the layer holds itself, then what the user's scopes name.

    A scope takes the place of those around it (all).
    """
    return {**global_state.get_global_attribute("custom_objects_scope_dict", {}), **_strangers(layer, given)}


def _strangers(layer: keras.Layer, given: dict[str, Any]) -> dict[str, Any]:
    """The classes and functions in `layer` that Keras would not find by itself, under their saved names."""
    found: dict[str, Any] = {}
    for part in walk(layer):
        objects = given if part is layer else objects_given(part)
        held = [*objects.values(), getattr(part, "_dtype_policy", None)]
        others = [value for value in held if not is_of_keras(value) and _may_be_a_stranger(value)]
        kinds = [value if isinstance(value, (*FUNCTIONS, type)) else type(value) for value in others]
        for named in [type(part), *kinds]:
            if not str(named.__module__).startswith(("keras.", "builtins")):
                found[keras.saving.get_registered_name(named)] = named
                if inspect.isclass(named):
                    found[_unmistakable(named)] = named
    return found


def _may_be_a_stranger(value: Any) -> bool:
    return not isinstance(value, keras.Layer) and (callable(value) or hasattr(value, "get_config"))


_PolicyMap = keras.dtype_policies.DTypePolicyMap


def with_new_containers(config: Any) -> Any:
    """A config in containers and dtype policies of its own: `from_config` may change them, and a layer may hold them.

    What else is in it, objects of users too, is what it was.
    """
    if type(config) in PLAIN:
        return config
    if type(config) is dict:
        return {key: value if type(value) in PLAIN else with_new_containers(value) for key, value in config.items()}
    if type(config) in (list, tuple):
        return type(config)(map(with_new_containers, config))
    if isinstance(config, keras.dtype_policies.DTypePolicy):
        return copy_policy(config)
    return copy.copy(config) if isinstance(config, (dict, list, set)) else config


def _from_config_without_strangers(layer: keras.Layer, changes: dict[str, Any], error: Exception) -> Any:
    """The same where the config cannot name functions that `layer` holds: others stand in their places."""
    bare = _without_strangers(layer)
    if bare is None:
        raise error
    try:
        return type(layer).from_config({**with_new_containers(config_of(bare)), **changes})
    except Exception:
        raise error from None


def _without_strangers(layer: keras.Layer) -> Any | None:
    """What stands for `layer` to give a config without the functions of others; None where it holds none."""
    changed = {}
    for name, value in vars(layer).items():
        if isinstance(value, keras.Layer):
            inner = _without_strangers(value)
            changed.update({} if inner is None else {name: inner})
        elif name not in BOOKS and not is_of_keras(value):
            changed.update({name: _stands_for(name)} if _may_be_a_stranger(value) else {})
    if not changed:
        return None
    return _of_equal_attributes(layer, **changed)


def _stands_for(name: str) -> Any:
    """What Keras takes in the place of a function or an object of others; the very object is handed over later."""
    if name.endswith("initializer"):
        return keras.initializers.Zeros()
    return None if name.endswith(("regularizer", "constraint")) else keras.activations.linear


def copy_of_operation(operation: keras.Operation, *, from_config: bool) -> Any:
    """A new operation that computes the same as one that is no layer, and was never called (all).

    Args:
        operation: The operation.
        from_config: Whether it is made from its config, which carries no functions.
    """
    if from_config:
        return type(operation).from_config(with_new_containers(operation.get_config()))
    return _of_equal_attributes(operation, _inbound_nodes=[], _outbound_nodes=[])


def _draws_values(value: Any) -> bool:
    still = (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant)
    return _starts_weights(value) and not isinstance(value, still)


def _clone(initializer: Any) -> Any:
    """An initialiser of its own that draws what another one draws (all)."""
    plain = all(type(value) in PLAIN for value in vars(initializer).values())
    return _of_equal_attributes(initializer) if plain else initializer.clone()


def restore_unserialized(original: Any, new: Any) -> None:
    """Gives `new` the initialisers and the dtype policy of `original`, which may be in no config."""
    for attribute, value in objects_given(original).items():
        if _draws_values(value):
            vars(new)[attribute] = _clone(value)
    vars(new)["_remat_mode"] = original._remat_mode  # that of the scope in which a layer was made
    # SpatialDropout writes its variable dtype alone (all); a map of policies keeps quantized layers from saving (3.15).
    policy = policy_of(original)
    if isinstance(new._dtype_policy, _PolicyMap) or not same_policy(new._dtype_policy, policy):
        vars(new)["_dtype_policy"] = copy_policy(policy)


def adapt_like(original: Any, new: Any) -> None:
    """Quantizes `new`, and gives it LoRA weights, where `original` is so and no config carried it (all).

    Composite layers make their sublayers anew, and know nothing of what was done to them afterwards. The values
    are not those of `original` yet.
    """
    mode = getattr(original, "quantization_mode", None)
    if mode != getattr(new, "quantization_mode", None):
        new.quantize(mode, config=getattr(original, "quantization_config", None))
    if getattr(original, "lora_enabled", False) and not new.lora_enabled:
        new.enable_lora(original.lora_rank, lora_alpha=original.lora_alpha, a_initializer="zeros")


def copy_of_variable(variable: Variable) -> Any:
    """A variable of its own with the value and the settings of another one (all)."""
    if isinstance(variable, tf.Variable):
        return tf.Variable(variable, trainable=variable.trainable, name=variable.name.partition(":")[0])
    return type(variable)(
        tf.identity(variable.value),  # the variable of TensorFlow itself would be taken as it is
        dtype=variable.dtype,
        trainable=variable.trainable,
        autocast=variable._autocast,
        aggregation=variable.aggregation,
        name=variable.name,
    )


def tie(layer: keras.Layer, variable: Variable, other: Any) -> bool:
    """Puts `other` in the place of `variable`, which `layer` owns; False where no attribute holds that (all)."""
    names = [name for name, value in vars(layer).items() if value is variable]
    lists = [layer._trainable_variables, layer._non_trainable_variables]
    orders = [list(variables) for variables in lists]
    if names:
        layer._untrack_variable(variable)
        layer._tracker.unlock()
        for name in names:
            setattr(layer, name, other)
        layer._tracker.lock()
        for variables, order in zip(lists, orders):  # files hold the variables in this order
            variables[:] = [other if one is variable else one for one in order]
    return bool(names)


def finalize_state(layer: keras.Layer) -> None:
    """Lets an adapted layer (Normalization, …) derive what it computes from its variables (all)."""
    finalize = getattr(layer, "finalize_state", None)
    if finalize is not None:
        finalize()


def derives_the_same(layer: keras.Layer, other: Any) -> bool:
    """Whether two Normalization layers of equal variables derived the same from them; any other layers do (all).

    They do not where the variables of one were assigned, as `set_weights` does, and its `finalize_state` not called.
    """
    if not isinstance(layer, keras.layers.Normalization):
        return True
    pairs = [(getattr(layer, name), getattr(other, name)) for name in ("mean", "variance")]
    arrays = [tuple(map(keras.ops.convert_to_numpy, pair)) for pair in pairs if pair[0] is not None]
    return all((ours == theirs).all() for ours, theirs in arrays)


def build_like(new: Any, original: Any, started: dict[int, Any]) -> bool:
    """Builds `new` with the shapes that `original` was built with; False where only a call can.

    Variables start with the values of their namesakes in `original`, instead of values that are thrown away.
    The id of each that did is entered into `started`, with the variable itself, so that no other gets its id, and
    its namesake.
    """
    if not new.built and not is_built_by_calling(new):
        with _quiet_about_building(original), _weights_of(original, new, started):
            new.build_from_config(with_new_containers(original.get_build_config()))
    return all(part.built for part in walk(new))


@contextlib.contextmanager
def _weights_of(original: Any, new: Any, started: dict[int, Any]) -> Iterator[None]:
    variables = own_variables(original)
    names = [variable.name for variable in variables]
    sources = {v.name: v for v in variables if names.count(v.name) == 1}
    add_weight = new.add_weight

    def add_given_weight(*args: Any, **kwargs: Any) -> Any:
        source, usual = sources.get(kwargs.get("name", "")), kwargs.get("initializer")
        if source is None or usual is None:
            return add_weight(*args, **kwargs)
        used = []

        def value_of_source(shape: Any, dtype: Any = None) -> Any:
            same_dtype = dtype == source.dtype or keras.backend.standardize_dtype(dtype) == source.dtype
            if not (same_dtype and tuple(shape) == tuple(source.shape)):
                return keras.initializers.get(usual)(shape, dtype=dtype)
            used.append(source)
            return beneath(source).value()

        variable = add_weight(*args, **{**kwargs, "initializer": value_of_source})
        started.update({id(variable): (variable, source)} if used else {})
        return variable

    vars(new)["add_weight"] = add_given_weight
    try:
        yield
    finally:
        del vars(new)["add_weight"]

"""Everything private of Keras that this library needs, and every difference between versions.

Nobody else imports `keras.src` or touches names that begin with an underscore on objects of Keras. Each function says
what it gives, and on which versions the name behind it was seen ("all": 3.12.0, 3.15.1 and 3.16.0-dev). It must not
know of policies, branches or merges.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
import re
import sys
import threading
import types
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src import tree
from keras.src.backend import compute_output_spec
from keras.src.backend.common import global_state
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.models import Functional
from keras.src.ops.function import make_node_key
from keras.src.ops.node import KerasHistory, Node
from keras.src.random.seed_generator import global_seed_generator
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.serialization_lib import SafeModeScope
from keras.src.trainers.compile_utils import CompileLoss
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.array_slicing import convert_to_sliceable
from keras.src.utils import tracking
from tensorflow.python.data.ops import (
    batch_op,
    cache_op,
    dataset_ops,
    map_op,
    prefetch_op,
    random_op,
    repeat_op,
    shuffle_op,
)
from tensorflow.python.framework import auto_control_deps_utils, op_def_registry
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.framework.random_seed import DEFAULT_GRAPH_SEED, get_seed

__all__ = ["Functional", "KerasSaveable", "Node", "compute_output_spec", "get_keras_mask", "set_keras_mask", "tree"]

# Names under which Keras books what a layer owns; every other attribute is the layer's own.
BOOKKEEPING = frozenset(
    "_trainable_variables _non_trainable_variables _layers _seed_generators _metrics _tracker _tracked "
    "_operations _operations_by_depth _nodes _nodes_by_depth _inbound_nodes _outbound_nodes _losses "
    "_self_tracked_trackables _obj_reference_counts_dict _build_shapes_dict".split()
)

# Names under which TensorFlow keeps its own (2.20 to 2.22). Others may begin as these do: `_self_attention`.
OF_TENSORFLOW = frozenset(
    "_self_name_based_restores _self_saveable_object_factories _self_setattr_tracking _self_tracked_trackables "
    "_self_unconditional_checkpoint_dependencies _self_unconditional_deferred_dependencies "
    "_self_unconditional_dependency_names _self_update_uid".split()
)

# The names of the attributes that hold the calls of a layer, and those that took what it gave (all).
RECORDS = ("_inbound_nodes", "_outbound_nodes")

# What stands before the cause in errors about files.
_CAUSE = "Exception encountered: "

# Attributes of every layer that decide what it computes; all others that every layer has are bookkeeping.
_DECIDING = frozenset(
    "autocast activity_regularizer supports_jit _convert_input_args _allow_non_tensor_positional_args "
    "_supports_masking".split()
)

# Names under which a model, or its graph, keeps what it was compiled and trained with, and what it is connected to.
_OF_MODELS = frozenset(
    "_compile_config _compile_loss _compile_metrics _compiled_trainable_state _compute_loss_has_training_arg "
    "_distribute_strategy _eval_epoch_iterator _initial_epoch _jit_compile _loss_tracker _run_eagerly compiled "
    "predict_function steps_per_execution stop_predicting stop_training test_function train_function "
    "unrolled_steps_per_execution".split()
)

# Names under which a Functional or Sequential model keeps what it is connected to.
_OF_GRAPHS = frozenset("_functional _inputs _inputs_struct _outputs _outputs_struct output_names".split())

# The collections in which Keras wraps those that are set as attributes, with what they wrap (3.12: no ordered one).
_WRAPPERS = {"TrackedDict": dict, "TrackedList": list, "TrackedOrderedDict": OrderedDict, "TrackedSet": set}
TRACKED = {getattr(tracking, name): kind for name, kind in _WRAPPERS.items() if hasattr(tracking, name)}


def first_line(error: Exception) -> str:
    """The first line of an error that says something; Keras wraps most in lines that do not, and in colour (all)."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in str(error).splitlines()]
    causes = [line.removeprefix(_CAUSE) for line in lines if line.startswith(_CAUSE)]
    told = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return next(iter(causes + told), "no message")


# ---------------------------------------------------------------------------------------------------------
# What a layer is made of
# ---------------------------------------------------------------------------------------------------------


def sublayers(layer: Any) -> list[Any]:
    """The layers that `layer` holds directly (all)."""
    return list(getattr(layer, "_layers", ()))


def begins_masks(layer: Any) -> bool:
    """Whether `layer` is one of those that make masks in Keras itself (all)."""
    return isinstance(layer, keras.layers.Masking) or bool(getattr(layer, "mask_zero", False))


def was_called(layer: Any) -> bool:
    """Whether `layer` was called at all, on tensors or on symbolic ones (all)."""
    return bool(getattr(layer, "_called", False))


def walk(layer: Any) -> list[Any]:
    """`layer` and every layer below it, parents first, each once."""
    if not sublayers(layer):
        return [layer]
    found: dict[int, Any] = {}
    waiting = [layer]
    for current in waiting:  # which grows on the way
        if id(current) not in found:
            found[id(current)] = current
            waiting += sublayers(current)
    return list(found.values())


def own_variables(layer: Any) -> list[Any]:
    """The variables that belong to `layer` itself: not those of its sublayers, no seeds (all)."""
    return [*getattr(layer, "_trainable_variables", ()), *getattr(layer, "_non_trainable_variables", ())]


def seed_states(layer: Any) -> list[Any]:
    """The states of the seed generators of `layer` and all its sublayers (all)."""
    return [generator.state for part in walk(layer) for generator in getattr(part, "_seed_generators", ())]


def handle_of(variable: Any) -> Any:
    """What operations of TensorFlow take for a variable of Keras (all)."""
    return getattr(variable._value, "handle", None)


def beneath(variable: Any) -> Any:
    """The variable of TensorFlow in one of Keras; None where it has none yet (all)."""
    return variable if isinstance(variable, tf.Variable) else variable._value


def given_to_variable(variable: Any) -> list[str]:
    """The attributes that somebody set on a variable of Keras (all)."""
    return sorted(vars(variable).keys() - _of_every_variable())


@functools.cache
def _of_every_variable() -> frozenset[str]:
    return frozenset(vars(keras.Variable(0.0))) | OF_TENSORFLOW


def default_of_table(table: Any) -> Any:
    """What a lookup table of TensorFlow gives for keys that are not in it (2.20 to 2.22)."""
    return table._default_value


def named_parts(layer: Any) -> dict[int, str]:
    """Maps the id of every object that `layer` holds to the attribute that holds it.

    Attribute names are the same in every instance of a class, which variable names and the order of
    `layer.variables` are not (float8 layers, unnamed weights).
    """
    names: dict[int, str] = {}
    for path, held in held_by(layer):
        names.setdefault(id(held), path)
    return names


def held_by(layer: Any) -> Iterator[tuple[str, Any]]:
    """Every object that `layer` holds, also in dicts and lists, with the attribute that holds it."""
    attributes = vars(layer)
    for attribute in sorted(attributes.keys() - BOOKKEEPING - OF_TENSORFLOW):
        yield from ((f"{attribute}{suffix}", leaf) for suffix, leaf in _flat(attributes[attribute]))


def attributes(owner: Any) -> dict[str, Any]:
    """Every attribute of an object, also those in slots."""
    kind: Any = type(owner)
    in_slots = {name: getattr(owner, name) for name in _slots_of_instances(kind) if hasattr(owner, name)}
    return in_slots | getattr(owner, "__dict__", {})


@functools.lru_cache(maxsize=1024)
def _slots_of_instances(kind: Any) -> list[str]:
    """The attributes of the instances of a class that lie in slots."""
    slots = [_in_class(name, base) for base in kind.__mro__ for name in slots_of(base)]
    return [name for name in slots if name[:2] != "__"]


def slots_of(kind: type) -> tuple[str, ...]:
    """The names of the slots that a class adds to its bases."""
    names = vars(kind).get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)


def _in_class(name: str, kind: type) -> str:
    """The name of an attribute as Python stores it: private ones carry that of their class."""
    private = name[:2] == "__" and name[-2:] != "__"
    return f"_{kind.__name__.lstrip('_')}{name}" if private else name


def held(operation: Any) -> dict[str, Any]:
    """The attributes of a layer, or an operation, that are not bookkeeping of Keras or TensorFlow (all).

    Neither are the states of a stateful RNN, with which a copy begins anew.
    """
    every = attributes(operation)
    return {name: every[name] for name in sorted(every.keys() - _books() - _of_class(operation))}


def _of_class(operation: Any) -> frozenset[str]:
    """The attributes in which Keras keeps its books on a model, or the states of an RNN."""
    if isinstance(operation, keras.layers.RNN):
        return frozenset({"states"})
    if not isinstance(operation, keras.Model):
        return frozenset()
    # Authors use these names too, for what Keras sets when it compiles and trains.
    compiled = {name for name in ("loss", "optimizer") if operation.compiled or vars(operation).get(name) is None}
    trained = {"history"} if isinstance(vars(operation).get("history"), keras.callbacks.History) else set()
    connected = _OF_GRAPHS if isinstance(operation, (Functional, keras.Sequential)) else frozenset()
    return _OF_MODELS | connected | compiled | trained


@functools.cache
def _books() -> frozenset[str]:
    return BOOKKEEPING | OF_TENSORFLOW | _of_every_layer()


@functools.cache
def _of_every_layer() -> frozenset[str]:
    return frozenset(vars(keras.layers.Layer(name="reference"))) - _DECIDING


def _objects_given(layer: Any) -> dict[str, Any]:
    """The attributes of a layer that not every layer has, and that hold more than plain values and weights (all)."""
    every = vars(layer)
    of_its_class = {name: every[name] for name in sorted(every.keys() - _of_every_layer())}
    return {
        name: value
        for name, value in of_its_class.items()
        if type(value) not in _PLAIN and not isinstance(value, keras.Variable)
    }


def put(operation: Any, name: str, value: Any) -> None:
    """Sets an attribute of a layer or an operation, also of one that is built (all)."""
    if not isinstance(operation, keras.Layer):
        setattr(operation, name, value)
        return
    locked = operation._tracker.locked
    operation._tracker.unlock()
    try:
        keras.Layer.__setattr__(operation, name, value)
    finally:
        operation._tracker.locked = locked


def is_keras_2(thing: Any) -> bool:
    """Whether something is made of Keras 2: of tf_keras, of keras up to 2.15, or of the one within TensorFlow."""
    packages = ("tf_keras.", "keras.engine.", "keras.src.engine.", "tensorflow.python.keras.")
    return any(f"{cls.__module__}.".startswith(packages) for cls in type(thing).__mro__)


_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.MethodDescriptorType)


def is_of_keras(thing: Any) -> bool:
    """Whether Keras itself defines a function, or the class of an object."""
    if str(type(thing).__module__).startswith("keras.src."):
        return True
    return isinstance(thing, _FUNCTIONS) and str(thing.__module__).startswith("keras.src.")


def same_policy(policy: Any, other: Any) -> bool:
    """Whether two dtype policies are of one kind and say the same; their names may be lost (see `copy_policy`)."""
    names = ("_name", "_source_name")
    ours, theirs = ({k: v for k, v in vars(p).items() if k not in names} for p in (policy, other))
    return type(policy) is type(other) and ours == theirs


def _flat(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from ((f"[{key}]{suffix}", leaf) for suffix, leaf in _flat(item))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from ((f"[{index}]{suffix}", leaf) for suffix, leaf in _flat(item))
    else:
        yield "", value


def own_methods(model: Any) -> list[str]:
    """The methods of its class that were replaced on `model` itself, such as its `call` (all)."""
    return sorted(
        name
        for name in vars(model).keys() - _of_every_layer() - _of_class(model)
        if inspect.isroutine(getattr(type(model), name, None))
    )


def bare_operations(layer: Any) -> list[Any]:
    """The operations of the graph of `layer` that are no layers; none where it has no graph (all)."""
    graph = layer._functional if isinstance(layer, keras.Sequential) else layer
    operations = graph.operations if isinstance(graph, Functional) else []
    return [operation for operation in operations if not isinstance(operation, keras.Layer)]


def set_own_trainable(layer: Any, trainable: bool) -> None:
    """Sets the flag of `layer` alone (all).

    `layer.trainable = value` hands the value on to sublayers, and on TensorFlow does nothing at all
    where the flag already has that value.
    """
    if layer._trainable is not trainable:
        layer._trainable = trainable


def own_trainable(layer: Any) -> bool:
    """The flag of `layer` alone (all)."""
    return layer._trainable


def set_trainable(layer: Any, trainable: bool) -> None:
    """Sets the flags of `layer` and of all below it as Keras does, for a class with a `trainable` of its own (all)."""
    keras.Layer.trainable.fset(layer, trainable)


def drop_activity_regularizers(layer: Any) -> None:
    """Takes the activity losses from `layer` and everything below it (all)."""
    for part in walk(layer):
        if getattr(part, "activity_regularizer", None) is not None:
            part.activity_regularizer = None


def is_built_by_calling(layer: Any) -> bool:
    """Whether only a call creates the state of `layer`: it has sublayers and no `build` (all)."""
    return bool(sublayers(layer)) and getattr(layer.build, "_is_default", False)


# ---------------------------------------------------------------------------------------------------------
# Copying
# ---------------------------------------------------------------------------------------------------------


def copy_from_config(layer: Any, changes: dict[str, Any]) -> Any:
    """A new object of the class of `layer` from its config, with some entries changed, not initialised at random.

    The initialisers are put back by `restore_unserialized`: the values that they would draw are thrown
    away anyhow, and drawing them is most of the time that copying a large model takes.
    """
    with (
        _quiet_about_building(layer),
        keras.saving.custom_object_scope(_in_scope(layer)),
        SafeModeScope(safe_mode=False),
    ):
        try:
            new = type(layer).from_config({**_without_draws(layer, with_own_containers(config_of(layer))), **changes})
        except Exception as error:
            new = _from_config_without_strangers(layer, changes, error)
    _share_alike(layer, new)
    for part in walk(new):
        attributes = vars(part)
        for attribute in [name for name, value in _objects_given(part).items() if _draws_values(value)]:
            attributes[attribute] = keras.initializers.Zeros()
    return new


def _without_draws(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The config of a layer of Keras with nothing in it that draws values: what is not made need not be replaced."""
    if not is_of_keras(layer):
        return config
    attributes = vars(layer)
    drawing = [name for name in config if _draws_values(attributes.get(name))]
    return {**config, **dict.fromkeys(drawing, keras.initializers.Zeros())} if drawing else config


@contextlib.contextmanager
def _quiet_about_building(layer: Any) -> Iterator[None]:
    """Without what Keras says where it builds `layer` without its parts (all): a call builds these later."""
    if not sublayers(layer):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`build\(\)` was called on layer", UserWarning)
        yield


def _share_alike(layer: Any, new: Any) -> None:
    """Lets `new` hold one layer where `layer` does, which a config names twice (StackedRNNCells: all)."""
    for name in vars(layer).keys() - _of_every_layer() if sublayers(layer) else ():
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


def serialized(layer: Any) -> dict[str, Any]:
    """The config that a wrapper names `layer` by, found again in `copy_from_config` even if others have its name."""
    config: dict[str, Any] = keras.saving.serialize_keras_object(layer)
    return config if is_of_keras(layer) else {**config, "registered_name": _unmistakable(type(layer))}


def _unmistakable(kind: type) -> str:
    return f"{kind.__module__}>{kind.__qualname__}@{id(kind)}"


def config_of(layer: Any) -> dict[str, Any]:
    """The config of a layer, with dtype policies of its own in it.

    The config of a `DTypePolicyMap` takes their names from the policies in it, which may stand in other layers, or be
    the global one (all); and which of them a layer has hangs on its path, which its copy has not.
    """
    maps = [part._dtype_policy for part in walk(layer) if isinstance(getattr(part, "_dtype_policy", None), _PolicyMap)]
    if not maps:
        return _config(layer)
    policies = [policy for policy_map in maps for policy in policy_map._policy_map.values()]
    before = [dict(vars(policy)) for policy in policies]
    try:
        config = _config(layer)
    finally:
        for policy, attributes in zip(policies, before):
            vars(policy).update(attributes)
    if "dtype" in config and isinstance(layer._dtype_policy, _PolicyMap):
        config["dtype"] = policy_of(layer)
    return config


def _config(layer: Any) -> dict[str, Any]:
    """The config of a layer; where it holds what no config can name, such as a lambda, with others in its place."""
    nameless = is_of_keras(layer) and any(map(_is_nameless, _objects_given(layer).values()))
    bare = _without_strangers(layer) if nameless else None
    if bare is not None:
        return bare.get_config()
    try:
        return layer.get_config()
    except Exception:
        bare = _without_strangers(layer)
        if bare is None:
            raise
        return bare.get_config()


def _is_nameless(value: Any) -> bool:
    if is_of_keras(value) or inspect.isclass(value) or not callable(value):
        return False
    return not (hasattr(value, "get_config") or (inspect.isfunction(value) and value.__name__ != "<lambda>"))


def copy_policy(policy: Any) -> Any:
    """A dtype policy like another one, which may be the global one of Keras."""
    new = object.__new__(type(policy))
    vars(new).update(vars(policy))
    if isinstance(policy, _PolicyMap):
        new._policy_map = {path: copy_policy(held) for path, held in policy._policy_map.items()}
    return new


def policy_of(layer: Any) -> Any:
    """The dtype policy that holds for `layer`: of a map of policies, that of its path (all)."""
    policy = layer._dtype_policy
    return policy[layer.path] if isinstance(policy, _PolicyMap) and layer.path else policy


def _in_scope(layer: Any) -> dict[str, Any]:
    """What Keras finds by name while `layer` is copied: what the layer holds itself, then what the user's scopes name.

    A scope takes the place of those around it (all).
    """
    return {**global_state.get_global_attribute("custom_objects_scope_dict", {}), **_strangers(layer)}


def _strangers(layer: Any) -> dict[str, Any]:
    """The classes and functions in `layer` that Keras would not find by itself, under their saved names."""
    found: dict[str, Any] = {}
    for part in walk(layer):
        held = [*_objects_given(part).values(), getattr(part, "_dtype_policy", None)]
        others = [value for value in held if not is_of_keras(value) and _may_be_a_stranger(value)]
        kinds = [value if isinstance(value, (*_FUNCTIONS, type)) else type(value) for value in others]
        for named in [type(part), *kinds]:
            if not str(named.__module__).startswith(("keras.", "builtins")):
                found[keras.saving.get_registered_name(named)] = named
                if inspect.isclass(named):
                    found[_unmistakable(named)] = named
    return found


def _may_be_a_stranger(value: Any) -> bool:
    return not isinstance(value, keras.Layer) and (callable(value) or hasattr(value, "get_config"))


_PLAIN = frozenset((type(None), bool, int, float, str, keras.initializers.Zeros, keras.initializers.Ones))
_PolicyMap = keras.dtype_policies.DTypePolicyMap


def with_own_containers(config: Any) -> Any:
    """A config in containers and dtype policies of its own: `from_config` may change them, and a layer may hold them.

    What else is in it, objects of users too, is what it was.
    """
    if type(config) in _PLAIN:
        return config
    if type(config) is dict:
        return {key: value if type(value) in _PLAIN else with_own_containers(value) for key, value in config.items()}
    if type(config) in (list, tuple):
        return type(config)(map(with_own_containers, config))
    if isinstance(config, keras.dtype_policies.DTypePolicy):
        return copy_policy(config)
    return copy.copy(config) if isinstance(config, (dict, list, set)) else config


def _from_config_without_strangers(layer: Any, changes: dict[str, Any], error: Exception) -> Any:
    """The same where the config cannot name functions that `layer` holds: others stand in their places."""
    bare = _without_strangers(layer)
    if bare is None:
        raise error
    try:
        return type(layer).from_config({**with_own_containers(config_of(bare)), **changes})
    except Exception:
        raise error from None


def _without_strangers(layer: Any) -> Any | None:
    """What stands for `layer` to give a config without the functions of others; None where it holds none."""
    changed = {}
    for name, value in vars(layer).items():
        if isinstance(value, keras.Layer):
            inner = _without_strangers(value)
            changed.update({} if inner is None else {name: inner})
        elif name not in _of_every_layer() and not is_of_keras(value):
            changed.update({name: _stands_for(name)} if _may_be_a_stranger(value) else {})
    if not changed:
        return None
    new = object.__new__(type(layer))
    vars(new).update(vars(layer))
    vars(new).update(changed)
    return new


def _stands_for(name: str) -> Any:
    """What Keras takes in the place of a function or an object of others; the very object is handed over later."""
    if name.endswith("initializer"):
        return keras.initializers.Zeros()
    return None if name.endswith(("regularizer", "constraint")) else keras.activations.linear


def copy_of_operation(operation: Any, *, from_config: bool) -> Any:
    """A new operation that computes the same as one that is no layer, and was never called (all).

    Args:
        operation: The operation.
        from_config: Whether it is made from its config, which carries no functions.
    """
    if from_config:
        return type(operation).from_config(with_own_containers(operation.get_config()))
    new = object.__new__(type(operation))
    vars(new).update(vars(operation), _inbound_nodes=[], _outbound_nodes=[])
    return new


def _draws_values(value: Any) -> bool:
    return (
        type(value) not in _PLAIN
        and isinstance(value, keras.initializers.Initializer)
        and is_of_keras(value)
        and not isinstance(value, (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant))
    )


def _clone(initializer: Any) -> Any:
    """An initialiser of its own that draws what another one draws (all)."""
    plain = all(type(value) in _PLAIN for value in vars(initializer).values())
    return copy.copy(initializer) if plain else initializer.clone()


def restore_unserialized(original: Any, new: Any) -> None:
    """Gives `new` the initialisers and the dtype policy of `original`, which may be in no config."""
    for attribute, value in _objects_given(original).items():
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


def copy_of_variable(variable: Any) -> Any:
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


def tie(layer: Any, variable: Any, other: Any) -> bool:
    """Puts `other` in the place of `variable`, which `layer` owns; False where no attribute holds that (all)."""
    held = [attribute for attribute, value in vars(layer).items() if value is variable]
    lists = [layer._trainable_variables, layer._non_trainable_variables]
    order = [[other if own is variable else own for own in owned] for owned in lists]
    if held:
        layer._untrack_variable(variable)
        layer._tracker.unlock()
        for attribute in held:
            setattr(layer, attribute, other)
        layer._tracker.lock()
        for owned, ordered in zip(lists, order):  # files hold the variables in this order
            owned[:] = ordered
    return bool(held)


def saved_variables(layer: Any) -> int:
    """How many variables Keras writes into a file for `layer`: those of LoRA are merged into others (all)."""
    lora = ("lora_kernel_a", "lora_kernel_b", "lora_embeddings_a", "lora_embeddings_b")
    merged = {id(getattr(part, name, None)) for part in walk(layer) for name in lora}
    return sum(id(variable) not in merged for part in walk(layer) for variable in own_variables(part))


def finalize_state(layer: Any) -> None:
    """Lets an adapted layer (Normalization, …) derive what it computes from its variables (all)."""
    finalize = getattr(layer, "finalize_state", None)
    if finalize is not None:
        finalize()


def derives_the_same(layer: Any, other: Any) -> bool:
    """Whether two Normalization layers of equal variables derived the same from them; any other layers do (all).

    They do not where the variables of one were assigned, as `set_weights` does, and its `finalize_state` not called.
    """
    if not isinstance(layer, keras.layers.Normalization):
        return True
    pairs = [(getattr(layer, name), getattr(other, name)) for name in ("mean", "variance")]
    arrays = [tuple(map(keras.ops.convert_to_numpy, pair)) for pair in pairs if pair[0] is not None]
    return all((ours == theirs).all() for ours, theirs in arrays)


def build_like(new: Any, original: Any, given: dict[int, Any]) -> bool:
    """Builds `new` with the shapes that `original` was built with; False where only a call can.

    Variables start with the values of their namesakes in `original`, instead of values that are thrown away.
    The id of each that did is entered into `given`, with the variable itself, so that no other gets its id, and
    its namesake.
    """
    if not new.built and not is_built_by_calling(new):
        with _quiet_about_building(original), _weights_of(original, new, given):
            new.build_from_config(with_own_containers(original.get_build_config()))
    return all(part.built for part in walk(new))


@contextlib.contextmanager
def _weights_of(original: Any, new: Any, given: dict[int, Any]) -> Iterator[None]:
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
            return tf.convert_to_tensor(beneath(source))

        variable = add_weight(*args, **{**kwargs, "initializer": value_of_source})
        given.update({id(variable): (variable, source)} if used else {})
        return variable

    vars(new)["add_weight"] = add_given_weight
    try:
        yield
    finally:
        del vars(new)["add_weight"]


def with_state(layer: Any) -> bool:
    """Whether `layer` keeps state outside its variables and its config: vocabularies (all)."""
    return hasattr(layer, "save_assets") and hasattr(layer, "load_assets")


# ---------------------------------------------------------------------------------------------------------
# Graphs
# ---------------------------------------------------------------------------------------------------------


def graph_of(model: Any) -> Any:
    """The functional graph of a graph model, or None where `model` is opaque (all).

    A graph model is an instance of exactly `Sequential` or `Functional`: a subclass may do anything.
    """
    if type(model) is keras.Sequential:
        return model._functional
    return model if type(model) is Functional else None


def call_graph(model: Any) -> Any:
    """The functional graph that a call of `model` runs, or None where only its code says what a call does (all).

    That of a graph model, or of a Functional subclass that leaves `call` alone, as KerasHub backbones do.
    """
    graph = graph_of(model)
    if graph is None and isinstance(model, Functional) and type(model).call is Functional.call:
        return model
    return graph


def bytes_of(tensors: Any) -> int | None:
    """The size of one example of some symbolic tensors; None where it is not fixed."""
    shapes = [tensor.shape[1:] for tensor in tensors]
    if any(size is None for shape in shapes for size in shape) or any(tensor.dtype == "string" for tensor in tensors):
        return None
    sizes = [keras.ops.convert_to_numpy(keras.ops.zeros((1,), tensor.dtype)).itemsize for tensor in tensors]
    return sum(math.prod(shape) * size for shape, size in zip(shapes, sizes))


def nodes(graph: Any) -> list[Any]:
    """The nodes of a functional graph, each behind those that it needs (all)."""
    by_depth = graph._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def input_structure(graph: Any) -> Any:
    """The inputs of a functional graph in the structure in which its author gave them (all)."""
    return graph._inputs_struct


def output_structure(graph: Any) -> Any:
    """The outputs of a functional graph in the structure in which its author gave them (all)."""
    return graph._outputs_struct


def symbolic_inputs(model: Any) -> Any:
    """What `model` is called with: symbolic tensors in the structure in which its author gave them (all).

    A subclassed model knows the shapes that it was built with, but not their dtypes.

    Raises:
        ValueError: If the model does not know its inputs.
    """
    graph = graph_of(model)
    if graph is not None or isinstance(model, Functional):
        return input_structure(graph or model)
    arguments = [p for p in inspect.signature(model.call).parameters.values() if p.default is p.empty]
    required = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    shapes = list(((model.get_build_config() or {}).get("shapes_dict") or model.get_build_config() or {}).values())
    if len(shapes) != 1 or shapes[0] is None or len(required) != 1:
        raise ValueError(
            f"The inputs of the subclassed model '{model.name}' cannot be found: it takes more than one argument, or "
            "was built without input shapes. Call it on a batch of data first, or wrap it: `x = keras.Input(...)`, "
            "then `keras.Model(x, model(x))`. "
            f"Received: model={model!r}"
        )
    structure = dict(shapes[0]) if isinstance(shapes[0], dict) else shapes[0]  # not the dict in which Keras tracks it
    return tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype), structure
    )


def bound_inputs(graph: Any, given: Any) -> list[Any]:
    """What a call of a functional graph on `given` binds to its inputs, in their order; None for one that is left out.

    Keras binds a dict by name to inputs in a list, and structures of one kind leaf by leaf: its own code does it here
    (`Functional._standardize_inputs`: all).

    Raises:
        ValueError: If a call would, because the structures do not go together.
    """

    def refuse(inputs: Any, raise_exception: bool = False) -> None:
        if raise_exception:
            raise ValueError(f"The inputs {inputs} do not go together with {graph._inputs_struct}.")

    binder = types.SimpleNamespace(
        _inputs_struct=graph._inputs_struct,
        _maybe_warn_inputs_struct_mismatch=refuse,
        _convert_inputs_to_tensors=lambda flat: flat,
        _adjust_input_rank=lambda flat: flat,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of entries that nothing takes, which a call warns of
        return list(type(graph)._standardize_inputs(binder, given))


def new_input(tensor: Any, name: str | None = None) -> Any:
    """A new `keras.Input` that takes what `tensor` takes, under its name where it is an input itself (all)."""
    layer = tensor_history(tensor)[0] if in_graph(tensor) else None
    if isinstance(layer, keras.layers.InputLayer):
        new = type(layer).from_config({**layer.get_config(), "name": name or layer.name})
        set_own_trainable(new, layer.trainable)
        new.optional = layer.optional  # which the config of 3.12 leaves out
        new.output.name = name or tensor.name
        return new.output
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, sparse=tensor.sparse, name=name)


def new_inputs(structure: Any) -> Any:
    """Inputs of a model that takes such tensors. In a dict they are named after their keys, as Keras wants it (all)."""
    if isinstance(structure, dict) and not any(map(tree.is_nested, structure.values())):
        return {key: new_input(tensor, key) for key, tensor in structure.items()}
    return tree.map_structure(new_input, structure)


def names_behind(tensor: Any) -> set[str]:
    """The names of all operations that a symbolic tensor is computed by (all)."""
    names: set[str] = set()
    waiting = [tensor]
    while waiting:
        operation, index = tensor_history(waiting.pop())
        if operation.name not in names:
            names.add(operation.name)
            waiting.extend(operation._inbound_nodes[index].input_tensors)
    return names


def connected_model(inputs: Any, outputs: Any, name: str | None) -> Any:
    """`keras.Model(inputs, outputs)`, with an error where an output needs another input (3.12 has none)."""
    model = keras.Model(inputs, outputs, name=name)
    given = {id(tensor) for tensor in model.inputs}
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer) and id(layer.output) not in given:
            raise ValueError(f"an output is computed from '{layer.name}', which is not an input of the model")
    return model


def inbound_nodes(operation: Any) -> list[Any]:
    """Every call of `operation` on symbolic tensors, in whatever graph (all)."""
    return operation._inbound_nodes


def call_arguments(layer: Any) -> tuple[Any, Any]:
    """The arguments of the last symbolic call of `layer`; for a model that had none, its inputs (all).

    Raises:
        ValueError: If `layer` was never called on symbolic tensors.
    """
    for node in layer._inbound_nodes[-1:]:
        return node.arguments.args, {k: v for k, v in node.arguments.kwargs.items() if k != "training"}
    if isinstance(layer, keras.Model):
        return (symbolic_inputs(layer),), {}
    raise ValueError(f"Layer '{layer.name}' was never called on symbolic tensors.")


def in_graph(tensor: Any) -> bool:
    """Whether a symbolic tensor is the result of an operation (all)."""
    return hasattr(tensor, "_keras_history")


def tensor_history(tensor: Any) -> tuple[Any, int]:
    """The operation that made a symbolic tensor, and which of its calls that was (all)."""
    history = tensor._keras_history
    return history.operation, history.node_index


def connect(operation: Any, args: Any, kwargs: Any, like: list[Any]) -> list[Any]:
    """Enters the call `operation(*args, **kwargs)` into the graph, its outputs shaped as `like`.

    The shapes are known from the graph that is being copied, so no shape inference runs; and nothing is
    added to the arguments, where `Layer.__call__` up to 3.15 stores a `training=False` (all).
    """
    outputs = [keras.KerasTensor(t.shape, dtype=t.dtype, sparse=t.sparse, ragged=t.ragged) for t in like]
    node = Node(operation, call_args=args, call_kwargs=kwargs, outputs=outputs)
    if _passing.nodes is not None:
        _passing.nodes.append(node)
    return outputs


def strip_training(layer: Any, originals: Iterable[Any] = (), leave: Callable[[Any], bool] | None = None) -> None:
    """Removes every stored `training=` from the graphs of `layer` and of all below it that is not in `originals`.

    Up to 3.15 Keras writes `training=False` into the calls of Dropout and RNN layers by itself, and
    `fit` and `predict` override it. 3.16 writes nothing and obeys what it finds.

    Args:
        layer: The layer.
        originals: Layers that stay as they are, with everything below.
        leave: Tells of a layer that is no graph model whether the graphs below it stay as they are.
    """
    seen = {id(part) for original in originals for part in walk(original)}
    waiting = [layer]
    while waiting:
        part = waiting.pop()
        graph = graph_of(part)
        below = sublayers(part)
        if id(part) in seen or (graph is None and below and leave is not None and leave(part)):
            continue
        seen.add(id(part))
        waiting.extend(below)
        for node in nodes(graph) if graph is not None else ():
            node.arguments.kwargs.pop("training", None)


def rests_on_stored_modes(layer: Any) -> bool:
    """Whether a `training=` that is stored in a graph below `layer` decides what a call of it does (from 3.16)."""
    return bool(_graphs_with_modes(layer)) and obeys_stored_modes()


def _graphs_with_modes(layer: Any) -> list[Any]:
    """The functional graphs below `layer` that store modes in their calls, each once (all)."""
    graphs = {id(graph): graph for graph in map(call_graph, walk(layer)) if graph is not None}
    return [g for g in graphs.values() if any("training" in node.arguments.kwargs for node in nodes(g))]


@functools.cache
def obeys_stored_modes() -> bool:
    """Whether a `training=` that is stored in a call prevails over the mode of the whole model (from 3.16)."""
    seen = []

    class Witness(keras.layers.Layer):
        def call(self, x: Any, training: bool | None = None) -> Any:
            seen.append(training)
            return x

    before = global_state.get_global_attribute("current_call_ctx")  # it may be asked for within a call
    global_state.set_global_attribute("current_call_ctx", None)
    try:
        x = keras.Input((1,), name="x")
        model = keras.Model(x, Witness(name="witness")(x, training=False), name="stored_mode")
        model(keras.ops.ones((1, 1)), training=True)
    finally:
        global_state.set_global_attribute("current_call_ctx", before)
    return seen[-1] is False


@contextlib.contextmanager
def global_seeds_kept() -> Iterator[None]:
    """Keeps the generator that layers without seeds of their own draw from as it is, or absent (all)."""
    name = "global_seed_generator"
    before = global_state.get_global_attribute(name)
    global_seed_generator()  # which must not be made within a scope that keeps no variables
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)


# ---------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------


def call_in_mode(caller: Any, layer: Any, training: bool | None, args: Any, kwargs: Any) -> Any:
    """Calls `layer` in the given mode, for `caller`, whose own mode holds again afterwards.

    Keras keeps the mode in one context for the whole call of the outermost layer, and an explicit
    `training=` stays there: in 3.16 for every layer behind, before that for siblings (all).
    """
    context = call_context(caller)
    mode = context.get_value("training")
    try:
        return layer(*args, **kwargs) if training is None else layer(*args, training=training, **kwargs)
    finally:
        context.set_value("training", mode)


@contextlib.contextmanager
def stored_modes_passed_over(layer: Any) -> Iterator[None]:
    """Lets the graphs below `layer` run in the mode that they are called in, in this thread (needed from 3.16 on).

    The graphs may belong to models of the user, so what they store stays as it is.
    """
    graphs = _graphs_with_modes(layer)
    if not (graphs and obeys_stored_modes()):
        yield
        return
    thread = threading.get_ident()

    def runner(run: Callable[..., Any]) -> Callable[..., Any]:
        def without_modes(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or args or kwargs:
                return run(inputs, *args, **kwargs)
            return run(inputs, operation_fn=_without_stored_mode)

        return without_modes

    with _passing_over:
        before = [vars(graph).get("_run_through_graph") for graph in graphs]
        try:
            for graph in graphs:
                vars(graph)["_run_through_graph"] = runner(graph._run_through_graph)
            yield
        finally:
            for graph, run in zip(graphs, before):
                vars(graph).pop("_run_through_graph")
                vars(graph).update({} if run is None else {"_run_through_graph": run})


_passing_over = threading.RLock()


def _without_stored_mode(operation: Any) -> Any:
    """`operation`, called without the mode that its node stores."""
    if not isinstance(operation, keras.Layer):
        return operation

    def call(*args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return operation(*args, **kwargs)

    return call


def drop_losses(layer: Any) -> None:
    """Forgets the losses that `layer` and its sublayers added in the current call (all)."""
    layer._clear_losses()


def adopt_call(outer: Any, inner: Any) -> None:
    """Makes `outer` read its call arguments as `inner` would, and hand them on as they came (all).

    Without the default of `training`: image augmentation has `True` there, and Keras would take it for the mode of
    all that follows.
    """
    signature = inner._call_signature
    parameters = [p.replace(default=None) if p.name == "training" else p for p in signature.parameters.values()]
    outer._call_signature = signature.replace(parameters=parameters)
    outer._convert_input_args = False
    outer._allow_non_tensor_positional_args = True


def take_inputs_as_they_are(layer: Any) -> None:
    """Lets `layer` get its inputs in the dtypes in which they come (all)."""
    layer._convert_input_args = False


def build_from_call(layer: Any, call_spec: Any) -> None:
    """Builds `layer` from the arguments of a call as Keras itself would (all)."""
    layer._maybe_build(call_spec)


def has_tensors(call_spec: Any) -> bool:
    """Whether a call got tensors, whose shapes Keras can build from, or arrays alone (all)."""
    return bool(call_spec.tensor_arguments_dict)


def takes_training(layer: Any) -> bool:
    """Whether `layer.call` has a `training` argument."""
    return _training_argument_of(layer) is not None


def _training_argument_of(layer: Any) -> inspect.Parameter | None:
    if is_of_keras(layer) and "call" not in vars(layer):
        return _training_argument(type(layer).call)  # looked up once
    return inspect.signature(layer.call).parameters.get("training")


@functools.cache
def _training_argument(call: Callable[..., Any]) -> inspect.Parameter | None:
    return inspect.signature(call).parameters.get("training")


def name_of_call(layer: Any) -> str:
    """Name of the method that a call of `layer` runs (all)."""
    return "call" if getattr(layer, "quantization_mode", None) is None else "quantized_call"


def is_scope(name: str, *, inner: bool) -> bool:
    """Whether TensorFlow takes a name for a scope, within another or not: those of all calls are (2.20 to 2.22)."""
    first = r"[A-Za-z0-9_.\\/>-]" if inner else r"[A-Za-z0-9.]"
    return re.fullmatch(first + r"[A-Za-z0-9_.\\/>-]*", name) is not None


def as_scope(name: str) -> str:
    """A name that TensorFlow takes for a scope."""
    return name if is_scope(name, inner=False) else f"of.{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"


def mode_of_call(layer: Any) -> Callable[[Any, Any], bool]:
    """Tells from the arguments of a `call` of `layer`, while it runs, in which mode it does (all).

    It is that of the context for a `call` without a `training` argument: what it calls gets it from there.
    """
    signature = inspect.signature(getattr(layer, name_of_call(layer)))
    parameter = signature.parameters.get("training")

    def mode(args: Any, kwargs: Any) -> bool:
        if parameter is None:
            return bool(call_context(layer).get_value("training"))
        given = signature.bind_partial(*args, **kwargs).arguments.get("training", parameter.default)
        return isinstance(given, int) and bool(given)

    return mode


def arguments_in_mode(layer: Any, args: Any, kwargs: Any, training: bool) -> tuple[Any, Any]:
    """The arguments of a `call` of `layer`, for one in another mode (all)."""
    signature = inspect.signature(getattr(layer, name_of_call(layer)))
    if "training" not in signature.parameters:
        return args, kwargs
    bound = signature.bind(*args, **kwargs)
    bound.arguments["training"] = training
    return bound.args, bound.kwargs


def call_context(layer: Any) -> Any:
    """What Keras keeps for the length of a call, its mode among it: that of the call that `layer` is part of (all)."""
    return layer._get_call_context()


def default_mode(layer: Any) -> bool | None:
    """The mode that `layer` runs in where nobody says one: the default of its `training` argument, if that is a mode.

    Up to 3.15 Keras stores it in the calls of a graph as if the author had written it.
    """
    parameter = _training_argument_of(layer)
    return parameter.default if parameter is not None and isinstance(parameter.default, bool) else None


@contextlib.contextmanager
def call_replaced(model: Any, call: Callable[..., Any], steps_at_once: int) -> Iterator[None]:
    """Puts `call` in the place of `model.call`, for inputs of any structure; and the functions that train it as new.

    They are traced with the call that the model has then, and Keras keeps them (all). A model that is compiled within
    keeps what it is compiled with.
    """
    ours = {
        "call": call,
        "steps_per_execution": steps_at_once,
        "_manual_input_spec": None,
        "_convert_input_args": False,  # a Sequential model casts to the dtype of its input
        "_allow_non_tensor_positional_args": True,  # and converts arrays, which a callback may call the model with
        "train_function": None,
        "test_function": None,
    }
    attributes = vars(model)
    before = {name: attributes[name] for name in ours if name in attributes}
    compiled = attributes.get("_compile_config")
    attributes.update(ours)
    try:
        yield
    finally:
        if attributes.get("_compile_config") is not compiled:
            before |= {"steps_per_execution": model.steps_per_execution, "train_function": None, "test_function": None}
        for name in ours:
            del attributes[name]
        attributes.update(before)


def beside_graph(model: Any) -> list[str]:
    """The methods that let a call of a model do more than its graph: `__call__`, or a `call` put on the model (all)."""
    return [*overridden(model, ["__call__"]), *(["call"] if "call" in vars(model) else [])]


def unknown_to_optimizer(model: Any) -> list[str]:
    """The paths of the variables that train and that the optimizer of a model was not built with (all)."""
    known = _known_to_optimizer(model)
    new = [] if known is None else [part for part in model.trainable_variables if id(part) not in known]
    return [variable.path for variable in new]


def still_trained(model: Any) -> list[str]:
    """The paths of frozen variables that `fit` goes on training: with the step that it made before (all)."""
    known = _known_to_optimizer(model) if model.train_function is not None else None
    return [part.path for part in model.non_trainable_variables if known and id(part) in known]


def _known_to_optimizer(model: Any) -> set[int] | None:
    """The ids of the variables that the optimizer of a model was built with; None where it was not built (all)."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # around which one scales the loss
    if optimizer is None or not optimizer.built:
        return None
    return set(map(id, optimizer._trainable_variables))


# The methods of a model that run in `fit`, those of validation among them, and in `predict`.
METHODS_OF_FIT = (
    *("fit", "make_train_function", "train_step", "compute_loss", "compute_metrics"),
    *("evaluate", "make_test_function", "test_step"),
)
METHODS_OF_PREDICT = ("predict", "make_predict_function", "predict_step")


def overridden(model: Any, names: Iterable[str]) -> list[str]:
    """Which of some methods of a model are not those of `keras.Model`."""
    return [name for name in names if getattr(getattr(model, name), "__func__", None) is not getattr(keras.Model, name)]


def batches_of_fit(x: Any, batch_size: int, shuffle: bool, **beside: Any) -> tf.data.Dataset:
    """The batches that `fit` makes of arrays, epoch after epoch, without end (`ArrayDataAdapter`: all).

    Args:
        x: The inputs.
        batch_size: How many examples make a batch.
        shuffle: Whether they are in the order of `fit(shuffle=True)`.
        **beside: The arguments `y`, `sample_weight` and `class_weight` of `fit`.
    """
    rows = len(tree.flatten(x)[0])
    order = ArrayDataAdapter(np.arange(rows), batch_size=batch_size, shuffle=shuffle).get_tf_dataset()
    if get_seed(0)[0] != DEFAULT_GRAPH_SEED:  # with a seed, every epoch of `fit` has the same order (up to 3.15)
        order = order.cache()
    whole = convert_to_sliceable(ArrayDataAdapter(x, **beside)._inputs, target_backend="tensorflow")

    def batch_of(places: Any, arrays: Any) -> Any:
        return tree.map_structure(lambda array: None if array is None else tf.gather(array, places), arrays)

    pairs = tf.data.Dataset.zip((order.repeat(), tf.data.Dataset.from_tensors(tree.lists_to_tuples(whole)).repeat()))
    return pairs.map(batch_of, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def beside_inputs_in_fit(rows: int, y: Any, sample_weight: Any, class_weight: Any) -> tuple[Any, Any]:
    """Targets and weights of arrays as `fit` hands them on: floats in one precision, classes weighted (all)."""
    adapter = ArrayDataAdapter(np.arange(rows), y, sample_weight, class_weight=class_weight)
    whole = convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
    _, targets, weights = keras.utils.unpack_x_y_sample_weight(whole)
    return targets, weights


@contextlib.contextmanager
def functions_traced_anew() -> Iterator[None]:
    """Within it each call of a function of TensorFlow, in this thread, is a trace of its own, or runs its code.

    What a function was traced to is kept for all later calls. A trace in a stateless scope lacks what it assigns: later
    calls of the user's would move no variable and draw the same numbers; and a trace of the user's shows nothing. Where
    nothing is traced, the scope could not use what a trace assigned (TensorFlow 2.20 to 2.22).
    """
    if getattr(_in_this_thread, "traces_anew", False):
        yield
        return
    kind = type(tf.function(lambda: None))
    usual = kind.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if type(function) is not kind or not getattr(_in_this_thread, "traces_anew", False):
            return usual(function, *args, **kwargs)
        if tf.executing_eagerly():
            return function.python_function(*args, **kwargs)
        return usual(function._clone(None), *args, **kwargs)

    with surgery:
        _in_this_thread.traces_anew, kind.__call__ = True, call
        try:
            yield
        finally:
            _in_this_thread.traces_anew, kind.__call__ = False, usual


_in_this_thread = threading.local()


def at_call_time(graph: Any, value: Callable[[], Any], kind: tf.TensorSpec) -> Any:
    """In a function that is being traced: what `value` gives in each call of it (TensorFlow 2.20 to 2.22).

    Args:
        graph: The graph of the function.
        value: It gives a tensor of that kind, in the thread of the call.
        kind: Its shape and dtype.
    """
    return graph.capture_call_time_value(value, kind)


RESOURCE = tf.resource.as_datatype_enum


@functools.cache
def definition_of(kind: str) -> Any:
    """The definition of a kind of operation, or None where TensorFlow has none (TensorFlow 2.20 to 2.22)."""
    return op_def_registry.get(kind)


def only_reads(kind: str) -> bool:
    """Whether TensorFlow says that operations of a kind leave the resources that they take as they are (likewise)."""
    return kind in auto_control_deps_utils.RESOURCE_READ_OPS


def resources_written_by(operation: Any) -> list[Any]:
    """The resources that an operation may assign to, as TensorFlow itself keeps their order (likewise)."""
    return list(auto_control_deps_utils.get_read_write_resource_inputs(operation)[1])


def captured_by(graph: Any) -> dict[int, Any]:
    """What stands outside of a graph that is being traced for each tensor that came into it, by the id of that."""
    return {id(inner): outer for outer, inner in graph.captures}


def is_coarse(layer: Any) -> bool:
    """Whether a layer computes in half precision, or in whole numbers as quantized ones do (all)."""
    policy = getattr(layer, "dtype_policy", None)
    return isinstance(policy, keras.dtype_policies.QuantizedDTypePolicy) or (
        getattr(policy, "compute_dtype", None) in ("float16", "bfloat16")
    )


def has_loops(traced: Any) -> bool:
    """Whether a traced function, or one that it calls, runs a loop (TensorFlow 2.20 to 2.22)."""
    graph = traced.graph.as_graph_def()
    called = (node for function in graph.library.function for node in function.node_def)
    return any("body" in node.attr and "cond" in node.attr for node in (*graph.node, *called))


def with_constants(traced: Any) -> Callable[[Any], list[Any]]:
    """A traced function of one structure of tensors with its variables as constants (TensorFlow 2.20 to 2.22)."""
    constant = convert_variables_to_constants_v2(traced)

    def call(structure: Any) -> list[Any]:
        leaves = tf.nest.flatten(structure, expand_composites=True)
        return constant(*(leaf for leaf in leaves if leaf is not None))

    return call


class _Passing(threading.local):
    """The calls that were connected within `unrecorded`, in this thread."""

    nodes: list[Any] | None = None


_passing = _Passing()

# Held by whoever enters calls into the records of layers, or puts something in the place of what layers hold, for a
# while: the layers of one model may be at work in several threads.
surgery = threading.RLock()


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Takes the calls that are connected within it out of the records of their operations again (all).

    Keras needs them there to make a model of them, and not to run it. No other call gets another index: where one was
    recorded behind them, they stay.
    """
    with surgery:
        outer, _passing.nodes = _passing.nodes, []
        try:
            yield
        finally:
            made, _passing.nodes = _passing.nodes, outer
            _take_out(made)


def _take_out(made: list[Any]) -> None:
    for node in made:
        node.gone = True  # where a later one stands behind it, it goes with that
    for operation in {id(node.operation): node.operation for node in made}.values():
        record, taken = operation._inbound_nodes, list[Any]()
        while record and getattr(record[-1], "gone", False):
            taken.append(record.pop())
        outputs = {id(tensor) for node in taken for tensor in node.outputs}
        for consumer in list(operation._outbound_nodes):
            if not outputs.isdisjoint(map(id, consumer.input_tensors)):
                operation._outbound_nodes.remove(consumer)
        for node in taken:
            for tensor in node.input_tensors:
                consumers = tensor_history(tensor)[0]._outbound_nodes
                if node in consumers:
                    consumers.remove(node)


def record_calls(model: Any) -> list[Any]:
    """Enters the calls of a graph that were made within `unrecorded` into the records of their operations (all).

    So it can be saved, and others built on its tensors, as those of any model. Returns the calls that were not there.
    """
    graph = graph_of(model)
    with surgery:
        missing = [node for node in nodes(graph) if node not in node.operation._inbound_nodes]
        for node in nodes(graph):
            node.gone = False
        for node in missing:
            node.operation._inbound_nodes.append(node)
            number = len(node.operation._inbound_nodes) - 1
            for place, tensor in enumerate(node.outputs):
                tensor._keras_history = KerasHistory(node.operation, number, place)
        for node in nodes(graph) if missing else ():
            producers = {id(tensor): tensor_history(tensor)[0] for tensor in node.input_tensors}
            for producer in producers.values():
                if node not in producer._outbound_nodes:
                    producer._outbound_nodes.append(node)
        if missing:
            graph._nodes = {
                make_node_key(node.operation, node.operation._inbound_nodes.index(node)) for node in nodes(graph)
            }
    return missing


def forget_with(model: Any, calls: list[Any]) -> None:
    """Takes calls out of the records again once `model` is gone, unless something else is built on them by then."""
    before = _uses(calls)

    def forget() -> None:
        # It may run anywhere in a thread, and must not wait for what holds the records there or elsewhere.
        if not all(now <= then for now, then in zip(_uses(calls), before)):
            return
        for node in calls:
            node.gone = True  # and is taken out with the next at the latest
        if surgery.acquire(blocking=False):
            try:
                _take_out(calls)
            finally:
                surgery.release()

    weakref.finalize(model, forget).atexit = False


def _uses(calls: list[Any]) -> list[int]:
    """How many objects refer to calls and to what they give."""
    return [sys.getrefcount(part) for node in calls for part in (node, *node.outputs)]


@contextlib.contextmanager
def nothing_left_behind(handed_in: Any, *, always: bool = False) -> Iterator[None]:
    """Undoes what a failing block did to layers: calls recorded on them, and flags set (all).

    Args:
        handed_in: Layers, models and symbolic inputs, in any structure; everything else in it is passed over.
        always: Whether what was done is undone also where the block succeeds.
    """
    with surgery:
        yield from _undone(handed_in, always)


def _undone(handed_in: Any, always: bool) -> Iterator[None]:
    parts = {id(part): part for given in _layers_in(handed_in) for part in walk(given)}
    graphs = [graph for graph in map(call_graph, parts.values()) if graph is not None]
    parts.update({id(operation): operation for graph in graphs for operation in graph.operations})
    before = [(p, len(p._inbound_nodes), len(p._outbound_nodes), _flags(p)) for p in parts.values()]
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or always:
            for part, inbound, outbound, flags in before:
                del part._inbound_nodes[inbound:]
                del part._outbound_nodes[outbound:]
                for variable, trainable in flags["variables"]:
                    variable.trainable = trainable
                vars(part).update(flags["own"])


def forget_calls(graph: Any) -> None:
    """Takes the calls of a graph that is not needed any more out of the record of its operations (all).

    Those that others were recorded behind stay: no call gets another index.
    """
    with surgery:
        _take_out(nodes(graph))


def _layers_in(structure: Any) -> Iterator[Any]:
    for item in tree.flatten(structure):
        if isinstance(item, keras.Layer):
            yield item
        elif isinstance(item, keras.KerasTensor) and tensor_history(item)[0] is not None:
            yield tensor_history(item)[0]


def _flags(part: Any) -> dict[str, Any]:
    return {
        "own": {"_trainable": part._trainable} if "_trainable" in vars(part) else {},
        "variables": [(variable, variable.trainable) for variable in own_variables(part)],
    }


# ---------------------------------------------------------------------------------------------------------
# Pipelines of tf.data (TensorFlow 2.20 to 2.22)
# ---------------------------------------------------------------------------------------------------------


def drawn_anew(dataset: Any) -> Iterator[tuple[str, bool]]:
    """What in a pipeline differs from pass to pass, and whether it is the order of examples alone.

    What code of Python draws (a generator, `tf.py_function`) cannot be seen.
    """
    if isinstance(dataset, cache_op.CacheDataset):  # what comes out of it is that of the first pass
        return
    if isinstance(dataset, repeat_op._RepeatDataset) and int(dataset._count) > 1:  # it holds several passes already
        return
    if isinstance(dataset, shuffle_op._ShuffleDataset) and dataset._reshuffle_each_iteration is not False:
        yield "shuffle", True
    if isinstance(dataset, random_op._RandomDataset) and dataset._rerandomize:  # else it keeps its seed
        yield "random numbers", False
    kind = type(dataset).__name__.strip("_").removesuffix("Dataset")
    for function in dataset._functions():
        for name, order in _drawn_in(function.function.graph.as_graph_def()):
            yield f"{name} in {kind}", order
    for source in dataset._inputs():
        yield from drawn_anew(source)


def _drawn_in(graph: Any) -> Iterator[tuple[str, bool]]:
    """The same for a function in a pipeline, by the definitions of the operations that it runs."""
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    known = [(node, definition) for node in nodes if (definition := op_def_registry.get(node.op)) is not None]
    with_numbers = next((node.op for node, definition in known if _is_stateless_draw(definition)), None)
    for node, definition in known:
        inputs, attributes = ({part.name for part in parts} for parts in (definition.input_arg, definition.attr))
        unseeded = {"seed", "seed2"} <= attributes and node.attr["seed"].i == node.attr["seed2"].i == 0
        generator = "resource" in inputs and inputs & {"alg", "algorithm"}
        seeds_move = with_numbers and definition.is_stateful and {"resource", "value"} <= inputs
        if unseeded or generator:
            yield node.op, False
        elif seeds_move:  # a layer of Keras moves its seed
            yield str(with_numbers), False
        elif node.attr["reshuffle_each_iteration"].b:
            yield "shuffle", True


def _is_stateless_draw(definition: Any) -> bool:
    inputs = {part.name for part in definition.input_arg}
    return not definition.is_stateful and ("seed" in inputs or {"key", "counter"} <= inputs)


def batches_of_a_pass(dataset: Any) -> int | None:
    """How many batches come before an endless pipeline repeats them, where that is known."""
    size = 1
    while not isinstance(dataset, repeat_op._RepeatDataset):
        if isinstance(dataset, (batch_op._BatchDataset, batch_op._ParallelBatchDataset)):
            size *= int(dataset._batch_size)
        elif not isinstance(dataset, _ONE_FOR_ONE):
            return None
        (dataset,) = dataset._inputs()
    (repeated,) = dataset._inputs()
    count = int(repeated.cardinality())
    return -(-count // size) if int(dataset._count) == -1 and count > 0 else None


# Parts of a pipeline that give as many elements as they get.
_ONE_FOR_ONE = (
    cache_op.CacheDataset,
    dataset_ops._OptionsDataset,
    map_op._MapDataset,
    map_op._ParallelMapDataset,
    prefetch_op._PrefetchDataset,
    shuffle_op._ShuffleDataset,
)

# ---------------------------------------------------------------------------------------------------------
# What `fit` is given
# ---------------------------------------------------------------------------------------------------------


def takes_inputs(model: Any, inputs: Any) -> bool:
    """Whether a call of `model` on arrays of such names and shapes goes through, as Keras sees it (all)."""

    def spec(leaf: Any) -> Any:
        kind = keras.backend.standardize_dtype(getattr(leaf.dtype, "name", leaf.dtype))
        return keras.KerasTensor(tuple(leaf.shape), dtype=kind)

    try:
        given = tree.map_structure(lambda leaf: None if leaf is None else spec(leaf), inputs)
        compute_output_spec(lambda x: model(x, training=False), given)
    except (TypeError, ValueError, AttributeError):
        return False
    return True


def losses_of(model: Any) -> Any:
    """The losses that `model` was compiled with, as they were given (all); None where there are none."""
    return getattr(model._compile_loss, "_user_loss", None)


# How many examples stand for a batch where shapes are compared: no axis of another meaning is likely to be as long.
_ROWS = 997


def error_of_loss(model: Any, targets: Any, weights: Any) -> str | None:
    """What Keras has against targets and weights of such shapes, by a loss of its own (all); None where nothing."""

    def spec(leaf: Any) -> Any:
        kind = keras.backend.standardize_dtype(getattr(leaf.dtype, "name", leaf.dtype))
        return keras.KerasTensor((_ROWS, *leaf.shape[1:]), dtype=kind)

    compiled = model._compile_loss
    try:
        given = [tree.map_structure(lambda leaf: None if leaf is None else spec(leaf), x) for x in (targets, weights)]
    except (TypeError, ValueError, AttributeError):  # of kinds that are no arrays to Keras, such as sparse matrices
        return None
    outputs = tree.map_structure(
        lambda tensor: keras.KerasTensor((_ROWS, *tensor.shape[1:]), tensor.dtype), output_structure(call_graph(model))
    )
    loss = CompileLoss(compiled._user_loss, compiled._user_loss_weights, output_names=compiled.output_names)
    try:
        compute_output_spec(loss, given[0], outputs, given[1])
    except Exception as error:
        return first_line(error).replace(str(_ROWS), "examples")
    return None

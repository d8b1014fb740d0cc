"""What a layer of Keras is made of: layers, variables and other attributes, and which of these are Keras's own books.

It must not know of graphs and calls.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.models import Functional
from keras.src.utils import tracking

from .aliases import Variable

__all__ = [
    "BOOKKEEPING",
    "BOOKS",
    "FUNCTIONS",
    "OF_EVERY_LAYER",
    "OF_TENSORFLOW",
    "PLAIN",
    "TRACKED",
    "attributes",
    "bare_operations",
    "begins_masks",
    "below_lora",
    "beneath",
    "drop_activity_regularizers",
    "given_to_variable",
    "handle_of",
    "has_weights",
    "held",
    "held_by",
    "is_built_by_calling",
    "is_keras_2",
    "is_of_keras",
    "let_train",
    "named_parts",
    "objects_given",
    "own_trainable",
    "own_trainable_variables",
    "own_variables",
    "parts_by_path",
    "put",
    "replaced_methods",
    "same_policy",
    "saved_variables",
    "seed_states",
    "set_own_trainable",
    "set_trainable",
    "slots_of",
    "sublayers",
    "variables_by_name",
    "variables_by_path",
    "walk",
    "was_called",
    "with_state",
]

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

# What every layer has, whatever it computes: not given by anybody, and not made for the layer.
OF_EVERY_LAYER = frozenset(vars(keras.layers.Layer())) | BOOKKEEPING | OF_TENSORFLOW

# Attributes of every layer that decide what it computes; all others that every layer has are bookkeeping.
_DECIDING = frozenset(
    "autocast activity_regularizer supports_jit _convert_input_args _allow_non_tensor_positional_args "
    "_supports_masking".split()
)

# What Keras and TensorFlow keep their books in.
BOOKS = OF_EVERY_LAYER - _DECIDING

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

# The types of values that hold nothing: no functions, no state.
PLAIN = frozenset((type(None), bool, int, float, str, keras.initializers.Zeros, keras.initializers.Ones))

FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.MethodDescriptorType)


def sublayers(layer: keras.Layer) -> list[Any]:
    """The layers that `layer` holds directly (all)."""
    return list(getattr(layer, "_layers", ()))


def begins_masks(layer: keras.Layer) -> bool:
    """Whether `layer` is one of those that make masks in Keras itself (all)."""
    return isinstance(layer, keras.layers.Masking) or bool(getattr(layer, "mask_zero", False))


def was_called(layer: keras.Layer) -> bool:
    """Whether `layer` was called at all, on tensors or on symbolic ones (all)."""
    return bool(getattr(layer, "_called", False))


def walk(layer: keras.Layer) -> list[Any]:
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


def own_variables(layer: keras.Layer) -> list[Any]:
    """The variables that belong to `layer` itself: not those of its sublayers, no seeds (all)."""
    return [*getattr(layer, "_trainable_variables", ()), *getattr(layer, "_non_trainable_variables", ())]


def has_weights(operation: Any) -> bool:
    """Whether a layer, or one below it, has variables; an operation that is no layer has none."""
    parts = walk(operation) if isinstance(operation, keras.Layer) else []
    return any(own_variables(part) for part in parts)


def own_trainable_variables(layer: keras.Layer) -> list[Any]:
    """Those of its own variables that a layer made to train, whether they are frozen now or not (all)."""
    return list(getattr(layer, "_trainable_variables", ()))


def let_train(variable: Variable) -> None:
    """Lets a variable train, whatever it was when it was made: TensorFlow watches none that was made frozen (all)."""
    variable.trainable = True
    if getattr(variable, "_value", None) is not None:
        variable._value._trainable = True


def below_lora(layer: keras.Layer) -> list[Any]:
    """The variables of `layer` that LoRA stands in for, and that never train (all)."""
    names = ("_kernel", "_embeddings") if getattr(layer, "lora_enabled", False) else ()
    return [vars(layer)[name] for name in names if name in vars(layer)]


def seed_states(layer: keras.Layer) -> list[Any]:
    """The states of the seed generators of `layer` and all its sublayers (all)."""
    return [generator.state for part in walk(layer) for generator in getattr(part, "_seed_generators", ())]


def handle_of(variable: Variable) -> Any:
    """What operations of TensorFlow take for a variable of Keras (all)."""
    return getattr(variable._value, "handle", None)


def beneath(variable: Variable) -> Any:
    """The variable of TensorFlow in one of Keras; None where it has none yet (all)."""
    return variable if isinstance(variable, tf.Variable) else variable._value


def given_to_variable(variable: Variable) -> list[str]:
    """The attributes that somebody set on a variable of Keras (all)."""
    return sorted(vars(variable).keys() - _of_every_variable())


@functools.cache
def _of_every_variable() -> frozenset[str]:
    return frozenset(vars(keras.Variable(0.0))) | OF_TENSORFLOW


def named_parts(layer: keras.Layer) -> dict[int, str]:
    """Maps the id of every object that `layer` holds to the attribute that holds it.

    Attribute names are the same in every instance of a class, which variable names and the order of
    `layer.variables` are not (float8 layers, unnamed weights).
    """
    names: dict[int, str] = {}
    for path, held in held_by(layer):
        names.setdefault(id(held), path)
    return names


def held_by(layer: keras.Layer) -> Iterator[tuple[str, Any]]:
    """Every object that `layer` holds, also in dicts and lists, with the attribute that holds it."""
    attributes = vars(layer)
    for attribute in sorted(attributes.keys() - BOOKKEEPING - OF_TENSORFLOW):
        yield from ((f"{attribute}{suffix}", leaf) for suffix, leaf in _flat(attributes[attribute]))


def parts_by_path(
    layer: keras.Layer,
    only: Callable[[Any], bool] = lambda part: True,
    stand_in: Callable[[Any], Any] = lambda layer: layer,
    prefix: str = "",
) -> dict[str, Any]:
    """`layer` and every layer below it, by the attributes that hold them: the same for every instance of a class.

    Args:
        layer: The layer; its own path is the prefix.
        only: Which layers below it count.
        stand_in: What stands for a layer.
        prefix: What all paths begin with.
    """
    layer = stand_in(layer)
    found = {prefix: layer}
    parts = [part for part in sublayers(layer) if only(part)]
    if not parts:
        return found
    names = named_parts(layer)
    for index, part in enumerate(parts):
        path = f"{prefix}.{names.get(id(part), f'layers[{index}]')}"
        below = parts_by_path(part, only, stand_in, path)
        found.update({path: part for path, part in below.items() if path not in found})
    return found


def variables_by_name(layer: keras.Layer) -> dict[str, Any]:
    """The variables of `layer` itself, by the attributes that hold them; by shape and dtype where none does."""
    names = named_parts(layer)
    found: dict[str, Any] = {}
    for variable in own_variables(layer):
        name = names.get(id(variable), f"({'x'.join(map(str, variable.shape))} {variable.dtype})").lstrip("_")
        number = sum(key.split("#")[0] == name for key in found)
        found[f"{name}#{number}" if number else name] = variable
    return found


def variables_by_path(layer: keras.Layer) -> dict[str, Any]:
    """Every variable of `layer` and all below it, by the attributes that lead to it, from any of its instances."""
    parts = parts_by_path(layer)
    return {
        f"{path}.{name}".lstrip("."): variable
        for path, part in parts.items()
        for name, variable in variables_by_name(part).items()
    }


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


def held(operation: keras.Operation) -> dict[str, Any]:
    """The attributes of a layer, or an operation, that are not bookkeeping of Keras or TensorFlow (all).

    Neither are the states of a stateful RNN, with which a copy begins anew.
    """
    kind: Any = type(operation)
    every = attributes(operation) if _slots_of_instances(kind) else vars(operation)
    more = _of_class(operation)
    books = BOOKS | more if more else BOOKS
    return {name: value for name, value in every.items() if name not in books}


def _of_class(operation: keras.Operation) -> frozenset[str]:
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


def objects_given(layer: keras.Layer) -> dict[str, Any]:
    """The attributes of a layer that not every layer has, and that hold more than plain values and weights (all)."""
    return {
        name: value
        for name, value in vars(layer).items()
        if name not in BOOKS and type(value) not in PLAIN and not isinstance(value, keras.Variable)
    }


def put(operation: keras.Operation, name: str, value: Any) -> None:
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


def is_of_keras(thing: Any) -> bool:
    """Whether Keras itself defines a function, or the class of an object."""
    if str(type(thing).__module__).startswith("keras.src."):
        return True
    return isinstance(thing, FUNCTIONS) and str(thing.__module__).startswith("keras.src.")


def same_policy(policy: Any, other: Any) -> bool:
    """Whether two dtype policies are of one kind and say the same; their names may be lost (see `copy_policy`)."""

    def said_by(policy: Any) -> dict[str, Any]:
        return {name: value for name, value in vars(policy).items() if name not in ("_name", "_source_name")}

    return type(policy) is type(other) and said_by(policy) == said_by(other)


def _flat(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from ((f"[{key}]{suffix}", leaf) for suffix, leaf in _flat(item))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from ((f"[{index}]{suffix}", leaf) for suffix, leaf in _flat(item))
    else:
        yield "", value


def replaced_methods(model: keras.Model) -> list[str]:
    """The methods of its class that were replaced on `model` itself, such as its `call` (all)."""
    return sorted(
        name
        for name in vars(model).keys() - BOOKS - _of_class(model)
        if inspect.isroutine(getattr(type(model), name, None))
    )


def bare_operations(layer: keras.Layer) -> list[Any]:
    """The operations of the graph of `layer` that are no layers; none where it has no graph (all)."""
    graph = layer._functional if isinstance(layer, keras.Sequential) else layer
    operations = graph.operations if isinstance(graph, Functional) else []
    return [operation for operation in operations if not isinstance(operation, keras.Layer)]


def set_own_trainable(layer: keras.Layer, trainable: bool) -> None:
    """Sets the flag of `layer` alone (all).

    `layer.trainable = value` hands the value on to sublayers, and on TensorFlow does nothing at all
    where the flag already has that value.
    """
    if layer._trainable is not trainable:
        layer._trainable = trainable


def own_trainable(layer: keras.Layer) -> bool:
    """The flag of `layer` alone (all)."""
    return layer._trainable


def set_trainable(layer: keras.Layer, trainable: bool) -> None:
    """Sets the flags of `layer` and of all below it as Keras does, for a class with a `trainable` of its own (all)."""
    keras.Layer.trainable.fset(layer, trainable)


def drop_activity_regularizers(layer: keras.Layer) -> None:
    """Takes the activity losses from `layer` and everything below it (all)."""
    for part in walk(layer):
        if getattr(part, "activity_regularizer", None) is not None:
            part.activity_regularizer = None


def is_built_by_calling(layer: keras.Layer) -> bool:
    """Whether only a call creates the state of `layer`: it has sublayers and no `build` (all)."""
    return bool(sublayers(layer)) and getattr(layer.build, "_is_default", False)


def saved_variables(layer: keras.Layer) -> int:
    """How many variables Keras writes into a file for `layer`: those of LoRA are merged into others (all)."""
    lora = ("lora_kernel_a", "lora_kernel_b", "lora_embeddings_a", "lora_embeddings_b")
    merged = {id(getattr(part, name, None)) for part in walk(layer) for name in lora}
    return sum(id(variable) not in merged for part in walk(layer) for variable in own_variables(part))


def with_state(layer: keras.Layer) -> bool:
    """Whether `layer` keeps state outside its variables and its config: vocabularies (all)."""
    return hasattr(layer, "save_assets") and hasattr(layer, "load_assets")

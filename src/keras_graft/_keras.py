"""Everything private of Keras that this library needs, and every difference between versions.

This is the only module that imports `keras.src` or touches names that begin with an underscore on
Keras objects. Each function says what it gives, and on which versions the name behind it was seen
("all": 3.12.0, 3.15.1 and 3.16.0-dev). It knows nothing of policies, branches or merges.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras.src import tree
from keras.src.backend import compute_output_spec
from keras.src.models import Functional
from keras.src.ops.node import Node
from keras.src.saving.serialization_lib import SafeModeScope
from keras.src.utils.module_utils import tensorflow as tf

__all__ = ["Functional", "Node", "tree"]

# Names under which Keras books what a layer owns; every other attribute is the layer's own.
_BOOKKEEPING = frozenset(
    "_trainable_variables _non_trainable_variables _layers _seed_generators _metrics _tracker _tracked "
    "_operations _operations_by_depth _nodes _nodes_by_depth _inbound_nodes _outbound_nodes _losses "
    "_self_tracked_trackables _obj_reference_counts_dict _self_unconditional_checkpoint_dependencies "
    "_self_unconditional_dependency_names _build_shapes_dict".split()
)

# Attributes that decide what a layer computes and that its config leaves out (all); `lora_alpha` is in the config, and
# Dense and Embedding do not read it there (3.12, 3.15).
_NOT_IN_CONFIG = ("use_cudnn", "function", "lora_alpha")

# What stands for the sizes that a symbolic tensor leaves open, where a call needs numbers: the first that it runs with.
_SIZES = (8, 64, 2048)

# Beginnings of the names of TensorFlow operations that draw random numbers.
_DRAWING_OPERATIONS = (
    "Random",
    "StatelessRandom",
    "StatelessTruncatedNormal",
    "StatelessMultinomial",
    "StatelessParameterizedTruncatedNormal",
    "Multinomial",
    "TruncatedNormal",
    "ParameterizedTruncatedNormal",
)


# ---------------------------------------------------------------------------------------------------------
# What a layer is made of
# ---------------------------------------------------------------------------------------------------------


def sublayers(layer: Any) -> list[Any]:
    """The layers that `layer` holds directly (all)."""
    return list(getattr(layer, "_layers", ()))


def walk(layer: Any) -> Iterator[Any]:
    """`layer` and every layer below it, parents first, each once."""
    seen: set[int] = set()
    waiting = [layer]
    while waiting:
        current = waiting.pop(0)
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            waiting.extend(sublayers(current))


def own_variables(layer: Any) -> list[Any]:
    """The variables that belong to `layer` itself: not those of its sublayers, no seeds (all)."""
    return [*getattr(layer, "_trainable_variables", ()), *getattr(layer, "_non_trainable_variables", ())]


def seed_states(layer: Any) -> list[Any]:
    """The states of the seed generators of `layer` and all its sublayers (all)."""
    return [generator.state for part in walk(layer) for generator in getattr(part, "_seed_generators", ())]


def named_parts(layer: Any) -> dict[int, str]:
    """Maps the id of every object that `layer` holds to the attribute that holds it.

    Attribute names are the same in every instance of a class, which variable names and the order of
    `layer.variables` are not (float8 layers, unnamed weights).
    """
    names: dict[int, str] = {}
    attributes = vars(layer)
    for attribute in sorted(attributes.keys() - _BOOKKEEPING):
        value = attributes[attribute]
        if isinstance(value, (dict, list, tuple)):
            for suffix, leaf in _flat(value):
                names.setdefault(id(leaf), attribute + suffix)
        else:
            names.setdefault(id(value), attribute)
    return names


def _flat(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from ((f"[{key}]{suffix}", leaf) for suffix, leaf in _flat(item))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from ((f"[{index}]{suffix}", leaf) for suffix, leaf in _flat(item))
    else:
        yield "", value


def set_own_trainable(layer: Any, trainable: bool) -> None:
    """Sets the flag of `layer` alone (all).

    `layer.trainable = value` hands the value on to sublayers, and on TensorFlow does nothing at all
    where the flag already has that value.
    """
    layer._trainable = trainable


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


def copy_from_config(layer: Any, config: dict[str, Any]) -> Any:
    """A new object of the class of `layer` from `config`, its random initialisation left out.

    The initialisers are put back by `restore_unserialized`: the values that they would draw are thrown
    away anyhow, and drawing them is most of the time that copying a large model takes.
    """
    with keras.saving.custom_object_scope(_strangers(layer)), SafeModeScope(safe_mode=False):
        new = type(layer).from_config(config)
    for part in walk(new):
        attributes = vars(part)
        for attribute in [name for name, value in attributes.items() if _draws_values(value)]:
            attributes[attribute] = keras.initializers.Zeros()
    return new


def _strangers(layer: Any) -> dict[str, Any]:
    """The classes and functions in `layer` that Keras would not find by itself, under their saved names."""
    found: dict[str, Any] = {}
    for part in walk(layer):
        if not type(part).__module__.startswith("keras."):
            found[keras.saving.get_registered_name(type(part))] = type(part)
        function = getattr(part, "function", None)  # of a Lambda layer
        if callable(function):
            found[getattr(function, "__name__", "function")] = function
    return found


def _draws_values(value: Any) -> bool:
    return (
        isinstance(value, keras.initializers.Initializer)
        and type(value).__module__.startswith("keras.")
        and not isinstance(value, (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant))
    )


def restore_unserialized(original: Any, new: Any) -> None:
    """Gives `new` the initialisers of `original`, and what no config carries."""
    for attribute, value in vars(original).items():
        if _draws_values(value):
            vars(new)[attribute] = value.clone()
    for attribute in _NOT_IN_CONFIG:
        if attribute in vars(original):
            vars(new)[attribute] = vars(original)[attribute]
    if new.dtype_policy.name != original.dtype_policy.name:  # SpatialDropout writes its variable dtype alone (all)
        new.dtype_policy = original.dtype_policy


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
        with _weights_of(original, new, given):
            new.build_from_config(original.get_build_config())
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
            if tuple(shape) != tuple(source.shape) or keras.backend.standardize_dtype(dtype) != source.dtype:
                return keras.initializers.get(usual)(shape, dtype=dtype)
            used.append(source)
            return keras.ops.convert_to_tensor(source)

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
    return tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype), shapes[0]
    )


def new_input(tensor: Any, name: str | None = None) -> Any:
    """A new `keras.Input` that takes what `tensor` takes, under its name where it is an input itself (all)."""
    layer = tensor_history(tensor)[0] if hasattr(tensor, "_keras_history") else None
    if isinstance(layer, keras.layers.InputLayer):
        new = type(layer).from_config({**layer.get_config(), "name": name or layer.name})
        set_own_trainable(new, layer.trainable)
        new.optional = layer.optional  # which the config of 3.12 leaves out
        new.output.name = name or tensor.name
        return new.output
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, sparse=tensor.sparse, name=name)


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
    Node(operation, call_args=args, call_kwargs=kwargs, outputs=outputs)
    return outputs


def strip_training(graph: Any) -> None:
    """Removes every stored `training=` from the calls of a functional graph that is ours (all).

    Up to 3.15 Keras writes `training=False` into the calls of Dropout and RNN layers by itself, and
    `fit` and `predict` override it. 3.16 writes nothing and obeys what it finds.
    """
    for node in nodes(graph):
        node.arguments.kwargs.pop("training", None)


# ---------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------


def call_in_mode(caller: Any, layer: Any, training: bool | None, args: Any, kwargs: Any) -> Any:
    """Calls `layer` in the given mode, for `caller`, whose own mode holds again afterwards.

    Keras keeps the mode in one context for the whole call of the outermost layer, and an explicit
    `training=` stays there: in 3.16 for every layer behind, before that for siblings (all).
    """
    context = caller._get_call_context()
    mode = context.get_value("training")
    try:
        return layer(*args, **kwargs) if training is None else layer(*args, training=training, **kwargs)
    finally:
        context.set_value("training", mode)


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


def build_from_call(layer: Any, call_spec: Any) -> None:
    """Builds `layer` from the arguments of a call as Keras itself would (all)."""
    layer._maybe_build(call_spec)


def has_tensors(call_spec: Any) -> bool:
    """Whether a call got tensors, whose shapes Keras can build from, or arrays alone (all)."""
    return bool(call_spec.tensor_arguments_dict)


def takes_training(layer: Any) -> bool:
    """Whether `layer.call` has a `training` argument."""
    return "training" in inspect.signature(layer.call).parameters


def trace(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs `function` on symbolic tensors, without computing anything (all).

    Code that loops over a sequence or asks for a value runs only where its sizes are known and AutoGraph has converted
    it, as it is in `fit`: that is the second try.
    """
    try:
        return compute_output_spec(function, *args, **kwargs)
    except Exception as error:  # whatever a stranger's `call` may raise
        try:
            return _with_sizes(lambda size: _trace_in_function(function, args, kwargs, size))
        except Exception:
            raise error from None


def _with_sizes(action: Callable[[int], Any]) -> Any:
    """What `action` returns for the first of the sizes that it runs with."""
    errors = []
    for size in _SIZES:
        try:
            return action(size)
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _trace_in_function(function: Callable[..., Any], args: Any, kwargs: Any, size: int) -> Any:
    """The same in a `tf.function`, with `size` for every size of the tensors that is open."""
    leaves = tree.flatten((args, kwargs))
    symbolic = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
    specs = [tf.TensorSpec(_closed(tensor.shape, size), tensor.dtype) for tensor in symbolic]

    def call(*tensors: Any) -> Any:
        given = {id(leaf): tensor for leaf, tensor in zip(symbolic, tensors)}
        filled_args, filled_kwargs = tree.map_structure(lambda leaf: given.get(id(leaf), leaf), (args, kwargs))
        return function(*filled_args, **filled_kwargs)

    return tf.function(call).get_concrete_function(*specs).structured_outputs


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a call of a layer does besides computing its outputs.

    Attributes:
        updates: Names of the variables that it assigns, also of variables that Keras does not track. Not those of
            seed generators, which some layers move in inference mode too.
        draws: Whether its outputs depend on random numbers.
        losses: Whether it adds losses of its own.
        leaks: Whether layers behind it would run in another mode than the one that it was called in.
    """

    updates: tuple[str, ...]
    draws: bool
    losses: bool
    leaks: bool


def observe(layer: Any, training: bool, args: Any, kwargs: Any) -> Observation:
    """Traces a call of `layer`: nothing runs, and nothing of it changes (all)."""
    assigned: dict[int, Any] = {}
    draws = losses = leaks = False

    def probe(*args: Any, **kwargs: Any) -> Any:
        nonlocal draws, losses, leaks
        with keras.StatelessScope(collect_losses=True) as scope:
            context = layer._get_call_context()
            outputs = layer(*args, training=training, **kwargs)
        leaks = context.get_value("training") is not training
        assigned.update(scope.state_mapping)
        losses = bool(scope.losses)
        draws = any(_is_random(tensor) for tensor in tree.flatten(outputs) if hasattr(tensor, "op"))
        return outputs

    trace(probe, *args, **kwargs)
    names = {id(variable): variable.path for variable in layer.variables}
    seeds = {id(state) for state in seed_states(layer)}
    seeds |= {key for key, value in assigned.items() if key not in names and _looks_like_a_seed(value)}
    updates = [names.get(key, "a variable that Keras does not track") for key in assigned if key not in seeds]
    return Observation(tuple(sorted(updates)), draws, losses, leaks)


def _looks_like_a_seed(value: Any) -> bool:
    return tuple(value.shape) == (2,) and "int" in keras.backend.standardize_dtype(value.dtype)


def _is_random(tensor: Any) -> bool:
    """Whether a tensor of a TensorFlow graph depends on an operation that draws random numbers."""
    seen: set[int] = set()
    waiting = [tensor.op]
    while waiting:
        operation = waiting.pop()
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        if _draws(operation):
            return True
        waiting.extend(source.op for source in operation.inputs)
    return False


def _draws(operation: Any) -> bool:
    if operation.type.startswith(_DRAWING_OPERATIONS):
        return not _has_fixed_seed(operation)
    return any(kind.startswith(_DRAWING_OPERATIONS) for kind in _kinds_within(operation.node_def, operation.graph))


def _kinds_within(node: Any, graph: Any) -> Iterator[str]:
    """The kinds of all operations in the functions (bodies of loops and branches) that a node calls."""
    waiting, seen = [node], set()
    while waiting:
        for value in waiting.pop().attr.values():
            for name in [value.func.name, *(function.name for function in value.list.func)]:
                if name in graph._functions and name not in seen:
                    seen.add(name)
                    nodes_within = graph._functions[name].cached_definition.node_def
                    waiting.extend(nodes_within)
                    yield from (inner.op for inner in nodes_within)


def _has_fixed_seed(operation: Any) -> bool:
    """Whether a stateless operation gets its seed from constants alone: the same numbers in every call."""
    if not operation.type.startswith("Stateless"):
        return False
    waiting = [operation.inputs[1].op]
    while waiting:
        source = waiting.pop()
        if not source.inputs and source.type != "Const":
            return False
        waiting.extend(tensor.op for tensor in source.inputs)
    return True


def same(original: Any, new: Any, training: bool) -> bool:
    """Whether `new`, in a mode, computes what `original` computes in inference mode, on made-up data (all).

    Nothing of either changes. Where `original` draws random numbers in inference mode too, there is nothing to compare.
    """
    args, kwargs = call_arguments(original)
    if observe(original, False, args, kwargs).draws:
        return True

    def compare(size: int) -> bool:
        made_up_args, made_up_kwargs = _made_up((args, kwargs), size)
        with keras.StatelessScope():
            expected = tree.flatten(original(*made_up_args, training=False, **made_up_kwargs))
            actual = tree.flatten(new(*made_up_args, training=training, **made_up_kwargs))
        return len(expected) == len(actual) and all(map(_close, expected, actual))

    return _with_sizes(compare)


def does_nothing(layer: Any) -> bool:
    """Whether `layer` gives back its first argument in inference mode, on made-up data (all)."""

    def compare(size: int) -> bool:
        args, kwargs = _made_up(call_arguments(layer), size)
        with keras.StatelessScope():
            actual = tree.flatten(layer(*args, training=False, **kwargs))
        expected = tree.flatten((args, kwargs))[:1]
        return len(actual) == 1 and _close(expected[0], actual[0])

    return _with_sizes(compare)


def _made_up(arguments: Any, size: int) -> Any:
    """Data for the symbolic tensors among some arguments. Everything else stays as it is."""

    def data(argument: Any) -> Any:
        if not isinstance(argument, keras.KerasTensor):
            return argument
        shape = _closed(argument.shape, size)
        if "float" in argument.dtype:
            return keras.random.normal(shape, dtype=argument.dtype, seed=1)
        return keras.ops.ones(shape, dtype=argument.dtype)

    return tree.map_structure(data, arguments)


def _closed(shape: Any, size: int) -> list[int]:
    """A shape of 2 examples, with `size` where another size is open."""
    return [(2 if axis == 0 else size) if known is None else known for axis, known in enumerate(shape)]


def _close(expected: Any, actual: Any) -> bool:
    """Whether two tensors are equal but for what another kernel may change in the last places of their dtype."""
    dtype = keras.backend.standardize_dtype(expected.dtype)
    if expected.shape != actual.shape or dtype != keras.backend.standardize_dtype(actual.dtype):
        return False
    if "float" not in dtype:
        return bool(keras.ops.all(expected == actual))
    expected, actual = (keras.ops.convert_to_numpy(keras.ops.cast(t, "float32")) for t in (expected, actual))
    limit = (3e-2 if "16" in dtype else 1e-4) * max(1e-6, float(np.nanmax(np.abs(expected), initial=0)))
    return bool(np.allclose(actual, expected, rtol=0, atol=limit, equal_nan=True))


def takes_training_for_granted(layer: Any) -> bool:
    """Whether `layer`, called without a mode, runs in training mode, which Keras then takes for that of all behind."""
    parameter = inspect.signature(layer.call).parameters.get("training")
    return parameter is not None and parameter.default not in (None, False, parameter.empty)


@contextlib.contextmanager
def nothing_left_behind(handed_in: Any, *, always: bool = False) -> Iterator[None]:
    """Undoes what a failing block did to layers: calls recorded on them, and flags set (all).

    Args:
        handed_in: Layers, models and symbolic inputs, in any structure; everything else in it is passed over.
        always: Whether what was done is undone also where the block succeeds.
    """
    parts = {id(part): part for given in _layers_in(handed_in) for part in walk(given)}
    graphs = [graph_of(part) for part in parts.values() if graph_of(part) is not None]
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
    """Takes the calls of a graph that is not needed any more out of the record of its operations (all)."""
    for node in nodes(graph):
        if node in node.operation._inbound_nodes:
            node.operation._inbound_nodes.remove(node)
        for tensor in node.input_tensors:
            consumers = tensor_history(tensor)[0]._outbound_nodes
            if node in consumers:
                consumers.remove(node)


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

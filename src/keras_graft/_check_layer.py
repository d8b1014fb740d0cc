"""`check_layer`: whether a layer of one's own holds what the library relies on.

It runs the other modules on one layer and reports what came of it. It must not know how they do it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import pathlib
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import _keras
from ._arguments import described
from ._audit.audit import audit
from ._behaviour import made_up, untouched
from ._behaviour.findings import Row
from ._behaviour.table import Effect
from ._engine.errors import RebuildError
from ._engine.policy import Augmentation, Policy, decider
from ._engine.rebuild import rebuild
from ._features.fingerprint import Uncomparable, fingerprint_of_model
from ._keras import Layer, Structure
from ._mode_lock import ModeLock
from ._split.split import split

__all__ = ["Finding", "LayerReport", "Outcome", "check_layer"]


class Outcome(Enum):
    """Whether a property of a layer holds."""

    HOLDS = "holds"
    FAULT = "does not hold"
    UNKNOWN = "cannot be known"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found out about one property of a layer.

    Attributes:
        name: The property, such as `"copy"`.
        outcome: Whether it holds.
        reason: What was seen.
        way_out: What to change; empty where there is nothing to.
    """

    name: str
    outcome: Outcome
    reason: str = ""
    way_out: str = ""

    def __str__(self) -> str:
        told = f"{self.name} {self.outcome.value}"
        return ": ".join(filter(None, [told, f"{self.reason} {self.way_out}".strip()]))


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What `check_layer` found out about a layer. Print it for a table.

    Attributes:
        layer: Name of the class of the layer.
        keras_version: The Keras that the answers hold for.
        findings: One for each property.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import LayerReport, check_layer
    >>> report: LayerReport = check_layer(keras.layers.Dense(4), np.ones((8, 3), "float32"))
    >>> report.faults
    ()
    """

    layer: str
    keras_version: str
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings of the properties that do not hold."""
        return tuple(finding for finding in self.findings if finding.outcome is Outcome.FAULT)

    def raise_for_faults(self) -> None:
        """Raises unless every property holds, or cannot be known. For the test suites of packages.

        Raises:
            AssertionError: With a line for each property that does not hold.
        """
        if self.faults:
            lines = "\n".join(f"- {finding}" for finding in self.faults)
            raise AssertionError(f"{self.layer} does not hold what keras_graft relies on:\n{lines}")

    def __str__(self) -> str:
        """A line for each property, at most 100 columns wide."""
        lines = [f"{self.layer} on Keras {self.keras_version}"]
        first: dict[str, str] = {}  # where each reason was given first
        for finding in self.findings:
            begin = f"{finding.name:<12} {finding.outcome.value:<16} "
            told = f"{finding.reason} {finding.way_out}".strip()
            source = first.setdefault(told, finding.name)
            if told and source != finding.name:
                told = f"See {source}."
            wrapped = textwrap.wrap(told, 100 - len(begin)) or [""]
            lines.append(begin + ("\n" + " " * len(begin)).join(wrapped))
        return "\n".join(line.rstrip() for line in lines)


def check_layer(layer: Layer, *inputs: Any, **call_arguments: Any) -> LayerReport:
    """Finds out whether a layer or model of your own holds what this library relies on.

    In the manner of scikit-learn's `check_estimator`. For each property it is said whether it holds, with the reason
    and the way out:

    - **config**: `from_config(get_config())` gives a layer with the same config, and it is made of plain values.
    - **copy**: a copy computes the same bits: constructor arguments, variables and all else that it holds.
    - **file**: a model with the layer, saved and loaded, computes the same bits.
    - **inference**: in inference mode it gives the same bits again and moves nothing.
    - **training**: what it does in training mode is known without data, and is what is seen on data.
    - **frozen**: frozen, it stands still in `fit`.
    - **keep**, **off**, **remove**, **always**: each dropout policy composes, and does what it says.
    - **features**: silenced, it can be computed once, ahead of the training (see `fit_head`).
    - **fingerprint**: its features can be told from those of other layers in a later run.

    The layer is built, where it is not yet, as a call builds it. Nothing else of it changes.

    Args:
        layer: The `keras.Layer` or `keras.Model` to check.
        *inputs: What a call of it takes: arrays or tensors of shape (examples, ...), alone or in lists and dicts. What
            is random may not show on few numbers: give 8 examples or more.
        **call_arguments: Further arguments of the call, such as `mask=...`; not `training`.

    Returns:
        A `LayerReport`: `print(report)` for a table, `report.raise_for_faults()` for a test.

    Raises:
        TypeError: If `layer` is not a Keras layer.
        ValueError: If there are no inputs, `training` is among the arguments, or the layer does not run on them.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import check_layer
    >>> class Noise(keras.layers.Layer):
    ...     def call(self, inputs):
    ...         return inputs + keras.random.normal(keras.ops.shape(inputs))
    >>> report = check_layer(Noise(), np.ones((8, 3), "float32"))
    >>> print(report.faults[0])
    inference does not hold: In inference mode it gives something else each time. Draw random numbers, and assign to
    variables, where `training` is true only.
    """
    _check_arguments(layer, inputs, call_arguments)
    with _keras.nothing_left_behind([layer], always=True):
        subject = _subject(layer, inputs, call_arguments)
        findings = tuple(_finding(name, check, subject) for name, check in _CHECKS.items())
    return LayerReport(type(layer).__name__, keras.__version__, findings)


def _check_arguments(layer: keras.Layer, inputs: Structure, call_arguments: dict[str, Any]) -> None:
    if not isinstance(layer, keras.Layer):
        raise TypeError(
            f"`layer` must be a Keras layer or model, an instance and not a class. Received: layer={layer!r} (of type "
            f"{type(layer).__name__})"
        )
    if "training" in call_arguments:
        raise ValueError("`check_layer` runs the layer in both modes. Leave `training` out.")
    leaves = keras.tree.flatten((inputs, call_arguments))
    data = [leaf for leaf in leaves if _is_data(leaf)]
    if not data or any(isinstance(leaf, keras.KerasTensor) or leaf.shape[0] == 0 for leaf in data):
        raise ValueError(
            "`check_layer` needs a batch of data, arrays or tensors of at least one example, to call the layer with: "
            f"`check_layer(layer, np.ones((8, 3)))`. Received: inputs={described(inputs)}"
        )


# ---------------------------------------------------------------------------------------------------------
# What is checked
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Subject:
    """A layer and what it is called with.

    Attributes:
        layer: The layer.
        model: A model that calls it once.
        data: What that takes.
    """

    layer: Any
    model: keras.Model
    data: Any

    @functools.cached_property
    def features(self) -> list[np.ndarray]:
        """What the layer gives in inference mode."""
        return _outputs(self.model, self.data, training=False)

    @functools.cached_property
    def repeats(self) -> bool:
        """Whether it gives the same in each call in inference mode."""
        return not _draws(self.model, self.data, training=False)

    @functools.cached_property
    def not_comparable(self) -> str:
        """Why its features tell nothing; empty where they do."""
        if not self.repeats:
            return "In inference mode it gives something else each time, so nothing can be compared."
        if not any(map(_tells, self.features)):
            return "It gives nothing but 0 or what is no number for these inputs, so nothing can be compared."
        return ""

    def composed(self, policy: Policy, augmentation: Augmentation = "off") -> keras.Model:
        """A frozen copy under a dropout policy."""
        return rebuild(self.model, decider(policy, augmentation, copy=True, frozen=True), frozen=True)

    def same_as(self, ours: list[np.ndarray]) -> bool:
        """Whether these are the features, but for what another kernel may round otherwise."""
        return len(ours) == len(self.features) and all(map(made_up.close, self.features, ours))


# How often a layer runs before it counts as giving the same each time.
_RUNS = 4


def _tells(array: np.ndarray) -> bool:
    """Whether there is something in an output that another one could lack."""
    if array.dtype.kind in "OSUb":
        return array.size > 0
    values = array.astype("complex128" if array.dtype.kind == "c" else "float64")
    return bool((np.isfinite(values) & (values != 0)).any())


def _is_data(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and len(leaf.shape) > 0


def _subject(layer: keras.Layer, inputs: Structure, call_arguments: dict[str, Any]) -> _Subject:
    """The layer in a model that calls it as it would be called with some data."""
    tensors = keras.tree.map_structure(lambda leaf: tf.convert_to_tensor(leaf) if _is_data(leaf) else leaf, inputs)
    data = [leaf for leaf in keras.tree.flatten((tensors, call_arguments)) if _is_data(leaf)]
    if _keras.call_graph(layer) is not None and len(inputs) == 1 and not call_arguments:
        makers: list[Callable[[], _Subject]] = [functools.partial(_Subject, layer, layer, tensors[0])]
    else:  # some layers need to know how many examples a batch holds
        makers = [functools.partial(_around, layer, tensors, call_arguments, fixed) for fixed in (False, True)]
    causes = []
    for make in makers:
        try:
            subject = make()
            with _unchanged(layer), keras.StatelessScope(), _keras.functions_traced_anew():
                subject.model(subject.data, training=False)
        except Exception as error:  # whatever a stranger's `call` may raise
            causes.append(error)
        else:
            return subject
    raise ValueError(
        f"{type(layer).__name__} '{layer.name}' does not run on these inputs, in a functional model: "
        f"{type(causes[0]).__name__}: {_keras.first_line(causes[0])} Received: {[tuple(t.shape) for t in data]}"
    ) from causes[0]


def _around(layer: keras.Layer, inputs: Structure, call_arguments: dict[str, Any], fixed: bool) -> _Subject:
    """The layer in a model that calls it once; `fixed`, with batches of the size of the data."""
    leaves = keras.tree.flatten((inputs, call_arguments))
    data = [tf.convert_to_tensor(leaf) for leaf in leaves if _is_data(leaf)]
    symbolic = [keras.Input(batch_shape=_shape(tensor, fixed), dtype=tensor.dtype.name) for tensor in data]
    waiting = iter(symbolic)
    filled = [next(waiting) if _is_data(leaf) else leaf for leaf in leaves]
    args, kwargs = keras.tree.pack_sequence_as((inputs, call_arguments), filled)
    outputs = layer(*args, **kwargs)
    one = len(data) == 1
    model = keras.Model(symbolic[0] if one else symbolic, outputs, name=f"around_{layer.name}")
    return _Subject(layer, model, data[0] if one else data)


def _shape(tensor: tf.Tensor, fixed: bool) -> tuple[int | None, ...]:
    return (tensor.shape[0] if fixed else None, *tensor.shape[1:])


def _outputs(model: keras.Model, data: Any, *, training: bool) -> list[np.ndarray]:
    """What a model gives, run as `fit` and `predict` run it."""
    traced = tf.function(lambda data: model(data, training=training), autograph=False).get_concrete_function(data)
    return [np.asarray(tensor) for tensor in keras.tree.flatten(traced(data))]


def _same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    pairs = list(zip(ours, theirs))
    return len(ours) == len(theirs) and all(one.dtype == other.dtype and _bits(one, other) for one, other in pairs)


def _bits(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype != object:
        return untouched.same_bits(one, other)
    return one.shape == other.shape and one.tolist() == other.tolist()


def _draws(model: keras.Model, data: Any, *, training: bool) -> bool:
    """Whether a model gives something else each time, although nothing but seeds moves in between."""
    runs = []
    for _ in range(_RUNS):
        with _as_they_were(_without_seeds(model)):
            runs.append(_outputs(model, data, training=training))
    return any(not _same(runs[0], run) for run in runs[1:])


def _without_seeds(layer: keras.Layer) -> list[Any]:
    seeds = {id(state) for state in _keras.seed_states(layer)}
    return [variable for variable in layer.variables if id(variable) not in seeds]


@contextlib.contextmanager
def _as_they_were(variables: list[Any]) -> Iterator[None]:
    """Gives variables back the values that they had."""
    before = [(variable, keras.ops.convert_to_numpy(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


@contextlib.contextmanager
def _unchanged(layer: keras.Layer) -> Iterator[None]:
    """Undoes what calls do to a layer that is built."""
    variables = [*_without_seeds(layer), *_keras.seed_states(layer)]
    with _as_they_were(variables), untouched.left_as_it_was(layer), _keras.nothing_left_behind([layer], always=True):
        yield


# ---------------------------------------------------------------------------------------------------------
# The checks
# ---------------------------------------------------------------------------------------------------------

Check = Callable[[_Subject], Finding]


def _finding(name: str, check: Check, subject: _Subject) -> Finding:
    """What a check says; an error of it is a fault, which names its way out itself where it is one of ours."""
    try:
        with _unchanged(subject.layer):
            found = check(subject)
    except RebuildError as error:
        found = _fault(str(error))
    except Exception as error:  # whatever a stranger's code may raise
        found = _fault(f"{type(error).__name__}: {_keras.first_line(error)}", _WAYS_OUT.get(name, ""))
    return dataclasses.replace(found, name=name)


def _holds(reason: str = "") -> Finding:
    return Finding("", Outcome.HOLDS, reason)


def _fault(reason: str, way_out: str = "") -> Finding:
    return Finding("", Outcome.FAULT, reason, way_out)


def _unknown(reason: str, way_out: str = "") -> Finding:
    return Finding("", Outcome.UNKNOWN, reason, way_out)


def _config(subject: _Subject) -> Finding:
    layer = subject.layer
    if _keras.is_of_keras(layer):
        return _holds("Keras defines it.")
    config = layer.get_config()
    forgotten = sorted(_arguments_of(type(layer)) - config.keys())
    if forgotten and not _reads_config(type(layer)):
        return _fault(f"`get_config` leaves out {forgotten}.", _WAYS_OUT["config"])
    with keras.saving.custom_object_scope(_classes_of(layer)):
        again = type(layer).from_config(layer.get_config()).get_config()
    if _as_json(again) != _as_json(config):
        other = sorted(
            key for key in config.keys() | again.keys() if _as_json(again.get(key)) != _as_json(config.get(key))
        )
        return _fault(f"A layer made from the config has another one: {other} differ.", _WAYS_OUT["config"])
    return _holds()


def _reads_config(cls: Any) -> bool:
    """Whether a class has a `from_config` of its own, which may find arguments elsewhere."""
    return cls.from_config.__func__ not in (keras.Layer.from_config.__func__, keras.Model.from_config.__func__)


def _arguments_of(cls: Any) -> set[str]:
    """The arguments that the constructor of a class names, without those of every layer."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named - {"self"} - inspect.signature(keras.Layer.__init__).parameters.keys()


def _as_json(config: Any) -> str:
    return json.dumps(keras.saving.serialize_keras_object(config), sort_keys=True)


def _copy(subject: _Subject) -> Finding:
    copy = rebuild(subject.model, decider("keep", "keep", copy=True, frozen=True), frozen=True)
    if subject.not_comparable:
        return _unknown(subject.not_comparable)
    if not _same(_outputs(copy, subject.data, training=False), subject.features):
        return _fault("A copy does not compute what the layer computes.", _WAYS_OUT["copy"])
    return _holds()


def _file(subject: _Subject) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        subject.model.save(path)
        loaded, note = _loaded(path, subject.layer)
    if subject.not_comparable:
        return _unknown(subject.not_comparable)
    if not _same(_outputs(loaded, subject.data, training=False), subject.features):
        return _fault("Saved and loaded, it does not compute what it computed.", _WAYS_OUT["file"])
    return _holds(note)


def _loaded(path: pathlib.Path, layer: keras.Layer) -> tuple[keras.Model, str]:
    """The model in a file, and what that took."""
    try:
        return keras.saving.load_model(path), ""
    except Exception:  # a class that is not registered, or a function of Python, which Keras runs on request alone
        with keras.saving.custom_object_scope(_classes_of(layer)):
            loaded = keras.saving.load_model(path, safe_mode=False)
    return loaded, "Its class is not registered, so loading takes `custom_objects`."


def _classes_of(layer: keras.Layer) -> dict[str, Any]:
    return {keras.saving.get_registered_name(type(part)): type(part) for part in _keras.walk(layer)}


def _inference(subject: _Subject) -> Finding:
    if not subject.repeats:
        return _fault("In inference mode it gives something else each time.", _WAYS_OUT["inference"])
    before = _state(subject.layer)
    _outputs(subject.model, subject.data, training=False)
    moved = _moved(before, _state(subject.layer))
    return _fault(f"In inference mode it moves {moved}.", _WAYS_OUT["inference"]) if moved else _holds()


def _state(layer: keras.Layer) -> dict[str, bytes]:
    """The values of all variables of a layer, also of those that Keras does not know; not those of seed generators."""
    values = {f"'{v.path}'": keras.ops.convert_to_numpy(v).tobytes() for v in _without_seeds(layer)}
    hidden = untouched.hidden_values(layer)
    return {**values, **{f"{untouched.UNTRACKED} ({number})": value.tobytes() for number, value in enumerate(hidden)}}


def _moved(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    return [path for path, value in after.items() if value != before.get(path)]


def _training(subject: _Subject) -> Finding:
    rows = audit(subject.model, subject.data).rows
    wrong = [row for row in rows if row.contradiction]
    if wrong:
        return _fault(f"{wrong[0].type}: {wrong[0].contradiction}.", _WAYS_OUT["training"])
    live = [row for row in rows if row.live]
    if any(row.effect is Effect.UNKNOWN for row in live):
        return _unknown(_doing(live), _WAYS_OUT["training"])
    return _holds(_doing(live) if live else "It computes the same in both modes.")


def _doing(live: list[Row]) -> str:
    return "; ".join(dict.fromkeys(f"{row.type} {row.fit}: {row.reason}" for row in live)) + "."


def _frozen(subject: _Subject) -> Finding:
    frozen = subject.composed("keep")
    before = _state(frozen)
    for _ in range(2):
        _outputs(frozen, subject.data, training=True)
    moved = _moved(before, _state(frozen))
    return _fault(f"Frozen, it moves {moved} in training mode.", _WAYS_OUT["frozen"]) if moved else _holds()


def _keep(subject: _Subject) -> Finding:
    made = subject.composed("keep", "keep")
    if subject.not_comparable:
        return _unknown(subject.not_comparable)
    if not subject.same_as(_outputs(made, subject.data, training=False)):
        return _fault("In inference mode it does not give its features.", _WAYS_OUT["copy"])
    if _draws(subject.model, subject.data, training=True) and not _draws(made, subject.data, training=True):
        return _fault("In training mode it does not drop.", _WAYS_OUT["policy"])
    return _holds(_lock_in(made))


def _silent(policy: Policy, subject: _Subject) -> Finding:
    made = subject.composed(policy)
    if subject.not_comparable:
        return _unknown(subject.not_comparable)
    if _draws(made, subject.data, training=True):
        return _fault("In training mode it still drops.", _WAYS_OUT["policy"])
    if not subject.same_as(_outputs(made, subject.data, training=True)):
        return _fault("In training mode it does not give the features of inference mode.", _WAYS_OUT["copy"])
    return _holds(_lock_in(made))


def _always(subject: _Subject) -> Finding:
    made = subject.composed("always")
    drops = _draws(subject.composed("keep"), subject.data, training=True)
    if drops and not _draws(made, subject.data, training=False):
        return _fault("In inference mode it does not drop.", _WAYS_OUT["policy"])
    return _holds(_lock_in(made))


def _lock_in(made: keras.Model) -> str:
    return "A ModeLock holds it." if any(type(part) is ModeLock for part in _keras.walk(made)) else ""


def _ahead(subject: _Subject) -> Finding:
    found = split(subject.composed("off"))
    if found.in_the_way:
        return _fault("; ".join(f"'{path}': {why}" for path, why in found.in_the_way.items()), _WAYS_OUT["features"])
    if subject.not_comparable:
        return _unknown(subject.not_comparable)
    if not subject.same_as(_outputs(found.rest, found.features(subject.data), training=True)):
        return _fault("Cut behind the layer, a model computes something else.", _WAYS_OUT["features"])
    return _holds()


def _fingerprint(subject: _Subject) -> Finding:
    try:
        one, other = (fingerprint_of_model(split(subject.composed("keep")).features) for _ in range(2))
    except Uncomparable as cause:
        return _unknown(f"Stored features are not used again: they hang on {cause}, which cannot be compared.")
    if one != other:
        return _unknown("Two copies cannot be told to be equal, so stored features are not used again.")
    return _holds()


_CHECKS: dict[str, Check] = {
    "config": _config,
    "copy": _copy,
    "file": _file,
    "inference": _inference,
    "training": _training,
    "frozen": _frozen,
    "keep": _keep,
    "off": functools.partial(_silent, "off"),
    "remove": functools.partial(_silent, "remove"),
    "always": _always,
    "features": _ahead,
    "fingerprint": _fingerprint,
}

_WAYS_OUT = {
    "config": "Return every argument of the constructor from `get_config`, as numbers, strings, lists and dicts.",
    "copy": "Return every argument of the constructor from `get_config`, and keep all else that a call computes with "
    "in weights (`add_weight`), which are copied.",
    "file": "Return every argument of the constructor from `get_config`, create every weight in `build`, and keep what "
    "is learned in weights.",
    "inference": "Draw random numbers, and assign to variables, where `training` is true only.",
    "training": "Take `training` in `call`, hand it on to what the layer holds, and draw from a "
    "`keras.random.SeedGenerator`; or say what the class does: `register_layer`.",
    "frozen": "Assign to variables only where `training and self.trainable`, as BatchNormalization does; or tell the "
    "library what to put in its place: `register_layer`.",
    "policy": "Name the dropout arguments of the constructor so that they can be found (`dropout`, `rate`, ...), or "
    "say which they are: `register_layer(rates=[...])`.",
    "features": "Compute from the inputs and the weights alone, without losses of its own.",
}

"""Runs a merged model through everything that a user does with it, and checks the guarantees on what was seen.

`run` gathers the evidence once; each `check_…` asserts one guarantee on it. The sabotage tests use the same
checks, with a piece of the library switched off.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from helpers import array, reloaded, snapshot
from keras import layers
from zoo import Case

import keras_graft as kg
from keras_graft import _keras
from keras_graft._behaviour.table import Effect, behaviour

POLICIES = ("keep", "off", "remove", "always")
HEAD_RATE = 0.5


@dataclasses.dataclass
class Evidence:
    """What was seen of one merged model."""

    case: Case
    policy: str
    copied: bool
    model: keras.Model
    bases: dict[str, keras.Model]
    inputs: list[Any]
    reference: dict[str, np.ndarray]
    training: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    inference: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    again: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    before_fit: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    after_fit: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    originals_before: dict[str, Any] = dataclasses.field(default_factory=dict)
    originals_after: dict[str, Any] = dataclasses.field(default_factory=dict)
    head_dropped: dict[str, float] = dataclasses.field(default_factory=dict)
    statistics_moved_by: dict[str, bool] = dataclasses.field(default_factory=dict)
    loss_terms: int = 0


# ---------------------------------------------------------------------------------------------------------
# Gathering
# ---------------------------------------------------------------------------------------------------------


def tensors(data: Any) -> Any:
    """A batch as tensors; what is one already, and an optional input that is not given, stay as they are."""
    return keras.tree.map_structure(lambda leaf: tf.constant(leaf) if isinstance(leaf, np.ndarray) else leaf, data)


def head() -> list[keras.layers.Layer]:
    return [layers.Dropout(HEAD_RATE, name="head_dropout"), layers.BatchNormalization(name="head_bn"), layers.Dense(2)]


def originals(case: Case, prepared: Sequence[str] = ("fresh", "frozen", "loaded")) -> dict[str, keras.Model]:
    """The base model in each of the given states: never frozen, frozen by the user, and frozen, saved and loaded."""
    return {state: _PREPARE[state](case.make()) for state in prepared}


def frozen(model: keras.Model) -> keras.Model:
    model.trainable = False
    return model


_PREPARE: dict[str, Callable[[keras.Model], keras.Model]] = {
    "fresh": lambda model: model,
    "frozen": frozen,
    "loaded": lambda model: reloaded(frozen(model)),
}


def chosen(case: Case, outputs: Any) -> np.ndarray:
    """The features of a branch among the outputs of its model: by name, or the first."""
    return array(outputs[case.output] if isinstance(outputs, dict) else keras.tree.flatten(outputs)[0])


def reset_states(model: keras.Model) -> None:
    for part in _keras.walk(model):
        if getattr(part, "stateful", False) and hasattr(part, "states"):
            part.reset_state()


def compose(case: Case, bases: dict[str, keras.Model], policy: str, **options: Any) -> keras.Model:
    branches = {name: kg.Branch(base, output=case.output) for name, base in bases.items()}
    options = {"inputs": "separate", "loss": "mse", "jit_compile": False, **options}
    return kg.freeze_and_merge(branches, head(), dropout=policy, **options)


def by_hand(base: keras.Model, case: Case) -> keras.Model:
    """The official recipe: `base` frozen and called with `training=False`, under a head with dropout."""
    base.trainable = False
    inputs = keras.tree.map_structure(_keras.new_input, _keras.symbolic_inputs(base))
    outputs = base(inputs, training=False)
    features = outputs[case.output] if isinstance(outputs, dict) else keras.tree.flatten(outputs)[0]
    x = layers.Dropout(0.5, name="head_dropout")(layers.Flatten()(features))
    return keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization(name="head_bn")(x)))


def made(case: Case, variant: str) -> tuple[keras.Model, Any]:
    """A model with a batch for it."""
    data = case.data(case.batch or 8)
    if variant in POLICIES:
        merged = compose(case, originals(case, ["fresh"]), variant)
        return merged, keras.tree.flatten(data)
    base = case.make()
    if variant == "by hand":
        return by_hand(base, case), data
    return (frozen(base) if variant == "frozen" else base), data


def branch_features(
    model: keras.Model, reference: Mapping[str, np.ndarray], inputs: Any, *, training: bool
) -> dict[str, np.ndarray]:
    """What each branch of a merged model gives, called within the whole; `reference` is as wide as it."""
    reset_states(model)
    return by_branch(around_head(model)(inputs, training=training)[0], reference)


def by_branch(merged: Any, reference: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    widths = np.cumsum([value.shape[-1] for value in reference.values()])[:-1]
    return dict(zip(reference, np.split(array(merged), widths, axis=-1)))


@functools.lru_cache(maxsize=2)
def around_head(model: keras.Model) -> keras.Model:
    """The merged model, with what goes into the Dropout of its head and what comes out before what it gives itself."""
    dropout = model.get_layer("head_dropout")
    return keras.Model(model.inputs, [dropout.input, dropout.output, *model.outputs])


def run(
    case: Case,
    policy: str,
    *,
    reuse: bool = False,
    traced: bool = False,
    bases: Mapping[str, keras.Model] | None = None,
    on_batch: bool = False,
) -> Evidence:
    """Composes, calls, fits, evaluates and predicts, and writes down what was seen.

    Args:
        case: The model.
        policy: The dropout policy.
        reuse: Whether the base models themselves become branches (`copy=False`).
        traced: Whether `fit`, `evaluate` and `predict` run as TensorFlow graphs, as they do by default, or eagerly,
            which for models this small is ten times faster.
        bases: Models that `case` made, under the names of their branches. Defaults to `originals(case)`.
        on_batch: Whether `train_on_batch` and its like stand for `fit`, `evaluate` and `predict`: the same, faster.
    """
    keras.utils.set_random_seed(1)
    bases = dict(originals(case) if bases is None else bases)
    batch = case.batch or 16
    data = case.data(batch)
    reference = {}
    for name, base in bases.items():
        reset_states(base)
        outputs = (case.oracle() if case.oracle else base)(tensors(data), training=False)
        reference[name] = chosen(case, outputs)
        reset_states(base)
    before = {name: snapshot(base) for name, base in bases.items()}
    model = compose(case, bases, policy, copy=not reuse, run_eagerly=not (traced or case.graph_only))
    inputs = tensors(keras.tree.flatten([data] * len(bases)))

    seen = Evidence(case, policy, not reuse, model, bases, inputs, reference)
    seen.originals_before = before
    seen.training = _call(seen, "training", True)
    seen.loss_terms = len(model.losses)
    seen.inference = _call(seen, "inference", False)
    seen.again = _call(seen, "call", None)
    _train(seen, batch, on_batch=on_batch)
    seen.originals_after = {name: snapshot(base) for name, base in bases.items()}
    return seen


def _call(seen: Evidence, name: str, training: bool | None) -> dict[str, np.ndarray]:
    """What each branch gives in a call of the whole, which is also looked at for what the head does."""
    reset_states(seen.model)
    outputs: list[Any] = []
    moved = _moves_statistics(
        seen.model, lambda: outputs.extend(around_head(seen.model)(seen.inputs, training=training))
    )
    before, after = map(array, outputs[:2])
    seen.head_dropped[name] = float((after[before != 0] == 0).mean())
    seen.statistics_moved_by[name] = moved
    return by_branch(before, seen.reference)


def _moves_statistics(model: keras.Model, action: Callable[[], Any]) -> bool:
    mean = model.get_layer("head_bn").moving_mean
    before = array(mean)
    action()
    return not np.array_equal(before, array(mean))


def _train(seen: Evidence, batch: int, *, on_batch: bool) -> None:
    model, inputs, targets = seen.model, seen.inputs, np.zeros((batch, 2), "float32")
    seen.before_fit = branch_weights(seen)
    size = {"batch_size": batch, "verbose": 0}
    actions: dict[str, Callable[[], Any]] = {
        "fit": lambda: model.fit(inputs, targets, **size),
        "evaluate": lambda: model.evaluate(inputs, targets, **size),
        "predict": lambda: model.predict(inputs, **size),
    }
    if on_batch:
        actions["fit"] = lambda: model.train_on_batch(inputs, targets)
        actions["evaluate"] = lambda: model.test_on_batch(inputs, targets)
        actions["predict"] = lambda: model.predict_on_batch(inputs)
    seen.statistics_moved_by.update({name: _moves_statistics(model, action) for name, action in actions.items()})
    seen.after_fit = branch_weights(seen)


def branch_weights(seen: Evidence) -> dict[str, list[np.ndarray]]:
    return {name: [array(v) for v in seen.model.get_layer(name).weights] for name in seen.bases}


# ---------------------------------------------------------------------------------------------------------
# Checking
# ---------------------------------------------------------------------------------------------------------


def check_frozen(seen: Evidence) -> None:
    """Guarantee 1: after `fit` every variable of a branch is bit-identical."""
    for name, before in seen.before_fit.items():
        moved = [i for i, (b, a) in enumerate(zip(before, seen.after_fit[name])) if b.tobytes() != a.tobytes()]
        paths = [seen.model.get_layer(name).weights[i].path for i in moved]
        assert not paths, f"branch '{name}' moved in fit: {paths}"


def check_as_chosen(seen: Evidence) -> None:
    """Guarantee 2: the branches drop exactly where the policy says."""
    for name, reference in seen.reference.items():
        training, inference = seen.training[name], seen.inference[name]
        exact = seen.case.exact or seen.policy == "keep" or not seen.copied
        silent = seen.policy in ("off", "remove") or not seen.case.noisy
        if silent and not seen.case.augments:
            assert_same(training, reference, exact=exact)
        else:
            assert differ(training, reference), f"branch '{name}' is not live in training mode"
        if seen.policy == "always" and seen.case.noisy:
            assert differ(inference, reference), f"branch '{name}' is not live in inference mode"
            assert differ(inference, seen.again[name]), f"branch '{name}' drops the same units each time"
        else:
            assert_same(inference, reference, exact=exact)


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are further apart than rounding. Older versions of numpy compare no bfloat16."""
    return not np.allclose(one.astype("float32"), other.astype("float32"))


def assert_same(actual: np.ndarray, expected: np.ndarray, *, exact: bool) -> None:
    """The same bits; or, where another kernel computes them, 16 units in the last place of the largest value."""
    if exact:
        np.testing.assert_array_equal(actual, expected)
    else:
        limit = 16 * np.spacing(np.abs(expected).max())
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def agree(actual: np.ndarray, expected: np.ndarray, *, exact: bool) -> bool:
    try:
        assert_same(actual, expected, exact=exact)
    except AssertionError:
        return False
    return True


def check_head_follows_the_outer_mode(seen: Evidence) -> None:
    """Guarantee 2: what stands behind a branch is live in `fit`, and in nothing else."""
    assert abs(seen.head_dropped["training"] - HEAD_RATE) < 0.35, seen.head_dropped
    assert seen.head_dropped["inference"] == 0, seen.head_dropped
    assert seen.head_dropped["call"] == 0, seen.head_dropped
    moved = {name for name, moved in seen.statistics_moved_by.items() if moved}
    assert moved == {"training", "fit"}, seen.statistics_moved_by


def check_no_activity_losses(seen: Evidence) -> None:
    """Guarantee 2: activity losses of a frozen base are constants, and dropped."""
    assert seen.loss_terms == 0


def check_only_the_head_trains(seen: Evidence) -> None:
    """Guarantee 3: the trainable variables are those of the new layers."""
    new = [layer for layer in seen.model.layers if layer.name not in seen.bases]
    expected = {id(v) for layer in new for v in layer.trainable_variables}
    assert {id(v) for v in seen.model.trainable_variables} == expected
    assert len(expected) == 4, "gamma and beta of the normalisation, kernel and bias of the Dense layer"


def check_originals_untouched(seen: Evidence) -> None:
    """Guarantee 4: composing and training leave the originals as they were."""
    for name, before in seen.originals_before.items():
        for what, value in before.items():
            np.testing.assert_equal(seen.originals_after[name][what], value, err_msg=f"{what} of '{name}'")


def check_nothing_shared(seen: Evidence) -> None:
    """Guarantee 4: training an original does not change the merged model."""
    originals = [id(part) for base in seen.bases.values() for part in _keras.walk(base)]
    assert not [p.name for p in _keras.walk(seen.model) if id(p) in originals]
    ours = {id(v) for name in seen.bases for v in seen.model.get_layer(name).variables}
    theirs = {id(v) for base in seen.bases.values() for v in base.variables}
    assert not ours & theirs


def makes_noise(layer: Any) -> bool:
    return any(behaviour(part).effect is Effect.NOISE for part in _keras.walk(layer))


def check_no_stored_mode(seen: Evidence) -> None:
    """Guarantee 6: no graph rests on a stored `training=`, whose meaning differs between versions.

    The graphs inside a layer of others that makes no noise are its own: no policy speaks of them.
    """
    strangers = [
        part for part in _keras.walk(seen.model) if not type(part).__module__.startswith(("keras.", "keras_graft."))
    ]
    theirs = {id(part) for one in strangers if not makes_noise(one) for part in _keras.walk(one)}
    for part in _keras.walk(seen.model):
        graph = _keras.graph_of(part)
        if (
            graph is not None
            and id(part) not in theirs
            and (seen.copied or part in [seen.model, *map(seen.model.get_layer, seen.bases)])
        ):
            stored = [n.operation.name for n in _keras.nodes(graph) if "training" in n.arguments.kwargs]
            assert not stored, f"graph '{part.name}' stores a mode in the calls of {stored}"


def check_originals(seen: Evidence) -> None:
    """Guarantee 4, where it is promised: with `copy=False` the originals are part of the merged model."""
    if seen.copied:
        check_originals_untouched(seen)
        check_nothing_shared(seen)


# ---------------------------------------------------------------------------------------------------------
# Comparing with an oracle, random numbers included
# ---------------------------------------------------------------------------------------------------------


def oracle_of(model: keras.Model) -> keras.Model:
    """`model`, made to compute what a frozen branch must, with plain Keras alone.

    What layers of its own do with the modes of those that they hold stays their own.
    """
    strangers = [part for part in _keras.walk(model) if not type(part).__module__.startswith("keras")]
    within = {id(held) for part in strangers for held in _keras.walk(part) if held is not part}
    for part in _keras.walk(model):
        _keras.set_own_trainable(part, False)
        if isinstance(part, layers.SpectralNormalization):
            part.call = _inner_call(part)
        elif part in strangers and id(part) not in within:
            part.call = _call_that_leaks_no_mode(part)
    return model


def _call_that_leaks_no_mode(layer: Any) -> Any:
    """The `call` of a layer that may call others in a mode of its own: on 3.16 Keras leaks it to all behind."""
    call = layer.call

    def contained(*args: Any, **kwargs: Any) -> Any:
        context = layer._get_call_context()
        mode = context.get_value("training")
        try:
            return call(*args, **kwargs)
        finally:
            context.set_value("training", mode)

    return contained


def _inner_call(wrapper: Any) -> Any:
    def call(inputs: Any, training: bool = False) -> Any:
        return keras.ops.cast(wrapper.layer(inputs), inputs.dtype)

    return call


def seeds(model: Any) -> dict[str, Any]:
    """The seed states of a model, by their paths; locks are no part of a path."""
    return dict(_seeds(model, "", set()))


def _seeds(layer: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if id(layer) in seen:
        return
    seen.add(id(layer))
    if type(layer) is kg.ModeLock:
        yield from _seeds(layer.layer, path, seen)
        return
    for number, generator in enumerate(layer._seed_generators):
        yield f"{path}#{number}", generator.state
    named = _keras.graph_of(layer) is not None  # elsewhere Keras numbers the names as it likes
    for number, part in enumerate(_keras.sublayers(layer)):
        yield from _seeds(part, f"{path}/{part.name if named else number}", seen)


def same_seeds(one: Any, other: Any) -> bool:
    """Sets the seeds of two models to equal values; returns whether both have the same ones."""
    ours, theirs = seeds(one), seeds(other)
    for number, path in enumerate(sorted(ours.keys() | theirs.keys())):
        for state in (ours.get(path), theirs.get(path)):
            if state is not None:
                state.assign(np.array([number, 7], state.dtype))
    return ours.keys() == theirs.keys()


def check_silent(seen: Evidence) -> None:
    """Guarantee 2: each branch computes the same bits in both modes, and each time."""
    for name, features in seen.inference.items():
        np.testing.assert_array_equal(seen.training[name], features)
        np.testing.assert_array_equal(seen.again[name], features)


def check_like_the_oracle(seen: Evidence, oracle: keras.Model, data: Any) -> None:
    """Guarantee 2: each branch computes the bits of the oracle in the mode of its policy, the same units dropped.

    Noise that hangs on seeds which Keras does not know is only seen to be live.
    """
    for name in seen.bases:
        branch = seen.model.get_layer(name)
        same = same_seeds(branch, oracle) or seen.policy in ("off", "remove")
        for training in (True, False):
            mode = training if seen.policy == "keep" else seen.policy == "always"
            run = functools.partial(_run, seen, name, training)
            expect = functools.partial(_run_oracle, seen.case, branch, oracle, data, mode)
            same_seeds(branch, oracle)
            actual, expected = run(), expect()
            if mode and not np.array_equal(actual, expected, equal_nan=True) and varies(expect, expected):
                assert varies(run, actual), f"branch '{name}' is not live with training={training}"
            elif same:
                assert_same(actual, expected, exact=seen.case.exact)


def _run(seen: Evidence, name: str, training: bool) -> np.ndarray:
    return branch_features(seen.model, seen.reference, seen.inputs, training=training)[name]


def _run_oracle(case: Case, branch: keras.Model, oracle: keras.Model, data: Any, training: bool) -> np.ndarray:
    same_seeds(branch, oracle)
    reset_states(oracle)
    return chosen(case, oracle(data, training=training))


def varies(run: Callable[[], np.ndarray], first: np.ndarray) -> bool:
    """Whether runs differ: from equal seeds, noise hangs on hidden ones. A few units are often dropped alike."""
    return any(not np.array_equal(run(), first, equal_nan=True) for _ in range(16))


def check_survives_saving(seen: Evidence) -> None:
    """Guarantee 5: loaded, the merged model computes the same in both modes, and is as frozen as it was."""
    loaded = reloaded(seen.model)

    def features(model: keras.Model, name: str, training: bool) -> np.ndarray:
        same_seeds(seen.model, loaded)
        return branch_features(model, seen.reference, seen.inputs, training=training)[name]

    for name in seen.bases:
        for training in (True, False):
            run = functools.partial(features, seen.model, name, training)
            before, after = run(), features(loaded, name, training)
            if not agree(after, before, exact=seen.case.exact):
                assert varies(run, before), f"branch '{name}', loaded, computes something else: training={training}"
    live = [v.path for name in seen.bases for v in loaded.get_layer(name).variables if v.trainable]
    assert not live, f"after loading these would train: {live}"
    assert len(loaded.trainable_variables) == len(seen.model.trainable_variables)


CHECKS = (
    check_frozen,
    check_as_chosen,
    check_head_follows_the_outer_mode,
    check_no_activity_losses,
    check_only_the_head_trains,
    check_originals,
    check_no_stored_mode,
)

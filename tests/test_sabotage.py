"""Each guarantee's check must fail where the piece of the library that upholds the guarantee is switched off.

Otherwise the check would prove nothing. A sabotage replaces one piece; the check is the one of `guarantees`, which
passes without it in the tests of its own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import guarantees
import helpers
import keras
import numpy as np
import pytest
import test_engine_counterparts
import test_engine_counterparts_in_configs as in_configs
import test_engine_proof
import test_features_in_folder as in_folder
import test_features_in_tensorflow as in_tensorflow
import test_fit_batches
import test_fit_frozen
import test_fit_head
import test_fit_in_place
import test_originals
import test_sampling
from keras import layers
from zoo import ZOO

import keras_graft as kg
from keras_graft import _keras, _mode_lock, _sampling
from keras_graft._behaviour import trial as _trial
from keras_graft._behaviour import untouched as _untouched
from keras_graft._behaviour.table import Effect
from keras_graft._compose import freeze_and_merge as _compose
from keras_graft._compose import graft as _graft
from keras_graft._engine import counterparts as _counterparts
from keras_graft._engine import policy as _policy
from keras_graft._engine import rebuild as _rebuild
from keras_graft._engine.decision import Decision, Mode
from keras_graft._engine.errors import RebuildError
from keras_graft._engine.side_effects import SideEffects
from keras_graft._engine.state import State
from keras_graft._features import in_folder as _features
from keras_graft._features import store as _store
from keras_graft._features.shards import Shards
from keras_graft._fit.frozen import Frozen
from keras_graft._split import obstacles as _obstacles
from keras_graft._split import split as _split

Patch = pytest.MonkeyPatch

# Whether a check notices what is switched off does not hang on the version of Keras.
pytestmark = pytest.mark.once


def shallow_freeze(layer: keras.Layer) -> None:
    layer.trainable = False


def without_the_freezing_walk(patch: Patch) -> None:
    patch.setattr(_graft, "freeze", shallow_freeze)
    patch.setattr(_mode_lock, "freeze", shallow_freeze)
    patch.setattr(_rebuild, "freeze", shallow_freeze)
    patch.setattr(_compose, "_check_frozen", lambda submodels: None)


def with_a_rule_of_its_own(effect: Effect, decision: Decision) -> Callable[[Patch], None]:
    return lambda patch: patch.setitem(_policy._RULES, effect, lambda *_: decision)


def without_looking(patch: Patch) -> None:
    patch.setattr(_policy, "side_effects_of", lambda layer: SideEffects(draws=False))


def without_locking_what_leaks(patch: Patch) -> None:
    patch.setattr(_policy, "leaks_its_mode", lambda *_: False)


def without_stripping(patch: Patch) -> None:
    patch.setattr(_keras, "strip_training", lambda *args: None)


def without_transfer(patch: Patch) -> None:
    patch.setattr(State, "transfer", lambda *_: None)
    patch.setattr(_keras.copies, "_weights_of", lambda *_: contextlib.nullcontext())


def without_dropping_losses(patch: Patch) -> None:
    patch.setattr(_keras, "drop_losses", lambda layer: None)
    patch.setattr(_keras, "drop_activity_regularizers", lambda layer: None)


def with_the_originals_themselves(patch: Patch) -> None:
    patch.setattr(_rebuild._Builder, "_make", lambda self, operation, path: operation)


SABOTAGES: dict[str, tuple[Callable[[Patch], None], str, str, Callable[[Any], None]]] = {
    "the_freezing_walk": (without_the_freezing_walk, "attention", "keep", guarantees.check_frozen),
    "the_freezing_walk_seen_in_what_trains": (
        without_the_freezing_walk,
        "attention",
        "keep",
        guarantees.check_only_the_head_trains,
    ),
    "unwrapping_spectral_normalization": (
        with_a_rule_of_its_own(Effect.STATE, Decision()),
        "spectral",
        "off",
        guarantees.check_frozen,
    ),
    "locking_layers_that_update_state": (
        without_looking,
        "counting",
        "keep",
        guarantees.check_frozen,
    ),
    "setting_rates_to_0": (
        with_a_rule_of_its_own(Effect.NOISE, Decision()),
        "nested",
        "off",
        guarantees.check_as_chosen,
    ),
    "bypassing": (
        with_a_rule_of_its_own(Effect.NOISE, Decision()),
        "functional",
        "remove",
        guarantees.check_as_chosen,
    ),
    "locking_to_training_mode": (
        with_a_rule_of_its_own(Effect.NOISE, Decision(mode=Mode.OUTER)),
        "sequential",
        "always",
        guarantees.check_as_chosen,
    ),
    "locking_to_inference_mode": (
        with_a_rule_of_its_own(Effect.UNKNOWN, Decision(mode=Mode.OUTER)),
        "custom",
        "off",
        guarantees.check_as_chosen,
    ),
    "the_transfer_of_weights": (without_transfer, "functional", "off", guarantees.check_as_chosen),
    "dropping_activity_losses": (
        without_dropping_losses,
        "regularized_activity",
        "off",
        guarantees.check_no_activity_losses,
    ),
    "copying": (with_the_originals_themselves, "sequential", "keep", guarantees.check_nothing_shared),
    "copying_seen_in_the_originals": (
        with_the_originals_themselves,
        "sequential",
        "keep",
        guarantees.check_originals_untouched,
    ),
}


@contextlib.contextmanager
def sabotaged(sabotage: Callable[[Patch], None]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        sabotage(patch)
        yield


@pytest.mark.parametrize(("sabotage", "name", "policy", "check"), SABOTAGES.values(), ids=SABOTAGES)
def test_a_check_fails_without(
    sabotage: Callable[[Patch], None], name: str, policy: str, check: Callable[[Any], None]
) -> None:
    with sabotaged(sabotage):
        seen = guarantees.run(ZOO[name], policy)
    with pytest.raises(AssertionError):
        check(seen)


def test_the_page_of_the_guarantees_names_every_sabotage_of_one() -> None:
    page = pathlib.Path(__file__).parent.parent / "docs" / "guarantees.md"
    text = page.read_text(encoding="utf-8")
    assert not [name for name in SABOTAGES if f"`{name}`" not in text]


def leaks_the_default_of_augmentation() -> bool:
    """Whether Keras takes the default mode of an augmentation layer for that of what stands behind it (to 3.15)."""
    nested, x = keras.Sequential([keras.Input((8, 8, 3)), layers.RandomFlip()]), keras.Input((8, 8, 3))
    plain = keras.Model(x, layers.Dropout(0.5)(nested(x)))
    _keras.strip_training(plain)
    return bool((helpers.array(plain(np.ones((4, 8, 8, 3)))) == 0).any())


@pytest.mark.skipif(not leaks_the_default_of_augmentation(), reason="this Keras does not leak it")
def test_the_head_is_live_in_a_call_without_locking_kept_augmentation() -> None:
    with sabotaged(without_locking_what_leaks):
        seen = guarantees.run(ZOO["augmenting"], "off")
    with pytest.raises(AssertionError):
        guarantees.check_head_follows_the_outer_mode(seen)


def merged_with_stored_modes() -> keras.Model:
    base = ZOO["sequential"].make()
    return kg.freeze_and_merge([base], lambda x: layers.Dense(1)(layers.Dropout(0.5)(x, training=False)), loss="mse")


def stored_modes(model: keras.Model) -> list[str]:
    return [node.operation.name for node in _keras.nodes(model) if "training" in node.arguments.kwargs]


def test_a_mode_is_stored_without_stripping() -> None:
    assert not stored_modes(merged_with_stored_modes())
    with sabotaged(without_stripping):
        assert stored_modes(merged_with_stored_modes())


@keras.saving.register_keras_serializable(package="sabotage")
class LockThenDropout(layers.Layer):
    """A lock with a sibling behind it, inside one layer: where Keras leaks a mode, on all versions."""

    def __init__(self, locked_to: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lock = kg.ModeLock(layers.Dropout(0.5), training=locked_to)
        self.behind = layers.Dropout(0.5)

    def call(self, inputs: Any) -> Any:
        return self.behind(keras.ops.ones_like(self.lock(inputs)))


def share_dropped_behind_a_lock(*, locked_to: bool, outer: bool) -> float:
    return float(np.mean(helpers.array(LockThenDropout(locked_to)(np.ones((50, 50)), training=outer)) == 0))


def leaking_call(caller: Any, layer: Any, training: bool | None, args: Any, kwargs: Any) -> Any:
    return layer(*args, training=training, **kwargs)


@pytest.mark.parametrize("outer", [True, False])
def test_a_lock_leaks_its_mode_without_its_finally(outer: bool) -> None:
    expected = 0.5 if outer else 0.0
    assert abs(share_dropped_behind_a_lock(locked_to=not outer, outer=outer) - expected) < 0.1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_keras, "call_in_mode", leaking_call)
        assert abs(share_dropped_behind_a_lock(locked_to=not outer, outer=outer) - expected) > 0.4


def trains_after_loading(tmp_path: Any) -> int:
    model = guarantees.compose(ZOO["attention"], {"base": ZOO["attention"].make()}, "keep")
    model.save(tmp_path / "model.keras")
    return len(keras.models.load_model(tmp_path / "model.keras", compile=False).trainable_variables)


def test_a_loaded_model_trains_its_branches_without_the_lock_for_flags(tmp_path: Any) -> None:
    assert trains_after_loading(tmp_path) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_policy, "_loses_flags", lambda *_: False)
        assert trains_after_loading(tmp_path) > 4


def calls_left_by_an_error() -> int:
    def head(features: Any) -> Any:
        raise RuntimeError("a head that fails")

    base = ZOO["sequential"].make()
    with pytest.raises(RuntimeError, match="a head that fails"):
        kg.freeze_and_merge([base], head, copy=False, loss="mse")
    return sum(len(layer._inbound_nodes) - 1 for layer in base.layers)


def test_an_error_leaves_calls_behind_without_undoing_them() -> None:
    assert calls_left_by_an_error() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_keras, "nothing_left_behind", lambda *_, **__: contextlib.nullcontext())
        assert calls_left_by_an_error() > 0


# ---------------------------------------------------------------------------------------------------------
# Features computed once: the tests themselves must fail
# ---------------------------------------------------------------------------------------------------------


def without_a_look_at_noise(patch: Patch) -> None:
    patch.setattr(_obstacles, "_is_live", lambda row, noise_off: False)


def without_a_look_at_losses(patch: Patch) -> None:
    patch.setattr(_obstacles, "_adds_losses", lambda layer: False)


def without_masks(patch: Patch) -> None:
    patch.setattr(_split, "emitter", lambda model, level, names: lambda place, tensor: [tensor])


def without_forgetting(patch: Patch) -> None:
    patch.setattr(_keras, "unrecorded", contextlib.nullcontext)


def without_weights_in_the_fingerprint(patch: Patch) -> None:
    patch.setattr(_features, "fingerprint_of_model", lambda model: "0" * 64)


def without_any_check_of_the_model(patch: Patch) -> None:
    without_weights_in_the_fingerprint(patch)
    patch.setattr(_features.OfFeatures, "check", lambda *_: None)


def without_data_in_the_fingerprint(patch: Patch) -> None:
    numbers = itertools.count()
    patch.setattr(_features, "fingerprint_of_data", lambda chunk, inputs: f"{next(numbers) % 5}" * 64)


def without_checksums(patch: Patch) -> None:
    patch.setattr(_store, "checksum", lambda path: "0")


def without_a_look_at_frozen_weights(patch: Patch) -> None:
    patch.setattr(Frozen, "changed_variables", lambda self: "")


def without_a_look_at_layers(patch: Patch) -> None:
    patch.setattr(_sampling, "fingerprint_of_model", lambda model, weights: "0" * 64)


def without_seeds(patch: Patch) -> None:
    patch.setattr(_sampling, "_set_seeds", lambda model, seed: None)


def without_another_tensor_for_each_reading(patch: Patch) -> None:
    at_call_time = _keras.at_call_time
    read: dict[Any, Any] = {}

    def joined(graph: Any, value: Any, kind: Any) -> Any:
        return read.setdefault((graph, *value.args), at_call_time(graph, value, kind))

    patch.setattr(_keras, "at_call_time", joined)


def without_an_order_of_its_own(patch: Patch) -> None:
    portions = Shards.portions
    patch.setattr(Shards, "portions", lambda self, random: portions(self, None))


BASE_OF_FEATURES: list[tuple[Callable[[Patch], None], Callable[..., None]]] = [
    (without_a_look_at_noise, test_fit_head.test_live_dropout_is_drawn_anew_in_every_epoch),
    (
        without_a_look_at_losses,
        functools.partial(test_fit_head.test_a_loss_that_a_frozen_layer_adds_counts, lambda layer: layer),
    ),
    (without_masks, test_fit_head.test_masks_train_as_in_fit),
    (without_forgetting, test_fit_in_place.test_nothing_of_the_detour_is_left_in_the_model),
    (without_a_look_at_frozen_weights, test_fit_frozen.test_frozen_weights_that_change_later_are_said),
    (without_weights_in_the_fingerprint, in_folder.test_weights_that_changed_are_noticed),
    (without_any_check_of_the_model, in_folder.test_weights_that_changed_are_noticed),
    (
        without_data_in_the_fingerprint,
        in_folder.test_data_that_changed_are_computed_and_the_old_features_are_kept,
    ),
    (
        without_checksums,
        functools.partial(in_folder.test_a_damaged_shard_is_computed_again, damage="altered"),
    ),
    (
        without_a_look_at_layers,
        functools.partial(
            test_sampling.test_samples_follow_what_changed_since_the_last_call, test_sampling._other_attribute
        ),
    ),
    (without_seeds, test_sampling.test_samples_repeat_by_their_seed),
    (
        without_another_tensor_for_each_reading,
        functools.partial(in_tensorflow.test_weights_that_are_handed_in_give_the_bits_of_the_model, "shared"),
    ),
    (without_an_order_of_its_own, test_fit_batches.test_each_epoch_holds_each_example_once_in_an_order_of_its_own),
]


@pytest.mark.parametrize("sabotage, check", [pytest.param(*pair, id=pair[0].__name__) for pair in BASE_OF_FEATURES])
def test_a_test_of_features_fails(
    sabotage: Callable[[Patch], None], check: Callable[..., None], monkeypatch: Patch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(_features, "SHARD_BYTES", 600)
    sabotage(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, _features.FeatureStoreError, UserWarning)):
        check(**({"tmp_path": tmp_path} if "tmp_path" in inspect.signature(check).parameters else {}))


# ---------------------------------------------------------------------------------------------------------
# Copies that are proved: the tests themselves must fail
# ---------------------------------------------------------------------------------------------------------


def without_comparing(patch: Patch) -> None:
    patch.setattr(_counterparts.Counterparts, "differences", lambda self, old, new: [])


def without_the_state_of_operations(patch: Patch) -> None:
    without_comparing(patch)
    patch.setattr(_keras, "copy_of_operation", lambda one, from_config: type(one).from_config(one.get_config()))


def without_handing_over(patch: Patch) -> None:
    patch.setattr(_counterparts.Counterparts, "hand_over", lambda self, old, new, names: names)


def without_copying_what_is_handed_over(patch: Patch) -> None:
    patch.setattr(_counterparts.Counterparts, "duplicate", lambda self, value: value)
    patch.setattr(_counterparts.Counterparts, "alike", lambda self, old, new: old is new)


def without_a_call_in_doubt(patch: Patch) -> None:
    patch.setattr(_trial, "agree", lambda original, copy, training: True)


def without_undoing(patch: Patch) -> None:
    patch.setattr(_untouched, "_undone", lambda value: iter(()))


def without_variables_beneath(patch: Patch) -> None:
    patch.setattr(_untouched, "_variables_beneath", lambda layer, reached, changed: iter(()))


PROOFS: list[tuple[Callable[[Patch], None], Callable[..., None]]] = [
    *(
        (
            without_comparing,
            functools.partial(test_engine_counterparts.test_what_no_config_carries_is_handed_over, what),
        )
        for what in test_engine_counterparts.HIDDEN
    ),
    (without_the_state_of_operations, test_engine_counterparts.test_the_state_of_an_operation_is_copied),
    (
        without_comparing,
        functools.partial(in_configs.test_activations_are_the_very_functions, "a lambda", False),
    ),
    (
        without_handing_over,
        functools.partial(test_engine_counterparts.test_what_no_config_carries_is_handed_over, "an array"),
    ),
    (
        without_copying_what_is_handed_over,
        functools.partial(test_engine_counterparts.test_what_is_handed_over_is_not_shared, "an array"),
    ),
    (without_a_call_in_doubt, test_engine_proof.test_a_doubt_is_decided_by_a_call),
    *(
        (without_undoing, functools.partial(test_originals.test_what_a_layer_reaches_is_as_it_was, what))
        for what in ("an array", "a table", "a table of buckets", "a generator of numpy")
    ),
    *(
        (without_variables_beneath, functools.partial(test_originals.test_what_a_layer_reaches_is_as_it_was, what))
        for what in ("a module of TensorFlow", "weights, moved by a step that is mapped")
    ),
]


@pytest.mark.parametrize(
    "sabotage, check", [pytest.param(*pair, id=f"{pair[0].__name__}-{index}") for index, pair in enumerate(PROOFS)]
)
def test_a_test_of_copies_fails(sabotage: Callable[[Patch], None], check: Callable[..., None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        sabotage(patch)
        with pytest.raises((AssertionError, pytest.fail.Exception, RebuildError)):
            check()

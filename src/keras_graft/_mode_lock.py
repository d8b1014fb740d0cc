"""ModeLock: a layer that keeps another layer frozen, and in a mode of its own.

It knows Keras only through `_keras/`, and nothing of policies or branches.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from . import _keras
from ._arguments import hint_about
from ._keras import Layer, Structure

__all__ = ["ModeLock", "freeze"]


def freeze(layer: keras.Layer) -> None:
    """Marks every variable of `layer`, and of everything below it, as not trainable.

    Every flag is set by itself. `layer.trainable = False` alone leaves sublayers trainable wherever the
    layer's own flag is `False` already, as it is in every copy and every loaded file of a frozen model.
    """
    for part in _keras.walk(layer):
        if isinstance(part, ModeLock):
            part.opened, part.frozen = (), True
    _clear_flags(layer)


def _clear_flags(layer: keras.Layer) -> None:
    for part in _keras.walk(layer):
        _keras.set_own_trainable(part, False)
        for variable in _keras.own_variables(part):
            variable.trainable = False


@keras.saving.register_keras_serializable(package="keras_graft")
class ModeLock(keras.layers.Layer):
    """Keeps a layer frozen, and in a mode of its own, whatever the model around it does.

    `fit` runs a model in training mode, and Keras lets that mode override the `training=False` with
    which a frozen model was called. A `ModeLock` holds: with `training=False` the inner layer drops
    nothing, uses stored statistics and augments nothing, in `fit` as in `predict`. With `training=True`
    it drops in `predict` as well (Monte Carlo dropout). What stands behind the lock keeps following
    `fit` and `predict`.

    The inner layer stays frozen, as a second property: setting `trainable` to `True`, on the lock or on a
    model that holds it, opens nothing and says so in a warning. `unfreeze` opens a lock, variable by
    variable; what is open is kept in the config, and flags that a saved file lost are set again on
    loading. Activity losses of the inner layer, constants while all of it is frozen, are dropped then. A lock takes
    the call arguments, masks and dtypes of its inner layer. Modes that are stored in graphs below it
    (`layer(x, training=True)`), which Keras obeys from 3.16 on, do not count against its own. Called on
    tensors, it returns what its inner layer returns for them.

    Args:
        layer: The `keras.Layer` or model to lock. It is held, not copied: its variables are frozen from
            now on.
        training: `False` (default) for inference mode, `True` for training mode, or `None` to let the
            mode of the model around it through, so that the lock only freezes.
        name: Name of the lock. Defaults to the name of `layer`.

    Attributes:
        opened: The variables of `layer` that train, by the attributes that lead to them, as in
            `"query_dense.kernel"`. Empty while all of it is frozen.
        trainable: Whether something in the lock trains. Setting it to `False` closes the lock.

    Raises:
        ValueError: If `layer` is not a Keras layer or `training` is none of `True`, `False`, `None`.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import ModeLock
    >>> locked = ModeLock(keras.layers.Dropout(0.5))
    >>> float(keras.ops.sum(locked(np.ones((1, 4)), training=True)))
    4.0
    """

    def __init__(self, layer: Layer, training: bool | None = False, *, name: str | None = None, **kwargs: Any) -> None:
        if not isinstance(layer, keras.Layer):
            raise ValueError(
                "`layer` must be a Keras layer or model that the lock can hold. "
                f"{hint_about(layer)}Received: layer={layer!r} (of type {type(layer).__name__})"
            )
        if not (training is None or isinstance(training, bool)):
            raise ValueError(
                "`training` must be False (inference mode), True (training mode) or None (the mode of the "
                f"model around the lock). Received: training={training!r}"
            )
        kwargs.pop("trainable", None)
        kwargs.pop("dtype", None)
        # The library's own locks may hold the mode alone, or let the outer mode through to where another one is stored.
        frozen, over_stored = kwargs.pop("frozen", True), kwargs.pop("over_stored", training is not None)
        opened = kwargs.pop("opened", ())
        super().__init__(name=name or layer.name, dtype=_plain_policy(layer), **kwargs)
        self.frozen, self.over_stored = frozen, over_stored
        self.opened = tuple(opened)
        self.layer = layer
        self.training = training
        self.supports_masking = True
        _keras.adopt_call(self, layer)
        self._freeze()

    def _freeze(self) -> None:
        """Sets every flag below the lock: those that a file, or code of others, left as they are not meant to be."""
        if not self.frozen:
            return
        _clear_flags(self)
        if self.opened and self.layer.built:
            self._set_flags_of_opened()

    def open(self, names: Iterable[str]) -> None:
        """Lets some variables of the inner layer train, and no others.

        The mode stays what it is. Statistics of a BatchNormalization among the names do not train, and let it follow
        the mode.

        Args:
            names: The variables, by the attributes that lead to them: see `opened`.

        Raises:
            ValueError: If the inner layer has no such variable.
        """
        names = tuple(names)
        unknown = set(names) - _keras.variables_by_path(self.layer).keys()
        if unknown:
            raise ValueError(
                f"The layer in ModeLock '{self.name}' has no variables {sorted(unknown)}. It has "
                f"{sorted(_keras.variables_by_path(self.layer))}. Received: names={names!r}"
            )
        self.opened = names
        self._freeze()

    def _set_flags_of_opened(self) -> None:
        for path, part in _keras.parts_by_path(self.layer).items():
            variables = {f"{path}.{name}".lstrip("."): v for name, v in _keras.variables_by_name(part).items()}
            opened = [variable for name, variable in variables.items() if name in self.opened]
            below_lora = set(map(id, _keras.below_lora(part)))
            can_train = set(map(id, _keras.own_trainable_variables(part))) - below_lora
            for variable in [variable for variable in opened if id(variable) in can_train]:
                _keras.let_train(variable)
            statistics = isinstance(part, keras.layers.BatchNormalization)
            moves = any(id(variable) not in can_train | below_lora for variable in opened)
            _keras.set_own_trainable(part, moves if statistics else bool(opened))
        for part in reversed(_keras.walk(self.layer)):
            below = [variable.trainable for inner in _keras.walk(part) for variable in _keras.own_variables(inner)]
            if _keras.sublayers(part) and any(below):
                _keras.set_own_trainable(part, True)

    @property
    def trainable(self) -> bool:
        """Whether something in the lock trains: never, unless it was opened or holds the mode alone."""
        return bool(self.opened) if self.frozen else _keras.own_trainable(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        """Opens nothing where the lock freezes, and says so; `False` closes what `unfreeze` opened."""
        if not self.frozen:
            _keras.set_trainable(self, value)
        elif not value:
            freeze(self)
        elif not self.opened:
            warnings.warn(
                f"ModeLock '{self.name}' stays frozen: `trainable = True`, on it or on a model that holds it, does "
                "not open it. Use `keras_graft.unfreeze(model, layers, learning_rate=...)`.",
                stacklevel=2,
            )

    def _maybe_build(self, call_spec: Any) -> None:
        """Builds the inner layer from the call, just as Keras would without a lock around it."""
        if not self.built and _keras.has_tensors(call_spec):  # arrays are left to the inner layer, in `call`
            _keras.build_from_call(self.layer, call_spec)
            self.build()

    def build(self, input_shape: Any = None) -> None:
        """Builds the inner layer, where a wrapper such as TimeDistributed asks for it by shape."""
        if not self.layer.built:
            self.layer.build(input_shape)
        self._freeze()

    def get_build_config(self) -> None:
        """Nothing: the config of the inner layer carries what it was built with."""

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Calls the inner layer in the mode of the lock."""
        mode = training if self.training is None else self.training
        new = self._has_unbuilt_parts()
        with _keras.stored_modes_passed_over(self.layer) if self.over_stored else contextlib.nullcontext():
            outputs = _keras.call_in_mode(self, self.layer, mode, args, kwargs)
        if new:
            self._freeze()
        if self.frozen and not self.opened:
            _keras.drop_losses(self.layer)
        return outputs

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """The shapes and dtypes that the inner layer returns."""
        if not _keras.takes_training(self.layer):
            kwargs.pop("training", None)
        new = self._has_unbuilt_parts()
        try:
            return self.layer.compute_output_spec(*args, **kwargs)
        except NotImplementedError:  # a wrapper in it asks a layer for a shape that it does not declare; a call tells
            return _keras.compute_output_spec(self.layer, *args, **kwargs)
        finally:
            if new:
                self._freeze()

    def _has_unbuilt_parts(self) -> bool:
        """Whether a call may make variables: a layer without a `build` has parts that only its call builds."""
        return not all(part.built for part in _keras.walk(self.layer))

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The shape that the inner layer returns."""
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, inputs: Structure, previous_mask: Any = None) -> Any:
        """The mask that the inner layer hands on."""
        return self.layer.compute_mask(inputs, previous_mask) if self.layer.supports_masking else None

    def save_own_variables(self, store: Any) -> None:
        """Writes how many variables must arrive on loading."""
        store["variables"] = _keras.saved_variables(self.layer)

    def load_own_variables(self, store: Any) -> None:
        """Refuses to load into an inner layer that has no place for what was saved."""
        try:
            saved = int(store["variables"][()])
        except KeyError:
            raise ValueError(
                f"ModeLock '{self.name}' finds nothing in the file: it was not saved, or Keras saved it in another "
                "place, as it does with a layer that stands in two graphs of one model. "
                f"Received: layer={self.layer!r}"
            ) from None
        expected = _keras.saved_variables(self.layer)
        if expected != saved:
            raise ValueError(
                f"The layer inside ModeLock '{self.name}' was saved with {saved} variables and has "
                f"{expected} after loading its config, so its weights cannot arrive. Its "
                "`build` must create all of them. "
                f"Received: layer={self.layer!r}"
            )
        self._freeze()
        lost = set(self.opened) - _keras.variables_by_path(self.layer).keys()
        if lost:
            warnings.warn(
                f"ModeLock '{self.name}' was saved with variables that trained and are not in the loaded layer: "
                f"{sorted(lost)}. Keras merges those of LoRA into others in files of composite layers. They are not "
                "trained on: call `keras_graft.unfreeze` again for what shall train.",
                stacklevel=2,
            )

    def get_config(self) -> dict[str, Any]:
        """The config of the lock, with that of its inner layer."""
        config = super().get_config()
        return {
            "name": config["name"],
            "layer": keras.saving.serialize_keras_object(self.layer),
            "training": self.training,
            **({} if self.frozen else {"frozen": False}),
            **({"opened": list(self.opened)} if self.opened else {}),
            **({"over_stored": True} if self.over_stored and self.training is None else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ModeLock:
        """A lock around a new inner layer."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


def _plain_policy(layer: keras.Layer) -> Any:
    """The dtype policy of `layer`; without its quantization, which a lock has no kernels for."""
    policy = layer.dtype_policy
    return layer.compute_dtype if policy.quantization_mode is not None else policy

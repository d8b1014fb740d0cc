"""What `fit` gets in place of data: features and targets, as arrays or read from a folder.

It must not know how features are computed.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
from typing import Any

import keras

from .. import _keras
from .._features.checked import check_stored_labels, checked
from .._features.computer import Computer
from .._features.data import Source, is_cast_by_fit, is_on_ray, source_of
from .._features.features import Features
from .._features.on_ray import OnRay, RayOptions, source_on_ray
from .._features.passes import features_of
from .._features.store import FeatureStoreError
from .batches import even, stored_batches
from .in_place import in_place_of_inputs

__all__ = ["Feed"]


@dataclasses.dataclass(frozen=True)
class Feed:
    """Turns data into what `fit` gets: features and targets."""

    model: keras.Model
    computer: Computer
    place: pathlib.Path | None
    verbose: Any
    ray: RayOptions | None = None
    failures: list[FeatureStoreError] = dataclasses.field(default_factory=list)

    def training(
        self, source: Source, batch_size: int | None, steps: int | None, shuffle: Any, class_weight: Any
    ) -> dict[str, Any]:
        features = self._features(source, "train")
        shuffled = not source.holds_targets if shuffle is None else shuffle
        if isinstance(shuffle, str) and source.holds_targets:  # "batch", which Keras does with arrays alone (all)
            shuffled = False
        if source.holds_targets and source.count == steps:
            steps = None  # it holds exactly so many
        fed = self._fed(features, source, batch_size, steps, shuffled, class_weight)
        return {"shuffle": shuffled if "y" in fed else False, "steps_per_epoch": steps, **fed}

    def validation(self, source: Source, batch_size: int | None, steps: int | None) -> dict[str, Any]:
        features = self._features(source, "validation")
        fed = self._fed(features, source, batch_size, steps, shuffled=False)
        holds_so_many = source.holds_targets and source.count == steps
        counted = {"validation_steps": None if holds_so_many else steps}
        if "y" not in fed:
            return {"validation_data": fed["x"], **counted}
        data = (fed["x"], fed["y"], fed["sample_weight"])
        return {"validation_data": data, "validation_batch_size": fed["batch_size"], **counted}

    def source(self, data: Any, steps: int | None, name: str) -> Source:
        """Data that fit the model, or an error."""
        if is_on_ray(data[0]):
            return self._source_on_ray(data, steps, name)
        fixed = self.computer.model.inputs[0].shape[0]
        source = source_of(*data, steps=steps, batch_size=fixed or _BATCH, name=name)
        return checked(source, self.model, name)

    def _source_on_ray(self, data: Any, steps: int | None, name: str) -> Source:
        if steps is not None:
            raise ValueError(
                f"`{name}` is a dataset of Ray, and its end is that of an epoch. Take `dataset.limit(...)` of it. "
                f"Received: {steps} steps"
            )
        x, y, weights = data
        source = source_on_ray(x, y, weights, _keras.names_of_inputs(self.model), self.ray, name)
        return checked(source, self.model, name)

    def _features(self, source: Source, part: str) -> Features:
        verbose = 2 if self.verbose == 2 else int(self.verbose in (1, "auto"))  # noqa: PLR2004  a line, as in Keras
        bar = keras.utils.Progbar(source.count, verbose=verbose, unit_name="batch") if verbose else None
        if bar is not None:
            sys.stdout.write(f"Computing the frozen part ({part})\n")

        def progress(done: int) -> None:
            if bar is not None:
                bar.update(done, finalize=done == source.count)

        features = features_of(self.computer, source, progress, self.place, part)
        if isinstance(source, OnRay):  # of its targets, only the first came here
            check_stored_labels(features, self.model, "x" if part == "train" else "validation_data")
        return features

    def _fed(
        self,
        features: Features,
        source: Source,
        batch_size: int | None,
        steps: int | None,
        shuffled: Any,
        class_weight: Any = None,
    ) -> dict[str, Any]:
        """The arguments of `fit` for some data: arrays where `fit` can make the batches of them."""
        sizes = even(features.rows, batch_size or (math.ceil(features.rows / steps) if steps else 32))
        if source.holds_targets and not shuffled:
            sizes = features.batch_sizes
        elif source.holds_targets:
            sizes = even(features.rows, features.batch_sizes[0])
        whole = _taken_whole(features, sizes)
        if whole is None and source.holds_targets:
            return {"x": stored_batches(features, (None, None), sizes, shuffled, self.failures)}
        if whole is None:
            beside = _keras.beside_inputs_in_fit(features.rows, *source.targets, class_weight)
            return {"x": stored_batches(features, beside, sizes, shuffled, self.failures), "class_weight": None}
        tensors, came = whole
        y, weights = (*came, None, None)[:2] if source.holds_targets else source.targets
        inputs = in_place_of_inputs(features.keys, tensors)
        return {"x": inputs, "y": y, "sample_weight": weights, "batch_size": sizes[0]}


def _taken_whole(features: Features, sizes: list[int]) -> Any:
    """All features, and what came with them, where `fit` takes them as arrays, and as they are; None elsewhere."""
    whole = features.whole
    if whole is None or sizes != even(features.rows, sizes[0]):
        return None
    _, came = whole
    return None if any(map(is_cast_by_fit, keras.tree.flatten(came))) else whole


# How many examples the frozen part gets at once, where it is free to choose.
_BATCH = 32

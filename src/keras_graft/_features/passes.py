"""A pass over data: where features are computed, and where they are kept.

It must not know what the features are for.
"""

from __future__ import annotations

import pathlib

from .computer import Computer
from .data import Source
from .features import Features, Progress, features_in_memory
from .in_folder import features_in_folder
from .on_ray import OnRay, features_on_ray

__all__ = ["features_of"]


def features_of(
    computer: Computer, source: Source, progress: Progress, place: pathlib.Path | None, part: str
) -> Features:
    """Computes the features of all data, and keeps them in a place (see `place_of`).

    Args:
        computer: It computes the features of the part of a model before its frontier.
        source: The data.
        progress: Called with the number of batches that are done.
        place: Where they are kept.
        part: What the data are, such as `"train"`.

    Raises:
        FeatureStoreError: If the folder cannot be written.
    """
    if isinstance(source, OnRay):
        if place is None:
            raise ValueError(
                "Workers of Ray keep features in a folder that all of them see: pass its path as `cache`. "
                'Received: cache="memory"'
            )
        return features_on_ray(computer, source, progress, place, part)
    if place is None:
        return features_in_memory(computer, source, progress)
    return features_in_folder(computer, source, progress, place, part)

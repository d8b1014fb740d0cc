"""The head: the layers on the merged features, and the only ones that train. It must not know of losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .._keras import Tensor
from .._losses.ending import Head
from .stages import apply_stage, free_name

__all__ = ["attach_head"]


def attach_head(head: Head, tensor: Tensor, taken: Collection[str]) -> Any:
    """Puts the head on the merged features.

    Args:
        head: See `freeze_and_merge`.
        tensor: The merged features, a symbolic tensor.
        taken: Names that no layer of the head may have.

    Returns:
        One symbolic tensor, or a dict of them for a mapping.
    """
    if head is None:
        return tensor
    if not isinstance(head, Mapping):
        return apply_stage(head, tensor, "head", name=free_name("head", taken))
    if not head:
        raise ValueError("`head` must name at least one output, as in {'digit': 10}. Received: head={}")
    for name in head:
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(
                "The names of the outputs in `head` must be non-empty strings without '/', as in {'digit': 10}. "
                f"Received: {name!r}"
            )
    outputs = {}
    for name, stage in head.items():
        layer_name = free_name(name, {*taken, *head} - ({name} - set(taken)))
        outputs[name] = apply_stage(stage, tensor, f"head['{name}']", name=layer_name)
    return outputs

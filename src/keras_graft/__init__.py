"""keras-graft: joins pretrained Keras models under a new head, the only part that trains.

Two things hold that plain Keras leaves to chance: frozen means frozen, and dropout does what you asked.
"""

from . import _backend  # noqa: F401, isort: skip (a check, and it comes first)
from ._audit import Audit, audit
from ._behaviour import register_layer
from ._branch import Branch
from ._check_layer import LayerReport, check_layer
from ._compose import freeze_and_merge
from ._mode_lock import ModeLock
from ._policy import with_dropout
from ._sampling import Samples, predict_samples
from ._split import Split, split
from ._training import fit_head

__all__ = [
    "Audit",
    "Branch",
    "LayerReport",
    "ModeLock",
    "Samples",
    "Split",
    "audit",
    "check_layer",
    "fit_head",
    "freeze_and_merge",
    "predict_samples",
    "register_layer",
    "split",
    "with_dropout",
]
__version__ = "0.1.0"

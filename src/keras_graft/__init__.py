"""keras-graft: joins pretrained Keras models under a new head, the only part that trains.

Two things hold that plain Keras leaves to chance: frozen means frozen, and dropout does what you asked.
"""

from . import _command_line  # noqa: F401, isort: skip (it answers `--help` before TensorFlow is imported)
from . import _backend  # noqa: F401, isort: skip (a check, and it comes before the rest)
from ._audit.audit import Audit, audit
from ._behaviour.table import register_layer
from ._check_layer import LayerReport, check_layer
from ._compose.branch import Branch
from ._compose.freeze_and_merge import freeze_and_merge
from ._engine.with_dropout import with_dropout
from ._export.export import ExportReport, export
from ._features.extractor import FeatureExtractor
from ._features.on_ray import RayOptions
from ._finetune.unfreeze import freeze, unfreeze
from ._finetune.unfreezing import Unfreezing
from ._fit.fit_head import fit_head
from ._mode_lock import ModeLock
from ._sampling import Samples, predict_samples
from ._split.split import Split, split
from ._version import __version__ as __version__

__all__ = [
    "Audit",
    "Branch",
    "ExportReport",
    "FeatureExtractor",
    "LayerReport",
    "ModeLock",
    "RayOptions",
    "Samples",
    "Split",
    "Unfreezing",
    "audit",
    "check_layer",
    "export",
    "fit_head",
    "freeze",
    "freeze_and_merge",
    "predict_samples",
    "register_layer",
    "split",
    "unfreeze",
    "with_dropout",
]

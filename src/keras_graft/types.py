"""The types in the signatures of the library, for annotations and `except` clauses of your own.

Nothing here does anything: what is done has its name in `keras_graft`. Keras declares no types, so a `Model` here is
whatever has the methods of a `keras.Model`, and every Keras model is one.

| name | is |
|---|---|
| `Model`, `Layer` | a `keras.Model` and a `keras.Layer`, as arguments |
| `Models`, `Head`, `Stage`, `Merge`, `Inputs`, `CompileArgs` | arguments of `freeze_and_merge` and of `Branch` |
| `Policy`, `DropoutPolicy`, `Augmentation` | what becomes of dropout and of augmentation |
| `Layers`, `LearningRate`, `LayerDecay`, `BatchNorm`, `DropoutOfBranches` | arguments of `unfreeze` and `Unfreezing` |
| `Row`, `Total`, `Measured`, `Effect` | what an `Audit` is made of |
| `AuditChanges`, `Change` | what `Audit.changes_since` returns, and what it is made of |
| `Finding`, `Outcome` | what a `LayerReport` is made of |
| `Registration`, `EffectName` | arguments of `register_layer` |
| `FeatureStoreError` | raised by `fit_head` for a folder that it cannot use: an `OSError` |

Example:

>>> import keras
>>> from keras_graft import freeze_and_merge
>>> from keras_graft.types import Policy
>>> def quieten(layer: keras.layers.Layer) -> Policy:
...     return "remove" if isinstance(layer, keras.layers.GaussianNoise) else "off"
>>> base = keras.Sequential([keras.Input((8,)), keras.layers.GaussianNoise(0.1), keras.layers.Dropout(0.5)])
>>> model = freeze_and_merge({"a": base}, head=3, dropout=quieten, loss="mse")
>>> [type(layer).__name__ for layer in model.get_layer("a").layers]
['Dropout']
"""

from ._audit.changes import AuditChanges, Change
from ._audit.report import Total
from ._behaviour.findings import Row
from ._behaviour.measure import Measured
from ._behaviour.table import Effect, EffectName, Registration
from ._check_layer import Finding, Outcome
from ._compose.branch import Models
from ._compose.inputs import Inputs
from ._compose.merge import Merge
from ._engine.policy import Augmentation, DropoutPolicy, Policy
from ._features.store import FeatureStoreError
from ._finetune.decay import LayerDecay
from ._finetune.dropout import Dropout as DropoutOfBranches
from ._finetune.flags import BatchNorm
from ._finetune.optimizer import LearningRate
from ._finetune.selection import Layers
from ._keras import Layer, Model
from ._losses.ending import Head, Stage
from ._losses.loss import CompileArgs

__all__ = [
    "AuditChanges",
    "Augmentation",
    "BatchNorm",
    "Change",
    "CompileArgs",
    "DropoutOfBranches",
    "DropoutPolicy",
    "Effect",
    "EffectName",
    "FeatureStoreError",
    "Finding",
    "Head",
    "Inputs",
    "Layer",
    "LayerDecay",
    "Layers",
    "LearningRate",
    "Measured",
    "Merge",
    "Model",
    "Models",
    "Outcome",
    "Policy",
    "Registration",
    "Row",
    "Stage",
    "Total",
]

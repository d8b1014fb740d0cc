"""The one door to what Keras and TensorFlow keep private, and every difference between their versions.

Nobody else imports `keras.src` or `tensorflow.python`, or touches names that begin with an underscore on objects of
Keras. Each function says what it gives, and on which versions the name behind it was seen ("all": 3.12.0, 3.15.1 and
3.16.0-dev). It must not know of policies, branches or merges.
"""

from __future__ import annotations

from keras.src import tree
from keras.src.backend import compute_output_spec
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.models import Functional
from keras.src.saving.keras_saveable import KerasSaveable

from .aliases import *
from .calls import *
from .copies import *
from .exporting import *
from .graphs import *
from .noise import *
from .optimizers import *
from .parts import *
from .pipelines import *
from .records import *
from .stored_modes import *
from .tensorflow import *
from .training import *

__all__ = ["Functional", "KerasSaveable", "compute_output_spec", "get_keras_mask", "set_keras_mask", "tree"]

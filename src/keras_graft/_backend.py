"""Makes sure, before anything else is imported, that Keras runs on TensorFlow: `fit` would fail in strange ways."""

import os
import sys

__all__ = ["BACKEND"]

# What Keras will take when it is imported. Another backend need not be installed, and Keras would say only that.
BACKEND = os.environ.get("KERAS_BACKEND") if "keras" not in sys.modules else None
if not BACKEND:
    import keras

    BACKEND = keras.backend.backend()
if BACKEND != "tensorflow":
    raise ImportError(
        f"keras_graft needs Keras on TensorFlow, and the backend of Keras is '{BACKEND}'. Set "
        'os.environ["KERAS_BACKEND"] = "tensorflow" before the first `import keras`.'
    )

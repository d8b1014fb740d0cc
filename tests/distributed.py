"""Trains a merged model on one device and on two, in a process of its own: python distributed.py.

TensorFlow must know its logical devices before anything else runs. What each training left is printed as JSON.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any


def train(devices: list[str], ahead: bool = False) -> dict[str, Any]:
    """Composes and trains under a `MirroredStrategy` over these devices, and says what came of it.

    Args:
        devices: The devices.
        ahead: Whether `fit_head` trains, and computes the frozen part once.
    """
    import helpers
    import keras
    import tensorflow as tf
    import zoo

    from keras_graft import fit_head, freeze_and_merge

    keras.utils.set_random_seed(0)
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
        base = zoo.make_convolutional()
        model = freeze_and_merge({"base": base}, 2, dropout="off", loss="mse", jit_compile=False)
    before = helpers.values(model.get_layer("base"))
    options: dict[str, Any] = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    fit = functools.partial(fit_head, model) if ahead else model.fit
    history = fit(zoo.images(16), zoo.vectors(16, 2), **options)
    return {
        "replicas": strategy.num_replicas_in_sync,
        "frozen": helpers.values(model.get_layer("base")) == before,
        "head": helpers.array(model.trainable_variables[0]).tolist(),
        "loss": history.history["loss"],
    }


def in_a_new_process() -> list[dict[str, Any]]:
    """What training on one device left, on two, and `fit_head` on two."""
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def make_logical_devices() -> list[str]:
    """Two devices out of the one processor."""
    import tensorflow as tf

    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    return ["CPU:0", "CPU:1"]


if __name__ == "__main__":
    both = make_logical_devices()
    print(json.dumps([train(both[:1]), train(both), train(both, ahead=True)]))

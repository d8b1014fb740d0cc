"""32 heads on one frozen base: Ray Tune trains them side by side, on features that were computed once.

The base, a convolutional network with dropout, knows the digits 0 to 4, as in sweep.py. A new head shall tell all ten
digits apart by its features. Here 32 heads are a grid: of units, dropout and learning rates. They are trained one after
the other, and then by Ray Tune, in as many processes as there are cores, where ASHA stops those that fall behind. All
read the same folder of features, so the base sees each image once. The script prints one table.
What it writes goes to the folder, or to a temporary one. It needs `pip install "keras-graft[ray]" scikit-learn`.

    python side_by_side.py [folder]
"""

import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import ray
from keras import layers
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_graft import Branch, fit_head, freeze_and_merge

GRID = {"units": [32, 64, 128, 256], "dropout": [0.0, 0.2, 0.4, 0.6], "learning_rate": [3e-4, 3e-3]}
STEPS, EPOCHS_IN_A_STEP = 4, 10  # ASHA decides after each step


def main(folder, grid=GRID):
    cores = os.cpu_count()
    keras.utils.set_random_seed(0)
    base, features = folder / "base.keras", folder / "features"
    save_base(base)
    images_computed = fill(base, features)

    rows = [one_after_the_other(grid, base, features), side_by_side(grid, base, features, folder, cores)]
    heads = len(list(itertools.product(*grid.values())))
    print_table(rows, heads, cores)
    print(f"\nThe base computed the features of {images_computed:,} images, once for all heads.")


# ---------------------------------------------------------------------------------------------------------
# The pretrained model
# ---------------------------------------------------------------------------------------------------------


def load_data():
    """1,797 handwritten digits of 8 by 8 pixels: 70% to train on, 30% to choose a head by."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    split = train_test_split(images, digits, test_size=0.3, stratify=digits, random_state=0)
    train_images, validation_images, train_digits, validation_digits = split
    return (train_images, train_digits), (validation_images, validation_digits)


def save_base(path):
    """Trains the base on the digits 0 to 4, and saves it: each process loads it from there."""
    stack = [
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.Conv2D(96, 3, padding="same", activation="relu"),
        layers.SpatialDropout2D(0.2),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dropout(0.5, name="features"),
        layers.Dense(5, name="old_head"),
    ]
    base = keras.Sequential([keras.Input((8, 8, 1)), *stack], name="base")
    (images, labels), _ = load_data()
    base.compile("adam", cross_entropy())
    base.fit(images[labels < 5], labels[labels < 5], epochs=3, verbose=0)
    base.save(path)


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# ---------------------------------------------------------------------------------------------------------
# The heads
# ---------------------------------------------------------------------------------------------------------


def build(config, base):
    """A head on the base; equal configs draw equal weights, in whatever process."""
    keras.utils.set_random_seed(1)
    return freeze_and_merge(
        [Branch(keras.models.load_model(base), output="features")],
        head=[layers.Dense(config["units"], "relu"), layers.Dropout(config["dropout"]), layers.Dense(10)],
        optimizer=keras.optimizers.Adam(config["learning_rate"]),
        loss=cross_entropy(),
        metrics=["accuracy"],
    )


def train(model, features, epochs):
    """Trains a head on the features that the folder holds, and returns its best validation accuracy."""
    data, validation = load_data()
    history = fit_head(
        model, *data, validation_data=validation, cache=features, epochs=epochs, batch_size=32, verbose=0
    )
    return max(history.history["val_accuracy"])


def fill(base, features):
    """Has a first head compute the features of all images, and returns how many there are in the folder then."""
    train(build({"units": 8, "dropout": 0.0, "learning_rate": 1e-3}, base), features, epochs=1)
    return sum(len(np.load(file, mmap_mode="r")) for file in Path(features).rglob("feature-*.npy"))


def one_after_the_other(grid, base, features):
    start = time.perf_counter()
    configs = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    epochs = STEPS * EPOCHS_IN_A_STEP
    accuracies = [train(build(config, base), features, epochs) for config in configs]
    best = max(range(len(configs)), key=accuracies.__getitem__)
    return {
        "how": "one after the other",
        "seconds": time.perf_counter() - start,
        "epochs": epochs * len(configs),
        "val_accuracy": accuracies[best],
        **configs[best],
    }


class Head(tune.Trainable):
    """A trial of Ray Tune. A process imports TensorFlow once, for all trials that it runs."""

    def setup(self, config):
        self.model = build(config, config["base"])

    def step(self):
        return {"val_accuracy": train(self.model, self.config["features"], EPOCHS_IN_A_STEP)}

    def reset_config(self, new_config):
        self.setup(new_config)
        return True


def side_by_side(grid, base, features, folder, cores):
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    start = time.perf_counter()
    space = {name: tune.grid_search(values) for name, values in grid.items()}
    tuner = tune.Tuner(
        tune.with_resources(Head, {"cpu": 1}),
        param_space={**space, "base": str(base), "features": str(features)},
        tune_config=tune.TuneConfig(
            metric="val_accuracy", mode="max", scheduler=ASHAScheduler(max_t=STEPS), reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    )
    results = tuner.fit()
    seconds = time.perf_counter() - start
    ray.shutdown()
    best = results.get_best_result(scope="all")
    return {
        "how": "side by side, ASHA",
        "seconds": seconds,
        "epochs": sum(result.metrics["training_iteration"] for result in results) * EPOCHS_IN_A_STEP,
        "val_accuracy": max(best.metrics_dataframe["val_accuracy"]),
        **best.config,
    }


# ---------------------------------------------------------------------------------------------------------
# Showing
# ---------------------------------------------------------------------------------------------------------


def print_table(rows, heads, cores):
    print(f"{heads} heads on {cores} cores, with Keras {keras.__version__} and Ray {ray.__version__}:\n")
    print("| | seconds | epochs trained | best validation accuracy | of the head |")
    print("|---|---|---|---|---|")
    for row in rows:
        head = f"{row['units']} units, dropout {row['dropout']}, learning rate {row['learning_rate']}"
        print(f"| {row['how']} | {row['seconds']:.1f} | {row['epochs']:,} | {row['val_accuracy']:.1%} | {head} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))

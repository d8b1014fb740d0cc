"""Ten heads on one frozen base: KerasTuner searches, and the features are computed once for all of them.

The base, a convolutional network with dropout, knows the digits 0 to 4. A new head shall tell all ten digits
apart by its features, and KerasTuner tries ten of them: how many units, how much dropout, which learning rate.
Each is trained by `fit_head` with the same folder as its cache. What stands before the head is the same in all
ten models, so the first of them computes the features, and the others find them there. The script prints one table.
What it writes goes to the folder, or to a temporary one.

    python sweep.py [folder]
"""

import sys
import tempfile
import time
from pathlib import Path

import keras
import keras_tuner
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_graft import Branch, fit_head, freeze_and_merge

TRAINING = {"epochs": 8, "batch_size": 64, "verbose": 0}


def main(folder, number=10):
    keras.utils.set_random_seed(0)
    train, validation = load_data()
    base = make_base()
    pretrain(base, train, digits=range(0, 5))

    heads = WatchedHeads(base, cache=folder / "features")
    tuner = keras_tuner.RandomSearch(
        heads, "val_accuracy", max_trials=number, seed=0, directory=folder, project_name="tuner", overwrite=True
    )
    tuner.search(*train, validation_data=validation, **TRAINING)

    rows = sorted(heads.rows, key=lambda row: row["validation accuracy"], reverse=True)
    print_table(rows)
    print_best(rows[0], heads.build(tuner.get_best_hyperparameters()[0]), train, validation)
    print_what_was_computed_once(rows)


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


def make_base():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Conv2D(96, 3, padding="same", activation="relu"),
            layers.SpatialDropout2D(0.2),
            layers.Conv2D(96, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.5, name="features"),
            layers.Dense(5, name="old_head"),
        ],
        name="base",
    )


def pretrain(model, data, digits):
    images, labels = data
    known = np.isin(labels, digits)
    model.compile(keras.optimizers.Adam(1e-3), cross_entropy())
    model.fit(images[known], labels[known] - digits.start, epochs=3, verbose=0)


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# ---------------------------------------------------------------------------------------------------------
# The search
# ---------------------------------------------------------------------------------------------------------


class Heads(keras_tuner.HyperModel):
    """The recipe: `build` puts a head on the base, and `fit` trains it on the features that the cache holds."""

    def __init__(self, base, cache):
        super().__init__()
        self.base, self.cache = base, cache

    def build(self, hp):
        keras.utils.set_random_seed(1)  # what is drawn in a trial does not hang on the trials before it
        head = [
            layers.Dense(hp.Choice("units", [16, 32, 64, 128]), activation="relu"),
            layers.Dropout(hp.Float("dropout", 0.0, 0.6, step=0.1)),
            layers.Dense(10),
        ]
        return freeze_and_merge(
            [Branch(self.base, output="features")],
            head,
            optimizer=keras.optimizers.Adam(hp.Float("learning rate", 1e-3, 1e-1, sampling="log")),
            loss=cross_entropy(),
            metrics=["accuracy"],
        )

    def fit(self, hp, model, *args, **kwargs):
        return fit_head(model, *args, cache=self.cache, **kwargs)


class WatchedHeads(Heads):
    """The same, with a row for the table from each trial."""

    def __init__(self, base, cache):
        super().__init__(base, cache)
        self.rows = []

    def fit(self, hp, model, *args, **kwargs):
        before, start = stored(self.cache), time.perf_counter()
        history = super().fit(hp, model, *args, **kwargs)
        seconds = time.perf_counter() - start
        row = {
            "head": len(self.rows) + 1,
            **hp.values,
            "images computed": sum(count_rows(file) for file, _ in stored(self.cache) - before),
            "seconds": seconds,
            "validation accuracy": best_accuracy(history),
        }
        self.rows.append(row)
        return history


def stored(folder):
    """The files of features in a folder, each with the time when it was written."""
    return {(file, file.stat().st_mtime_ns) for file in folder.rglob("feature-*.npy")}


def count_rows(file):
    return len(np.load(file, mmap_mode="r"))


def best_accuracy(history):
    """That of the best epoch, by which KerasTuner chooses too."""
    return max(history.history["val_accuracy"])


# ---------------------------------------------------------------------------------------------------------
# Showing
# ---------------------------------------------------------------------------------------------------------

COLUMNS = {
    "head": "d",
    "units": "d",
    "dropout": ".1f",
    "learning rate": ".4f",
    "images computed": ",d",
    "seconds": ".2f",
    "validation accuracy": ".1%",
}


def print_table(rows):
    print(f"{len(rows)} heads, with Keras {keras.__version__} and KerasTuner {keras_tuner.__version__}:\n")
    print("  ".join(COLUMNS))
    print("  ".join("-" * len(title) for title in COLUMNS))
    for row in rows:
        print("  ".join(format(row[title], style).rjust(len(title)) for title, style in COLUMNS.items()))


def print_best(row, model, train, validation):
    """Says which head is the best, and trains it again without features that were computed ahead."""
    start = time.perf_counter()
    history = model.fit(*train, validation_data=validation, **TRAINING)
    seconds = time.perf_counter() - start
    print(f"\nThe best is head {row['head']}: {row['validation accuracy']:.1%} in {row['seconds']:.2f} s")
    # From the same first weights, but with the examples in another order: a folder has one of its own.
    print(f"Trained again by plain `fit`: {best_accuracy(history):.1%} in {seconds:.2f} s")


def print_what_was_computed_once(rows):
    first, *others = sorted(rows, key=lambda row: row["head"])
    computed = sum(row["images computed"] for row in others)
    seconds = np.median([row["seconds"] for row in others])
    print(f"\nThe base computed the features of {first['images computed']:,} images for head 1 ", end="")
    print(f"({first['seconds']:.2f} s), and of {computed:,} for the other {len(others)} (median {seconds:.2f} s)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))

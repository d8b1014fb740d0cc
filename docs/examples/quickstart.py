"""Two pretrained networks under one new head: what each dropout policy does, and what plain Keras does.

model_A, a small convolutional network, knows the digits 0 to 4. model_B, a GRU that reads an image row by
row, knows the digits 5 to 9. Both hold dropout layers. Their old heads are cut off, both are frozen, and a
new head learns all ten digits from their features. The script prints one table, and plots the curves.

    python quickstart.py [plot.png]
"""

import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_graft import Branch, freeze_and_merge

POLICIES = ("keep", "off", "remove", "always")
BY_HAND = "base(x, training=False)"
EPOCHS = 15


def main(plot):
    keras.utils.set_random_seed(0)
    train, test = load_data()
    bases = [make_model_a(), make_model_b()]
    pretrain(bases[0], train, digits=range(0, 5))
    pretrain(bases[1], train, digits=range(5, 10))
    print_what_each_knows(bases, train, test)

    clean = inference_features(bases, test)
    models, curves, rows = {}, {}, []
    for policy in (*POLICIES, BY_HAND):
        keras.utils.set_random_seed(1)  # the same new head and the same batches for each
        model = merge_by_hand(bases) if policy == BY_HAND else merge(bases, policy)
        curves[policy], seconds = train_head(model, train, test)
        rows.append({"policy": policy, **describe(model, test, clean, seconds)})
        models[policy] = model

    print_table(rows)
    print(f'\n"always", the mean of 20 predictions: test accuracy {monte_carlo(models["always"], test):.1%}')
    plot_curves(curves, plot)
    print(f"The training curves are in {plot}")


# ---------------------------------------------------------------------------------------------------------
# The pretrained models
# ---------------------------------------------------------------------------------------------------------


def load_data():
    """1,797 handwritten digits of 8 by 8 pixels: 60% to train on, 40% to test on."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    split = train_test_split(images, digits, test_size=0.4, stratify=digits, random_state=0)
    train_images, test_images, train_digits, test_digits = split
    return (train_images, train_digits), (test_images, test_digits)


def make_model_a():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.SpatialDropout2D(0.2),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(16, activation="gelu"),
            layers.Dropout(0.5, name="features"),
            layers.Dense(5, name="old_head"),
        ],
        name="model_A",
    )


def make_model_b():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Reshape((8, 8)),
            layers.GRU(16, dropout=0.2),
            layers.Dropout(0.3, name="features"),
            layers.Dense(5, name="old_head"),
        ],
        name="model_B",
    )


def pretrain(model, data, digits):
    images, labels = data
    known = np.isin(labels, digits)
    model.compile(keras.optimizers.Adam(3e-3), cross_entropy())
    model.fit(images[known], labels[known] - digits.start, epochs=20, verbose=0)


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# ---------------------------------------------------------------------------------------------------------
# Merging and training
# ---------------------------------------------------------------------------------------------------------


def merge(bases, policy="off"):
    """The recipe of this library. `output` cuts the old heads off."""
    return freeze_and_merge(
        [Branch(base, output="features") for base in bases],
        head=10,
        dropout=policy,
        optimizer=keras.optimizers.Adam(5e-3),
        loss=cross_entropy(),
        metrics=["accuracy"],
    )


def merge_by_hand(bases):
    """The recipe of the Keras guide to transfer learning. It freezes the layers of the bases themselves."""
    inputs = keras.Input((8, 8, 1))
    features = []
    for base in map(without_old_head, bases):
        base.trainable = False
        features.append(base(inputs, training=False))
    merged = layers.Concatenate(name="merge")(features)
    model = keras.Model(inputs, layers.Dense(10, name="head")(merged))
    model.compile(keras.optimizers.Adam(5e-3), cross_entropy(), metrics=["accuracy"])
    return model


def without_old_head(base):
    return keras.Model(base.inputs[0], base.get_layer("features").output, name=base.name)


class Stopwatch(keras.callbacks.Callback):
    """Takes the time of each epoch, without its validation."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_test_begin(self, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def train_head(model, train, test):
    """Trains the head, and returns the curves and the seconds of a typical epoch."""
    watch = Stopwatch()
    history = model.fit(*train, validation_data=test, epochs=EPOCHS, verbose=0, callbacks=[watch])
    return history.history, np.median(watch.seconds)


# ---------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------


def describe(model, data, clean, seconds):
    """One row of the table."""
    images, _ = data
    features = features_of(model)
    return {
        "trainable": f"{count(model.trainable_weights):,}",
        "frozen": f"{count(model.non_trainable_weights):,}",
        # The modes as `fit` and `predict` set them: each step of `fit` calls the model with training=True.
        "dropped in fit": f"{share_dropped(features(images, training=True), clean):.1%}",
        "in predict": f"{share_dropped(features.predict(images, verbose=0), clean):.1%}",
        "s/epoch": f"{seconds:.2f}",
        "test accuracy": f"{accuracy(model, data):.1%}",
    }


def count(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


def features_of(model):
    """The merged model up to the features that its head gets. The two share every layer."""
    return keras.Model(model.inputs[0], model.get_layer("merge").output)


def inference_features(bases, data):
    """The features without any dropout, computed by the pretrained models themselves."""
    images, _ = data
    features = [without_old_head(base).predict(images, verbose=0) for base in bases]
    return np.concatenate(features, axis=1)


def share_dropped(features, clean):
    """The share of features that are zero, of those that are not zero without dropout.

    This counts the last dropout layer of each base. Those before it change features without zeroing them.
    """
    return np.mean(keras.ops.convert_to_numpy(features)[clean != 0] == 0)


def accuracy(model, data):
    return model.evaluate(*data, return_dict=True, verbose=0)["accuracy"]


def monte_carlo(model, data, samples=20):
    """Test accuracy of the mean prediction of a model whose dropout is always on."""
    images, labels = data
    probabilities = [keras.ops.softmax(model.predict(images, verbose=0)) for _ in range(samples)]
    return np.mean(np.argmax(sum(probabilities), axis=1) == labels)


# ---------------------------------------------------------------------------------------------------------
# Showing
# ---------------------------------------------------------------------------------------------------------


def print_what_each_knows(bases, train, test):
    print("A new head for all ten digits")
    for base in bases:
        keras.utils.set_random_seed(1)
        model = merge([base])
        train_head(model, train, test)
        print(f"  on {base.name} alone: test accuracy {accuracy(model, test):.1%}")


def print_table(rows):
    titles = list(rows[0])
    lines = [titles, *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    print(f"  on both, with Keras {keras.__version__}:\n")
    for first, *others in lines:
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))


# "off" and "remove" give the same curve, so the one is drawn as a band around the other.
STYLES = {
    "keep": {"color": "tab:orange", "linewidth": 2},
    "off": {"color": "tab:blue", "linewidth": 6, "alpha": 0.35},
    "remove": {"color": "tab:blue", "linewidth": 1.5, "linestyle": "--"},
    "always": {"color": "tab:green", "linewidth": 2},
    BY_HAND: {"color": "black", "linewidth": 1.5, "linestyle": ":"},
}


def plot_curves(curves, path):
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    epochs = range(1, EPOCHS + 1)
    for policy, history in curves.items():
        losses.plot(epochs, history["loss"], label=policy, **STYLES[policy])
        accuracies.plot(epochs, history["val_accuracy"], label=policy, **STYLES[policy])
    losses.set(title="Training loss of the head", xlabel="epoch", yscale="log")
    losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_locator(NullLocator())
    accuracies.set(title="Test accuracy", xlabel="epoch", ylim=(0.2, 1))
    accuracies.yaxis.set_major_formatter(PercentFormatter(1))
    accuracies.legend(title="dropout in the frozen bases", loc="lower right")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/quickstart.png"))

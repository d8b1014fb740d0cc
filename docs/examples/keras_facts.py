"""What the installed Keras does with frozen layers and with dropout, measured.

python docs/examples/keras_facts.py
"""

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers, ops

ONES = np.ones((16, 500), "float32")
ROWS = np.random.default_rng(0).normal(3, 1, size=(64, 8)).astype("float32")
FACTS = {}


def fact(said):
    """Registers a function that measures what `said` says, and gives it in words."""
    return lambda measure: FACTS.setdefault(said, measure)


def dropped(outputs):
    share = np.mean(ops.convert_to_numpy(outputs) == 0)
    return f"drops {round(share, 1):.0%}" if share else "drops nothing"


def yes(answer):
    return "yes" if answer else "no"


def model_of(function, shape=(500,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, function(inputs))


def losses_of_frozen(layer):
    model = model_of(layer)
    model.trainable = False
    model(ONES, training=True)
    return model.losses


def base(**stored):
    """A model with dropout, frozen."""
    model = model_of(lambda x: layers.Dropout(0.5)(x, **stored))
    model.trainable = False
    return model


def with_statistics():
    stack = [keras.Input((8,)), layers.Dense(4), layers.BatchNormalization(name="norm")]
    return keras.Sequential(stack)


def under_a_head(encoder):
    """The recipe of the guides of Keras: the frozen base, called in inference mode."""
    encoder.trainable = False
    return model_of(lambda x: layers.Dense(1)(encoder(x, training=False)), encoder.input_shape[1:])


def trained(model):
    model.compile("sgd", "mse")
    model.fit(ROWS, np.ones((64, 1)), verbose=0)
    return model


def moved(variable, action):
    before = ops.convert_to_numpy(variable).copy()
    action()
    return not np.array_equal(before, ops.convert_to_numpy(variable))


def reloaded(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        return keras.models.load_model(f"{folder}/model.keras")


@fact("a frozen `Dropout(0.5)`, in training mode")
def frozen_dropout():
    return dropped(base()(ONES, training=True))


@fact("`base(x, training=False)` in a functional model: the dropout of the base, in `fit`")
def stored_false():
    return dropped(model_of(lambda x: base()(x, training=False))(ONES, training=True))


@fact("the dropout of the head behind it, in `fit`")
def head_behind_stored_false():
    def merged(x):
        # What the base dropped is one again, so that only what the head drops is zero.
        return layers.Dropout(0.5)(ops.ones_like(base()(x, training=False)))

    return dropped(model_of(merged)(ONES, training=True))


@fact("`Dropout(0.5)(x, training=True)` in a functional model, in `predict`")
def stored_true():
    return dropped(base(training=True)(ONES, training=False))


@fact("the same inside a base that is called as `base(x, training=False)`, in `predict`")
def stored_true_inside():
    return dropped(model_of(lambda x: base(training=True)(x, training=False))(ONES, training=False))


@fact("the graph of a model with dropout stores a `training` that nobody wrote")
def stored_unasked():
    node = model_of(layers.Dropout(0.5)).get_config()["layers"][-1]["inbound_nodes"][0]
    return yes("training" in node["kwargs"])


class Inner(layers.Layer):
    """A layer whose `call` takes no mode."""

    def __init__(self):
        super().__init__()
        self.drop = layers.Dropout(0.5)

    def call(self, inputs):
        return self.drop(inputs)


class Outer(layers.Layer):
    """Calls one layer in inference mode, and another behind it in no mode."""

    def __init__(self):
        super().__init__()
        self.inner, self.behind = Inner(), layers.Dropout(0.5)

    def call(self, inputs):
        quiet = self.inner(inputs, training=False)
        return quiet, self.behind(ops.ones_like(quiet))


@fact("a layer that calls `self.inner(x, training=False)`: the dropout inside, in `fit`")
def explicit_mode():
    return dropped(model_of(Outer())(ONES, training=True)[0])


@fact("the dropout that the same layer calls behind it, in no mode, in `fit`")
def behind_explicit_mode():
    return dropped(model_of(Outer())(ONES, training=True)[1])


@fact("`clone_model` with a `clone_function` that sees every layer is asked about layers of nested models")
def clone_function_in_nested_models():
    seen = []
    nested = keras.Sequential([keras.Input((500,)), keras.Sequential([keras.Input((500,)), layers.Dropout(0.5)])])
    keras.models.clone_model(nested, clone_function=lambda layer: seen.append(layer) or layer)
    return yes(any(isinstance(layer, layers.Dropout) for layer in seen))


@fact("the statistics of a frozen `BatchNormalization` move in `fit`")
def frozen_statistics():
    encoder = with_statistics()
    return yes(moved(encoder.get_layer("norm").moving_mean, lambda: trained(under_a_head(encoder))))


@fact("they move once `base.trainable = True`, though the base was called with `training=False`")
def fine_tuned_statistics():
    encoder = with_statistics()
    model = under_a_head(encoder)
    encoder.trainable = True
    return yes(moved(encoder.get_layer("norm").moving_mean, lambda: trained(model)))


@fact("a frozen `SpectralNormalization` rewrites the kernel inside it in training mode")
def frozen_spectral_normalization():
    layer = layers.SpectralNormalization(layers.Dense(16))
    model = model_of(layer)
    model.trainable = False
    return yes(moved(layer.layer.kernel, lambda: model(ONES, training=True)))


@fact("an activity regularizer of a frozen layer adds to the loss")
def frozen_activity_regularizer():
    return yes(losses_of_frozen(layers.Dense(4, activity_regularizer="l2")))


@fact("a kernel regularizer of a frozen layer adds to the loss")
def frozen_kernel_regularizer():
    return yes(losses_of_frozen(layers.Dense(4, kernel_regularizer="l2")))


def attention():
    return model_of(lambda x: layers.MultiHeadAttention(2, 4)(x, x), (6, 8))


@fact("variables that train of frozen attention under a dense layer (2 by right), saved and loaded")
def trainable_after_loading():
    return str(len(reloaded(under_a_head(attention())).trainable_variables))


@fact("variables that train of the same, cloned while frozen, and frozen again")
def frozen_again():
    frozen = attention()
    frozen.trainable = False
    clone = keras.models.clone_model(frozen)
    clone.trainable = False
    return str(len(under_a_head(clone).trainable_variables))


@fact("`model.trainable = True` on the whole unfreezes the base in it")
def unfrozen_with_the_whole():
    encoder = with_statistics()
    model = under_a_head(encoder)
    model.trainable = False
    model.trainable = True
    return yes(encoder.trainable_variables)


@fact("a base that is unfrozen, and not compiled again, trains")
def unfrozen_without_compiling():
    encoder = with_statistics()
    model = trained(under_a_head(encoder))
    encoder.trainable = True
    return yes(moved(encoder.layers[0].kernel, lambda: model.fit(ROWS, np.ones((64, 1)), verbose=0)))


@fact("the states of a stateful `LSTM` are among `model.variables`")
def states_among_the_variables():
    model = keras.Sequential([keras.Input((5, 8), batch_size=4), layers.LSTM(3, stateful=True, use_bias=False)])
    model(np.ones((4, 5, 8)))
    held = {id(variable) for variable in model.variables}
    return yes(any(id(state) in held for state in model.layers[0].states))


if __name__ == "__main__":
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")
    for said, measure in FACTS.items():
        print(f"{said}: {measure()}")

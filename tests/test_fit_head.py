"""`fit_head`: what `fit` does, to the bit where the data come in the same batches, and no more than once."""

from __future__ import annotations

import pathlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import KERAS_3_12, array, dense_base
from keras import layers
from zoo import if_quick

from keras_graft import fit_head, freeze_and_merge, predict_samples, split

X = zoo.vectors(100, 8)
Y = (X.sum(axis=1) > 0).astype("int64")
WEIGHTS = zoo.RNG(5).uniform(size=100).astype("float32")
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def base(name: str = "base") -> keras.Sequential:
    return zoo.sequential(
        keras.Input((8,), name="vector"),
        layers.Dense(16, activation="tanh", name="hidden"),
        layers.BatchNormalization(name="norm"),
        layers.Dense(6, name="late"),
        layers.Dropout(0.5, name="drop"),
        layers.Dense(6, name="top"),
        name=name,
    )


def model(dropout: Any = "off", head: Any = None, **options: Any) -> keras.Model:
    """A merged model whose weights are the same each time."""
    keras.utils.set_random_seed(3)
    # No bias before the normalisation: its gradient is all but zero, and Adam would make steps of its rounding.
    head = head or [
        layers.Dense(5, activation="relu", use_bias=False),
        layers.BatchNormalization(),
        layers.Dropout(0.3),
        layers.Dense(2),
    ]
    options = {"loss": CROSSENTROPY, "metrics": ["accuracy"], **options}
    return freeze_and_merge({"a": base("a"), "b": base("b")}, head, dropout=dropout, **options)


def trained(train: Callable[..., Any], made: keras.Model, *data: Any, **options: Any) -> dict[str, list[float]]:
    keras.utils.set_random_seed(7)
    history = train(made, *data, **{"epochs": 3, "verbose": 0, **options})
    assert history is made.history
    return history.history


def plain_fit(made: keras.Model, *data: Any, **options: Any) -> Any:
    return made.fit(*data, **options)


def values(variables: Any) -> list[np.ndarray]:
    return [array(variable) for variable in variables]


def assert_same_training(make: Callable[[], keras.Model], data: Callable[[], tuple[Any, ...]], **options: Any) -> None:
    """`fit_head` ends where `fit` does: history, weights, statistics, seeds and optimizer."""
    one, other = make(), make()
    expected = trained(plain_fit, one, *data(), **options)
    actual = trained(fit_head, other, *data(), **options)
    assert actual.keys() == expected.keys()
    for name, series in expected.items():
        np.testing.assert_allclose(actual[name], series, rtol=2e-5, atol=1e-6, err_msg=name)
    pairs = list(zip(one.variables + one.optimizer.variables, other.variables + other.optimizer.variables))
    assert pairs
    for own, theirs in pairs:
        np.testing.assert_allclose(array(theirs), array(own), rtol=1e-4, atol=1e-5, err_msg=own.path)


# ---------------------------------------------------------------------------------------------------------
# The same as `fit`
# ---------------------------------------------------------------------------------------------------------


FIT_ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"batch_size": 16},
    {"shuffle": False},
    {"validation_split": 0.25},
    {"validation_data": (X[:30], Y[:30])},
    {"validation_data": (X[:30], Y[:30], WEIGHTS[:30]), "validation_batch_size": 7, "validation_freq": 2},
    {"class_weight": {0: 1.0, 1: 3.0}},
    {"sample_weight": WEIGHTS},
    {"steps_per_epoch": 2},
    {"initial_epoch": 1},
    {"validation_data": (X[:30], Y[:30]), "validation_steps": 2},
]

# Of these others show as much: Keras itself takes them, or they come together with others.
SLOW_ARGUMENTS = ("batch_size", "initial_epoch", "validation_data", "validation_data validation_steps")


@pytest.mark.parametrize(
    "options, dropout",
    [
        pytest.param(options, dropout, id=f"{' '.join(options) or 'defaults'}-{dropout}", marks=if_quick(quick))
        for options in FIT_ARGUMENTS
        for dropout, quick in (("off", " ".join(options) not in SLOW_ARGUMENTS), ("keep", not options))
    ],
)
def test_arrays_train_as_in_fit(options: dict[str, Any], dropout: str) -> None:
    assert_same_training(lambda: model(dropout), lambda: (X, Y), **options)


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        return X[index * 15 : index * 15 + 15], Y[index * 15 : index * 15 + 15]


def uneven() -> Iterator[Any]:
    while True:
        yield from ((X[start:stop], Y[start:stop]) for start, stop in ((0, 10), (10, 40), (40, 45)))


STREAMS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "dataset": (lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(16), {}),
    "weighted dataset": (lambda: tf.data.Dataset.from_tensor_slices((X, Y, WEIGHTS)).batch(16), {}),
    "dataset in several epochs": (
        lambda: tf.data.Dataset.from_tensor_slices((X[:96], Y[:96])).batch(16),
        {"steps_per_epoch": 2},
    ),
    "PyDataset": (Batches, {}),
    "endless dataset": (
        lambda: tf.data.Dataset.from_tensor_slices((X[:64], Y[:64])).batch(16).repeat(),
        {"steps_per_epoch": 4},
    ),
    "uneven generator": (uneven, {"steps_per_epoch": 3}),
}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=if_quick(k != "endless dataset")) for k in STREAMS])
def test_batches_train_as_in_fit(kind: str) -> None:
    make, options = STREAMS[kind]
    assert_same_training(model, lambda: (make(),), shuffle=False, **options)


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
def test_a_dataset_of_unknown_length_trains_as_in_fit() -> None:
    """In `fit` Keras begins a step too many, which moves seeds and counters, but no weights (3.12 to 3.16)."""

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        return model(head=[layers.Dense(2)])

    one, other = make(), make()
    histories = []
    for train, made in ((plain_fit, one), (fit_head, other)):
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(9).filter(lambda *_: True)
        histories.append(trained(train, made, data, shuffle=False))
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-5)
    for own, theirs in zip(one.trainable_variables, other.trainable_variables):
        np.testing.assert_allclose(array(theirs), array(own), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_validation_batches_count_as_in_fit(steps: int | None) -> None:
    data = tf.data.Dataset.from_tensor_slices((X[:50], Y[:50])).batch(20)
    options = {"validation_data": data.repeat(), "validation_steps": steps} if steps else {"validation_data": data}
    assert_same_training(model, lambda: (X, Y), **options)


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_structured_inputs_train_as_in_fit(structure: str) -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        return freeze_and_merge({"a": base("a"), "b": base("b")}, 2, inputs="separate", loss=CROSSENTROPY)

    names = ["a_input", "b_input"]
    arrays = [X, zoo.vectors(100, 8, seed=4)]
    data = arrays if structure == "list" else dict(zip(names, arrays))
    if structure == "dict":
        merged = make
        inputs = {name: keras.Input((8,), name=name) for name in names}

        def make() -> keras.Model:
            inner = merged()
            outer = keras.Model(inputs, inner(list(inputs.values())))
            outer.compile("rmsprop", CROSSENTROPY)
            return outer

    assert_same_training(make, lambda: (data, Y))


def test_a_plain_model_of_keras_trains_as_in_fit() -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        frozen = base()
        frozen.trainable = False
        plain = keras.Sequential([keras.Input((8,)), frozen, layers.Dropout(0.2), layers.Dense(2)])
        plain.compile("adam", CROSSENTROPY)
        return plain

    assert_same_training(make, lambda: (X, Y))


def test_several_outputs_train_as_in_fit() -> None:
    loss = {"kind": CROSSENTROPY, "size": "mse"}
    targets = {"kind": Y, "size": X[:, :1]}

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        head = {"kind": layers.Dense(2, name="kind"), "size": layers.Dense(1, name="size")}
        return model(head=head, loss=loss, loss_weights={"kind": 1.0, "size": 0.3}, metrics={"kind": ["accuracy"]})

    assert_same_training(make, lambda: (X, targets), validation_split=0.2)


OPTIMIZERS = [
    name
    for name, found in vars(keras.optimizers).items()
    if isinstance(found, type)
    and issubclass(found, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
]


@pytest.mark.parametrize("name", [pytest.param(name, marks=if_quick(name in ("SGD", "Adam"))) for name in OPTIMIZERS])
def test_every_optimizer_trains_as_in_fit(name: str) -> None:
    if name == "Muon" and KERAS_3_12:
        pytest.skip("Keras 3.12 cannot train these variables with it")
    assert_same_training(lambda: model(optimizer=getattr(keras.optimizers, name)(1e-2)), lambda: (X, Y), epochs=2)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        pytest.param({"jit_compile": False}, marks=pytest.mark.slow),
        {"run_eagerly": True},
        {"steps_per_execution": 3},
        {"optimizer": keras.optimizers.SGD, "weighted_metrics": ["accuracy"]},
    ],
    ids=" ".join,
)
def test_every_way_to_compile_trains_as_in_fit(options: dict[str, Any]) -> None:
    def make() -> keras.Model:
        built = {key: value() if isinstance(value, type) else value for key, value in options.items()}
        return model("keep", **built)

    assert_same_training(make, lambda: (X, Y), epochs=2)


def test_mixed_precision_trains_as_in_fit() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        one, other = model(), model()
        expected, actual = trained(plain_fit, one, X, Y), trained(fit_head, other, X, Y)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=2e-2)


def test_masks_train_as_in_fit() -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        x = keras.Input((5,), dtype="int32")
        frozen = zoo.functional(x, layers.Embedding(10, 6, mask_zero=True)(x))
        frozen.trainable = False
        plain = keras.Sequential([keras.Input((5,), dtype="int32"), frozen, layers.LSTM(3), layers.Dense(1)])
        plain.compile("adam", "mse")
        return plain

    assert_same_training(make, lambda: (zoo.tokens(60), X[:60, :1]))


def test_live_dropout_is_drawn_anew_in_every_epoch() -> None:
    made = model("keep", head=[layers.Dense(2)], optimizer=keras.optimizers.SGD(0.0))
    losses = fit_head(made, X, Y, epochs=6, verbose=0).history["loss"]
    assert len(set(losses)) == 6


# ---------------------------------------------------------------------------------------------------------
# The frozen part is computed once
# ---------------------------------------------------------------------------------------------------------


def test_the_frozen_part_runs_once_over_the_data() -> None:
    read = []

    class Counting(Batches):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    fit_head(model(), Counting(), epochs=5, verbose=0)
    assert read == list(range(7))


def test_the_branches_are_bit_identical_afterwards() -> None:
    made = model("keep")
    before = values(v for name in "ab" for v in made.get_layer(name).weights)
    head = values(made.trainable_variables)
    fit_head(made, X, Y, epochs=2, verbose=0)
    for was, now in zip(before, values(v for name in "ab" for v in made.get_layer(name).weights)):
        np.testing.assert_array_equal(was, now)
    assert not all(map(np.array_equal, head, values(made.trainable_variables)))


def test_dropout_off_trains_on_inference_features() -> None:
    one, other = model("off"), model("keep")
    expected = trained(plain_fit, one, X, Y)
    actual = trained(fit_head, other, X, Y, dropout="off")
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=1e-5)
    live, again = (array(other.get_layer("a")(X, training=True)) for _ in range(2))
    assert not np.array_equal(live, again)  # it drops again


def test_dropout_off_is_refused_where_it_would_stay_live() -> None:
    x = keras.Input((6, 6, 3))
    flipped = layers.Flatten()(layers.RandomFlip(name="flip")(x))
    frozen = keras.Model(x, layers.Dropout(0.5, name="drop")(layers.Dense(2)(flipped)))
    made = freeze_and_merge([frozen], 1, dropout="keep", loss="mse")
    data = np.ones((4, 6, 6, 3), "float32"), np.ones((4, 1))
    with pytest.raises(ValueError, match=r"drop'.* inference mode.*flip'.*dropout=\"off\""):
        fit_head(made, *data, dropout="off")


# ---------------------------------------------------------------------------------------------------------
# The model that is trained is the model
# ---------------------------------------------------------------------------------------------------------


def test_training_goes_on_with_fit_as_if_nothing_had_happened(tmp_path: pathlib.Path) -> None:
    one, other = model("keep"), model("keep")
    trained(plain_fit, one, X, Y, epochs=2)
    trained(fit_head, other, X, Y, epochs=2)
    other.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    paths = [variable.path for variable in other.optimizer.variables]
    slots = dict(zip(paths, values(other.optimizer.variables)))
    for variable in loaded.optimizer.variables:
        np.testing.assert_array_equal(array(variable), slots[variable.path])
    for made in (one, other):
        keras.utils.set_random_seed(11)
        made.fit(X, Y, epochs=2, verbose=0)
    for own, theirs in zip(one.variables + one.optimizer.variables, other.variables + other.optimizer.variables):
        np.testing.assert_allclose(array(theirs), array(own), rtol=1e-4, atol=1e-6, err_msg=own.path)


def test_a_checkpoint_holds_the_whole_model(tmp_path: pathlib.Path) -> None:
    made = model()
    path = str(tmp_path / "best.keras")
    fit_head(made, X, Y, epochs=2, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(path)])
    np.testing.assert_array_equal(array(keras.models.load_model(path)(X)), array(made(X)))


def test_early_stopping_stops_and_restores() -> None:
    made = model()
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=100.0, restore_best_weights=True)
    history = fit_head(made, X, Y, epochs=20, verbose=0, validation_split=0.2, callbacks=[stop])
    assert stop.stopped_epoch > 0
    assert len(history.history["loss"]) < 20


def test_a_backup_resumes_at_the_epoch_where_training_stopped(tmp_path: pathlib.Path) -> None:
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise InterruptedError

    def backup() -> Any:
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), delete_checkpoint=False)

    with pytest.raises(InterruptedError):
        fit_head(model(), X, Y, epochs=5, verbose=0, callbacks=[backup(), Stop()])
    resumed = fit_head(model(), X, Y, epochs=5, verbose=0, callbacks=[backup()])
    assert resumed.epoch == [2, 3, 4]


def test_callbacks_see_the_model_and_may_call_it_on_raw_inputs() -> None:
    made = model()
    seen = []

    class Looks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            assert self.model is made
            losses = self.model.evaluate(X, Y, verbose=0)
            predicted = self.model.predict(X, verbose=0)
            seen.append((losses[0], logs["val_loss"], np.abs(predicted - array(self.model(X))).max()))

    fit_head(made, X, Y, epochs=2, verbose=0, validation_data=(X, Y), callbacks=[Looks()])
    for loss, validated, difference in seen:
        assert loss == pytest.approx(validated, rel=1e-5)
        assert difference < 1e-5


def test_a_callback_may_call_a_sequential_model_on_arrays() -> None:
    made = zoo.sequential(keras.Input((8,)), layers.Dense(4, trainable=False), layers.Dense(1))
    made.compile("sgd", "mse")
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(array(made(X))))
    fit_head(made, X, Y, verbose=0, callbacks=[look])
    np.testing.assert_array_equal(seen[0], array(made(X)))


class Adds(layers.Layer):
    """Adds a loss."""

    def call(self, inputs: Any) -> Any:
        self.add_loss(keras.ops.mean(inputs**2))
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@pytest.mark.parametrize("wrap", [lambda layer: layer, layers.TimeDistributed], ids=["alone", "in TimeDistributed"])
def test_a_loss_that_a_frozen_layer_adds_counts(wrap: Callable[[Any], Any]) -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        x = keras.Input((8,))
        hidden = layers.Reshape((2, 2))(layers.Dense(4, trainable=False)(x))
        added = wrap(Adds(trainable=False))(hidden)
        made = keras.Model(x, layers.Dense(1)(layers.Flatten()(added)))
        made.compile("sgd", "mse")
        return made

    assert_same_training(make, lambda: (X, X[:, :1]))


# ---------------------------------------------------------------------------------------------------------
# Where it does not pay, and what is refused
# ---------------------------------------------------------------------------------------------------------


def test_nothing_to_compute_ahead_is_said_and_trained_live() -> None:
    made = keras.Sequential([keras.Input((6, 6, 3)), layers.RandomFlip(name="flip"), layers.Flatten(), layers.Dense(1)])
    made.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"as `fit` does: nothing in it can be computed ahead.*'flip'"):
        history = fit_head(made, np.ones((8, 6, 6, 3), "float32"), np.ones((8, 1)), epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2


def test_features_larger_than_the_inputs_are_said_and_trained_live() -> None:
    wide = [layers.Dense(2048), layers.Dropout(0.1, name="early"), layers.Dense(64), layers.Dense(4)]
    frozen = zoo.sequential(keras.Input((8,)), *wide)
    made = freeze_and_merge([frozen], 1, dropout="keep", loss="mse")
    with pytest.warns(UserWarning, match=r"11% of its multiplications.*8,192 bytes, its inputs 32.*early'"):
        fit_head(made, X, X[:, :1], verbose=0)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_a_model_that_changes_what_fit_gets_is_trained_live(method: str) -> None:
    class Own(keras.Model):
        pass

    def own(self: Any, x: Any, y: Any = None, **kwargs: Any) -> Any:
        return getattr(keras.Model, method)(self, x / 10, y, **kwargs)

    setattr(Own, method, own)

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        inputs = keras.Input((8,))
        made = Own(inputs, layers.Dense(1)(layers.Dense(4, activation="tanh", trainable=False)(inputs)))
        made.compile("sgd", "mse")
        return made

    with pytest.warns(UserWarning, match=rf"overrides \['{method}'\]"):
        assert_same_training(make, lambda: (X, X[:, :1]), validation_data=(X[:30], X[:30, :1]))


def test_a_model_with_a_step_of_its_own_is_trained_live() -> None:
    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    frozen = dense_base(inputs=8)
    frozen.trainable = False
    x = keras.Input((8,))
    made = Own(x, layers.Dense(1)(frozen(x)))
    made.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"overrides \['train_step'\]"):
        fit_head(made, X, X[:, :1], verbose=0)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"x": X, "y": Y[:7]}, ValueError, r"equally many examples.*ndarray\[100, 8\].*ndarray\[7\]"),
        ({"x": "images"}, TypeError, "`x` must be arrays or tensors"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, "no examples"),
        ({"x": STREAMS["dataset"][0](), "y": Y}, ValueError, "must come with its batches"),
        ({"x": STREAMS["endless dataset"][0]()}, ValueError, "endless.*`steps_per_epoch`"),
        ({"x": X, "y": Y, "dropout": "none"}, ValueError, '`dropout` must be one of "as composed", "off"'),
        ({"x": X, "y": Y, "validation_split": 0.999}, ValueError, "must leave examples"),
        ({"x": STREAMS["dataset"][0](), "validation_split": 0.2}, ValueError, "Pass `validation_data` with a _Batch"),
        ({"x": X, "y": Y, "cache": None}, TypeError, '`cache` must be "memory" or the path'),
        ({"x": X, "y": Y, "cache": ""}, TypeError, '`cache` must be "memory" or the path'),
        ({"x": X, "y": Y, "batch_size": 0}, ValueError, "`batch_size` must be a positive integer"),
        ({"x": STREAMS["dataset"][0]().take(0)}, ValueError, "hold no batches"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    made = model()
    before = values(made.variables)
    with pytest.raises(error, match=message):
        fit_head(made, verbose=0, **arguments)
    for was, now in zip(before, values(made.variables)):
        np.testing.assert_array_equal(was, now)


def test_a_model_that_is_not_compiled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be compiled.*model\.compile"):
        fit_head(dense_base(), X, Y)


# ---------------------------------------------------------------------------------------------------------
# Subclasses of functional models
# ---------------------------------------------------------------------------------------------------------


class OfUser(keras.Model):
    """A subclass of a functional model that changes nothing."""


def small(kind: type[keras.Model] = keras.Model, dtype: str = "float32") -> keras.Model:
    inputs = keras.Input((8,), dtype=dtype)
    hidden = layers.Dense(4, trainable=False, dtype=dtype)(inputs)
    made = kind(inputs, layers.Dense(1, dtype=dtype)(hidden))
    made.compile("sgd", "mse", jit_compile=False)
    return made


def seeded(**options: Any) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        return small(**options)

    return make


@pytest.mark.quick
def test_a_subclass_of_a_functional_model_trains_as_in_fit() -> None:
    assert_same_training(seeded(kind=OfUser), lambda: (X, X[:, :1]))


def test_a_subclass_of_a_functional_model_is_sampled() -> None:
    inputs = keras.Input((8,))
    frozen = layers.Dense(4, trainable=False)(inputs)
    made = OfUser(inputs, layers.Dense(1)(layers.Dropout(0.5)(frozen)))
    samples = predict_samples(made, X, 3)
    assert samples.values.shape == (3, 100, 1)
    assert samples.values.std(axis=0).max() > 0


# ---------------------------------------------------------------------------------------------------------
# What Keras takes for granted of data and layers
# ---------------------------------------------------------------------------------------------------------


def test_the_activity_regularizer_of_a_nested_model_counts() -> None:
    def make() -> keras.Model:  # Keras itself trains no functional model that has one
        inner = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
        inner.activity_regularizer = keras.regularizers.L2(0.1)
        inner.trainable = False
        model = zoo.sequential(keras.Input((4,)), layers.Dense(4, trainable=False), inner, layers.Dense(1))
        model.compile("sgd", "mse")
        return model

    assert_same_training(make, lambda: (zoo.vectors(64, 4), zoo.vectors(64, 1, seed=1)))


def test_numbers_of_double_precision_are_those_that_fit_hands_to_an_input_of_integers() -> None:
    """`fit` casts them to float32, in which large ids fall together."""
    ids = np.random.default_rng(0).integers(2**24, 2**24 + 50, size=(64, 1)).astype("float64")

    def make() -> keras.Model:
        hashed = layers.Hashing(16, output_mode="one_hot")
        model = zoo.sequential(keras.Input((1,), dtype="int64"), hashed, layers.Dense(1))
        model.compile("sgd", "mse")
        return model

    assert_same_training(make, lambda: (ids, zoo.vectors(64, 1)))


def test_layers_that_were_unfrozen_and_not_compiled_are_an_error_that_says_so() -> None:
    model = zoo.sequential(keras.Input((4,)), *(layers.Dense(4, trainable=False) for _ in range(2)), layers.Dense(1))
    model.compile("adam", "mse")
    data = zoo.vectors(64, 4), zoo.vectors(64, 1)
    fit_head(model, *data, verbose=0)
    model.layers[1].trainable = True
    with pytest.raises(ValueError, match=r"kernel.* train now.*Compile the model again"):
        fit_head(model, *data, verbose=0)
    model.compile("adam", "mse")
    fit_head(model, *data, verbose=0)


def test_layers_frozen_since_fit_are_told_of() -> None:
    """Plain `fit` goes on training them: it keeps the step that it made."""

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        made = zoo.sequential(keras.Input((8,)), layers.Dense(6, name="late"), layers.Dense(1))
        made.compile("sgd", "mse")
        made.fit(X, Y, verbose=0)
        made.get_layer("late").trainable = False
        return made

    made, fitted = make(), make()
    before = array(made.get_layer("late").kernel)
    fitted.fit(X, Y, verbose=0)
    assert not np.array_equal(array(fitted.get_layer("late").kernel), before)
    with pytest.warns(UserWarning, match=r"late/kernel.* frozen after .* Compile the model again"):
        fit_head(made, X, Y, verbose=0)
    np.testing.assert_array_equal(array(made.get_layer("late").kernel), before)


class ReadsWeakly(layers.Layer):
    """Reads the kernel of a layer that it does not hold, so that Keras does not track it."""

    def __init__(self, other: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.other = weakref.ref(other)

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.other().kernel)


class ReadsByName(ReadsWeakly):
    def call(self, x: Any) -> Any:
        return getattr(self, "_read" + "_kernel")(x)

    def _read_kernel(self, x: Any) -> Any:
        return super().call(x)


@pytest.mark.parametrize("kind", [ReadsWeakly, ReadsByName])
@pytest.mark.filterwarnings("ignore:`fit_head` trains model:UserWarning")
def test_a_layer_that_reads_what_trains_is_not_computed_ahead_however_it_reaches_it(kind: Any) -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        x = keras.Input((8,))
        trains = layers.Dense(8, name="trains")
        hidden = trains(x)
        made = keras.Model(x, layers.Dense(1)(layers.Concatenate()([kind(trains, name="reads")(x), hidden])))
        made.trains = trains
        made.compile("sgd", "mse")
        return made

    assert split(make()).in_the_way["reads"] == "it reads 'trains/kernel', which trains"
    assert_same_training(make, lambda: (X, X[:, :1]))


def test_a_call_that_was_put_on_the_model_is_trained_live() -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        made = zoo.sequential(
            keras.Input((8,)), layers.Dense(4, trainable=False), layers.Dropout(1e-9), layers.Dense(1)
        )
        usual = made.call
        made.call = lambda *args, **kwargs: 3 * usual(*args, **kwargs)
        made.compile("sgd", "mse")
        return made

    with pytest.warns(UserWarning, match=r"overrides \['call'\]"):
        assert_same_training(make, lambda: (X, X[:, :1]))
    for look in (split, lambda model: predict_samples(model, X, 2)):
        with pytest.raises(ValueError, match=r"overrides \['call'\]"):
            look(make())


def test_a_loss_that_a_frozen_layer_adds_in_inference_alone_counts() -> None:
    class AddsInInference(layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            if not training:
                self.add_loss(keras.ops.mean(inputs**2))
            return inputs

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        made = zoo.sequential(keras.Input((8,)), layers.Dense(4, trainable=False), AddsInInference(), layers.Dense(1))
        made.compile("sgd", "mse")
        return made

    assert_same_training(make, lambda: (X, X[:, :1]), validation_data=(X[:30], X[:30, :1]))

"""One specimen of every layer class that `keras.layers` exports: a layer, and what to call it on.

`SPECIMENS` maps the name of a class to a function that makes both. The classes in `ABSTRACT` and `FOREIGN` have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers
from zoo import images, steps, vectors

RATE = 0.5
Specimen = Callable[[], tuple[keras.Layer, tuple[Any, ...]]]

# Nothing to call: a base class, or what stands for the data.
ABSTRACT = {"Layer", "Wrapper", "InputLayer"}
# Around models of other frameworks: nothing is known of what they do in training, so they are unknown on purpose.
FOREIGN = {"JaxLayer", "FlaxLayer", "TFSMLayer", "TorchModuleWrapper"}


def pixels(batch: int = 4) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (batch, 8, 8, 3)).astype("float32")


def of(name: str, *inputs: Any, **options: Any) -> dict[str, Specimen]:
    """The specimen of the class `name`, made with `options`."""
    return {name: lambda: (getattr(layers, name)(**options), inputs)}


def each(names: str, *inputs: Any, **options: Any) -> dict[str, Specimen]:
    """The specimens of several classes with the same options, called on the same inputs."""
    return {name: specimen for word in names.split() for name, specimen in of(word, *inputs, **options).items()}


def of_every_rank(names: str, **options: Any) -> dict[str, Specimen]:
    """The specimens of classes that come for 1, 2 and 3 dimensions."""
    return {
        name: specimen
        for word in names.split()
        for rank in (1, 2, 3)
        for name, specimen in of(f"{word}{rank}D", SPACES[rank], **options).items()
    }


def around(name: str, inner: Callable[[], keras.Layer], *inputs: Any) -> dict[str, Specimen]:
    """The specimen of a wrapper, around a layer that is live in training mode."""
    return {name: lambda: (getattr(layers, name)(inner()), inputs)}


def adapted(name: str, data: Any, *inputs: Any, **options: Any) -> dict[str, Specimen]:
    """The specimen of a class that has to see data first."""

    def make() -> tuple[keras.Layer, tuple[Any, ...]]:
        layer = getattr(layers, name)(**options)
        layer.adapt(data)
        return layer, inputs

    return {name: make}


VECTORS, STEPS, IMAGES, VOLUMES = vectors(4), steps(4), images(4), vectors(4, 5, 5, 5, 3)
SPACES = {1: STEPS, 2: IMAGES, 3: VOLUMES}
PIXELS, IDS, WORDS, WAVES = (
    pixels(),
    np.array([[1, 2, 0], [3, 4, 5]]),
    np.array([["a", "b"], ["c", "a"]]),
    vectors(2, 512),
)
LABELLED = {"images": pixels(), "labels": np.eye(4, dtype="float32")}
BOXED = {
    "images": pixels(),
    "bounding_boxes": {"boxes": np.ones((4, 2, 4), "float32"), "labels": np.ones((4, 2), "int32")},
}

SPECIMENS: dict[str, Specimen] = {
    # Noise
    **each("AlphaDropout Dropout GaussianDropout", VECTORS, rate=RATE),
    **of_every_rank("SpatialDropout", rate=RATE),
    **of("GaussianNoise", VECTORS, stddev=RATE),
    # Recurrent layers and cells
    **each("GRU LSTM SimpleRNN", STEPS, units=3, dropout=RATE),
    **each("GRUCell SimpleRNNCell", VECTORS, vectors(4, 3), units=3, recurrent_dropout=RATE),
    **of("LSTMCell", VECTORS, [vectors(4, 3), vectors(4, 3)], units=3, recurrent_dropout=RATE),
    **of("ConvLSTM1D", vectors(4, 3, 6, 2), filters=2, kernel_size=3, dropout=RATE),
    **of("ConvLSTM2D", vectors(4, 3, 6, 6, 2), filters=2, kernel_size=3, dropout=RATE),
    **of("ConvLSTM3D", vectors(4, 3, 4, 4, 4, 2), filters=2, kernel_size=3, dropout=RATE),
    **around("RNN", lambda: layers.GRUCell(3, dropout=RATE), STEPS),
    **around("Bidirectional", lambda: layers.GRU(3, dropout=RATE), STEPS),
    **around("TimeDistributed", lambda: layers.Dropout(RATE), STEPS),
    **around("StackedRNNCells", lambda: [layers.GRUCell(3, dropout=RATE)], VECTORS, [vectors(4, 3)]),
    **around("Pipeline", lambda: [layers.Dropout(RATE)], VECTORS),
    # Attention
    **each("AdditiveAttention Attention", [STEPS, STEPS], dropout=RATE),
    **of("MultiHeadAttention", STEPS, STEPS, num_heads=2, key_dim=3, dropout=RATE),
    **of(
        "GroupQueryAttention",
        STEPS,
        STEPS,
        head_dim=3,
        num_query_heads=2,
        num_key_value_heads=1,
        dropout=RATE,
    ),
    # Normalisation
    **of("BatchNormalization", VECTORS),
    **each("LayerNormalization RMSNormalization UnitNormalization", VECTORS),
    **of("GroupNormalization", IMAGES, groups=3),
    **around("SpectralNormalization", lambda: layers.Dense(3), VECTORS),
    **adapted("Normalization", VECTORS, VECTORS),
    # Augmentation
    **each("AugMix RandAugment", PIXELS),
    **each("CutMix MixUp", LABELLED),
    **of("Mosaic", LABELLED),
    **each(
        "RandomBrightness RandomColorDegeneration RandomContrast RandomHue RandomSaturation RandomSharpness",
        PIXELS,
        factor=RATE,
    ),
    **of("RandomPosterization", PIXELS, factor=2),
    **each("RandomGrayscale RandomInvert", PIXELS, factor=RATE),
    **of("RandomColorJitter", PIXELS, brightness_factor=RATE),
    **of("RandomCrop", PIXELS, height=5, width=5),
    **each("RandomElasticTransform RandomErasing RandomFlip RandomPerspective", PIXELS),
    **of("RandomGaussianBlur", PIXELS, sigma=1.0),
    **of("RandomRotation", PIXELS, factor=RATE),
    **of("RandomShear", PIXELS, x_factor=RATE),
    **each("RandomTranslation RandomZoom", PIXELS, height_factor=RATE, width_factor=RATE),
    **of("Solarization", PIXELS, addition_factor=RATE),
    # Fixed image transformations
    **each("AutoContrast ContrastLimitedAdaptiveHistogramEqualization Equalization", PIXELS),
    **each("CenterCrop Resizing", PIXELS, height=5, width=5),
    **of("MaxNumBoundingBoxes", BOXED, max_number=1, bounding_box_format="xyxy"),
    **of("Rescaling", PIXELS, scale=1 / 255),
    # Convolutions and pooling
    **of_every_rank("Conv", filters=3, kernel_size=2),
    **{
        f"Conv{n}DTranspose": of(f"Conv{n}DTranspose", x, filters=3, kernel_size=2).popitem()[1]
        for n, x in SPACES.items()
    },
    **each("DepthwiseConv1D", STEPS, kernel_size=2),
    **each("DepthwiseConv2D", IMAGES, kernel_size=2),
    **each("SeparableConv1D", STEPS, filters=3, kernel_size=2),
    **each("SeparableConv2D", IMAGES, filters=3, kernel_size=2),
    **of_every_rank("AdaptiveAveragePooling AdaptiveMaxPooling", output_size=2),
    **of_every_rank("AveragePooling MaxPooling", pool_size=2),
    **of_every_rank("GlobalAveragePooling GlobalMaxPooling Cropping UpSampling ZeroPadding"),
    # Dense layers and embeddings
    **of("Dense", VECTORS, units=3),
    **of("TernaryDense", VECTORS, units=3),
    **of("EinsumDense", VECTORS, equation="ab,bc->ac", output_shape=3),
    **each("Embedding ReversibleEmbedding", IDS, input_dim=6, output_dim=3),
    # Activations
    **of("Activation", VECTORS, activation="relu"),
    **each("ELU LeakyReLU PReLU ReLU Softmax", VECTORS),
    # Regularisation, masks, shapes
    **of("ActivityRegularization", VECTORS, l2=0.1),
    **of("Masking", STEPS),
    **each("Flatten Identity", STEPS),
    **of("Permute", STEPS, dims=(2, 1)),
    **of("RepeatVector", VECTORS, n=2),
    **of("Reshape", VECTORS, target_shape=(3, 2)),
    **of("Lambda", VECTORS, function=keras.ops.tanh),
    # Merging
    **each("Add Average Concatenate Maximum Minimum Multiply Subtract", [VECTORS, VECTORS]),
    **of("Dot", [VECTORS, VECTORS], axes=1),
    # Text, categories, sound
    **of("CategoryEncoding", IDS, num_tokens=6),
    **of("Discretization", VECTORS, bin_boundaries=[0.0, 1.0]),
    **of("HashedCrossing", (IDS[:, :1], IDS[:, :1]), num_bins=5),
    **of("Hashing", IDS, num_bins=5),
    **adapted("IntegerLookup", IDS, IDS),
    **adapted("StringLookup", WORDS, WORDS),
    **adapted("TextVectorization", WORDS[0], WORDS[0]),
    **of("MelSpectrogram", WAVES, fft_length=256, sequence_stride=128),
    **of("STFTSpectrogram", keras.ops.expand_dims(WAVES, -1)),
}

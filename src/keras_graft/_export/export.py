"""`export`: a model as a file for another runtime, which is compared with the model before anyone gets it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from types import ModuleType
from typing import Any, Literal

import keras

from .. import _keras
from .._arguments import check_model, check_option
from .._behaviour.untouched import left_as_it_was
from .._keras import Model
from .._onnx import missing
from . import litert, onnx, saved_model
from .comparison import Comparison, compare
from .inference import Inference, inference_of

__all__ = ["ExportReport", "export"]

_FORMATS: dict[str, ModuleType] = {"tf_saved_model": saved_model, "onnx": onnx, "litert": litert}


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was exported, and how it was seen to compute what its model does.

    Attributes:
        path: Where it is.
        format: Its format.
        operations: The number of its operations.
        difference: The largest difference between its outputs and those of the model, on made-up data. Where the model
            draws in inference mode: between the means of samples.
        draws: Whether it draws in each call: dropout under `"always"`.

    Example:

    >>> import keras, tempfile
    >>> from keras_graft import ExportReport, export
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    >>> report: ExportReport = export(model, f"{tempfile.mkdtemp()}/model", format="tf_saved_model")
    >>> report.draws
    False
    """

    path: pathlib.Path
    format: str
    operations: int
    difference: float
    draws: bool


def export(
    model: Model,
    path: str | os.PathLike[str],
    *,
    format: Literal["tf_saved_model", "onnx", "litert"] = "tf_saved_model",
    input_signature: Any = None,
) -> ExportReport:
    """Writes a model as a file that is served without Keras, and proves that it computes the same.

    `model.export` of Keras traces the model as it is called: augmentation augments in production, and ONNX and LiteRT
    files that no runtime can load are written without an error. Here the model is exported in inference mode; what was
    written is loaded in its runtime, and compared with the model on made-up data, before it is put at `path`.

    Dropout that is live in inference mode (`dropout="always"`) drops in the file too, with other masks in each process.

    Inputs are named after those of the model, outputs after the keys of a dict, or the layers that they come from.
    Whatever is no letter, digit or `_` becomes `_`.

    Args:
        model: A functional or sequential `keras.Model`, compiled or not. It is not changed.
        path: A folder for a SavedModel; a file that ends in `.onnx` or `.tflite` for the others. What was exported
            there before is replaced, once the new file is proved; a folder that holds anything else is not. Of a
            link, what it leads to is replaced.
        format: `"tf_saved_model"` (default), with the endpoint `serve` as `keras.Model.export` writes it; `"onnx"`, for
            ONNX Runtime, which needs `pip install keras-graft[onnx]`; or `"litert"`, for LiteRT without operations of
            TensorFlow, which needs `pip install keras-graft[litert]`.
        input_signature: Shapes of the inputs, where they shall be narrower than those of the model: a structure of
            `keras.InputSpec`, in the order of the inputs, or a dict by their names. Other sizes stay open. LiteRT runs
            recurrent layers with a fixed number of examples alone, such as `[keras.InputSpec(shape=(1, 20, 8))]`.

    Returns:
        An `ExportReport`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ImportError: If the packages of a format are not installed.
        ValueError: If the model has no graph, cannot be exported (the message names layers and operations), or the file
            computes something else. `path` is as it was.

    Example:

    >>> import keras, tempfile
    >>> from keras_graft import export, freeze_and_merge
    >>> base = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dropout(0.5)])
    >>> model = freeze_and_merge([base], head=1, loss="mse")
    >>> report = export(model, f"{tempfile.mkdtemp()}/model", format="tf_saved_model")
    >>> report.difference < 1e-5
    True
    """
    check_model(model, "model")
    check_option("format", format, tuple(_FORMATS))
    target = _checked_target(path, format)
    _check_installed(format)
    _check_graph(model)
    inference = inference_of(model, input_signature)
    with tempfile.TemporaryDirectory() as folder, left_as_it_was(model):
        made = pathlib.Path(folder) / f"model{target.suffix}"
        with _refused(inference, format):
            _FORMATS[format].write(inference, made)
            loaded = _FORMATS[format].load(inference, made)
            comparison = compare(inference, loaded.run)
        _check_same(inference, comparison, format)
        _put(made, target)
    return ExportReport(target, format, loaded.operations, comparison.difference, comparison.draws)


def _checked_target(path: Any, format: str) -> pathlib.Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` must be a path. Received: path={path!r} (of type {type(path).__name__})")
    target = pathlib.Path(os.path.realpath(pathlib.Path(path).expanduser()))  # what a link leads to
    suffix = getattr(_FORMATS[format], "SUFFIX", None)
    if suffix and target.suffix != suffix:
        raise ValueError(
            f"The path of a file of format=\"{format}\" must end in '{suffix}'. Received: path={str(path)!r}"
        )
    if suffix and target.is_dir():
        raise ValueError(f'`path` is a folder, and format="{format}" writes a file. Received: path={str(path)!r}')
    if not suffix:
        _check_replaceable(target, path)
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"`path` lies in {str(above)!r}, which is no folder. Received: path={str(path)!r}")
    return target


# What TensorFlow puts into a SavedModel.
_OF_SAVED_MODELS = {"saved_model.pb", "fingerprint.pb", "keras_metadata.pb", "variables", "assets"}


def _check_replaceable(target: pathlib.Path, path: Any) -> None:
    """Raises where a folder that would be replaced holds something else than a SavedModel."""
    if not target.exists():
        return
    there = {other.name for other in target.iterdir()} if target.is_dir() else {target.name}
    others = sorted(there - _OF_SAVED_MODELS)
    if others or (there and "saved_model.pb" not in there):
        raise ValueError(
            f"`path` holds something else than a SavedModel, which would be lost: {others or sorted(there)}. Give a "
            f"new folder, or remove what is there. Received: path={str(path)!r}"
        )


def _check_installed(format: str) -> None:
    lacking = missing(getattr(_FORMATS[format], "PACKAGES", ()))
    if lacking:
        raise ImportError(
            f'format="{format}" needs {", ".join(lacking)}: pip install "keras-graft[{format}]". '
            f'Received: format="{format}"'
        )


def _check_graph(model: keras.Model) -> None:
    if _keras.call_graph(model) is None:
        raise ValueError(
            "`model` has no graph: it is a subclass with a `call` of its own. Wrap it: `x = keras.Input(...)`, then "
            f"`keras.Model(x, model(x))`. Received: model={model!r}"
        )


def _check_same(inference: Inference, comparison: Comparison, format: str) -> None:
    if comparison.fault:
        raise ValueError(
            f"What format=\"{format}\" makes of model '{inference.model.name}' computes something else: "
            f"{comparison.fault}. Nothing was written. Use another format, or find the layer by exporting parts: "
            f"`keras.Model(model.inputs, layer.output)`. Received: model={inference.model!r}"
        )


# How converters name an operation of TensorFlow, and ONNX Runtime one that it cannot run.
_OPERATION = re.compile(r"\btf\.([A-Z]\w+)")
_NODE = re.compile(r"for (\w+)\(\d+\) node with name '([^']+)'")


def _refusal(
    inference: Inference, format: str, kinds: Collection[str], reason: str, places: Sequence[str] = ()
) -> ValueError:
    """An error that names the operations which a format does not know, and the layers that they come from."""
    if not places and kinds:
        operations = _operations_traced(inference)
        kinds = {kind for kind, _ in operations}.intersection(kinds)
        places = [place for kind, place in operations if kind in kinds]
    layers = sorted({path for place in places for path in _layers_at(inference.model, place)})
    at = f" in {layers}" if layers else ""
    what = f" The operations {sorted(kinds)}{at} are in the way." if kinds else ""
    fixed = " Give a fixed number of examples, by `input_signature`." if "TensorListReserve" in kinds else ""
    return ValueError(
        f"Model '{inference.model.name}' cannot be exported as format=\"{format}\".{what}{fixed} The reason given: "
        f"{reason.rstrip('.')}. Nothing was written. Received: model={inference.model!r}"
    )


def _operations_traced(inference: Inference) -> list[tuple[str, str]]:
    """The operations that a model consists of; none where it cannot be traced."""
    with contextlib.suppress(Exception):  # whatever code of others may raise
        return list(_keras.operations_of(inference.traced.graph.as_graph_def()))
    return []


def _layers_at(model: keras.Model, place: str) -> Iterator[str]:
    """The path of the deepest layer in whose scope an operation stood."""
    names = {part.name for part in _keras.walk(model)} - {model.name}
    found = [_without_number(scope, names) for scope in place.split("/")]
    path = [name for name in found if name is not None]
    if path:
        yield "/".join(dict.fromkeys(path))


def _without_number(scope: str, names: Collection[str]) -> str | None:
    """The layer whose name a scope has, but for the numbers that TensorFlow puts behind."""
    while scope not in names:
        shorter = re.sub(r"_\d+$", "", scope)
        if shorter == scope:
            return None
        scope = shorter
    return scope


def _put(made: pathlib.Path, target: pathlib.Path) -> None:
    """Puts what was proved in its place; what was there is gone only then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
        new = shutil.move(made, pathlib.Path(beside, "new"))
        if target.is_dir():
            os.replace(target, pathlib.Path(beside, "old"))
        os.replace(new, target)


@contextlib.contextmanager
def _refused(inference: Inference, format: str) -> Iterator[None]:
    """Says of whatever goes wrong within it that the model cannot be exported, and why."""
    try:
        yield
    except Exception as error:
        nodes = _NODE.findall(str(error))
        kinds = {kind for kind, _ in nodes} or set(_OPERATION.findall(str(error)))
        reason = re.sub(r"^\S+: error: ", "", _keras.first_line(error))  # without the line of this code
        raise _refusal(inference, format, kinds, reason, [place for _, place in nodes]) from error

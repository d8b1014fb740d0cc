"""`keras-graft audit model.keras`, or `python -m keras_graft audit model.keras`: an audit of a saved model.

Files are data to it: nothing in them is run.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from . import Audit, _keras, audit
from ._behaviour.table import Effect
from ._command_line import EXAMPLES, parser, progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        found = _found(options.model, options.data)
        if options.html:
            found.save_html(options.html)
    except Exception as error:  # whatever a file can bring about
        print(f"keras_graft audit: {type(error).__name__}: {_keras.first_line(error)}", file=sys.stderr)
        return 2
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return 1 if options.fail_on_live and _offending(found) else 0


def _found(path: str, path_of_data: str | None) -> Audit:
    try:
        progress(f"Loading {path} ...")
        model = _model(path)
        progress(f"Looking at {path} ...")
        return audit(model, None if path_of_data is None else _data(path_of_data))
    finally:
        progress("")


def _model(path: str) -> keras.Model:
    if not pathlib.Path(path).is_file():
        raise ValueError(f"there is no file '{path}'")
    return keras.models.load_model(path, compile=False, safe_mode=True)


def _data(path: str) -> Any:
    if not pathlib.Path(path).is_file():
        raise ValueError(f"there is no file '{path}'")
    data = np.load(path, allow_pickle=False, mmap_mode="r")
    if not isinstance(data, np.ndarray):
        raise ValueError(f"'{path}' holds several arrays; a .npy file with one is needed")
    return np.array(data[:EXAMPLES])


def _offending(found: Audit) -> list[Any]:
    if any(row.frozen for row in found.rows):
        return [row for row in found.rows if row.frozen and (row.live or row.trainable)]
    return [row for row in found.rows if row.live and row.effect is not Effect.STATISTICS]


if __name__ == "__main__":
    sys.exit(main())

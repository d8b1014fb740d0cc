"""`python -m keras_graft audit model.keras`: an audit of a saved model.

Files are data to it: nothing in them is run.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from . import Audit, _keras, audit
from ._behaviour.table import Effect

# Examples of the data that the model runs on.
_EXAMPLES = 32

_EPILOG = """exit status: 0; 1 if --fail-on-live finds something; 2 for a file or data that cannot be used.
Layers of other packages are known if the file is loaded where they are registered: call `keras_graft.audit` there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        found = audit(_model(options.model), None if options.data is None else _data(options.data))
        if options.html:
            found.save_html(options.html)
    except Exception as error:  # whatever a file can bring about
        print(f"keras_graft audit: {type(error).__name__}: {_keras.first_line(error)}", file=sys.stderr)
        return 2
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return 1 if options.fail_on_live and _offending(found) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keras_graft", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "audit",
        help="say what a saved model does in fit and in predict, layer by layer, and why",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("model", help="a model.keras file")
    command.add_argument("--html", metavar="page.html", help="write a page that shows the model as a picture")
    command.add_argument("--data", metavar="x.npy", help=f"run the model on the first {_EXAMPLES} of these examples")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument(
        "--fail-on-live",
        action="store_true",
        help="exit with 1 if a frozen part is live in fit, or trains or changes there; "
        "for a model without frozen parts, if any dropout is live",
    )
    return parser


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
    return np.array(data[:_EXAMPLES])


def _offending(found: Audit) -> list[Any]:
    if any(row.frozen for row in found.rows):
        return [row for row in found.rows if row.frozen and (row.live or row.trainable)]
    return [row for row in found.rows if row.live and row.effect is not Effect.STATISTICS]


if __name__ == "__main__":
    sys.exit(main())

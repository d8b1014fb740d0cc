"""What the command line takes and what can be answered at once: `--help`, `--version`, and arguments that are wrong.

It is imported ahead of all else. Importing the package brings TensorFlow, which takes seconds, and it cannot be put off
until a name is asked for: whoever imports the package before loading a file counts on its layers being registered. So
where this process *is* the command line, it ends here if no model is to be read. It must not import what is slow.
"""

from __future__ import annotations

import argparse
import os
import sys

from ._version import __version__

__all__ = ["EXAMPLES", "PROGRAM", "parser", "progress"]

# Examples of the data that the model runs on.
EXAMPLES = 32

_SCRIPT = "keras-graft"

_EPILOG = """exit status: 0; 1 if --fail-on-live finds something; 2 for a file or data that cannot be used.
Layers of other packages are known if the file is loaded where they are registered: call `keras_graft.audit` there."""


def _is_script() -> bool:
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name.removesuffix(".exe") == _SCRIPT


def _is_module() -> bool:
    """Whether Python is about to run the package: `-m` stands for the program until it has found the module."""
    sought = sys.orig_argv[-len(sys.argv) :][:1]  # what comes before the arguments
    return sys.argv[:1] == ["-m"] and sought in ([__package__], [f"-m{__package__}"])


PROGRAM = _SCRIPT if _is_script() else f"python -m {__package__}"


def parser() -> argparse.ArgumentParser:
    """The arguments that it takes."""
    new = argparse.ArgumentParser(prog=PROGRAM, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    new.add_argument("--version", action="version", version=f"{_SCRIPT} {__version__}")
    commands = new.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "audit",
        help="say what a saved model does in fit and in predict, layer by layer, and why",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("model", help="a model.keras file")
    command.add_argument("--html", metavar="page.html", help="write a page that shows the model as a picture")
    command.add_argument("--data", metavar="x.npy", help=f"run the model on the first {EXAMPLES} of these examples")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument(
        "--fail-on-live",
        action="store_true",
        help="exit with 1 if a frozen part is live in fit, or trains or changes there; "
        "for a model without frozen parts, if any dropout is live",
    )
    return new


def progress(text: str) -> None:
    """Shows on a terminal what is waited for, in a line that the next call replaces; an empty text clears it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if _is_script() or _is_module():
    parser().parse_args()
    progress("Loading TensorFlow ...")

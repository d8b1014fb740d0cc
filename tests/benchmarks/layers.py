"""What `check_layer` says of the layers of KerasHub, as a table.

python tests/benchmarks/layers.py                  the layers of every backbone that keras_hub.models exports
python tests/benchmarks/layers.py BertBackbone …   those of these alone

Each backbone is built small and with random weights, and runs once. Every layer in it of a class of KerasHub is checked
with the arguments of its first call; of layers of one class, the first. A layer that is called with what is no batch of
data is passed over.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import keras
import keras_hub
import tensorflow as tf
from backbones import BATCH, Base, exported, first_line
from guarantees import tensors

from keras_graft import _keras, check_layer
from keras_graft._behaviour import untouched as _untouched


def first_calls(base: Base) -> Iterator[tuple[Any, Any, Any]]:
    """The layers of KerasHub that a backbone calls, each with the arguments of its first call."""
    layers = [part for part in _keras.walk(base.model) if type(part).__module__.startswith("keras_hub.")]
    calls: dict[int, tuple[Any, Any, Any]] = {}

    def note(layer: Any, call: Any, args: Any, kwargs: Any, training: bool) -> Any:
        calls.setdefault(id(layer), (layer, args, {key: v for key, v in kwargs.items() if key != "training"}))
        return call(*args, **kwargs)

    with _untouched.recording(layers, note):
        base.model(tensors(base.data), training=False)
    yield from calls.values()


def is_batch(arguments: Any) -> bool:
    """Whether all arrays among the arguments of a call have the examples of a batch in front."""
    arrays = [leaf for leaf in keras.tree.flatten(arguments) if isinstance(leaf, tf.Tensor)]
    return bool(arrays) and all(len(array.shape) > 0 and array.shape[0] == BATCH for array in arrays)


def main(names: list[str]) -> None:
    """Prints a line for each class, and the counts."""
    print(f"KerasHub {keras_hub.__version__}, Keras {keras.__version__}\n")
    done: set[type] = set()
    outcomes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for name in names:
        try:
            calls = list(first_calls(Base.of(name)))
        except Exception as error:
            print(f"{name} does not run: {first_line(error)}", flush=True)
            continue
        for layer, args, kwargs in calls:
            kind = type(layer)
            if kind in done or kind is exported()[name] or not is_batch((args, kwargs)):
                continue
            done.add(kind)
            outcomes.update([checked(layer, args, kwargs, faults)])
        keras.utils.clear_session()
    print(f"\n{len(done)} classes: {dict(outcomes)}")
    print(f"faults by property: {dict(faults)}")


def checked(layer: Any, args: Any, kwargs: Any, faults: Counter[str]) -> str:
    """Checks one layer, prints what it lacks, and says in a word what came of it."""
    try:
        report = check_layer(layer, *args, **kwargs)
    except Exception as error:
        print(f"{type(layer).__name__:40} refused: {first_line(error)}", flush=True)
        return "refused"
    lacking = [fault.name for fault in report.faults]
    faults.update(lacking)
    print(f"{type(layer).__name__:40} {'lacks ' + ', '.join(lacking) if lacking else 'holds'}", flush=True)
    for fault in report.faults[:2]:
        print(f"    {fault.name}: {fault.reason[:300]}", flush=True)
    return "lacks something" if lacking else "holds"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="backbone classes; all by default")
    main(parser.parse_args().names or sorted(exported()))

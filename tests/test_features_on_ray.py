"""Workers of Ray fill the folder that one machine would fill: the same shards, once, whoever dies."""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import on_ray
import pytest

from keras_graft import RayOptions, fit_head
from keras_graft._features import in_folder
from keras_graft._features.in_folder import Filled
from keras_graft._features.in_tensorflow import TensorFlowComputer
from keras_graft._features.on_ray import OnRay, batches_in_block, source_on_ray

pytestmark = pytest.mark.once
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


class Columns:
    """What is asked of a dataset of Ray before it is read."""

    __module__ = "ray.data.dataset"

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def columns(self) -> list[str]:
        return self.names


@pytest.mark.quick
def test_columns_are_inputs_by_name_and_a_single_one_is_the_one_input() -> None:
    source: OnRay = source_on_ray(Columns("jpeg", "label"), "label", None, ["image"], None, "x")
    assert source.columns == ("jpeg",)
    source = source_on_ray(Columns("a", "label", "b", "c", "w"), {"out": "label"}, "w", ["b", "a"], None, "x")
    assert source.columns == ("b", "a")
    block = {name: np.arange(3.0) + place for place, name in enumerate(source.dataset.names)}
    inputs, (targets, weights) = source.batch_of(block)
    np.testing.assert_equal(inputs, {"b": block["b"], "a": block["a"]})
    np.testing.assert_equal(targets, {"out": block["label"]})
    np.testing.assert_equal(weights, block["w"])


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        ("labels", ValueError, r"`x` has no columns \['labels', .*Received the columns \['image', 'label'\]"),
        (np.zeros(3), TypeError, 'names of columns, as in y="label"'),
    ],
)
def test_columns_that_are_not_there_are_refused(y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit_head(on_ray.model(), Columns("image", "label"), y, cache="somewhere", verbose=0)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="`num_cpus`"):
        RayOptions(num_cpus=0)
    with pytest.raises(ValueError, match=r"Take `dataset\.limit"):
        fit_head(on_ray.model(), Columns("image", "label"), "label", cache="somewhere", steps_per_epoch=3, verbose=0)


def test_a_block_is_no_larger_than_a_shard_of_features_however_small_targets_are(tmp_path: pathlib.Path) -> None:
    """Targets of 8 bytes make shards of millions of examples."""
    x = keras.Input((64, 64, 3), dtype="uint8")
    computer = TensorFlowComputer(keras.Model(x, keras.layers.GlobalAveragePooling2D()(x)))
    images, labels = np.zeros((32, 64, 64, 3), "uint8"), np.zeros(32, "int64")
    filled = Filled.begin(computer, tmp_path)
    filled.expect(labels)
    for filling in filled.columns:
        filling.size_by(images, labels)
    assert images.nbytes * batches_in_block(filled) <= 2 * in_folder.SHARD_BYTES


@needs_ray
@pytest.mark.slow
def test_the_example_of_heads_side_by_side_trains_all_of_them(tmp_path: pathlib.Path) -> None:
    examples = pathlib.Path(__file__).parents[1] / "docs" / "examples"
    script = f"""
import pathlib, side_by_side
grid = {{"units": [16, 32], "dropout": [0.0], "learning_rate": [3e-3]}}
side_by_side.main(pathlib.Path({str(tmp_path)!r}), grid)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=examples)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ") and "seconds" not in line]
    assert [row[0] for row in rows] == ["| one after the other", "| side by side, ASHA"]
    assert rows[0][2] == "80"
    assert int(rows[1][2]) in range(20, 81, 10)
    assert all(float(row[3].rstrip("%")) > 50 for row in rows)
    assert "1,797 images, once" in done.stdout


@needs_ray
@pytest.mark.slow
def test_workers_fill_what_one_machine_finds_and_a_killed_one_loses_nothing() -> None:
    found = on_ray.in_a_new_process()
    blocks = -(-on_ray.EXAMPLES // 32)
    assert found["shards"] > blocks / 2
    assert found["more shards"] == 0
    assert found["one machine"]["computed"] == 0
    for run in ("second", "one machine", "with a killed worker"):
        np.testing.assert_allclose(found[run]["loss"], found["first"]["loss"], rtol=1e-5)
    assert len(found["first"]["val_loss"]) == 2
    assert found["killed"] == 1
    assert found["shards after that"] == found["shards"]
    assert "must have one shape" in found["other shapes"]  # within a block, or over blocks
    assert found["columns"] == ["label", "mean", "mutual_information", "predictive_entropy", "std"]
    assert found["rows"] == on_ray.EXAMPLES
    np.testing.assert_allclose(found["means"], found["expected means"], atol=0.02)
    np.testing.assert_allclose(found["entropy"], found["expected entropy"], atol=0.02)

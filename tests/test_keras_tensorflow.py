"""What is read off an operation of TensorFlow hangs on its definition alone."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from keras_graft._keras.tensorflow import entries_of, form_of


def branching(condition: Any, x: Any) -> Any:
    return tf.cond(condition, lambda: tf.sin(x) + 1.0, lambda: tf.cos(x) * 2.0)


@pytest.mark.quick
def test_the_form_of_an_operation_is_the_same_in_every_trace() -> None:
    specs = tf.TensorSpec((), tf.bool), tf.TensorSpec((3,))
    graphs = [tf.function(branching).get_concrete_function(*specs).graph for _ in range(20)]
    forms = [[form_of(operation) for operation in graph.get_operations()] for graph in graphs]
    assert any(operation.type.endswith("If") for operation in graphs[0].get_operations())
    assert all(form == forms[0] for form in forms)


def test_a_table_of_buckets_has_the_entries_that_were_put_in() -> None:
    table = tf.lookup.experimental.DenseHashTable(tf.int32, tf.float32, [0.0, 0.0], empty_key=-1, deleted_key=-2)
    table.insert([3, 5, 7], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    table.remove(tf.constant([5]))
    keys, values = entries_of(table)
    assert dict(zip(keys.numpy().tolist(), values.numpy().tolist())) == {3: [1.0, 2.0], 7: [5.0, 6.0]}

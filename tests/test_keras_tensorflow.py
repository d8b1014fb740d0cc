"""What is read off an operation of TensorFlow hangs on its definition alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from keras_graft._keras.tensorflow import Nature, assigned_by, captured_by, entries_of, form_of, nature_of


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


TABLE = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
COUNT = tf.Variable(1.0)
GENERATOR = tf.random.Generator.from_seed(1)

# What a function does with a number, and a whole one that seeds or chooses, and what its operations are then.
NATURES: dict[str, tuple[Callable[[Any, Any], Any], Nature]] = {
    "computes": (lambda x, n: tf.sin(x), Nature.PURE),
    "draws": (lambda x, n: tf.random.normal((2,)), Nature.RANDOM),
    "draws with a seed": (lambda x, n: tf.random.normal((2,), seed=1), Nature.RANDOM),
    "draws the same": (lambda x, n: tf.random.stateless_normal((2,), [1, 2]), Nature.PURE),
    "draws by what it gets": (lambda x, n: tf.random.stateless_normal((2,), [n, n]), Nature.RANDOM),
    "draws by a generator": (lambda x, n: GENERATOR.normal((2,)), Nature.RANDOM),
    "draws in a branch": (lambda x, n: tf.cond(x > 0, lambda: tf.random.normal(()), lambda: x), Nature.RANDOM),
    "draws in no branch": (lambda x, n: tf.cond(x > 0, lambda: tf.sin(x), lambda: x), Nature.PURE),
    "reads": (lambda x, n: x + COUNT, Nature.PURE),
    "looks up": (lambda x, n: TABLE.lookup(tf.cast(n, "int64")), Nature.PURE),
    "checks": (lambda x, n: tf.debugging.check_numerics(x, "is a number"), Nature.PURE),
    "runs Python": (lambda x, n: tf.py_function(lambda v: v, [x], tf.float32), Nature.UNKNOWN),
}


@pytest.mark.parametrize("what", NATURES)
def test_the_nature_of_operations_is_told_by_their_definitions(what: str) -> None:
    function, expected = NATURES[what]
    specs = tf.TensorSpec(()), tf.TensorSpec((), tf.int32)
    graph = tf.function(function).get_concrete_function(*specs).graph
    natures = {nature_of(operation) for operation in graph.get_operations()}
    assert natures - {Nature.PURE} == {expected} - {Nature.PURE}


def test_what_a_function_assigns_is_found_also_within_its_branches() -> None:
    def counting(condition: Any) -> Any:
        return tf.cond(condition, lambda: COUNT.assign_add(1.0), lambda: COUNT + 0.0)

    graph = tf.function(counting).get_concrete_function(tf.TensorSpec((), tf.bool)).graph
    outside = captured_by(graph)
    assigned = {id(outside[id(handle)]) for operation in graph.get_operations() for handle in assigned_by(operation)}
    assert assigned == {id(COUNT.handle)}
    reading = tf.function(lambda: COUNT + 0.0).get_concrete_function().graph
    assert [assigned_by(operation) for operation in reading.get_operations() if assigned_by(operation)] == []

"""Where the processor's time of a step goes: planning, pipeline, graph, the rest."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from examples.benchmarks import costs_steps, synthetic_planner
from examples.benchmarks.costs_steps import PLAIN, SAMPLED, Case
from examples.common.planned import planned_batches
from examples.common.records import Record
from examples.experiments.sets.data import Data
from keras_osgd.base.replacing import replaced

_STEPS_TO_TRACE = 20
_PLANS_BEFORE = 8
_AHEAD = 10  # batches: the most that are read before a time is taken
# Nodes that compute nothing.
_IDLE = {"Arg", "Const", "Identity", "IdentityN", "NoOp", "Placeholder", "_Retval"}


def measure(case: Case, given: Data, repetitions: int, steps: int) -> Record:
    """Returns the processor's milliseconds a step of each part, alone.

    Args:
        case: a network, and its batch size, `models.BATCH_SIZE`.
        given: its data.
        repetitions: of all that is timed; plain Keras and RAIS are timed in turn.
        steps: to time at once, fewer than an epoch has.

    Returns:
        `planning`, of RAIS alone, in all and by stage; `pipeline` and `graph` by
        method, a list of as many figures as there are repetitions each; `operations` by
        method, the number of operations in the training function.
    """
    trained, counts = {}, {}
    for method in (PLAIN, SAMPLED):
        model = costs_steps.build(case, method, given)
        costs_steps.timed_fit(model, case, given, _STEPS_TO_TRACE)
        trained[method] = model, _repeated(_first_batch(model, case, given), method)
        with functions_made() as made:  # the one that Keras calls is the last
            model.make_train_function(force=True)
        counts[method] = operations(made[-1], trained[method][1])
    drawn = planned_batches(given.train, steps + _AHEAD)

    def pipeline(method: str) -> float:
        if method == SAMPLED:
            # As Keras takes them: their tensors stay within TensorFlow.
            return _processor(iter(drawn).get_next_as_optional, steps)
        return _of_keras(trained[PLAIN][0], case, given, steps)

    def graph(method: str) -> float:
        model, batches = trained[method]
        return _processor(lambda: model.train_function(batches), steps)

    found: Record = {"operations": counts, "planning": _planning(case, repetitions)}
    for name, timed in (("pipeline", pipeline), ("graph", graph)):
        rounds = [
            costs_steps.in_turn((PLAIN, SAMPLED), timed) for _ in range(repetitions)
        ]
        found[name] = {
            method: [statistics.fmean(each[method]) for each in rounds]
            for method in (PLAIN, SAMPLED)
        }
    return found


def _planning(case: Case, repetitions: int) -> dict[str, float]:
    """Returns milliseconds a step by stage, without training beside it."""
    norms = synthetic_planner.synthetic_norms(case.examples, seed=0)
    made = synthetic_planner.synthetic(norms, case.batch_size, seed=0)
    for _ in range(_PLANS_BEFORE):
        made.plan_block()
    found = [
        synthetic_planner.seconds_by_stage(made.plan_block)
        for _ in range(4 * repetitions)
    ]
    steps = made.draws // case.batch_size
    return {
        stage: 1000 * statistics.fmean(seconds[stage] for seconds in found) / steps
        for stage in found[0]
    }


def _processor(call: Any, steps: int) -> float:
    """Returns milliseconds of the processor for each of so many calls."""
    for _ in range(_AHEAD):
        call()
    begun = time.process_time()
    for _ in range(steps):
        call()
    return 1000 * (time.process_time() - begun) / steps


def _in_place_of_training(
    model: keras.Model, case: Case, given: Data, use: Any
) -> list[Any]:
    """Returns what `use` makes of the iterator that `fit` gives a training function."""
    found = []

    def once(iterator: Iterator) -> dict:
        found.append(use(iterator))
        model.stop_training = True
        return {}

    with replaced(model, {"train_function": once}):
        model.fit(*given.train, batch_size=case.batch_size, verbose=0)
    return found


def _of_keras(model: keras.Model, case: Case, given: Data, steps: int) -> float:
    """Returns what the batches of Keras' own pipeline cost."""

    def timed(iterator: Any) -> float:
        return _processor(iterator.get_next_as_optional, steps)

    (found,) = _in_place_of_training(model, case, given, timed)
    return found


def _first_batch(model: keras.Model, case: Case, given: Data) -> Any:
    (found,) = _in_place_of_training(model, case, given, next)
    return found


def _repeated(batch: Any, method: str) -> Iterator:
    """Returns an iterator that gives a batch for ever, of the shapes that `fit` has."""
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    if method == PLAIN:  # the last batch of an epoch may be smaller: any number of rows
        rest = keras.tree.map_structure(lambda rows: rows[:1], batch)
        dataset = dataset.concatenate(tf.data.Dataset.from_tensors(rest))
    return iter(dataset)


@contextlib.contextmanager
def functions_made() -> Iterator[list[Any]]:
    """Gives the list of the `tf.function`s made in the block, in their order."""
    made, make = [], tf.function

    def noted(*args: Any, **kwargs: Any) -> Any:
        function = make(*args, **kwargs)
        made.append(function)
        return function

    with replaced(tf, {"function": noted}):
        yield made


def operations(function: Any, *args: Any) -> int:
    """Returns the number of operations that a call of a `tf.function` can execute.

    Counted are those of all functions that it calls, as often as they stand in it,
    of both branches of a condition and one round of a loop; not constants and copies.
    """
    graph = function.get_concrete_function(*args).graph.as_graph_def()
    library = {each.signature.name: each.node_def for each in graph.library.function}

    def count(nodes: Any) -> int:
        called = itertools.chain.from_iterable(map(_called, nodes))
        own = sum(node.op not in _IDLE for node in nodes)
        return own + sum(count(library[name]) for name in called if name in library)

    return count(graph.node)


def _called(node: Any) -> list[str]:
    """Returns the functions that a node runs; not the gradients that it may have."""
    values = [v for name, v in node.attr.items() if not name.startswith("_")]
    several = [each.name for value in values for each in value.list.func]
    return [value.func.name for value in values if value.func.name] + several

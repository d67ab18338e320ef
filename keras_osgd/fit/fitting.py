"""What a `fit` begins and ends with, around Keras' own."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_osgd.base import replicas
from keras_osgd.base.refusals import Refusals
from keras_osgd.data import training_data
from keras_osgd.data.datasets import from_dataset
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.training_data import TrainingData
from keras_osgd.fit import checks, continuation, strategies
from keras_osgd.fit.check import Examined, examine
from keras_osgd.fit.logged import progress, record
from keras_osgd.fit.progress_bar import callback_list
from keras_osgd.fit.run import Run

__all__ = ["checkpointing", "divided", "importance_sampling", "leave_run", "resumed"]

# Arguments of `fit` that are no longer Keras' to look at.
_OURS = ("y", "batch_size", "sample_weight", "class_weight", "steps_per_epoch")


@contextlib.contextmanager
def checkpointing(callbacks: Any) -> Iterator[tuple[Any, Any]]:
    """Gives the `Checkpoint` among callbacks the last place.

    It, and what else is to be ended when a `fit` is over, however it ended, is closed.

    Args:
        callbacks: as given to `fit`.

    Yields:
        The `Checkpoint` or `None`, and the callbacks for Keras' `fit`.

    Raises:
        ValueError: if there are several.
    """
    listed = isinstance(callbacks, keras.callbacks.CallbackList)
    if listed:
        flat = callbacks.callbacks
    else:
        flat = keras.tree.flatten(callbacks) if callbacks else []
    found = [c for c in flat if hasattr(type(c), "begins_before_fit")]
    if len(found) > 1:
        raise ValueError(
            f"There must be one `Checkpoint` at most. Received: {len(found)} of them "
            "among `callbacks`. Leave all but one out."
        )
    if found:
        found[0].after(flat)
    try:
        yield found[0] if found else None, callbacks if listed else flat
    finally:
        for callback in flat:
            if hasattr(type(callback), "ends_after_fit"):
                callback.close()


def resumed(
    model: keras.Model, checkpoint: Any, given: dict[str, Any]
) -> dict[str, Any]:
    """Returns the arguments for Keras' `fit`, to go on from a checkpoint if given."""
    x = given["x"]
    if isinstance(x, Indexed):
        size = given["batch_size"] or x.batch_size or 32
        shuffle, given = given["shuffle"], given | {"batch_size": None}
        given |= {"x": x.dataset(size, shuffle), "shuffle": False}
    if checkpoint is None:
        return given
    strategies.refuse_checkpoint(model, checkpoint)
    begun = checkpoint.begin(None, None, given["epochs"], given["initial_epoch"])
    if begun.line and given["verbose"]:
        print(begun.line)
    if begun.line and not model.built:
        model(_first_batch(given["x"]))
    return given | {"initial_epoch": begun.epoch}


def _first_batch(x: Any) -> Any:
    """Returns inputs of a batch or less, to build a model by."""
    if isinstance(x, keras.utils.PyDataset):
        return x[0][0]
    if isinstance(x, tf.data.Dataset):
        batch = next(iter(x))
        return batch[0] if isinstance(batch, tuple) else batch
    if all(hasattr(leaf, "__array__") for leaf in keras.tree.flatten(x)):
        return keras.tree.map_structure(lambda a: tf.convert_to_tensor(a[:1]), x)
    raise ValueError(
        "The model must be built to take over a checkpoint. Received: one that is not, "
        f"and data of type {type(x).__name__}, which can be read but once. Call the "
        "model on a batch before `fit`."
    )


@contextlib.contextmanager
def importance_sampling(
    model: keras.Model, checkpoint: Any, given: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Begins training with importance sampling, and ends it however it ended.

    Args:
        model: ours, compiled.
        checkpoint: a `Checkpoint` or `None`.
        given: the arguments of `fit`.

    Yields:
        The arguments for Keras' `fit`.

    Raises:
        ValueError: for data, losses or models that cannot be sampled.
    """
    given = _read_once(model, given)
    seen, validation = _looked_at(model, checkpoint, given)
    strategies.build(model, seen.data)
    share = replicas.share_of(model.distribute_strategy)
    m, data = seen.data.batch_size, strategies.part_of(seen.data, share)
    run = _enter_run(model, seen, data, share, given["verbose"])
    steps = given["steps_per_epoch"] or math.ceil(seen.data.n / m)
    size = given["validation_batch_size"] or m
    if validation is not given["validation_data"]:
        validation = training_data.held_out(validation, seen.data, size)
    begun, start = _begin(checkpoint, run, data, given)
    try:
        yield given | {
            "x": strategies.distributed(model, run.start(*start)),
            "callbacks": _callbacks(model, run, given, steps),
            "initial_epoch": begun,
            "validation_data": validation,
            "validation_batch_size": size,
            "validation_split": 0.0,
            "shuffle": False,
            **dict.fromkeys(_OURS),
        }
    finally:
        model.begin_next_epoch()
        run.finish()


def divided(refusals: Refusals, given: dict[str, Any]) -> tuple[tuple, Any]:
    """Returns (x, y, sample_weight) and the validation data, split off if asked for."""
    arrays = given["x"], given["y"], given["sample_weight"]
    validation, part = given["validation_data"], given["validation_split"]
    if part and validation is None:
        halves = refusals.tried(training_data.split, *arrays, part)
        arrays, validation = halves or (arrays, None)
    return arrays, validation


def _looked_at(
    model: keras.Model, checkpoint: Any, given: dict[str, Any]
) -> tuple[Examined, Any]:
    """Returns what was found of the training data, and the validation data."""
    refusals, method = Refusals(), model.sampling_held.sampling
    arrays, validation = divided(refusals, given)
    if not given["shuffle"]:
        message = "`shuffle=False` has no effect: draws are random."
        checks.warn_once(model, "shuffle", message)
    others = given["class_weight"], given["batch_size"], given["steps_per_epoch"]
    refusals.tried(strategies.refuse_checkpoint, model, checkpoint)
    with strategies.scope_of(model):
        seen = examine(refusals, model, method, (*arrays, *others), model.sampling_run)
    refusals.end()
    return seen, validation


def _callbacks(
    model: keras.Model, run: Run, given: dict[str, Any], steps: int
) -> keras.callbacks.CallbackList:
    callbacks, verbose, epochs = given["callbacks"], given["verbose"], given["epochs"]
    bar = functools.partial(progress, run)
    at_end = functools.partial(record, run, model.sampling_held.history)
    given = verbose, epochs, steps, bar, at_end
    return callback_list(model, callbacks, run.clock, *given)


def _read_once(model: keras.Model, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments with a dataset read; once for one `fit` after another."""
    held = model.sampling_held
    x, held.indexed = from_dataset(given["x"], held.indexed, given["verbose"] != 0)
    return given | {"x": x}


def _begin(
    checkpoint: Any, run: Run, data: TrainingData, given: dict[str, Any]
) -> tuple[int, tuple]:
    """Returns the first epoch, and the arguments of `Run.start`."""
    begun = given["initial_epoch"]
    if checkpoint is None:
        return begun, (data,)
    found = checkpoint.begin(run, data, given["epochs"], begun)
    if found.line:
        run.say(found.line)
    return found.epoch, (data, found.run, found.done)


def _enter_run(
    model: keras.Model,
    seen: Examined,
    data: TrainingData,
    share: replicas.Share,
    verbose: Any,
) -> Run:
    """Returns the run that this `fit` uses: the last one, where it serves again."""
    held = model.sampling_held
    method = held.sampling
    lines = [seen.line, continuation.prepare_state(model, method, data)]
    given = (seen.data, seen.losses, seen.adapt)
    if held.run is None or not held.run.serves(model, *given):
        whole = (seen.data.n, seen.data.batch_size)
        key = (*whole, model.steps_per_execution, seen.adapt, share)
        held.run, held.wrapped = Run(method, model.sampling_state, *key), False
        held.run.losses, held.run.scorer = seen.losses, seen.scorer
    if not held.wrapped:
        model.train_function = None
    held.history, held.targets = {}, data.arrays[1]
    run = held.run
    run.optimizer, run.verbose, run.where_saved = model.optimizer, verbose, str
    run.warn = functools.partial(checks.warn_once, model)
    run.warn_of_floor = functools.partial(checks.warn_of_floor, model, method)
    for line in filter(None, lines):
        run.say(line)
    return run


def leave_run(model: keras.Model, given: dict[str, Any]) -> None:
    """Lets the model train as in Keras, after a `fit` with importance sampling."""
    held = model.sampling_held
    held.sizes = training_data.sizes(given)
    if held.wrapped:
        model.train_function = None
    held.wrapped, held.run, held.history = False, None, {}

"""What a `fit` begins and ends with, around Keras' own."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_osgd import checks, continuation, losses, training_data
from keras_osgd.effective_epochs import callback_list
from keras_osgd.run import Run
from keras_osgd.training_data import TrainingData

__all__ = ["checkpointing", "importance_sampling", "leave_run", "resumed"]

# Arguments of `fit` that are no longer Keras' to look at.
_OURS = ("y", "batch_size", "sample_weight", "class_weight", "steps_per_epoch")


@contextlib.contextmanager
def checkpointing(callbacks: Any) -> Iterator[tuple[Any, Any]]:
    """Gives the `Checkpoint` among callbacks the last place, and ends it after `fit`.

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
    if not found:
        yield None, callbacks
        return
    if len(found) > 1:
        raise ValueError(
            f"There must be one `Checkpoint` at most. Received: {len(found)} of them "
            "among `callbacks`. Leave all but one out."
        )
    found[0].after(flat)
    try:
        yield found[0], callbacks if listed else flat
    finally:
        found[0].close()


def resumed(
    model: keras.Model, checkpoint: Any, given: dict[str, Any]
) -> dict[str, Any]:
    """Returns the arguments for Keras' `fit`, to go on from a checkpoint if given."""
    if checkpoint is None:
        return given
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
    arrays = given["x"], given["y"], given["sample_weight"]
    validation, size = given["validation_data"], given["batch_size"]
    if given["validation_split"] and validation is None:
        arrays, validation = training_data.split(*arrays, given["validation_split"])
    steps = given["steps_per_epoch"]
    data = training_data.prepare(*arrays, given["class_weight"], size, steps)
    if not given["shuffle"]:
        message = "`shuffle=False` has no effect: draws are random."
        checks.warn_once(model, "shuffle", message)
    steps = steps or math.ceil(data.n / data.batch_size)
    epochs, verbose = given["epochs"], given["verbose"]
    run = _enter_run(model, data, verbose)
    begun, start = given["initial_epoch"], (data,)
    if checkpoint is not None:
        found = checkpoint.begin(run, data, epochs, begun)
        begun, start = found.epoch, (data, found.run, found.done)
        if found.line:
            run.say(found.line)
    try:
        yield given | {
            "x": run.start(*start),
            "callbacks": callback_list(
                model, given["callbacks"], run.clock, verbose, epochs, steps
            ),
            "initial_epoch": begun,
            "validation_data": validation,
            "validation_batch_size": given["validation_batch_size"] or data.batch_size,
            "validation_split": 0.0,
            "shuffle": False,
            **dict.fromkeys(_OURS),
        }
    finally:
        model.begin_next_epoch()
        run.finish()


def _enter_run(model: keras.Model, data: TrainingData, verbose: Any) -> Run:
    """Checks everything and returns the run that this `fit` uses."""
    method, held = model.sampling, model.sampling_held
    checks.check_model(model)
    described = losses.describe(model, data)
    checks.warn_of_what_follows_the_draws(model)
    lines = [checks.check_size(model, method, data)]
    adapt = checks.check_optimizer(model, method)
    lines.append(continuation.prepare_state(model, method, data))
    key = (data.n, data.batch_size, model.steps_per_execution, adapt)
    if held.run is None or held.run.key != key or held.run.losses != described:
        held.run, held.wrapped = Run(method, model.sampling_state, *key), False
        held.run.losses = described
        held.run.scorer = checks.prepare_scorer(model, method, described, data)
    if not held.wrapped:
        model.train_function = None
    held.run.optimizer, held.run.verbose = model.optimizer, verbose != 0
    held.run.where_saved = str
    held.run.warn_of_floor = functools.partial(checks.warn_of_floor, model, method)
    for line in filter(None, lines):
        held.run.say(line)
    return held.run


def leave_run(model: keras.Model) -> None:
    """Lets the model train as in Keras, after a `fit` with importance sampling."""
    held = model.sampling_held
    if held.wrapped:
        model.train_function = None
    held.wrapped, held.run = False, None

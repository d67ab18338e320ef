"""A `fit` around Keras' own: its preparation and its end."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import replicas
from keras_osgd.base.refusals import Refusals
from keras_osgd.base.warn import say_once, warn_once
from keras_osgd.data import training_data
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.training_data import TrainingData
from keras_osgd.data.weights import with_class_weight
from keras_osgd.fit import all_rows, checks, continuation, strategies
from keras_osgd.fit.arguments import FitArguments
from keras_osgd.fit.callback_list import callback_list, ends_on_nan
from keras_osgd.fit.check import Examined, examine, require_alone
from keras_osgd.fit.fit_callback import FitCallback, Resumed, ResumingCallback
from keras_osgd.fit.held import Held
from keras_osgd.fit.logged import progress
from keras_osgd.fit.run import Run, RunKey, RunVariables

__all__ = [
    "as_in_keras",
    "divided",
    "examined",
    "importance_sampling",
    "resumed",
    "with_fit_callbacks",
]

# Arguments of `fit` that Keras must not see: the dataset has them in it.
_TAKEN_OVER = ("y", "batch_size", "sample_weight", "class_weight", "steps_per_epoch")


@contextlib.contextmanager
def with_fit_callbacks(
    arguments: FitArguments,
) -> Iterator[tuple[FitArguments, ResumingCallback | None]]:
    """Gives `Checkpoint` its place, and closes our callbacks however the `fit` ends.

    Args:
        arguments: of `fit`.

    Yields:
        The arguments with all callbacks in one list, and the `Checkpoint` or `None`.

    Raises:
        ValueError: if there are several `Checkpoint`s.
        RuntimeError: if one of our callbacks takes part in another `fit`.
    """
    callbacks = arguments.callbacks
    if isinstance(callbacks, keras.callbacks.CallbackList):
        flat = callbacks.callbacks
    else:
        callbacks = flat = keras.tree.flatten(callbacks) if callbacks else []
    found = [c for c in flat if isinstance(c, ResumingCallback)]
    if len(found) > 1:
        raise ValueError(
            f"There must be one `Checkpoint` at most. Received: {len(found)} of them "
            "among `callbacks`. Leave all but one out."
        )
    with contextlib.ExitStack() as ends:  # each one, whatever another raises
        for callback in reversed(flat):
            if isinstance(callback, FitCallback):
                ends.enter_context(callback.in_fit())
        if found:
            found[0].after(flat)
        yield arguments.replace(callbacks=callbacks), found[0] if found else None


def resumed(
    model: keras.Model, checkpoint: ResumingCallback | None, arguments: FitArguments
) -> FitArguments:
    """Returns the arguments for Keras' `fit`, to go on from a checkpoint if given."""
    x = arguments.x
    if isinstance(x, Indexed):
        size = arguments.batch_size or x.batch_size or 32
        dataset = x.dataset(size, arguments.shuffle)
        arguments = arguments.replace(x=dataset, batch_size=None, shuffle=False)
    if checkpoint is None:
        return arguments
    checkpoint.set_model(model)
    epochs, epoch = arguments.epochs, arguments.initial_epoch
    begun = checkpoint.begin(model, None, None, epochs, epoch)
    if begun.line and arguments.verbose:
        print(begun.line)
    if begun.line and not model.built:
        with strategies.scope_of(model):
            model(_first_batch(arguments.x))
    return arguments.replace(initial_epoch=begun.epoch)


def _first_batch(x: Any) -> Any:
    """Returns the inputs of a batch or less, to build a model with."""
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
def as_in_keras(
    model: keras.Model,
    held: Held,
    checkpoint: ResumingCallback | None,
    arguments: FitArguments,
    reasons: tuple[str, ...] = (),
) -> Iterator[FitArguments]:
    """Lets the model train by Keras' own steps.

    Args:
        model: ours.
        held: of the model.
        checkpoint: a `Checkpoint` or `None`.
        arguments: of `fit`.
        reasons: why it is not sampled, though it is to be where it can.

    Yields:
        The arguments for Keras' `fit`.
    """
    x, size, part = arguments.x, arguments.batch_size, arguments.validation_split
    held.leave(model, training_data.sizes(x, size, part), reasons)
    yield resumed(model, checkpoint, _with_weights_of_values(arguments))


def _with_weights_of_values(arguments: FitArguments) -> FitArguments:
    """Returns the arguments with `class_weight` for labels that Keras fails on.

    These have more than one axis beyond the examples', as masks of images have.
    """
    y, weights = arguments.y, arguments.class_weight
    given = weights is not None and arguments.sample_weight is None
    if not given or getattr(y, "ndim", 0) < 3:
        return arguments
    weights = with_class_weight(np.asarray(y), None, weights)
    return arguments.replace(class_weight=None, sample_weight=weights)


def examined(
    model: keras.Model,
    held: Held,
    arguments: FitArguments,
) -> tuple[FitArguments, FitArguments, Examined]:
    """Examines a `fit` before anything is changed; reads a dataset.

    Returns:
        The arguments with the dataset read, the same with `validation_split` carried
        out, and what was found.

    Raises:
        ValueError: for data, losses or models that cannot be sampled.
    """
    require_alone(arguments)
    x = held.read(arguments.x, verbose=arguments.verbose != 0)
    arguments, refusals = arguments.with_examples(x), Refusals()
    split = divided(refusals, arguments)
    seen = _examined(refusals, model, held, split)
    return arguments, split, seen


@contextlib.contextmanager
def importance_sampling(
    model: keras.Model,
    held: Held,
    checkpoint: ResumingCallback | None,
    arguments: FitArguments,
    split: FitArguments,
    seen: Examined,
) -> Iterator[FitArguments]:
    """Begins training with importance sampling, and cleans up however it ends.

    Args:
        model: ours, compiled.
        held: of the model.
        checkpoint: a `Checkpoint` or `None`.
        arguments: of `fit`, from `examined`.
        split: likewise.
        seen: likewise.

    Yields:
        The arguments for Keras' `fit`.
    """
    strategies.build(model, seen.data)
    m = seen.data.batch_size
    size = arguments.validation_batch_size or m
    validation = split.validation_data
    if validation is not arguments.validation_data:
        validation = training_data.held_out(validation, seen.data, size)
    steps = arguments.steps_per_epoch or math.ceil(seen.data.n / m)
    own_rows = _taking_own_rows(model, seen.data)
    run, begun = _begun(model, held, seen, checkpoint, arguments, steps, own_rows)
    bring_together = _bringing_together(model, run, seen.data)
    callbacks = _callbacks(model, held, run, arguments, steps, bring_together)
    try:
        run.state.own_rows = own_rows
        dataset = run.start(begun.saved, begun.done, ends_on_nan(callbacks))
        _count_earlier(run, begun, steps)
        bring_together()
        yield arguments.replace(
            x=strategies.distributed(model, dataset),
            callbacks=callbacks,
            initial_epoch=begun.epoch,
            validation_data=validation,
            validation_batch_size=size,
            validation_split=0.0,
            shuffle=False,
            **dict.fromkeys(_TAKEN_OVER),
        )
    finally:
        held.begin_next_epoch()
        held.state.identity.wait()  # then the user may change the data
        run.state.own_rows = None
        run.finish()
    bring_together()  # where all workers have come to the end


def _taking_own_rows(model: keras.Model, whole: TrainingData) -> Callable | None:
    """Returns `own_rows` of a `SamplingState`; `None` for one worker."""
    share = replicas.share_of(model.distribute_strategy)
    if share.workers == 1:
        return None
    data = strategies.part_of(whole, share)
    return functools.partial(all_rows.own_rows, share, data, whole)


def _bringing_together(
    model: keras.Model, run: Run, whole: TrainingData
) -> Callable[[], None]:
    """Returns a function that lets each of several workers know of all rows."""
    if run.variables.key.share.workers == 1:
        return lambda: None
    return functools.partial(all_rows.gather, model, run, whole, whole.identity())


def divided(refusals: Refusals, arguments: FitArguments) -> FitArguments:
    """Returns the arguments with `validation_split` carried out, if asked for."""
    arrays = arguments.x, arguments.y, arguments.sample_weight
    part = arguments.validation_split
    if not part or arguments.validation_data is not None:
        return arguments
    halves = refusals.tried(training_data.split, *arrays, part)
    if halves is None:
        return arguments
    (x, y, sample_weight), validation = halves
    arguments = arguments.replace(x=x, y=y, sample_weight=sample_weight)
    return arguments.replace(validation_data=validation, validation_split=0.0)


def _examined(
    refusals: Refusals,
    model: keras.Model,
    held: Held,
    arguments: FitArguments,
) -> Examined:
    """Examines model and data; refuses all that is amiss at once."""
    if not arguments.shuffle:
        message = "`shuffle=False` has no effect: draws are random."
        warn_once(model, "shuffle", message)
    with strategies.scope_of(model):
        seen = examine(refusals, model, held.sampling, arguments, held.kept)
    refusals.end()
    return seen


def _callbacks(
    model: keras.Model,
    held: Held,
    run: Run,
    arguments: FitArguments,
    steps: int,
    bring_together: Callable[[], None],
) -> keras.callbacks.CallbackList:
    def record() -> None:
        bring_together()
        held.record()

    bar = functools.partial(progress, run)
    return callback_list(model, arguments, run.clock, steps, bar, record)


def _count_earlier(run: Run, begun: Resumed, steps: int) -> None:
    """Lets the progress of a run begin where that of the epochs before it ended."""
    if begun.saved is not None:
        return  # it was saved
    iterations = begun.epoch * steps
    if begun.effective_epochs is not None:
        iterations = begun.effective_epochs * run.n / run.batch_size
    run.clock.count_earlier(iterations)


def _begun(
    model: keras.Model,
    held: Held,
    seen: Examined,
    checkpoint: ResumingCallback | None,
    arguments: FitArguments,
    steps: int,
    own_rows: Callable | None,
) -> tuple[Run, Resumed]:
    """Returns this `fit`'s run, on the last variables if they serve, and its start."""
    share = replicas.share_of(model.distribute_strategy)
    data = strategies.part_of(seen.data, share)
    line = continuation.prepare_state(model, held.sampling, data, own_rows)
    held.prepare(seen.data.arrays[1])
    lines = [seen.line, line, _line_on_epochs(arguments, seen)]
    for told in filter(None, lines if arguments.verbose else []):
        print(told)
    if arguments.verbose:
        say_once(checks.line_on_rate(model, held.sampling, seen.adapt))
    variables = _kept_variables(model, held, seen)
    begun, where_saved = Resumed(arguments.initial_epoch), str
    if checkpoint is not None:
        checkpoint.set_model(model)
        epochs, where_saved = arguments.epochs, checkpoint.where_saved
        epoch = arguments.initial_epoch
        given = epochs, epoch, steps, seen.data
        begun = checkpoint.begin(model, variables, data, *given)
    run = Run(model, variables, data, arguments.verbose, where_saved)
    held.begin(model, run)
    if begun.line:
        run.say(begun.line)
    return run, begun


def _line_on_epochs(arguments: FitArguments, seen: Examined) -> str | None:
    steps = arguments.steps_per_epoch
    if steps is None or not seen.adapt:
        return None
    return (
        f"An epoch is `steps_per_epoch`={steps} effective iterations: a step counts as "
        "many as its gain ratio, so that an epoch has fewer steps."
    )


def _kept_variables(model: keras.Model, held: Held, seen: Examined) -> RunVariables:
    key = RunKey.of(model, seen.data, seen.adapt, seen.handed)
    if held.kept is None or not held.kept.serves(key, seen.losses):
        known = checks.losses_are_known(model, held.sampling, seen.losses)
        found = seen.losses, seen.metrics, seen.scorer
        made = (held.sampling, held.state, key, *found, known)
        held.keep(RunVariables(*made))
    return held.kept

"""A `fit` on a stream: its preparation and its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from keras_osgd.base.refusals import Refusals
from keras_osgd.base.warn import say_once
from keras_osgd.fit import checks, continuation
from keras_osgd.fit.arguments import FitArguments
from keras_osgd.fit.callback_list import callback_list, ends_on_nan
from keras_osgd.fit.check import ExaminedStream, examine_stream
from keras_osgd.fit.fit_callback import ResumingCallback
from keras_osgd.fit.fitting import divided, resumed
from keras_osgd.fit.held import Held
from keras_osgd.pools.stream_run import StreamRun

__all__ = ["pool_sampling"]

_NEVER = 2**40  # steps: the effective iterations end an epoch


@contextlib.contextmanager
def pool_sampling(
    model: keras.Model,
    held: Held,
    checkpoint: ResumingCallback | None,
    arguments: FitArguments,
) -> Iterator[FitArguments]:
    """Begins training with sampling within pools, and cleans up however it ends.

    Args:
        model: ours, compiled with `Presample`.
        held: of the model.
        checkpoint: a `Checkpoint` or `None`.
        arguments: of `fit`.

    Yields:
        The arguments for Keras' `fit`, with an endless dataset of plain batches.

    Raises:
        ValueError: for data, losses or models that cannot be sampled.
    """
    refusals = Refusals()
    arguments = divided(refusals, arguments)
    seen = examine_stream(refusals, model, held.sampling, arguments, held.kept)
    refusals.end()
    if arguments.verbose:
        say_once(checks.line_on_rate(model, held.sampling, seen.adapt))
    run = _begun_run(model, held, seen)
    stream, size = seen.stream, arguments.batch_size
    if stream.of_arrays:
        arguments = arguments.replace(y=None, sample_weight=None)
    arguments = arguments.replace(
        x=stream.dataset,
        class_weight=stream.class_weight,
        batch_size=None,
        steps_per_epoch=_NEVER,
        shuffle=False,
        validation_batch_size=arguments.validation_batch_size or size,
        validation_split=0.0,
        callbacks=callback_list(model, arguments, run.clock, stream.steps),
    )
    arguments = resumed(model, checkpoint, arguments)
    ends = ends_on_nan(arguments.callbacks)
    run.start(stream.steps, stream.first.batch_size, ends)
    run.clock.count_earlier(arguments.initial_epoch * stream.steps)
    try:
        yield arguments
    finally:
        held.begin_next_epoch()
        run.finish()


def _begun_run(model: keras.Model, held: Held, seen: ExaminedStream) -> StreamRun:
    """Returns the run that this `fit` uses: the last one, if that serves."""
    held.state.start_clock()
    continuation.restart_clock(model)
    described = seen.losses, seen.adapt, seen.handed
    if held.kept is None or not held.kept.serves(*described):
        seed = continuation.seed_of(held.sampling)
        found = seen.losses, seen.metrics, seen.adapt
        parts = (held.sampling, held.state, *found, seed, seen.handed)
        held.keep(StreamRun(model, *parts))
    held.begin(model, held.kept)
    return held.kept

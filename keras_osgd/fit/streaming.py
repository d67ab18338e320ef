"""What a `fit` on a stream begins and ends with, around Keras' own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_osgd.base.refusals import Refusals
from keras_osgd.fit import continuation
from keras_osgd.fit.check import examine_stream
from keras_osgd.fit.fitting import divided, resumed
from keras_osgd.fit.progress_bar import callback_list
from keras_osgd.losses.described import OutputLoss
from keras_osgd.pools.stream_run import StreamRun

__all__ = ["pool_sampling"]

_NEVER = 2**40  # steps: an epoch is ended by its effective iterations
_GIVEN = ("class_weight", "batch_size", "steps_per_epoch", "shuffle")


@contextlib.contextmanager
def pool_sampling(
    model: keras.Model, checkpoint: Any, given: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Begins training with sampling within pools, and ends it however it ended.

    Args:
        model: ours, compiled with `Presample`.
        checkpoint: a `Checkpoint` or `None`.
        given: the arguments of `fit`.

    Yields:
        The arguments for Keras' `fit`: a dataset without an end, of plain batches.

    Raises:
        ValueError: for data, losses or models that cannot be sampled.
    """
    refusals = Refusals()
    arrays, validation = divided(refusals, given)
    others = (given[name] for name in _GIVEN)
    stream, described, adapt = examine_stream(
        refusals, model, model.sampling_held.sampling, (*arrays, *others)
    )
    refusals.end()
    run = _enter_run(model, described, adapt)
    steps, verbose, epochs = stream.steps, given["verbose"], given["epochs"]
    given |= dict.fromkeys(("y", "sample_weight")) if stream.of_arrays else {}
    given |= {
        "x": stream.dataset,
        "class_weight": stream.class_weight,
        "batch_size": None,
        "steps_per_epoch": _NEVER,
        "shuffle": False,
        "validation_data": validation,
        "validation_batch_size": given["validation_batch_size"] or given["batch_size"],
        "validation_split": 0.0,
        "callbacks": callback_list(
            model, given["callbacks"], run.clock, verbose, epochs, steps
        ),
    }
    given = resumed(model, checkpoint, given)
    run.start(steps, stream.first.batch_size)
    try:
        yield given
    finally:
        model.begin_next_epoch()
        run.finish()


def _enter_run(
    model: keras.Model, described: list[OutputLoss], adapt: bool
) -> StreamRun:
    """Returns the run that this `fit` uses: the last one, where it serves again."""
    held = model.sampling_held
    method = held.sampling
    model.sampling_state.start_clock()
    continuation.restart_clock(model)
    if held.run is None or not held.run.serves(described, adapt):
        seed = continuation.seed_of(method)
        parts = (method, model.sampling_state, described, adapt, seed)
        held.run, held.wrapped = StreamRun(model, *parts), False
    if not held.wrapped:
        model.train_function = None
    return held.run

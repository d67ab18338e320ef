"""The beginning of a `fit`: by which steps it trains, and why by those."""

from __future__ import annotations

import contextlib

import keras

from keras_osgd.base.refusals import line_of, refuse
from keras_osgd.base.warn import unless_it_fails
from keras_osgd.fit import fitting, streaming
from keras_osgd.fit.arguments import FitArguments, require_arguments
from keras_osgd.fit.check import require_enough, require_worth_reading
from keras_osgd.fit.fit_callback import ResumingCallback
from keras_osgd.fit.held import Held
from keras_osgd.sampling import Auto, Presample, Uniform

__all__ = ["beginning"]


def beginning(
    model: keras.Model,
    held: Held,
    checkpoint: ResumingCallback | None,
    arguments: FitArguments,
) -> contextlib.AbstractContextManager[FitArguments]:
    """Returns the context in which Keras' `fit` trains as the model's sampling has it.

    Args:
        model: ours.
        held: of the model.
        checkpoint: a `Checkpoint` or `None`.
        arguments: of `fit`.

    Raises:
        ValueError: for data, losses, models or arguments that the method cannot sample.
        RuntimeError: if another `fit` of the model is under way.
    """
    common = model, held, checkpoint
    if isinstance(held.sampling, Uniform) or not model.compiled:
        return fitting.as_in_keras(*common, arguments)
    other = held.claim()
    if not isinstance(held.sampling, Auto):
        if other:
            raise RuntimeError(other)
        require_arguments(arguments)
        if isinstance(held.sampling, Presample):
            return streaming.pool_sampling(*common, arguments)
        found = fitting.examined(model, held, arguments)
        return fitting.importance_sampling(*common, *found)
    try:
        refuse([other])
        with unless_it_fails(model):
            require_arguments(arguments)
            require_enough(held.sampling, arguments)
            if not held.has_read(arguments.x):
                require_worth_reading(model, held.sampling, arguments)
            found = fitting.examined(model, held, arguments)
    except Exception as error:  # Keras' own `fit` raises again what concerns it too
        reasons = getattr(error, "texts", (_text(error),))
        if arguments.verbose:
            print(_told(reasons))
        held.disclaim()
        return fitting.as_in_keras(*common, arguments, reasons)
    return fitting.importance_sampling(*common, *found)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else line_of(error)


def _told(reasons: tuple[str, ...]) -> str:
    """Returns the line on a `fit` that is not sampled."""
    more = f" ({len(reasons) - 1} more: `keras_osgd.check`.)" * (len(reasons) > 1)
    return f"Training as in Keras, without importance sampling. {reasons[0]}{more}"

"""Metrics that a user's own code updates."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_osgd.base.replacing import replaced
from keras_osgd.base.warn import warn_once

__all__ = ["watched"]


@contextlib.contextmanager
def watched(model: keras.Model, size: int, method: str) -> Iterator[None]:
    """Warns of metrics that the block updates with a batch but without its weights.

    Args:
        model: whose metrics they are.
        size: number of examples of the batch.
        method: name of the user's method that updates them.
    """
    unweighted: dict[str, None] = {}

    def watching(metric: keras.Metric) -> Callable:
        update_state = metric.update_state
        signature = inspect.signature(update_state)

        def updating(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            shapes = [getattr(v, "shape", ()) for v in keras.tree.flatten(given)]
            batch = any(len(shape) and shape[0] == size for shape in shapes)
            if batch and given.get("sample_weight") is None:
                unweighted[metric.name] = None
            return update_state(*args, **kwargs)

        return updating

    own = [metric for metric in model.metrics if metric.name != "compile_metrics"]
    with contextlib.ExitStack() as stack:
        for metric in own:
            stack.enter_context(replaced(metric, {"update_state": watching(metric)}))
        yield
    if unweighted:
        names = ", ".join(map(repr, unweighted))
        warn_once(
            model,
            f"unweighted metrics of {method}",
            f"During training {names} will be of the drawn examples, not of the data: "
            f"your `{method}` updates them without `sample_weight`. Pass it on, or "
            "give them to `compile`.",
        )

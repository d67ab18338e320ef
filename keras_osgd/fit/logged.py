"""Numbers on the progress of a `fit` under way, for bars, logs and files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import keras

from keras_osgd.gain import learning_rate

if TYPE_CHECKING:
    from keras_osgd.fit.run import Run

__all__ = ["logged", "progress"]


def progress(run: Run) -> dict[str, float]:
    """Returns gain ratio and effective epochs of a run; cheap enough for a bar."""
    epochs = run.clock.effective_iterations() * run.batch_size / run.n
    gain = run.planner.logged["gain_ratio"]
    if math.isnan(run.planner.logged["gradient_ess"]):  # no plan has observed any yet
        gain = float(run.clock.gain)
    return {
        "gain_ratio": gain,
        "effective_epochs": epochs,
    }


def logged(run: Run, optimizer: keras.optimizers.Optimizer) -> dict[str, float]:
    """Returns the numbers `SamplingMonitor` logs of a run; between two steps."""
    shown, step = dict(run.planner.logged), run.step_state
    if step.scorer is not None:
        size = float(run.batch_size)
        shown["gain_ratio_exact"] = float(step.gain.current(size))
        shown["gain_ratio_last_layer"] = float(step.last_layer_gain.current(size))
    return {
        **shown,
        **progress(run),
        "sampling_share": run.planner.sampling_share(),
        "learning_rate_applied": learning_rate.applied_rate(
            optimizer, step.clock.gain, step.clock.lead
        ),
    }

"""Puts what the sampler does into Keras' logs."""

from __future__ import annotations

import keras
import numpy as np

__all__ = ["SamplingMonitor"]


class SamplingMonitor(keras.callbacks.Callback):
    """Adds figures of the sampling to the logs of each epoch.

    History, CSVLogger, the progress bar and every tracker then show them:

    | key | meaning |
    |---|---|
    | gain_ratio | r, 1 while draws are uniform |
    | gain_ratio_exact | r right now by exact norms, where those are taken |
    | gain_ratio_last_layer | the same by the last layer's, to check these |
    | effective_epochs | progress so far, in epochs of uniform training |
    | gradient_ess | (sum w v)^2 / (k sum (w v)^2) of the last k draws, in (0, 1] |
    | largest_weight | largest importance weight that could be drawn |
    | share_unseen | share of the examples whose norm was never observed |
    | sampling_share | seconds of planning (beside the steps) and waiting, over all |
    | share_pooled | only with `Presample`: share of the steps that drew from a pool |
    | candidate_gain_ratio | likewise: r that drawing has or, while off, would have |
    | scoring_seconds | only with the oracle: spent on scoring since `fit` began |
    | learning_rate_applied | the user's rate times what the gain ratio makes of it |

    Example:
        >>> monitor = SamplingMonitor()
        >>> monitor.probabilities() is None  # before training
        True
    """

    async_safe = True
    before_other_callbacks = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the figures."""
        run = self.model.sampling_run
        if logs is not None and run is not None:
            logs.update(run.figures())

    def probabilities(self) -> np.ndarray | None:
        """Returns `[n]`, the probabilities of the scores as last planned, or `None`."""
        run = getattr(self.model, "sampling_run", None)
        return None if run is None else run.probabilities()

"""Finding flipped labels by the scores, and what training without them gives back."""

import dataclasses

import keras
import numpy as np

from examples.experiments import sets

_TOP = 1000  # suspects whose precision is given


class MeanProbability(keras.callbacks.Callback):
    """Averages p over the ends of the epochs; `value` is `[n]`, or 0 before."""

    def __init__(self) -> None:
        super().__init__()
        self._sum: np.ndarray | float = 0.0
        self._count = 0

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the probabilities of the scores as last planned."""
        found = self.model.sampling_run.probabilities()
        if found is not None:
            self._sum = self._sum + np.asarray(found, np.float64)
            self._count += 1

    @property
    def value(self) -> np.ndarray:
        """The mean over epochs."""
        return self._sum / max(self._count, 1)


def cleaned(data: sets.Data, scores: np.ndarray) -> tuple[sets.Data, dict[str, float]]:
    """Returns the data without its suspects, and how right the suspicion was.

    As many are taken out as there are flipped labels: that number is taken as known.

    Args:
        data: with `true_labels`.
        scores: `[n]`; the largest are the most suspicious.
    """
    x, y = data.train
    wrong = y != data.true_labels
    suspects = np.argsort(-scores, kind="stable")
    removed = suspects[: wrong.sum()]
    kept = np.sort(suspects[wrong.sum() :])
    measures = {
        "flipped_share": float(wrong.mean()),
        f"precision_top_{_TOP}": float(wrong[suspects[:_TOP]].mean()),
        "precision": float(wrong[removed].mean()),
        "flipped_share_left": float(wrong[kept].mean()),
    }
    train = x[kept], y[kept]
    return dataclasses.replace(data, train=train, true_labels=None), measures

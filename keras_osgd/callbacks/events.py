"""TensorBoard's event files of a run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

__all__ = ["Events", "require_tensorboard"]

_SUFFIX = ".sampling"


def require_tensorboard() -> None:
    """Raises an error if TensorBoard, which `tf.summary` needs, is missing.

    Raises:
        ImportError: if it is not installed; TensorFlow no longer installs it.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "`SamplingMonitor(log_dir=...)` needs TensorBoard for its event files. "
            "Received: an installation without it. pip install "
            "'keras_osgd[tensorboard]', or leave them out by `tensorboard=False`."
        ) from error


class Events:
    """Writes scalars and the histogram of n p, epoch by epoch.

    Args:
        directory: the run's, which exists.
        fresh: whether to delete the events of earlier training there.
    """

    def __init__(self, directory: pathlib.Path, fresh: bool) -> None:
        """Opens a new file."""
        if fresh:
            for path in directory.glob(f"events.out.tfevents.*{_SUFFIX}"):
                path.unlink()
        self._writer = tf.summary.create_file_writer(
            str(directory), filename_suffix=_SUFFIX
        )

    def write(
        self, epoch: int, row: Mapping[str, float], probabilities: np.ndarray | None
    ) -> None:
        """Writes an epoch's logged numbers, and flushes them to the disk.

        Args:
            epoch: from 1 on; TensorBoard calls it the step.
            row: numbers by name.
            probabilities: `[n]`, or `None`.
        """
        with self._writer.as_default(step=epoch):
            for name, value in row.items():
                if name != "epoch":  # it is the axis
                    tf.summary.scalar(f"sampling/{name}", value)
            if probabilities is not None:
                n_p = len(probabilities) * probabilities
                tf.summary.histogram("sampling/n_p", n_p)
                tf.summary.histogram("sampling/log10_n_p", np.log10(n_p[n_p > 0]))
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

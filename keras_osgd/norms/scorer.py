"""Exact gradient norms of given examples, from a model and its losses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat, replicas
from keras_osgd.base.model_state import state_kept
from keras_osgd.data.training_data import TrainingData
from keras_osgd.losses.described import OutputLoss, weights_for
from keras_osgd.losses.shares import beside, require_single_examples, scale, unmasked
from keras_osgd.norms import exact
from keras_osgd.norms.calls import Frame, batch_axes, recording
from keras_osgd.norms.forms import rows_from
from keras_osgd.norms.normalization import couples_examples

__all__ = ["Scorer", "scoring_all"]

_PROBED = 3


class Scorer:
    """Computes the exact gradient norms of batches; traced once for each batch size.

    Args:
        model: compiled and built.
        described: its losses, from `describe`. If empty, half the sum of the outputs'
            squares stands in, which is enough to try the layers out.
        data: three of its examples are tried out.
        training: whether Dropout and the like are active.

    Raises:
        ValueError: if an example's loss depends on its batch; when a batch is scored,
            for layers without per-example gradients, all of which it lists.

    Attributes:
        model: as given.
        losses: as described.
        batch_size: of `fit`.
        holds_statistics: names of the trainable BatchNormalization layers; norms exist
            only while their statistics are held.
        batch_axes: see `calls.batch_axes`.
        probe: three examples.
        worked_out: names of the layers without a rule.
    """

    def __init__(
        self,
        model: keras.Model,
        described: Sequence[OutputLoss],
        data: TrainingData,
        training: bool = False,
    ) -> None:
        """Finds the calls that have a batch axis, by trial runs."""
        if described:
            require_single_examples(model, described)
        self.model, self._training = model, training
        self.losses, self.batch_size = list(described), data.batch_size
        layers = keras_compat.layers_of(model)
        self.holds_statistics = [x.name for x in layers if couples_examples(x)]
        self.probe = _first_rows(data, _PROBED)
        self.batch_axes = batch_axes(model, self.probe[0])
        self.worked_out: list[str] = []
        self._norms = self._measured_norms
        if not model.run_eagerly:
            self._norms = tf.function(
                self._measured_norms,
                autograph=False,
                jit_compile=model.jit_compile or None,
            )

    def __call__(self, x: Any, y: Any, sample_weight: Any = None) -> tf.Tensor:
        """Returns `[m]`, each example's exact gradient norm, float32 or float64."""
        return self._norms(x, y, sample_weight)

    def of_all(
        self,
        data: TrainingData,
        batch_size: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """Returns `[n]`, the norms of all examples.

        Args:
            data: n examples.
            batch_size: examples taken at once.
            progress: called with the number of examples done.
        """
        n, found = data.n, []
        for first in range(0, n, batch_size):
            # Earlier rows fill up the last batch, which saves a second trace.
            rows = slice(max(0, min(first, n - batch_size)), first + batch_size)
            with replicas.on_one(self.model.distribute_strategy):
                norms = self(*data.batch(rows)).numpy()
            found.append(norms[first - rows.start :])
            progress(min(first + batch_size, n))
        return np.concatenate(found)

    @property
    def probe_rows(self) -> list[tuple[Any, Any, Any]]:
        """The examples of `probe`, each alone."""
        return [
            keras.tree.map_structure(
                lambda a, i=row: None if a is None else rows_from(a, i, 1), self.probe
            )
            for row in range(_PROBED)
        ]

    def uses(
        self, frames: Sequence[Frame], training: bool, size: int | None = None
    ) -> exact.Uses:
        """Returns the calls that the gradients of the model's weights come from.

        Args:
            frames: calls recorded in a forward pass.
            training: whether the forward pass was in training mode.
            size: batch size; that of `fit` if `None`.
        """
        variables = self.model.trainable_variables
        return exact.Uses(
            frames, variables, size or self.batch_size, self.batch_axes, training
        )

    def _measured_norms(self, x: Any, y: Any, sample_weight: Any) -> tf.Tensor:
        measured, _ = self.measured(x, y, sample_weight)
        return tf.sqrt(measured.of_all_weights().squared_norms)

    def measured(
        self, x: Any, y: Any, sample_weight: Any
    ) -> tuple[exact.Measured, list[Any]]:
        """Returns norms by one pass over a batch, and its gradients by the tape."""
        size = keras.tree.flatten(x)[0].shape[0]
        with tf.GradientTape() as tape, recording(self.model) as frames:
            loss = self.loss(x, y, sample_weight, size)
        uses = self.uses(frames, self._training, size)
        watched = [keras_compat.tensor_of(v) for v in self.model.trainable_variables]
        gradients, deltas = tape.gradient(loss, (watched, uses.outputs))
        by_reference = zip((v.ref() for v in watched), gradients, strict=True)
        measured = uses.measure(deltas, dict(by_reference))
        self.worked_out = measured.worked_out
        return measured, gradients

    def loss(self, x: Any, y: Any, sample_weight: Any, size: int) -> tf.Tensor:
        """Returns the sum of the examples' losses, without regularisation."""
        ones = tf.ones([size], keras.config.floatx())
        y_pred = keras_compat.call_model(self.model, x, training=self._training)
        if not self.losses:
            floats = [tf.cast(leaf, ones.dtype) for leaf in keras.tree.flatten(y_pred)]
            return tf.add_n([tf.nn.l2_loss(leaf) for leaf in floats])
        y_pred, weights = unmasked(self.losses, y_pred, sample_weight)
        weights = weights_for(self.losses, ones, weights)
        loss = keras_compat.untracked_loss(self.model, x, y, y_pred, weights)
        loss -= beside(self.model, self.losses, x, y, y_pred)
        # On one of several replicas Keras divides a mean by their number too.
        return loss / scale(self.losses, size * replicas.count())

    @contextlib.contextmanager
    def in_mode(self, training: bool) -> Iterator[None]:
        """Scores in the given mode during the block, and keeps the model's state."""
        held, self._training = self._training, training
        try:
            with state_kept(self.model):
                yield
        finally:
            self._training = held


def _first_rows(data: TrainingData, count: int) -> tuple[Any, Any, Any]:
    """Returns `count` examples, those with a weight first, repeated if n is smaller."""
    rows = np.arange(data.n)
    for leaf in keras.tree.flatten(data.arrays[2]):
        weighs = np.ones(data.n) if leaf is None else leaf.reshape(data.n, -1).sum(1)
        rows = rows[np.argsort(weighs[rows] == 0, kind="stable")]
    rows = np.resize(rows[: max(count, 1)], count)
    return data.batch(rows)


def scoring_all(
    scorer: Scorer, data: TrainingData, batch_size: int, verbose: bool
) -> Callable[[], np.ndarray]:
    """Returns a function that scores all examples at the current weights.

    Args:
        scorer: of the model.
        data: all examples.
        batch_size: examples scored at once.
        verbose: whether the first call shows a progress bar.
    """
    bars = [keras.utils.Progbar] if verbose else []

    def score() -> np.ndarray:
        if not bars:
            return scorer.of_all(data, batch_size)
        print(f"Scoring {data.n} examples")
        bar = bars.pop()(data.n, unit_name="example")
        return scorer.of_all(data, batch_size, bar.update)

    return score

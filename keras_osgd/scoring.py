"""Exact gradient norms of given examples: the loss, the model and the norms at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd import keras_compat, loss_shares, losses
from keras_osgd.losses import OutputLoss
from keras_osgd.norms import exact
from keras_osgd.norms.batch_axes import batch_axes
from keras_osgd.norms.calls import Frame, recording, state_kept
from keras_osgd.norms.normalization import couples_examples
from keras_osgd.training_data import TrainingData

__all__ = ["Scorer", "has_terms_of_the_batch", "other_terms"]

_PROBED = 3
_TOLERANCE = {"float16": 0.2, "bfloat16": 0.2, "float32": 2e-3, "float64": 1e-6}


def has_terms_of_the_batch(model: keras.Model) -> bool:
    """Returns whether losses beyond those compiled depend on more than the weights."""
    weights = sum(v.regularizer is not None for v in model.trainable_weights)
    return len(model.losses) > weights


def other_terms(model: keras.Model, dtype: tf.DType) -> tf.Tensor:
    """Returns `[]`, what Keras adds to the compiled losses: `model.losses` summed."""
    terms = [tf.reduce_sum(tf.cast(term, dtype)) for term in model.losses]
    return tf.add_n([tf.zeros([], dtype), *terms])


class Scorer:
    """Takes the exact gradient norms of batches; traced once for each batch size.

    Args:
        model: compiled and built.
        described: its losses, from `losses.describe`.
        data: three of its examples are tried out.
        training: whether Dropout and the like are active.

    Raises:
        ValueError: if an example's loss depends on its batch; from the first batch on,
            listing every layer that has no per-example gradients.

    Attributes:
        losses: as described.
        batch_size: of `fit`.
        holds_statistics: names of BatchNormalization layers that are trained: only
            norms with their statistics held exist.
        batch_axes: see `batch_axes.batch_axes`.
        worked_out: layers that no rule is known for.
    """

    def __init__(
        self,
        model: keras.Model,
        described: Sequence[OutputLoss],
        data: TrainingData,
        training: bool = False,
    ) -> None:
        """Tries out which calls have a batch axis."""
        loss_shares.check(model, described)
        self._model, self._training = model, training
        self.losses, self.batch_size = list(described), data.batch_size
        layers = keras_compat.layers_of(model)
        self.holds_statistics = [x.name for x in layers if couples_examples(x)]
        self._probe = _first_rows(data, _PROBED)
        self.batch_axes = batch_axes(model, self._probe[0])
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
        arrays: tuple[Any, Any, Any],
        batch_size: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """Returns `[n]`, the norms of all examples.

        Args:
            arrays: x, y and sample_weight, each with n rows.
            batch_size: examples taken at once.
            progress: called with the number of examples done.
        """
        n = len(keras.tree.flatten(arrays[0])[0])
        found = []
        for first in range(0, n, batch_size):
            rows = keras.tree.map_structure(
                lambda a, at=first: (
                    None if a is None else tf.convert_to_tensor(a[at : at + batch_size])
                ),
                arrays,
            )
            found.append(self(*rows).numpy())
            progress(min(first + batch_size, n))
        return np.concatenate(found)

    def uses(
        self, frames: Sequence[Frame], training: bool, size: int | None = None
    ) -> exact.Uses:
        """Returns where the gradients of the model's weights come from.

        Args:
            frames: calls recorded in a forward pass.
            training: whether that was in training mode.
            size: of the batch; that of `fit` if `None`.
        """
        variables = self._model.trainable_variables
        return exact.Uses(
            frames, variables, size or self.batch_size, self.batch_axes, training
        )

    def _measured_norms(self, x: Any, y: Any, sample_weight: Any) -> tf.Tensor:
        return tf.sqrt(self._measured(x, y, sample_weight).squared_norms)

    def _measured(self, x: Any, y: Any, sample_weight: Any) -> exact.Measured:
        size = keras.tree.flatten(x)[0].shape[0]
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape, recording(self._model) as frames:
            loss = self._loss(x, y, sample_weight, size)
        uses = self.uses(frames, self._training, size)
        watched = [keras_compat.tensor_of(v) for v in variables]
        gradients, deltas = tape.gradient(loss, (watched, uses.outputs))
        by_reference = zip((v.ref() for v in watched), gradients, strict=True)
        measured = uses.measure(deltas, dict(by_reference))
        self.worked_out = measured.worked_out
        return measured

    def _loss(self, x: Any, y: Any, sample_weight: Any, size: int) -> tf.Tensor:
        """Returns the sum of the examples' losses, regularisation left out."""
        ones = tf.ones([size], keras.config.floatx())
        y_pred = keras_compat.call_model(self._model, x, training=self._training)
        y_pred, weights = loss_shares.unmasked(self.losses, y_pred, sample_weight)
        weights = losses.weights_for(self.losses, ones, weights)
        loss = keras_compat.untracked_loss(self._model, x, y, y_pred, weights)
        loss -= other_terms(self._model, loss.dtype)
        return loss / loss_shares.scale(self.losses, size)

    def try_training(self) -> None:
        """Takes the norms of three examples in training mode; changes no state.

        Raises:
            ValueError: listing every layer that has no per-example gradients.
        """
        with self._in_mode(training=True):
            self._measured(*self._probe)

    @contextlib.contextmanager
    def _in_mode(self, training: bool) -> Iterator[None]:
        held, self._training = self._training, training
        try:
            with state_kept(self._model):
                yield
        finally:
            self._training = held

    def verify(self) -> None:
        """Compares the norms of three examples with gradients taken one by one.

        In inference mode, since two passes would drop other values; changes no state.

        Raises:
            ValueError: naming the weights whose norms differ.
        """
        with self._in_mode(training=False):
            measured = self._measured(*self._probe)
            alone = [self._norms_alone(row) for row in range(_PROBED)]
        wrong, tolerance = set(), _tolerance(self._model)
        for row, norms in enumerate(alone):
            limit = tolerance * tf.sqrt(measured.squared_norms[row])
            for variable, norm in zip(
                self._model.trainable_variables, norms, strict=True
            ):
                parts = measured.by_weight.get(keras_compat.tensor_of(variable).ref())
                found = 0.0 if parts is None else tf.sqrt(parts[row])
                if abs(norm - float(found)) > float(limit):
                    wrong.add(variable.path)
        if wrong:
            raise ValueError(
                "Exact gradient norms must equal those of single-example gradients. "
                f"On three examples they did not, for {sorted(wrong)}: these weights "
                "are used in a way that no layer's rule sees. Register a rule with "
                "`keras_osgd.norms.register` for the layer that uses them, or use the "
                'last layer\'s norms, `sampling.RAIS(norm="last_layer")`.'
            )

    def _norms_alone(self, row: int) -> list[float]:
        """Returns the gradient norm of each weight, by a pass over one example."""
        x, y, weight = keras.tree.map_structure(
            lambda a: None if a is None else a[row : row + 1], self._probe
        )
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape:
            loss = self._loss(x, y, weight, 1)
        gradients = tape.gradient(loss, [keras_compat.tensor_of(v) for v in variables])
        return [
            0.0
            if g is None
            else float(tf.norm(tf.cast(tf.convert_to_tensor(g), tf.float64)))
            for g in gradients
        ]


def _tolerance(model: keras.Model) -> float:
    """Returns the relative error that the model's coarsest type may cause."""
    layers = [model, *keras_compat.layers_of(model)]
    return max(_TOLERANCE.get(layer.compute_dtype, 0.0) for layer in layers)


def _first_rows(data: TrainingData, count: int) -> tuple[Any, Any, Any]:
    """Returns `count` examples that weigh something; some again if there are fewer."""
    rows = np.arange(data.n)
    for leaf in keras.tree.flatten(data.arrays[2]):
        weighs = np.ones(data.n) if leaf is None else leaf.reshape(data.n, -1).sum(1)
        rows = rows[np.argsort(weighs[rows] == 0, kind="stable")]
    rows = np.resize(rows[: max(count, 1)], count)
    return keras.tree.map_structure(
        lambda a: None if a is None else tf.convert_to_tensor(a[rows]), data.arrays
    )

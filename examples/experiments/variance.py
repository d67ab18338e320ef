"""The variance of gradient estimates on frozen weights, by exact norms."""

import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

import keras_osgd
from keras_osgd.norms import last_layer

_MOST_ROWS = 20_000
_ROWS_AT_ONCE = 256


def second_moment(norms: np.ndarray, probability: np.ndarray) -> float:
    """Returns E||g_1||^2 = (1/n^2) sum_i v_i^2/p_i, of a single draw.

    Args:
        norms: `[n]`, >= 0, exact gradient norms v.
        probability: `[n]`, > 0 wherever the norm is; sums to 1.
    """
    norms, probability = np.float64(norms), np.float64(probability)
    kept = norms > 0  # the optimum never draws the others
    return float(np.sum(norms[kept] ** 2 / probability[kept]) / len(norms) ** 2)


def covariance_trace(
    norms: np.ndarray,
    probability: np.ndarray,
    squared_full_gradient: float,
    batch_size: int,
) -> float:
    """Returns tr Cov(g) = (1/m) ((1/n^2) sum_i v_i^2/p_i - ||grad F||^2).

    Args:
        norms: `[n]`, >= 0, exact gradient norms v.
        probability: `[n]`, > 0 wherever the norm is; sums to 1.
        squared_full_gradient: ||grad F||^2, F being the mean over the n examples.
        batch_size: m, independent draws.
    """
    return (second_moment(norms, probability) - squared_full_gradient) / batch_size


def variance_ratio(
    norms: np.ndarray, probability: np.ndarray, squared_full_gradient: float
) -> float:
    """Returns tr Cov(g_U) / tr Cov(g_p), above 1 where p is better than uniform draws.

    It is the same for every batch size. Infinite where p leaves no variance.
    """
    n = len(norms)
    uniform = covariance_trace(norms, np.full(n, 1 / n), squared_full_gradient, 1)
    trace = covariance_trace(norms, probability, squared_full_gradient, 1)
    return uniform / trace if trace > 0 else np.inf


def attained_share(norms: np.ndarray, probability: np.ndarray) -> float:
    """Returns the share of the optimum's reduction, (tr U - tr p) / (tr U - tr O).

    1 for p proportional to the norms, 0 for uniform p, below 0 for worse ones. Neither
    ||grad F||^2 nor the batch size matters. 1 where uniform draws are the optimum.
    """
    n = len(norms)
    uniform = second_moment(norms, np.full(n, 1 / n))
    best = np.mean(np.float64(norms)) ** 2
    if uniform <= best * (1 + 1e-12):
        return 1.0
    return float((uniform - second_moment(norms, probability)) / (uniform - best))


def true_gain_ratio(
    norms: np.ndarray,
    probability: np.ndarray,
    squared_full_gradient: float,
    batch_size: int,
) -> float:
    """Returns r = E||g_U||^2 / E||g_p||^2 for minibatches of m draws (equation 4).

    Neither capped nor bounded, as the trainer's estimate is.
    """
    n = len(norms)
    uniform, ours = (
        covariance_trace(norms, p, squared_full_gradient, batch_size)
        + squared_full_gradient
        for p in (np.full(n, 1 / n), probability)
    )
    return float(uniform / ours)


def gradient_ess(norms: np.ndarray, probability: np.ndarray) -> float:
    """Returns (E w v)^2 / E (w v)^2 = (mean v)^2 / E||g_1||^2; 1 at the optimum."""
    return float(np.mean(np.float64(norms)) ** 2 / second_moment(norms, probability))


def measure(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    probability: np.ndarray,
    batch_size: int,
    estimated_gain: float | None = None,
    seed: int = 0,
) -> dict[str, float | None]:
    """Returns how p compares with uniform draws and with the optimum on these weights.

    Of more than 20,000 examples a uniform part is measured. Its mean norms, mean
    squared norms and mean of v^2/(n p), with p renormalised over the part, tend to
    those of all examples as the part grows, hence all figures do. The full gradient is
    the part's too, so that the part is measured exactly as a data set of its own.

    Args:
        model: compiled; one output, a loss for each example, as in classification.
        x: `[n, ...]`.
        y: `[n]`.
        probability: `[n]`, > 0, p as the sampler would draw.
        batch_size: m.
        estimated_gain: the trainer's own estimate of the gain ratio.
        seed: of the part.

    Returns:
        `variance_ratio_rais`, `_oracle` and `_last_layer` (p proportional to the exact
        and to the last layer's norms); `attained_share`, `attained_share_last_layer`;
        `rank_correlation` (Spearman's, of last layer's and exact norms);
        `true_gain`, `oracle_gain`, `estimated_gain`; `gradient_ess`;
        `squared_full_gradient`; `rows`, how many were measured.
    """
    rows = np.arange(len(x))
    if len(rows) > _MOST_ROWS:
        drawn = np.random.default_rng(seed).choice(rows, _MOST_ROWS, replace=False)
        rows = np.sort(drawn)
    x, y, p = x[rows], y[rows], np.float64(probability)[rows]
    p /= p.sum()
    norms = np.float64(keras_osgd.gradient_norms(model, x, y))
    squared, last = full_gradient_and_last_layer(model, x, y)
    oracle, by_last = norms / norms.sum(), last / last.sum()
    return {
        "variance_ratio_rais": variance_ratio(norms, p, squared),
        "variance_ratio_oracle": variance_ratio(norms, oracle, squared),
        "variance_ratio_last_layer": variance_ratio(norms, by_last, squared),
        "attained_share": attained_share(norms, p),
        "attained_share_last_layer": attained_share(norms, by_last),
        "rank_correlation": float(stats.spearmanr(last, norms).statistic),
        "true_gain": true_gain_ratio(norms, p, squared, batch_size),
        "oracle_gain": true_gain_ratio(norms, oracle, squared, batch_size),
        "estimated_gain": estimated_gain,
        "gradient_ess": gradient_ess(norms, p),
        "squared_full_gradient": squared,
        "rows": len(rows),
    }


def full_gradient_and_last_layer(
    model: keras.Model, x: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray]:
    """Returns ||grad F||^2 and `[n]`, each example's norm by the last layer alone.

    Without regularisation, and as in inference, both as `gradient_norms` has it.

    Args:
        model: compiled; one output, whose loss is a mean over the batch.
        x: `[n, ...]`.
        y: `[n]`.
    """
    variables = [v.value for v in model.trainable_variables]

    @tf.function(autograph=False, reduce_retracing=True)
    def sums(inputs: tf.Tensor, targets: tf.Tensor):
        with tf.GradientTape() as tape, last_layer.recording(model) as heads:
            outputs = model(inputs, training=False)
            mean = tf.reduce_mean(model.loss(targets, outputs))
            loss = mean * tf.cast(tf.shape(inputs)[0], mean.dtype)
        head = heads.of(outputs)
        gradients, delta = tape.gradient(loss, (variables, head.pre_activation))
        dense = [tf.convert_to_tensor(g) for g in gradients]
        return dense, last_layer.squared_norms(head, delta)

    total: list = [np.float64(0)] * len(variables)
    squared = []
    for first in range(0, len(x), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        gradients, norms = sums(tf.constant(x[rows]), tf.constant(y[rows]))
        total = [t + np.float64(g) for t, g in zip(total, gradients, strict=True)]
        squared.append(np.float64(norms))
    gradient = sum(np.sum(t**2) for t in total) / len(x) ** 2
    return float(gradient), np.sqrt(np.concatenate(squared))


class FrozenVariance(keras.callbacks.Callback):
    """Calls `measure` at the end of some epochs; changes nothing of the training.

    Args:
        x: all training examples, in the order `fit` has them.
        y: their labels.
        batch_size: m.
        at: fractions of the epochs, in (0, 1]; the last is the end of training.

    Attributes:
        measured: what `measure` returned, each with its `epoch` from 1 on, the
            `gain_ratio` applied by then, and the `seconds` it took. p is that of the
            scores as last planned, `estimated_gain` the trainer's for what it draws
            now or, while draws are uniform, would draw.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int,
        at: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 1.0),
    ) -> None:
        super().__init__()
        if not all(0 < fraction <= 1 for fraction in at):
            raise ValueError(
                "`at` must be fractions of the epochs, above 0 and at most 1. "
                f"Received: {tuple(at)}. Divide epochs by their number."
            )
        self._data, self._batch_size, self._at = (x, y), batch_size, at
        self.measured: list[dict] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Measures, if it is time."""
        epochs = self.params["epochs"]
        if epoch + 1 not in {max(1, round(f * epochs)) for f in self._at}:
            return
        begun = time.perf_counter()
        run, n = getattr(self.model, "sampling_run", None), len(self._data[0])
        probability, estimated, applied = np.full(n, 1 / n), None, 1.0
        if run is not None:
            probability = run.probabilities()
            estimated = float(run.gain.current(float(self._batch_size)))
            applied = float(run.logged()["gain_ratio"])
        found = measure(
            self.model, *self._data, probability, self._batch_size, estimated
        )
        seconds = time.perf_counter() - begun
        more = {"epoch": epoch + 1, "gain_ratio": applied, "seconds": seconds}
        self.measured.append({**more, **found})

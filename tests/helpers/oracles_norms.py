"""Slow second implementations for norms, gain ratio, learning rate and score table."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


def gradients_one_by_one(
    loss_of: Callable[[int], tf.Tensor], variables: Sequence, size: int
) -> np.ndarray:
    """Returns `[size, parameters]` float64: each example's own gradient."""
    rows = []
    for example in range(size):
        with tf.GradientTape() as tape:
            value = loss_of(example)
        gradients = tape.gradient(value, [v.value for v in variables])
        rows.append(np.concatenate([np.ravel(g).astype(np.float64) for g in gradients]))
    return np.stack(rows)


def expected_squared_gradient(
    gradients: np.ndarray, probability: np.ndarray, size: int
) -> float:
    """Returns E||g||^2 over all n^m batches of independent draws."""
    n = len(gradients)
    weights, total = 1 / (n * probability), 0.0
    for draws in itertools.product(range(n), repeat=size):
        chosen = list(draws)
        mean = (weights[chosen, None] * gradients[chosen]).mean(axis=0)
        total += probability[chosen].prod() * (mean**2).sum()
    return float(total)


def expected_moments(
    moments: Callable[..., tf.Tensor],
    gradients: np.ndarray,
    probability: np.ndarray,
    candidate: np.ndarray,
    size: int,
) -> np.ndarray:
    """Returns the mean of `moments` over all n^m batches drawn with `probability`."""
    n = len(gradients)
    squared = (gradients**2).sum(axis=1)
    weights, others = 1 / (n * probability), 1 / (n * candidate)
    total = np.zeros(4)
    for draws in itertools.product(range(n), repeat=size):
        chosen = list(draws)
        mean = (weights[chosen, None] * gradients[chosen]).mean(axis=0)
        arguments = weights[chosen], others[chosen], squared[chosen], (mean**2).sum()
        arguments = [tf.constant(a, tf.float64) for a in arguments]
        total += probability[chosen].prod() * moments(*arguments).numpy()
    return total


class NumpyAdam:
    """Adam whose every step may be another number r of steps, exactly unbiased."""

    def __init__(self, weight: np.ndarray, rate: float, beta_1: float, beta_2: float):
        self.weight, self.rate = weight.astype(np.float64), rate
        self.beta_1, self.beta_2 = beta_1, beta_2
        self.mean, self.square = np.zeros_like(self.weight), np.zeros_like(self.weight)
        # Share of each average that is still its start at 0: the product of its betas.
        self.start_1 = self.start_2 = 1.0

    def step(self, gradient: np.ndarray, gain: float) -> np.ndarray:
        beta_1 = max(1 - gain * (1 - self.beta_1), 0.0)
        beta_2 = max(1 - gain * (1 - self.beta_2), 0.0)
        self.mean = beta_1 * self.mean + (1 - beta_1) * gradient
        self.square = beta_2 * self.square + (1 - beta_2) * gradient**2
        self.start_1, self.start_2 = self.start_1 * beta_1, self.start_2 * beta_2
        mean = self.mean / (1 - self.start_1)
        square = self.square / (1 - self.start_2)
        self.weight -= self.rate * np.sqrt(gain) * mean / np.sqrt(square)
        return self.weight


class NumpyNadam(NumpyAdam):
    """Nadam likewise, with its schedule of momenta."""

    steps, product = 0, 1.0

    def step(self, gradient: np.ndarray, gain: float) -> np.ndarray:
        before = self.weight.copy()
        super().step(gradient, gain)
        self.steps += 1
        beta_1 = max(1 - gain * (1 - self.beta_1), 0.0)
        now = beta_1 * (1 - 0.5 * 0.96**self.steps)
        ahead = beta_1 * (1 - 0.5 * 0.96 ** (self.steps + 1))
        self.product *= now
        mean = ahead * self.mean / (1 - self.product * ahead)
        mean += (1 - now) * gradient / (1 - self.product)
        square = self.square / (1 - self.start_2)
        self.weight = before - self.rate * np.sqrt(gain) * mean / np.sqrt(square)
        return self.weight


class SlowTable:
    """The score table in plain Python, one example after the other."""

    def __init__(self, size: int, classes: Sequence[int] | None, names: Sequence[str]):
        self.size, self.classes, self.names = size, classes, names
        self.last: dict[int, float] = {}
        self.averages: dict[tuple[str, int], float] = {}
        self.seen_at: dict[int, int] = {}
        self.means: dict[object, tuple[float, float]] = {}
        self.block = 0

    def observe(self, index, weights, norms, block: int) -> None:
        for key, (total, weight) in self.means.items():
            self.means[key] = 0.7 * total, 0.7 * weight
        latest = {}
        for i, weight, norm in zip(index, weights, norms, strict=True):
            for key in ("all", None if self.classes is None else self.classes[i]):
                total, sum_of_weights = self.means.get(key, (0.0, 0.0))
                self.means[key] = total + weight * norm, sum_of_weights + weight
            latest[i] = norm
        for i, norm in latest.items():
            for name in self.names:
                if name.startswith("average_"):
                    decay = float(name.removeprefix("average_"))
                    old = self.averages.get((name, i), norm)
                    self.averages[name, i] = decay * old + (1 - decay) * norm
            self.last[i], self.seen_at[i] = norm, block
        self.block = block

    def mean(self, key: object) -> float:
        total, weight = self.means.get(key, self.means.get("all", (0.0, 1.0)))
        return total / weight

    def feature(self, name: str, i: int) -> float:
        of_class = self.mean("all" if self.classes is None else self.classes[i])
        if name == "constant":
            return self.mean("all")
        if name == "class_mean":
            return of_class
        if name == "unseen":
            return 0.0 if i in self.last else self.mean("all")
        if name == "age":
            return self.mean("all") * (self.block - self.seen_at.get(i, -1)) / 8
        if name == "last":
            return self.last.get(i, of_class)
        return self.averages.get((name, i), of_class)

    def features(self) -> np.ndarray:
        return np.array(
            [[self.feature(name, i) for name in self.names] for i in range(self.size)]
        )

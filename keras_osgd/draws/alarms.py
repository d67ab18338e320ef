"""Warnings while training goes on: each once in a `fit`, with its remedy."""

from __future__ import annotations

import math

import numpy as np

from keras_osgd.gain.gain_ratio import MAX_GAIN, gradient_ess
from keras_osgd.scores.state import SamplingState

__all__ = [
    "Alarms",
    "Steps",
    "may_take_share",
    "mean_weight_is_off",
    "share_of_top",
]

_PART_STEPS = 50  # observations are judged in parts of at least this many steps
_LEAST_PARTS = 10  # for a standard error
_ERRORS, _TOLERANCE = 6.0, 0.05  # of the mean weight: in standard errors, and fixed
_HARMFUL_PARTS = 3  # in a row
_AS_GOOD = 0.99
# On 20,000 images of Fashion-MNIST (MLP) the share grew from 3 % in epoch 2 to 6.7 % in
# epoch 14. With 5 % of the labels flipped it grew no further: only grosser faults show.
_TOP, _TOP_SHARE = 0.01, 0.25
_LEAST_EXAMPLES = 1000  # with fewer, the share is not judged
_HORIZON_FLOOR = 0.05  # at lower floors too, a visit is due within 1/0.05 epochs
_UNSEEN_SHARE = 0.01
_NAMED = 10


class Steps:
    """Weights and norms of one part of the training, at least `_PART_STEPS` long."""

    def __init__(self) -> None:
        """Starts empty."""
        self.count = 0
        self._weights: list[np.ndarray] = []
        self._norms: list[np.ndarray] = []

    def add(self, count: int, weights: np.ndarray, norms: np.ndarray) -> None:
        """Adds `count` steps: importance weights and norms of their draws."""
        self.count += count
        self._weights.append(weights)
        self._norms.append(norms.astype(np.float64))

    @property
    def mean_weight(self) -> float:
        """Mean importance weight, 1 but for chance."""
        return float(np.concatenate(self._weights).mean())

    def effective_sizes(self) -> tuple[float, float]:
        """Returns the gradient's ESS over m, of these draws and of uniform ones.

        Of these k draws, (sum w v)^2 / (k sum (w v)^2). Of uniform ones,
        (sum w v)^2 / (sum w sum w v^2), which estimates (mean v)^2 / (mean v^2) over
        all examples. Both are at most 1, and 1 where no norm is above 0.
        """
        weights, norms = np.concatenate(self._weights), np.concatenate(self._norms)
        fine = np.isfinite(norms)
        weights, norms = weights[fine], norms[fine]
        squared = (weights * norms**2).sum()
        if not squared > 0:
            return 1.0, 1.0
        uniform = (weights * norms).sum() ** 2 / (weights.sum() * squared)
        return gradient_ess(weights, norms), float(uniform)


class Alarms:
    """Judges the observations of the steps.

    Args:
        state: the sampling state.
        floor: no p is below floor/n; `None` where no p is too small.
        batch_size: m.
    """

    def __init__(
        self, state: SamplingState, floor: float | None, batch_size: int
    ) -> None:
        """Starts without observations."""
        self._state, self._floor, self._n = state, floor, state.table.size
        self._epoch = max(math.ceil(self._n / batch_size), _PART_STEPS)
        self._part = Steps()
        self._mean_weights: list[float] = []
        self._harmful = self._at_cap = 0
        self._drawn = 0.0  # epochs of draws in this fit
        self._counted, self._times = 0.0, state.times_drawn.copy()  # as last compared
        self._batch_size = batch_size
        self._told: set[str] = set()
        self._texts: list[str] = []

    def take_in(
        self,
        weights: np.ndarray,
        norms: np.ndarray,
        gains: np.ndarray,
        importance: bool,
        candidate: np.ndarray | None,
    ) -> list[str]:
        """Takes in some steps; returns the texts of new warnings.

        Args:
            weights: `[k * m]`, importance weights.
            norms: `[k * m]`, as observed.
            gains: `[k]`, gain ratios; NaN where a step was skipped.
            importance: whether the draws followed the scores.
            candidate: `[n]`, p by the scores as last planned; `None` if unknown.
        """
        self._drawn += len(weights) / self._n
        if not importance:
            self._part, self._harmful, self._at_cap = Steps(), 0, 0
            return []
        self._look_at_gains(gains[np.isfinite(gains)])
        self._part.add(len(gains), weights, norms)
        if self._part.count >= _PART_STEPS:
            part, self._part = self._part, Steps()
            self._look_at_weights(part)
            self._look_at_sizes(part)
            self._look_at_shares(candidate)
            self._look_at_unseen()
        texts, self._texts = self._texts, []
        return texts

    def _tell(self, about: str, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            self._texts.append(text)

    def _look_at_gains(self, gains: np.ndarray) -> None:
        below = np.flatnonzero(gains < MAX_GAIN * (1 - 1e-6))
        self._at_cap = (
            len(gains) - 1 - below[-1] if len(below) else self._at_cap + len(gains)
        )
        if self._at_cap >= self._epoch:
            self._tell(
                "cap",
                f"The gain ratio was at its cap of {MAX_GAIN:g} for {self._at_cap} "
                "steps: a few examples make up almost the whole gradient. Training is "
                "nearly done, or those examples are faulty. Look at the examples of "
                "`model.sampling.most_sampled()`, and lower the learning "
                "rate if the loss rises.",
            )

    def _look_at_weights(self, part: Steps) -> None:
        self._mean_weights.append(part.mean_weight)
        if not self._floor or not mean_weight_is_off(np.array(self._mean_weights)):
            return
        values = np.array(self._mean_weights)
        error = values.std(ddof=1) / math.sqrt(len(values))
        self._tell(
            "weights",
            f"The mean importance weight must be 1. Received: {values.mean():.3f} over "
            f"{len(values)} stretches of training, with a standard error of {error:.3f}"
            ': the gradient is biased. Set `draws="independent"`, and if this warning '
            "comes back, report it as a fault of keras_osgd.",
        )

    def _look_at_sizes(self, part: Steps) -> None:
        own, uniform = part.effective_sizes()
        # Worse by more than rounding. A retreat has a notice of its own.
        worse = own < _AS_GOOD * uniform and self._state.armed
        self._harmful = self._harmful + 1 if worse else 0
        if self._harmful >= _HARMFUL_PARTS:
            self._tell(
                "harm",
                f"The gradient's effective sample size is {own:.2f} of the batch and "
                f"would be {uniform:.2f} with uniform draws: importance sampling does "
                "harm at present. Set `retreat_below` to 1 or more, raise `floor`, or "
                'compile with sampling="uniform".',
            )

    def _look_at_shares(self, candidate: np.ndarray | None) -> None:
        few = self._n < _LEAST_EXAMPLES
        if few or candidate is None or "share" in self._told:
            return
        if not may_take_share(candidate, _TOP_SHARE):
            return
        top, share = share_of_top(candidate)
        if share > _TOP_SHARE:
            self._tell(
                "share",
                f"{len(top)} of {self._n} examples take {share:.0%} of all draws; this "
                f"alarm's limit is {_TOP_SHARE:.0%}. They are rare, hard, or their "
                f"labels wrong: look at examples {top[:_NAMED].tolist()}, the most "
                "drawn of them; correct what is wrong, or raise `floor`.",
            )

    def _look_at_unseen(self) -> None:
        if self._floor is None or "unseen" in self._told:
            return
        horizon = 2 / max(self._floor, _HORIZON_FLOOR)
        late = np.zeros(self._n, bool)
        if self._drawn - self._counted > horizon:
            times = self._state.times_drawn
            late |= times == self._times
            self._counted, self._times = self._drawn, times.copy()
        if self._drawn > horizon:
            unseen = np.isnan(self._state.table.last_norms())
            late |= unseen if unseen.mean() > _UNSEEN_SHARE else False
        late[self._state.bad_examples.set_aside] = False
        if late.any():
            self._tell(
                "unseen",
                "Every example must be drawn from time to time. Received: "
                f"{np.count_nonzero(late)} of {self._n} not drawn, or hardly, for "
                f"{horizon:g} epochs' worth of draws, such as examples "
                f"{np.flatnonzero(late)[:_NAMED].tolist()}. Raise `floor`, or set "
                '`draws="reshuffled"`.',
            )


def mean_weight_is_off(values: np.ndarray) -> bool:
    """Returns whether mean weights, one a stretch of training, contradict a mean of 1.

    Their mean must be off by more than 0.05 plus 6 standard errors, or not be finite.
    With reshuffled draws, the mean weight of a block has a standard deviation of 0.03.

    Args:
        values: `[k]`, > 0; nothing is concluded from fewer than 10.

    Example:
        >>> values = 1.2 + 0.03 * (-1) ** np.arange(10)
        >>> mean_weight_is_off(values), mean_weight_is_off(values - 0.2)
        (True, False)
    """
    if len(values) < _LEAST_PARTS:
        return False
    if not np.isfinite(values).all():
        return True
    error = values.std(ddof=1) / math.sqrt(len(values))
    return bool(abs(values.mean() - 1) > _TOLERANCE + _ERRORS * error)


def may_take_share(probability: np.ndarray, share: float) -> bool:
    """Returns whether the likeliest hundredth could take more than a share of p.

    By Cauchy-Schwarz k numbers add up to at most the root of k times the sum of the
    squares of all: a single pass mostly tells that there is nothing to look for.

    Example:
        >>> may_take_share(np.full(1000, 1e-3), 0.25)
        False
    """
    size = max(1, int(_TOP * len(probability)))
    squares = np.einsum("i,i", probability, probability)  # no BLAS: it takes all cores
    return bool(size * squares >= share**2 * (1 - 1e-9))


def share_of_top(probability: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the likeliest hundredth of all examples, in order, and their total p.

    Example:
        >>> share_of_top(np.array([0.2, 0.5, 0.3]))
        (array([1]), 0.5)
    """
    size = max(1, int(_TOP * len(probability)))
    top = np.argpartition(probability, -size)[-size:]
    top = top[np.argsort(-probability[top], kind="stable")]
    return top, float(probability[top].sum())

"""Sampling methods that a user configures: how training examples are drawn."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np

from keras_osgd.scores.checks import (
    DEFAULT_FEATURES,
    LARGE_FEATURES,
    require_features,
)

__all__ = [
    "Auto",
    "Oracle",
    "Presample",
    "RAIS",
    "Sampling",
    "Uniform",
    "require_count",
    "require_flag",
    "get",
]

PACKAGE = "keras_osgd"
_MIN_BLOCK_STEPS = 50
_LARGE = 200_000  # from this n on, examples stay unseen or unvisited for long
_FULL_PASS = 100_000  # up to this n, the first pass is uniform
_COLD_START = 20_000  # examples; above it, this many are drawn uniformly first
_FRESH = 10_000  # examples; up to here, the oracle scores all at every step
_STALE_FLOOR = 0.1  # of an oracle that does not score at every step
_LEAST_EXAMPLES = 1_000  # with fewer, importances are not learned in time
_LEAST_STEPS = 8  # of an epoch, likewise


class Sampling:
    """Base of the sampling methods; serializable like an optimizer."""

    norm: Literal["last_layer", "exact"] = "last_layer"

    @property
    def name(self) -> str:
        """Name of the way in which examples are drawn."""
        return type(self).__name__

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Sampling:
        """Returns an object with the arguments that `get_config` returned."""
        return cls(**config)

    def __repr__(self) -> str:
        """Returns the call that makes this object."""
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def require_floor(floor: float) -> None:
    """Raises unless `floor` is a share."""
    must = "in [0, 1]: it is the share of uniform sampling mixed in"
    require("floor", floor, _is_number(floor) and 0 <= floor <= 1, must)


def require_choice(name: str, value: str, *choices: str) -> None:
    """Raises unless `value` is one of `choices`."""
    met = isinstance(value, str) and value in choices
    require(name, value, met, f"one of {choices}")


def require_flag(name: str, value: bool) -> None:
    """Raises unless `value` is True or False; a text, say "no", would count as True."""
    met = isinstance(value, bool | np.bool_ | int) and value in (0, 1)
    require(name, value, met, "True or False")


def require_seed(seed: int | None) -> None:
    """Raises unless `seed` is a whole number or `None`."""
    met = seed is None or isinstance(seed, numbers.Integral)
    require("seed", seed, met, "a whole number or None")


def require_count(name: str, value: int, least: int) -> None:
    """Raises unless `value` is a whole number and at least `least`."""
    whole = isinstance(value, numbers.Integral) and value >= least
    require(name, value, whole, f"a whole number and at least {least}")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)


def require(name: str, value: Any, met: bool, must: str) -> None:
    """Raises an error that says what `name` must be, unless `met`."""
    if not met:
        raise ValueError(
            f"`{name}` must be {must}. Received: {name}={value!r}. "
            "Leave it out for the default."
        )


@keras.saving.register_keras_serializable(package=PACKAGE)
class Uniform(Sampling):
    """Keras' own training, to the bit: switches importance sampling off.

    Example:
        >>> get("uniform")
        Uniform()
    """


@keras.saving.register_keras_serializable(package=PACKAGE)
class RAIS(Sampling):
    """Robust, approximate importance sampling with an adapted learning rate.

    Args:
        floor: epsilon in [0, 1]. Every example keeps at least epsilon/n of the
            probability, so that no importance weight exceeds 1/epsilon.
        window: |D|, number of latest observations to fit the uncertainty set to.
        features: names for the score table ("constant", "last", "average_DECAY",
            "class_mean", "unseen", "age"); `None` takes the first four with DECAY 0.75,
            and for 200,000 examples or more all six.
        adapt_learning_rate: whether the learning rate follows the gain ratio and an
            epoch is an epoch's worth of progress. If not, epochs are ordinary ones.
        draws: "reshuffled" (each block gives every example the weight it is owed) or
            "independent" (with replacement, as in the paper).
        seed: integer, or `None` to follow `keras.utils.set_random_seed`.
        retreat_below: gain ratio below which training goes on uniformly until the
            gain rises again. 0 never retreats.
        require_full_batches: whether fewer examples than `batch_size` are an error.
        norm: "last_layer" (the gradient norms of the last layer's weights, free) or
            "exact" (of all trainable weights; see `keras_osgd.gradient_norms`).

    Raises:
        ValueError: if an argument is not as described above.

    Example:
        >>> RAIS(floor=0.1, seed=1).floor
        0.1

    Reference: Johnson & Guestrin, NeurIPS 2018.
    """

    def __init__(
        self,
        floor: float = 0.05,
        window: int = 6400,
        features: Sequence[str] | None = None,
        adapt_learning_rate: bool = True,
        draws: Literal["reshuffled", "independent"] = "reshuffled",
        seed: int | None = None,
        retreat_below: float = 1.03,
        require_full_batches: bool = False,
        norm: Literal["last_layer", "exact"] = "last_layer",
    ) -> None:
        """Checks and keeps the configuration."""
        require_choice("norm", norm, "last_layer", "exact")
        require_choice("draws", draws, "reshuffled", "independent")
        require_floor(floor)
        require_count("window", window, 100)
        met = _is_number(retreat_below) and not math.isnan(retreat_below)
        require("retreat_below", retreat_below, met, "a number, a gain ratio")
        require_flag("adapt_learning_rate", adapt_learning_rate)
        require_flag("require_full_batches", require_full_batches)
        require_seed(seed)
        self.norm = norm
        self.floor = float(floor)
        self.window = int(window)
        self.features = None if features is None else require_features(features)
        self.adapt_learning_rate = bool(adapt_learning_rate)
        self.draws = draws
        self.seed = seed
        self.retreat_below = float(retreat_below)
        self.require_full_batches = bool(require_full_batches)

    def features_for(self, n: int) -> tuple[str, ...]:
        """Returns the features in use for n examples."""
        if self.features is not None:
            return self.features
        return LARGE_FEATURES if n >= _LARGE else DEFAULT_FEATURES

    def block_steps(self, n: int, batch_size: int) -> int:
        """Returns the number of steps a block of draws lasts: n/(8m), at least 50."""
        return max(_MIN_BLOCK_STEPS, round(n / (8 * batch_size)))

    def uniform_draws(self, n: int) -> int:
        """Returns how many examples are drawn uniformly at the start."""
        return n if n <= _FULL_PASS else _COLD_START


@keras.saving.register_keras_serializable(package=PACKAGE)
class Auto(RAIS):
    """`RAIS` where it can be applied and may pay, else Keras' own training.

    The default. What cannot be drawn at random, has no loss of single examples or is
    too little to learn importances from trains by Keras' own `fit`, to the bit, and a
    line says why and what would change it. `RAIS` refuses the same things. All
    arguments as in `RAIS`.

    Example:
        >>> get("auto").floor
        0.05
    """

    @property
    def name(self) -> str:
        """Name of the way in which examples are drawn, where they are."""
        return RAIS.__name__

    def require_enough(self, n: int | None, steps: int) -> None:
        """Raises where there is too little to learn importances from.

        Args:
            n: number of examples; `None` if it is not known.
            steps: of an epoch.
        """
        if steps >= _LEAST_STEPS and (n is None or n >= _LEAST_EXAMPLES):
            return
        examples = "" if n is None else f"{n} examples in "
        raise ValueError(
            f"There must be {_LEAST_EXAMPLES} examples and {_LEAST_STEPS} batches an "
            f"epoch, or more, for importance sampling to pay. Received: {examples}"
            f'{steps} batches. sampling="rais" samples all the same.'
        )


@keras.saving.register_keras_serializable(package=PACKAGE)
class Oracle(Sampling):
    """Exact O-SGD, which RAIS approximates: p_i = v_i / sum v, all n norms v exact.

    It shows how much sampling could gain, but saves no time: one scoring costs about as
    much as n/batch_size steps. Norms are those of `keras_osgd.gradient_norms`, with
    Dropout off. With floor 0, metrics in training are rough: easy examples are rare.

    Args:
        refresh: steps between two scorings, a multiple of `steps_per_execution`. `None`
            means 1 up to 10,000 examples, else n / (10 batch_size), at least 50, and
            warns: p is then a stale point estimate.
        floor: as in `RAIS`; `None` means 0 where refresh is 1 and 0.1 elsewhere.
        adapt_learning_rate: as in `RAIS`.
        draws: as in `RAIS`. The default is "independent", since "reshuffled" is for a p
            that moves slowly.
        score_batch_size: examples scored at once; changes time and memory only.
        seed: as in `RAIS`.
        require_full_batches: as in `RAIS`.

    Raises:
        ValueError: if an argument is not as described above.

    Example:
        >>> Oracle(refresh=5).floor_for(n=5000, batch_size=64)
        0.1

    Reference: Johnson & Guestrin, NeurIPS 2018 (O-SGD).
    """

    norm = "exact"

    def __init__(
        self,
        refresh: int | None = None,
        floor: float | None = None,
        adapt_learning_rate: bool = True,
        draws: Literal["reshuffled", "independent"] = "independent",
        score_batch_size: int = 256,
        seed: int | None = None,
        require_full_batches: bool = False,
    ) -> None:
        """Checks and keeps the configuration."""
        require_choice("draws", draws, "reshuffled", "independent")
        require_floor(0.0 if floor is None else floor)
        if refresh is not None:
            require_count("refresh", refresh, 1)
        require_count("score_batch_size", score_batch_size, 1)
        require_flag("adapt_learning_rate", adapt_learning_rate)
        require_flag("require_full_batches", require_full_batches)
        require_seed(seed)
        self.refresh = None if refresh is None else int(refresh)
        self.floor = None if floor is None else float(floor)
        self.adapt_learning_rate = bool(adapt_learning_rate)
        self.draws = draws
        self.score_batch_size = int(score_batch_size)
        self.seed = seed
        self.require_full_batches = bool(require_full_batches)

    def features_for(self, n: int) -> tuple[str, ...]:
        """Returns the features in use: the norm, or the mean where it is not finite."""
        return "constant", "last"

    def block_steps(self, n: int, batch_size: int) -> int:
        """Returns the number of steps from one scoring to the next."""
        if self.refresh is not None:
            return self.refresh
        if n <= _FRESH:
            return 1
        return max(_MIN_BLOCK_STEPS, math.ceil(n / (10 * batch_size)))

    def floor_for(self, n: int, batch_size: int) -> float:
        """Returns epsilon, the share of uniform draws."""
        if self.floor is not None:
            return self.floor
        return 0.0 if self.block_steps(n, batch_size) == 1 else _STALE_FLOOR


@keras.saving.register_keras_serializable(package=PACKAGE)
class Presample(Sampling):
    """Importance sampling within pools, for data that can only be read in order.

    A step takes `ratio` batches from the stream, scores them by a forward pass in
    inference mode (v, the norms of the last layer's gradient), draws a batch of them
    with p proportional to v, and weighs each draw by 1/(B p), where B is the pool's
    size. The batch's gradient is an unbiased estimate of the pool's. The learning rate
    follows the gain ratio r as in `RAIS`, and an epoch is `steps_per_epoch` effective
    iterations.

    Drawing is on only while r exceeds `cost`; otherwise steps are ordinary ones of one
    batch each. r is measured at every step, with a pool or without. It never exceeds
    `ratio`, since a pool's gradient has a variance of its own.

    Args:
        ratio: B/m, batches of the stream for each batch trained on, 2 or more.
        floor: share of the draws that goes to all examples of a pool alike, in [0, 1],
            so that no importance weight exceeds 1/floor.
        adapt_learning_rate: as in `RAIS`.
        cost: cost of a step with a pool over that of a step without; 1 or more. `None`
            means 1 + ratio/3: a forward pass has a third of a step's operations. Not
            taken from clocks, so that two runs with one seed are equal.
        seed: integer, or `None` to follow `keras.utils.set_random_seed`.

    Raises:
        ValueError: if an argument is not as described above.

    Example:
        >>> Presample(ratio=6).cost_of_a_step
        3.0

    Reference: Katharopoulos & Fleuret, ICML 2018. The cost and the switch are theirs
    too; here r includes the pool's own variance, so that drawing begins to pay later.
    """

    def __init__(
        self,
        ratio: int = 4,
        floor: float = 0.05,
        adapt_learning_rate: bool = True,
        cost: float | None = None,
        seed: int | None = None,
    ) -> None:
        """Checks and keeps the configuration."""
        require_count("ratio", ratio, 2)
        require_floor(floor)
        if cost is not None:
            met = _is_number(cost) and 1 <= cost < float("inf")
            require("cost", cost, met, "a number and at least 1, the cost of a step")
        require_flag("adapt_learning_rate", adapt_learning_rate)
        require_seed(seed)
        self.ratio, self.floor = int(ratio), float(floor)
        self.adapt_learning_rate = bool(adapt_learning_rate)
        self.cost: Any = None if cost is None else float(cost)
        self.seed = seed

    @property
    def cost_of_a_step(self) -> float:
        """Cost of a step with a pool over that of a step without."""
        return 1.0 + self.ratio / 3.0 if self.cost is None else self.cost


_BY_NAME = {
    "auto": Auto,
    "oracle": Oracle,
    "presample": Presample,
    "rais": RAIS,
    "uniform": Uniform,
}


def get(identifier: str | Sampling | dict[str, Any]) -> Sampling:
    """Returns the sampling method that a user named or configured.

    Args:
        identifier: "auto", "rais", "oracle", "presample", "uniform", a `Sampling` or
            its serialized form.

    Raises:
        ValueError: if it is none of these.

    Example:
        >>> type(get("rais")).__name__
        'RAIS'
    """
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, Sampling):
        return getattr(identifier, "configuration", identifier)  # of `model.sampling`
    if isinstance(identifier, str) and identifier.lower() in _BY_NAME:
        return _BY_NAME[identifier.lower()]()
    if isinstance(identifier, type) and issubclass(identifier, Sampling):
        name = identifier.__name__
        raise ValueError(
            f"`sampling` must be an object. Received: the class {name}. Add brackets: "
            f"sampling=keras_osgd.sampling.{name}()."
        )
    raise ValueError(
        f"`sampling` must be one of {sorted(_BY_NAME)} or an object such as "
        f"`keras_osgd.sampling.RAIS()`. Received: sampling={identifier!r}."
    )

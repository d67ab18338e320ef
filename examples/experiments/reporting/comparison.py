"""What a contender costs relative to uniform training of equal error."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

from examples.common.estimates import centred
from examples.experiments.reporting import curves
from examples.experiments.reporting.runs import Group, Runs

RESAMPLES = 1000
_LEVELS = (0.025, 0.975)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: from all seeds.
        sign: "=", or "<=" and ">=" where uniform training's curve ends too early, so
            that the value is a bound; "?" for a quotient of two such bounds.
        low: end of the interval; -inf where the curve gives none. `None` for lack of a
            second seed.
        high: likewise, inf where the curve gives none.
    """

    value: float
    sign: str
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One contender against uniform training of its group.

    Attributes:
        group: that both belong to.
        runs: of the contender.
        steps: its steps over those of uniform training at equal test error.
        seconds: likewise; `None` until both have been timed.
        steps_by_validation: likewise at equal validation error.
        seconds_by_validation: likewise.
        difference: its test error minus uniform training's at equal steps, in percent
            points: it exists also where the curve is flat.
    """

    group: Group
    runs: Runs
    steps: Estimate
    seconds: Estimate | None
    steps_by_validation: Estimate
    seconds_by_validation: Estimate | None
    difference: Estimate


def compare(group: Group, resamples: int = RESAMPLES) -> list[Comparison]:
    """Returns the comparison of each contender that has run, other than uniform.

    Empty if uniform training has not run.
    """
    uniform = group.uniform
    if not uniform:
        return []
    return [
        _compare(group, runs, uniform, resamples)
        for runs in group.runs
        if runs.method != "uniform" and runs.errors
    ]


def _compare(
    group: Group, runs: Runs, uniform: Sequence[Runs], resamples: int
) -> Comparison:
    draws = Draws([runs, *uniform], resamples)
    (steps,), curve_steps = (
        draws.table([runs], "steps").T,
        draws.table(uniform, "steps"),
    )
    seconds = draws.step_seconds(runs, uniform[0])
    ratios = []
    for part in ("test", "validation"):
        (errors,) = draws.table([runs], part, group.metric).T
        curve_errors = draws.table(uniform, part, group.metric)
        matched, side = _matched(curve_steps, curve_errors, errors)
        in_steps = steps / matched
        # More steps of uniform training than are known: the ratio may be lower.
        ratios.append(ratio(in_steps, -side, draws.has_interval))
        if seconds is None:
            ratios.append(None)
            continue
        own, uniform_seconds = seconds
        in_seconds = in_steps * own / uniform_seconds
        ratios.append(ratio(in_seconds, -side, draws.has_interval))
    (errors,) = draws.table([runs], "test", group.metric).T
    curve = curves.fitted(curve_steps, draws.table(uniform, "test", group.metric))
    # At fewer steps than are known, uniform training would have a higher error.
    expected, side = curve.error(steps)
    difference = estimated(errors - expected, side, draws.has_interval)
    return Comparison(group, runs, *ratios, difference)


def _matched(
    steps: np.ndarray, errors: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps at which uniform training has an error, as `Curve.steps` does.

    Where one of its lengths has that error in fewer steps than the curve says, these
    count: where longer training does not help, a curve that may only fall is too high.
    """
    found, side = curves.fitted(steps, errors).steps(wanted)
    reached = np.where(errors <= wanted[:, None], steps, np.inf).min(axis=1)
    sooner = (reached < found) | ((side > 0) & np.isfinite(reached))
    return np.where(sooner, reached, found), np.where(sooner, 0, side)


def ratio(values: np.ndarray, bounds: np.ndarray, has_interval: bool) -> Estimate:
    """Returns `estimated`; a ratio has no lower end where resamples fall below 0."""
    found = estimated(values, bounds, has_interval)
    if found.low is not None and found.low <= 0:
        return dataclasses.replace(found, low=-math.inf)
    return found


def estimated(values: np.ndarray, bounds: np.ndarray, has_interval: bool) -> Estimate:
    """Returns the first value with the percentiles of the others.

    Args:
        values: `[1 + resamples]`.
        bounds: same shape; -1 where the truth may be lower, 1 where it may be higher.
        has_interval: whether the others say anything.
    """
    sign = {-1: "<=", 0: "=", 1: ">="}[int(bounds[0])]
    if not has_interval:
        return Estimate(float(values[0]), sign, None, None)
    ends = [
        float(np.quantile(unknown, level, method="inverted_cdf"))
        for unknown, level in zip(
            (
                np.where(bounds < 0, -math.inf, values)[1:],
                np.where(bounds > 0, math.inf, values)[1:],
            ),
            _LEVELS,
            strict=True,
        )
    ]
    return Estimate(float(values[0]), sign, *ends)


class Draws:
    """Means over seeds as they could have been: a bootstrap with normal weights.

    Every seed gets one normal weight, the same for all methods that ran it: so methods
    are paired wherever they share seeds. Deviations from the mean are scaled such that
    a single mean has exactly Student's interval; drawing five seeds with replacement
    gives intervals that hold in 83 % of the cases where 95 % are claimed (measured).
    The first entry is the mean itself.
    """

    def __init__(self, items: Sequence[Runs], resamples: int) -> None:
        rng = np.random.default_rng(0)
        self._rng = rng
        seeds = sorted(set().union(*(item.errors for item in items)))
        self._weights = {
            seed: np.concatenate([[0.0], rng.normal(size=resamples)]) for seed in seeds
        }
        self._levels = rng.uniform(size=1 + resamples)
        self.has_interval = all(len(item.errors) > 1 for item in items)

    def table(
        self, items: Sequence[Runs], part: str, name: str | None = None
    ) -> np.ndarray:
        """Returns the means of `k` items, `[1 + resamples, k]`.

        Args:
            items: among those that these draws are of.
            part: name of a figure, or "test" or "validation".
            name: of the error in those.
        """
        means = [self._means(item, item.values(part, name)) for item in items]
        return np.stack(means, axis=1)

    def _means(self, item: Runs, values: Sequence[float]) -> np.ndarray:
        mean, deviations, freedom = centred(values)
        weights = np.stack([self._weights[seed] for seed in item.errors])
        moved, count = deviations @ weights, len(values)
        if count > 1:
            chi_squared = scipy.stats.chi2.ppf(self._levels, freedom)
            moved *= np.sqrt(freedom / (count * (count - 1) * chi_squared))
        return mean + moved

    def step_seconds(
        self, runs: Runs, uniform: Runs
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns seconds a step of both, `[1 + resamples]`; `None` if not timed."""
        # The timed runs of a method are one sample for all its lengths.
        if not runs.step_seconds or not uniform.step_seconds:
            return None
        return self.medians(runs.step_seconds), self.medians(uniform.step_seconds)

    def medians(self, values: Sequence[float]) -> np.ndarray:
        """Returns the median of timed runs as it could have been, `[1 + resamples]`."""
        values = np.array(values)
        shape = (len(self._levels) - 1, len(values))
        drawn = self._rng.integers(len(values), size=shape)
        resampled = np.median(values[drawn], axis=1)
        return np.concatenate([[np.median(values)], resampled])

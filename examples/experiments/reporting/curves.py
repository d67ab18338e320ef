"""A smooth curve of error against steps, and the steps at which it has a given error.

Error falls with the steps s of a schedule as a + b s^-c, a the error that no number of
steps goes below (Hestness et al. 2017). One curve through all lengths uses every run:
straight lines between neighbours use those of two lengths, and where their errors
hardly differ, such a line says nothing on steps.
"""

import dataclasses

import numpy as np

_EXPONENTS = 2.0 ** (np.arange(-8, 7) / 4)  # c, from 0.25 to 2.8
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Curve:
    """Curves of error against steps, one for each resample.

    Attributes:
        floor: `[resamples]`, a in percent.
        scale: `[resamples]`, b in percent: what the shortest length has above a.
        exponent: `[resamples]`, c.
        shortest: `[resamples]`, steps of the shortest length.
        longest: `[resamples]`, steps of the longest.
    """

    floor: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray
    shortest: np.ndarray
    longest: np.ndarray

    def error(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the error after so many steps, `[resamples]` each.

        Beyond the lengths that were run it is that at the curve's end, and the second
        array says on which side: 1 where these are more steps, -1 where fewer, else 0.
        """
        within, side = self._within(steps)
        found = self.floor + self.scale * (within / self.shortest) ** -self.exponent
        return found, side

    def steps(self, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps at which the curve has an error, `[resamples]` each.

        Beyond the lengths that were run they are the curve's end, and the second array
        says on which side: 1 where more steps are needed, -1 where fewer, else 0.
        """
        above = np.maximum(error - self.floor, 0.0)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            found = self.shortest * (above / self.scale) ** (-1 / self.exponent)
        # A flat curve is at or above the error at once, or never.
        found = np.where(self.scale > 0, found, np.where(above > 0, 0.0, np.inf))
        return self._within(found)

    def _within(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        least, most = self.shortest * (1 - _ROUNDING), self.longest * (1 + _ROUNDING)
        side = np.where(steps > most, 1, np.where(steps < least, -1, 0))
        return np.clip(steps, self.shortest, self.longest), side


def fitted(steps: np.ndarray, errors: np.ndarray) -> Curve:
    """Returns the curves of least squares with a, b >= 0 and c from 0.25 to 2.8.

    Args:
        steps: `[resamples, lengths]`, by increasing length.
        errors: `[resamples, lengths]`, percent.
    """
    shortest, longest = steps[:, 0], steps[:, -1]
    # With two lengths, or one, any exponent fits: it is 1.
    exponents = _EXPONENTS if steps.shape[1] > 2 else np.ones(1)
    x = (steps / shortest[:, None])[:, None, :] ** -exponents[:, None]
    y = errors[:, None, :]
    floor, scale = _line(x, np.broadcast_to(y, x.shape))
    missed = ((floor[..., None] + scale[..., None] * x - y) ** 2).sum(axis=-1)
    best = missed.argmin(axis=1)
    rows = np.arange(len(best))
    chosen = floor[rows, best], scale[rows, best], exponents[best]
    return Curve(*chosen, shortest, longest)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a and b >= 0 of the line y = a + b x of least squares, over axis -1."""
    mean_x, mean_y = x.mean(axis=-1), y.mean(axis=-1)
    spread = ((x - mean_x[..., None]) ** 2).sum(axis=-1)
    covariance = ((x - mean_x[..., None]) * y).sum(axis=-1)
    slope = np.divide(
        covariance, spread, out=np.zeros_like(spread), where=spread > 1e-12
    )
    slope = np.maximum(slope, 0.0)
    floor = mean_y - slope * mean_x
    through_zero = (x * y).sum(axis=-1) / (x**2).sum(axis=-1)
    below = floor < 0
    return np.where(below, 0.0, floor), np.where(below, through_zero, slope)

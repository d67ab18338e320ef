"""How long a block of draws lasts, and how long before it its plan is begun."""

from __future__ import annotations

from keras_osgd.draws.pipeline import READ_AHEAD
from keras_osgd.sampling import RAIS

__all__ = ["block_steps", "lead_steps"]

_LEAD_STEPS = 26  # a plan begins so many steps before its block, or a quarter of it


def block_steps(
    sampling: RAIS, n: int, batch_size: int, steps_per_execution: int
) -> int:
    """Returns the number of steps of a block, long enough to plan the next in it."""
    shortest = 2 * lead_steps(0, steps_per_execution)
    return max(sampling.block_steps(n, batch_size), shortest)


def lead_steps(block_steps: int, steps_per_execution: int) -> int:
    """Returns how many steps before a block its plan starts.

    The same for every `steps_per_execution` up to 11, so that numbers are too.
    """
    needed = 2 * steps_per_execution + READ_AHEAD + 1
    return max(_LEAD_STEPS, needed, block_steps // 4)

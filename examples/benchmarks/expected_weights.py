"""Measures how far reshuffled draws are from unbiased in single blocks.

    python -m examples.benchmarks.expected_weights

Gradient norms take one fixed course; the draws are repeated. An example's weights in a
block, over the repetitions, should have the block's credit as their mean. Printed is
the root mean square, over examples and blocks, of how far the mean is off, with the
part that chance explains taken off. It takes ten minutes.
"""

from collections.abc import Callable

import numpy as np

from keras_osgd.draws.reshuffled import rescaled, reshuffled

EXAMPLES, PER_EPOCH, BLOCKS, TIMES = 300, 8, 40, 1000
FLOOR, NOISE = 0.05, 0.2
# Norms move from block to block, by a standard deviation of their logarithm; or fall at
# a rate of their own.
COURSES = {"norms wander": (0.15, 0.0), "norms fall": (0.0, 0.08)}


def norms(course: str, rng: np.random.Generator) -> np.ndarray:
    """Returns `[BLOCKS, EXAMPLES]`, the norms of each block."""
    wander, fall = COURSES[course]
    steps = wander * rng.normal(size=(BLOCKS, EXAMPLES))
    steps -= fall * rng.exponential(size=EXAMPLES)
    return np.exp(rng.normal(size=EXAMPLES) + np.cumsum(steps, axis=0))


def by_itself(norms: np.ndarray, scores: np.ndarray, *_: object) -> np.ndarray:
    """Returns the scores of a block where they are always up to date."""
    return norms


def by_visits(
    norms: np.ndarray, scores: np.ndarray, seen: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns scores that only visits bring up to date, from noisy observations."""
    observed = norms * np.exp(NOISE * rng.normal(size=EXAMPLES))
    return np.where(seen, (scores + observed) / 2, scores)


def one(course: np.ndarray, follow: Callable, corrected: bool, seed: int) -> np.ndarray:
    """Returns `[BLOCKS, EXAMPLES]`: total weight of one repetition, over the credit."""
    rng, size = np.random.default_rng([1, seed]), EXAMPLES // PER_EPOCH
    owed, scores, before = np.zeros(EXAMPLES), course[0], None
    late = seen = np.zeros(EXAMPLES, bool)
    weights = np.zeros([BLOCKS, EXAMPLES])
    for block, now in enumerate(course):
        scores = follow(now, scores, seen, rng)
        p = (1 - FLOOR) * scores / scores.sum() + FLOOR / EXAMPLES
        if corrected and before is not None:
            owed[seen] = rescaled(owed[seen], (p / before)[seen])
        drawn, before = reshuffled(owed, p, size, rng), p
        owed, visits = drawn.owed, np.bincount(drawn.index, minlength=EXAMPLES)
        weights[block] = visits / (EXAMPLES * p) / (drawn.credit * size / EXAMPLES)
        # Half of a block's visits are observed before the next block is planned.
        early = (visits > 0) & (rng.random(EXAMPLES) < 0.5)
        seen, late = early | late, (visits > 0) & ~early
    return weights


def main() -> None:
    """Prints a table."""
    print("| norms | p follows | corrected for visits | blocks 2-9 | 10-40 |")
    print("|---|---|---|---|---|")
    for course in COURSES:
        path = norms(course, np.random.default_rng(0))
        for follow in (by_itself, by_visits):
            for corrected in (False, True) if follow is by_visits else (False,):
                total, squares = np.zeros([2, BLOCKS, EXAMPLES])
                for seed in range(TIMES):
                    weights = one(path, follow, corrected, seed)
                    total += weights
                    squares += weights**2
                mean = total / TIMES
                chance = (squares / TIMES - mean**2) / (TIMES - 1)
                off = (mean - 1) ** 2 - chance
                parts = (off[1:9].mean(), off[9:].mean())
                found = " | ".join(f"{np.sqrt(max(x, 0.0)):.3f}" for x in parts)
                name = follow.__name__.replace("_", " ")
                print(f"| {course} | {name} | {corrected} | {found} |", flush=True)


if __name__ == "__main__":
    main()

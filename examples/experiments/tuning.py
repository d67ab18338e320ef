"""Learning rate and own parameter of every method: the same number of trials for all.

The trials are a scrambled Halton sequence (optuna's `QMCSampler`, seeded), the first
one the defaults: with as few as six trials a space-filling design leaves the smallest
gaps, and it does not depend on what earlier trials gave, so that a study resumed is the
same. Where the best rate lies at the edge, `choice.next_trial` goes on.
"""

import warnings

import optuna

from examples.experiments.methods import Parameter

RATES = {
    "sgd": (0.02, 0.64),
    "momentum": (0.01, 0.16),
    "adam": (0.0005, 0.008),
    "adamw": (0.0005, 0.008),
}
_SIGNIFICANT_DIGITS = 3


def trials(
    optimizer: str, parameter: Parameter | None, count: int
) -> list[dict[str, float | None]]:
    """Returns the (rate, parameter) pairs to try.

    Args:
        optimizer: a name in `RATES`; the default is the middle of its range.
        parameter: the method's own, or `None`.
        count: number of pairs.

    Returns:
        `count` dictionaries with "rate" and "parameter".
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    low, high = RATES[optimizer]
    space = {"rate": optuna.distributions.FloatDistribution(low, high, log=True)}
    first = {"rate": (low * high) ** 0.5}
    if parameter is not None:
        space["parameter"] = optuna.distributions.FloatDistribution(
            parameter.low, parameter.high, log=parameter.log
        )
        first["parameter"] = parameter.default
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(qmc_type="halton", scramble=True, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(first)
    found = []
    for _ in range(count):
        trial = study.ask(space)
        study.tell(trial, 0.0)
        found.append({"rate": rounded(trial.params["rate"]), "parameter": None})
        if parameter is not None:
            found[-1]["parameter"] = rounded(trial.params["parameter"])
    return found


def rounded(value: float) -> float:
    """Returns the value as it is kept: equal settings must have equal keys."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")

"""The methods that are compared: how each draws examples, and what it may tune."""

import contextlib
import dataclasses
from collections.abc import Callable

from examples.experiments import ablations
from examples.experiments.rivals import RIVALS
from keras_osgd.sampling import RAIS, Oracle

Sampling = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A method's own parameter.

    Attributes:
        name: in the method's paper.
        default: its authors' choice.
        low: smallest value tried.
        high: largest value tried.
        log: whether values are spread evenly in their logarithm.
    """

    name: str
    default: float
    low: float
    high: float
    log: bool


@dataclasses.dataclass(frozen=True)
class Method:
    """How a method trains.

    Attributes:
        title: in tables.
        sampling: from the seed, what `keras_osgd`'s `compile` takes; `None` for plain
            Keras and for rivals.
        parameter: its own, tuned beside the learning rate.
        without: takes a part away, or replaces it, while training runs.
        rival: whether it is trained by `rivals.loop`.
        cleans: whether it trains a second time, without what the first time's scores
            suspect of a wrong label.
        measured: whether the variance is measured on the way.
        controlled: whether plain Keras trains after it, for as many steps; its own
            parameter is then the learning rate of plain Keras.
        steps_per_execution: of the runs that are not timed.
        timed: whether in runs alone on the machine; not where a step costs what RAIS's
            does, or its cost is measured elsewhere, and the question is another.
    """

    title: str
    sampling: Sampling | None = None
    parameter: Parameter | None = None
    without: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    rival: bool = False
    cleans: bool = False
    measured: bool = False
    controlled: bool = False
    steps_per_execution: int = 10
    timed: bool = True


def _rais(**options: object) -> Sampling:
    return lambda seed: RAIS(seed=seed, **options)


def _rivals() -> dict[str, Method]:
    made = {}
    for name, rival in RIVALS.items():
        parameter = None
        if rival.DEFAULT is not None:
            low, high, scale = rival.RANGE
            parameter = Parameter(
                rival.PARAMETER, rival.DEFAULT, low, high, scale == "log"
            )
        made[name] = Method(rival.TITLE, parameter=parameter, rival=True)
    return made


METHODS = {
    "uniform": Method("uniform (Keras' fit)"),
    # By the package's draws, so that its seconds are those of RAIS' machinery.
    "with_replacement": Method(
        "uniform with replacement",
        _rais(floor=1.0, draws="independent", adapt_learning_rate=False),
        timed=False,
    ),
    "rais": Method("RAIS", _rais()),
    "rais_independent": Method(
        "RAIS, independent draws", _rais(draws="independent"), timed=False
    ),
    "rais_fixed_rate": Method(
        "RAIS, rate not adapted", _rais(adapt_learning_rate=False), timed=False
    ),
    "rais_exact": Method("RAIS, exact norms", _rais(norm="exact"), timed=False),
    "rais_no_floor": Method("RAIS without the floor", _rais(floor=0.0)),
    "rais_two_features": Method(
        "RAIS, features constant and last", _rais(features=("constant", "last"))
    ),
    "rais_no_retreat": Method("RAIS without retreat", _rais(retreat_below=0.0)),
    "rais_not_robust": Method(
        "RAIS without robustness", _rais(), without=ablations.without_robustness
    ),
    "rais_no_start": Method(
        "RAIS without the uniform first pass", _rais(), without=ablations.without_start
    ),
    "rais_early_start": Method(
        "RAIS after a fifth of a uniform first pass",
        _rais(),
        without=ablations.early_start,
    ),
    "rais_variance_clock": Method(
        "RAIS, rate by the ratio of variances",
        _rais(),
        without=ablations.variance_clock,
    ),
    "point_estimate": Method(
        "point estimate, floor 0.1",
        _rais(floor=0.1, features=("constant", "last")),
        without=ablations.point_estimate,
        timed=False,
    ),
    "rais_cleaned": Method(
        "RAIS, then again without suspects (their number known)", _rais(), cleans=True
    ),
    "rais_measured": Method("RAIS", _rais(), measured=True),
    "rais_controlled": Method("RAIS and its control", _rais(), controlled=True),
    "oracle": Method("O-SGD", lambda seed: Oracle(seed=seed), steps_per_execution=1),
    **_rivals(),
}
"""By name. A new method needs a line here and a place in `studies.STUDIES`."""

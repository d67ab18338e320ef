"""How figures and names are written in the report."""

import dataclasses
import math
from collections.abc import Callable

from examples.experiments.reporting.comparison import Comparison, Estimate
from examples.experiments.reporting.runs import Group
from examples.experiments.studies import Contender

_SIGNS = {"=": "", "<=": "at most ", ">=": "at least ", "?": "about "}
_DEFAULTS = {"optimizer": "momentum", "batch_size": 64}


@dataclasses.dataclass(frozen=True)
class Titles:
    """Names as they are shown.

    Attributes:
        of: from the name of a data set, a network, a method or an optimizer to its
            title; names that it does not know it must return as they are.
    """

    of: Callable[[str], str]

    def group(self, group: Group) -> str:
        """Returns "data, network", and what differs from the usual."""
        data, network, optimizer, batch_size = group.name
        parts = [self.of(data), self.of(network)]
        if optimizer != _DEFAULTS["optimizer"]:
            parts.append(self.of(optimizer))
        if batch_size != _DEFAULTS["batch_size"]:
            parts.append(f"batch size {batch_size}")
        return ", ".join(parts)

    def contender(self, contender: Contender) -> str:
        """Returns "method, T"."""
        return f"{self.of(contender.method)}, T = {contender.epochs:g}"

    def comparison(self, comparison: Comparison) -> str:
        """Returns "data, network (T)"."""
        epochs = comparison.runs.contender.epochs
        return f"{self.group(comparison.group)} (T = {epochs:g})"


def estimate(figure: Estimate | None, digits: int = 2) -> str:
    """Returns a value, whether it is a bound, and its interval."""
    if figure is None:
        return "-"
    text = f"{_SIGNS[figure.sign]}{figure.value:.{digits}f}"
    return f"{text} ({interval(figure, digits)})"


def interval(figure: Estimate, digits: int = 2) -> str:
    """Returns a 95 % interval, one-sided where the curve gives only one end."""
    if figure.low is None:
        return "one seed"
    low, high = f"{figure.low:.{digits}f}", f"{figure.high:.{digits}f}"
    if math.isinf(figure.low) and math.isinf(figure.high):
        return "no bound"
    if math.isinf(figure.low):
        return f"below {high}"
    if math.isinf(figure.high):
        return f"above {low}"
    return f"{low} to {high}"


def optional(value: float | None, digits: int) -> str:
    """Returns a figure, or "-" for what has not been measured."""
    return "-" if value is None else f"{value:.{digits}f}"

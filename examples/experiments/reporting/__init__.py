"""From the recorded runs alone to `report.md` and its figures."""

from examples.experiments.reporting.report import write

__all__ = ["write"]

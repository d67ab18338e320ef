"""What is done, what is left, and how long it will take."""

import time

import rich.progress
from benchmark_records import Record

from experiments.setting import Setting


class Progress:
    """A bar over the runs of a study, weighed by their length; a line for each run.

    Args:
        title: of the study.
        runs: how many there are in all.
    """

    def __init__(self, title: str, runs: int) -> None:
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._task = self._bar.add_task(title, total=runs)
        self._begun: dict[Setting, float] = {}

    def __enter__(self) -> "Progress":
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()

    def skip(self, setting: Setting) -> None:
        """Counts a run that is not needed: made before, or its data is missing."""
        self._advance()

    def begin(self, setting: Setting) -> None:
        """Starts a run's clock."""
        self._begun[setting] = time.perf_counter()

    def end(self, setting: Setting, outcome: str, found: Record | str) -> None:
        """Counts a run and prints its line."""
        seconds = time.perf_counter() - self._begun.pop(setting)
        self._advance()
        self._bar.console.print(_line(setting, outcome, found, seconds), markup=False)

    def _advance(self) -> None:
        (task,) = self._bar.tasks
        total = max(task.total, task.completed + 1)  # tuning may go on beyond its range
        self._bar.update(self._task, advance=1, total=total)


def _line(setting: Setting, outcome: str, found: Record | str, seconds: float) -> str:
    own = "" if setting.parameter is None else f" parameter={setting.parameter:g}"
    name = (
        f"{setting.data} {setting.network} {setting.optimizer} m={setting.batch_size} "
        f"{setting.method} T={setting.epochs} rate={setting.rate:g}{own} "
        f"seed={setting.seed} {setting.purpose}"
    )
    if outcome == "missing":
        return f"SKIPPED {name}: {found}"
    if outcome == "error":
        return f"FAILED {name}:\n{found}"
    if "validation" not in found:
        return f"{name}: measured in {seconds:.0f} s"
    error = found["validation"]["error"]
    return f"{name}: validation {error:.2f} %, {found['steps']} steps, {seconds:.0f} s"

"""What is done, what is left, and how long it will take."""

import collections
import datetime
import math
import time
from collections.abc import Mapping

import rich.progress

from examples.common.records import Record
from examples.experiments.setting import Setting
from examples.experiments.studies import Contender


class Progress:
    """A bar over the runs of a study, with the time left, and a line for each run.

    Args:
        title: of the study.
        wanted: number of runs of each contender.
        jobs: runs side by side.

    Attributes:
        failed: whether a run ended in an error.
    """

    def __init__(
        self, title: str, wanted: Mapping[Contender, int], jobs: int = 1
    ) -> None:
        self._left = collections.Counter(wanted)
        self._jobs = jobs
        # Seconds and epochs of the runs made, by data and network.
        self._spent: dict[tuple[str, str], list[float]] = {}
        self._begun: dict[Setting, float] = {}
        self.failed = False
        self._problems: list[str] = []
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[left]}"),
        )
        self._task = self._bar.add_task(title, total=sum(wanted.values()), left="")

    def __enter__(self) -> "Progress":
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the bar as it is, and says again what went wrong."""
        self._bar.stop()
        for problem in self._problems:
            print(problem)

    def skip(self, contender: Contender, runs: int = 1) -> None:
        """Counts runs that are not needed: made before, or their data is missing."""
        self._count(contender, runs)

    def begin(self, setting: Setting) -> None:
        """Starts a run's clock."""
        self._begun[setting] = time.perf_counter()

    def end(
        self, contender: Contender, setting: Setting, outcome: str, found: object
    ) -> None:
        """Counts a run and prints its line."""
        seconds = time.perf_counter() - self._begun.pop(setting)
        spent = self._spent.setdefault((setting.data, setting.network), [0.0, 0.0])
        spent[0] += seconds
        spent[1] += setting.epochs
        self._count(contender, 1)
        line = _line(setting, outcome, found, seconds)
        if outcome != "done":
            self._problems.append(line)
            self.failed |= outcome == "error"
        self._bar.console.print(line, markup=False, soft_wrap=True)

    def seconds_left(self) -> float:
        """Returns the estimate: epochs left, at the pace of the same data and network.

        Where there is no such pace yet, at the mean pace; NaN before the first run.
        """
        seconds, epochs = (
            map(sum, zip(*self._spent.values(), strict=True))
            if (self._spent)
            else (math.nan, 1.0)
        )
        total = 0.0
        for contender, runs in self._left.items():
            place = contender.data, contender.network
            own_seconds, own_epochs = self._spent.get(place, (seconds, epochs))
            total += max(runs, 0) * contender.epochs * own_seconds / own_epochs
        return total / self._jobs

    def _count(self, contender: Contender, runs: int) -> None:
        self._left[contender] -= runs
        (task,) = self._bar.tasks
        # Tuning may go on beyond its range.
        total = max(task.total, task.completed + runs)
        seconds, left = self.seconds_left(), ""
        if math.isfinite(seconds):
            left = f"{datetime.timedelta(seconds=round(seconds))} left"
        self._bar.update(self._task, advance=runs, total=total, left=left)


def _line(setting: Setting, outcome: str, found: object, seconds: float) -> str:
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
    return f"{name}: {_result(found)}{seconds:.0f} s"


def _result(record: Record) -> str:
    if "validation" not in record:
        return ""
    failed = f"{record['failed']}, " if record["failed"] else ""
    error = record["validation"]["error"]
    return f"{failed}validation {error:.2f} %, {record['steps']} steps, "

"""The workloads of the study of time to target, as `workloads.json` fixes them."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping

from examples.experiments.studies import Contender, Study

_PATH = pathlib.Path(__file__).with_name("workloads.json")
_QUESTION = (
    "How long do methods take to the validation value that uniform training reaches?"
)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network on its data, and how often and how long each method trains it.

    Attributes:
        name: in the report.
        place: data, network, optimizer and batch size.
        lengths: epochs T by method, increasing.
        trials: of tuning, at each length.
        tuning_seeds: that each trial is run with.
        seeds: of the runs at each length.
        timed_seeds: of the runs alone on the machine: none of them decided anything.
        is_control: whether it is among those of the study of the control.
    """

    name: str
    place: tuple[str, str, str, int]
    lengths: Mapping[str, tuple[int, ...]]
    trials: int
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    timed_seeds: tuple[int, ...]
    is_control: bool

    @property
    def key(self) -> str:
        """Its name on the command line."""
        return "-".join(self.place[:2])

    def contender(self, method: str, epochs: int) -> Contender:
        """Returns a method at one length."""
        data, network, optimizer, batch_size = self.place
        return Contender(data, network, method, epochs, optimizer, batch_size)

    def study(self) -> Study:
        """Returns the runs at all lengths, side by side."""
        return Study(
            self.key,
            self.name,
            _QUESTION,
            tuple(
                self.contender(method, epochs)
                for method, lengths in self.lengths.items()
                for epochs in lengths
            ),
            trials=self.trials,
            seeds=self.seeds,
            tuning_seeds=self.tuning_seeds,
            everywhere=True,
        )


def contents() -> dict:
    """Returns the file as it is."""
    return json.loads(_PATH.read_text())


@functools.lru_cache(maxsize=1)
def load() -> tuple[Workload, ...]:
    """Returns all workloads, in the file's order."""
    found = contents()
    seeds = found["seeds"]

    def runs_from(first: int, count: int) -> tuple[int, ...]:
        return tuple(range(first, first + count))

    return tuple(
        Workload(
            name=item["name"],
            place=tuple(
                item[part] for part in ("data", "network", "optimizer", "batch_size")
            ),
            lengths={name: tuple(item["lengths"][name]) for name in found["methods"]},
            trials=found["trials"],
            tuning_seeds=tuple(seeds["tuning"]),
            seeds=runs_from(seeds["lengths"], item["runs"]),
            timed_seeds=runs_from(seeds["timed"], item["runs"]),
            is_control=item["name"] in found["control"],
        )
        for item in found["workloads"]
    )

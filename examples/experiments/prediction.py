"""How well the next gradient norms could be predicted at all, from what has been seen.

    python -m examples.experiments.prediction

RAIS trains once in each setting, and every observed norm v is kept with what was known
of its example when its block was planned. Of what O-SGD would take off
the variance, the table gives the share attained by

    RAIS        p as planned, floor included
    last norm   p by the norm last seen alone, mixed with uniform draws at its best
    trees       the square root of E[v^2 | all that is known], by gradient boosting

The trees see the last two norms and losses, their averages, the class, the number of
visits and the time since the last, and are fitted to one half of the examples and
judged by the other. What they do not attain cannot be known without looking at the
examples again: it is the limit of any method that learns from its own steps. Runs are
kept in `prediction_runs.jsonl`; the table is `prediction.md`.
"""

import argparse
import contextlib
import pathlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from examples.common import markdown
from examples.common.records import Record, Records
from examples.experiments import runner
from examples.experiments.setting import Setting
from keras_osgd.draws.blocks import Blocks
from keras_osgd.scores import trust
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable

_SEED = 103
SETTINGS = {
    "MLP, m = 64": Setting("fashion", "mlp", "rais", 6, 0.0263, seed=_SEED),
    "MLP, m = 512": Setting(
        "fashion", "mlp", "rais", 7, 0.15, batch_size=512, seed=_SEED
    ),
    "CNN, shifted and flipped images, AdamW, m = 128": Setting(
        "shifted-strong",
        "cnn",
        "rais",
        6,
        0.002,
        optimizer="adamw",
        batch_size=128,
        seed=_SEED,
    ),
    "transformer on descriptions, AdamW, m = 64": Setting(
        "descriptions",
        "text_transformer",
        "rais",
        5,
        0.002,
        optimizer="adamw",
        seed=_SEED,
    ),
}
_DECAYS = (0.5, 0.75)
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)  # of uniform draws in a mixture


class Seen:
    """What is known of every example, and what was known when each draw was planned.

    Args:
        n: number of examples.

    Attributes:
        draws: one array `[k, 5 + F]` a block: step, weight w, norm v, n p as planned,
            example, and F numbers that were known.
    """

    def __init__(self, n: int) -> None:
        """Starts with nothing seen: NaN."""
        self._known = np.full([n, 7 + len(_DECAYS)], np.nan)
        self._known[:, :2] = 0.0  # class and visits
        self._step = 0
        self._plans: list[tuple[int, np.ndarray]] = []
        self.draws: list[np.ndarray] = []

    def plan(self, start: int) -> None:
        """Keeps what is known now for the draws from step `start` on."""
        self._plans = [*self._plans[-1:], (start, self._known.copy())]

    def observe(self, index, weights, norms, relative, batch_size: int) -> None:
        """Adds draws, in order, and then makes their norms known."""
        steps = self._step + np.arange(len(index)) // batch_size
        before = np.empty([len(index), self._known.shape[1]])
        for start, known in self._plans:
            later = steps >= start
            before[later] = known[index[later]]
        before[:, 2] = steps - before[:, 2]  # the step of the last visit
        columns = np.stack([steps, weights, norms, relative, index], axis=1)
        self.draws.append(np.concatenate([columns, before], axis=1))
        known = self._known
        known[index, 4] = known[index, 3]  # the last norm but one
        known[index, 3] = norms
        for place, decay in enumerate(_DECAYS, 7):
            old = known[index, place]
            mixed = decay * old + (1 - decay) * norms
            known[index, place] = np.where(np.isnan(old), norms, mixed)
        np.add.at(known[:, 1], index, 1)
        known[index, 2] = steps
        self._step = int(steps[-1]) + 1

    def observe_losses(self, index, losses) -> None:
        """Makes the losses of draws known."""
        self._known[index, 6] = self._known[index, 5]
        self._known[index, 5] = losses

    def observe_classes(self, classes: np.ndarray) -> None:
        """Makes the classes of all examples known, from the next plan on."""
        self._known[:, 0] = classes


@contextlib.contextmanager
def recorded(batch_size: int) -> Iterator[list[Seen]]:
    """Fills the list with what the one training run inside the block saw."""
    made: list[Seen] = []
    pending: dict[str, np.ndarray] = {}
    observe, losses = ScoreTable.observe, SamplingState.observe_losses
    measured, make = trust.measured, Blocks.make

    def planned(blocks, start, candidate, *others, **more):
        if not made:
            made.append(Seen(len(candidate)))
        made[0].plan(start)
        return make(blocks, start, candidate, *others, **more)

    def remembering_p(sums, weights, relative, norms):
        pending["relative"] = relative
        return measured(sums, weights, relative, norms)

    def lost(state, index, values):
        pending["losses"] = values
        return losses(state, index, values)

    def observed(table, index, weights, norms, block):
        if table.classes is not None:
            made[0].observe_classes(table.classes)
        made[0].observe(index, weights, norms, pending.pop("relative"), batch_size)
        made[0].observe_losses(index, pending.pop("losses"))
        return observe(table, index, weights, norms, block)

    with (
        mock.patch.object(Blocks, "make", planned),
        mock.patch.object(trust, "measured", remembering_p),
        mock.patch.object(SamplingState, "observe_losses", lost),
        mock.patch.object(ScoreTable, "observe", observed),
    ):
        yield made


def attained(weights: np.ndarray, norms: np.ndarray, q: np.ndarray) -> float:
    """Returns the share of O-SGD's reduction of the variance that p ~ q attains.

    From draws with weights w = 1/(n p): (A_U - A_q) / (A_U - A_O), where A is the mean
    of v^2/(n p) over all examples, (mean v)^2 for the optimum.

    Args:
        weights: `[k]`, > 0.
        norms: `[k]`, >= 0.
        q: `[k]`, > 0, in any unit.

    Example:
        >>> attained(np.ones(2), np.array([1.0, 3.0]), np.array([1.0, 3.0]))
        1.0
    """
    share = weights / weights.sum()
    squares = share * norms**2
    best = (share @ norms) ** 2
    by_q = (squares / q).sum() * (share @ q)
    return float((squares.sum() - by_q) / (squares.sum() - best))


def shares_of(draws: np.ndarray) -> Record:
    """Returns what each way to predict attains on some draws of `Seen`."""
    weights, norms, planned = draws[:, 1], draws[:, 2], draws[:, 3]
    known, last = draws[:, 5:], draws[:, 8]
    mean = np.average(norms, weights=weights)
    last = np.where(np.isnan(last), mean, last)
    return {
        "rais": attained(weights, norms, planned),
        "last_norm": max(
            attained(weights, norms, (1 - share) * last + share * mean)
            for share in _SHARES
        ),
        "trees": _by_trees(weights, norms, known, draws[:, 4].astype(int)),
    }


def _by_trees(weights, norms, known, examples) -> float:
    """Returns what cross-fitted trees attain, mean over two halves of the examples."""
    part = np.random.default_rng(0).random(examples.max() + 1) < 0.5
    half = part[examples]
    varied = [len(np.unique(column[~np.isnan(column)])) > 2 for column in known.T]
    known = known[:, np.array(varied)]  # trees refuse what has hardly a value
    found = []
    for fitted in (half, ~half):
        trees = HistGradientBoostingRegressor(
            max_iter=150, learning_rate=0.05, min_samples_leaf=100, max_leaf_nodes=12
        )
        trees.fit(known[fitted], norms[fitted] ** 2, sample_weight=weights[fitted])
        square = np.average(norms[fitted] ** 2, weights=weights[fitted])
        other = ~fitted
        q = np.sqrt(np.maximum(trees.predict(known[other]), 1e-3 * square))
        found.append(attained(weights[other], norms[other], q))
    return float(np.mean(found))


def measure(setting: Setting, smoke: bool) -> Record:
    """Returns the shares attained in each epoch from the second on, and r."""
    with recorded(setting.batch_size) as made:
        found = runner.run(setting, smoke)
    draws = np.concatenate(made[0].draws)
    ends, gains = found["history"]["steps"], found["history"]["gain_ratio"]
    epochs = [
        {"epoch": number, "gain_ratio": gain} | shares_of(draws[within])
        for number, first, end, gain in zip(
            range(2, len(ends) + 1), ends, ends[1:], gains[1:], strict=False
        )
        if (within := (draws[:, 0] >= first) & (draws[:, 0] < end)).sum() > 400
    ]
    return {"epochs": epochs, "steps": found["steps"]}


def report(records: Records) -> str:
    """Returns the tables of all settings that have been measured."""
    parts = ["# What could be predicted", __doc__.split("\n\n", 2)[2].strip()]
    for title, setting in SETTINGS.items():
        for record in records.select(**setting.key):
            rows = [
                [str(epoch["epoch"]), f"{epoch['gain_ratio']:.2f}"]
                + [f"{epoch[name]:.2f}" for name in ("rais", "last_norm", "trees")]
                for epoch in record["epochs"]
            ]
            columns = ["epoch", "gain ratio r", "RAIS", "last norm", "trees"]
            parts += [f"## {title}", markdown.table(columns, rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measures what is missing and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = pathlib.Path(__file__).parent / "results"
    parser.add_argument("--results", type=pathlib.Path, default=folder)
    parser.add_argument("--smoke", action="store_true", help="small parts of the data")
    options = parser.parse_args()
    records = Records(options.results / "prediction_runs.jsonl")
    for setting in SETTINGS.values():
        if setting.key not in records:
            records.append(setting.key, measure(setting, options.smoke))
        (options.results / "prediction.md").write_text(report(records))
    print(report(records))


if __name__ == "__main__":
    main()

"""Measures what importance sampling gains, and what it costs, on Fashion-MNIST.

    python -m examples.benchmarks.main all

Every run is written to `examples/results/benchmark_runs.jsonl` when it ends, and is
not repeated when the benchmark is started again; `report` makes `benchmark.json`,
`benchmark.md` and `benchmark.png` from that file alone.

Parts, in the order in which `all` runs them:
    tune      learning rates, on validation error, for every length of training
    error     test error against steps and seconds: five seeds, interleaved
    adam      the same two for Adam
    overhead  the time of a step against plain Keras at equal batch size
    scale     the cost of planning a block against the number of examples
    report    the tables and the figure
"""

import argparse
import time

from examples.benchmarks import command_line, main_costs, main_report
from examples.common import data, models, training
from examples.common.records import Record, Records, mean_validation_errors, tuned_rate

PARTS = ("tune", "error", "adam", "overhead", "scale", "report")
SAMPLING = {"uniform": "plain", "rais": "rais"}
# Epochs of uniform training, effective epochs of RAIS.
SGD_EPOCHS = {"uniform": (5, 8, 10, 12), "rais": (10,)}
ADAM_EPOCHS = {"uniform": (6, 10), "rais": (10,)}
RATE_FACTORS = (0.5, 1.0, 2.0)
ADAM_RATES = (0.001, 0.002, 0.004)
# The best rate should lie inside its grid: so often a grid is doubled or halved.
GRID_EXTENSIONS = 1
# Seeds that chose the learning rate do not judge it.
TUNING_SEEDS = (100,)
SEEDS = (0, 1, 2, 3, 4)


def main() -> None:
    """Runs the parts named on the command line."""
    options = _options()
    records = Records(options.results / "benchmark_runs.jsonl")
    bench = Benchmark(records, options)
    for part in PARTS if options.part == "all" else (options.part,):
        print(f"== {part}", flush=True)
        if part == "tune":
            bench.tune("sgd")
        elif part == "error":
            bench.compare("sgd")
        elif part == "adam":
            bench.tune("adam")
            bench.compare("adam")
        elif part == "overhead":
            repetitions = 2 if options.smoke else 9
            main_costs.measure_overhead(
                records, bench.splits, options.models, repetitions
            )
        elif part == "scale":
            main_costs.measure_scale(records)
        else:
            main_report.write(records, options.results)


class Benchmark:
    """The training runs: which there are, which are still to do, and doing them.

    A setting is a dictionary of model, optimizer, method and epochs; with part,
    rate, seed and number of examples it is the key of a run.
    """

    def __init__(self, records: Records, options: argparse.Namespace) -> None:
        self._records = records
        self._options = options
        self._splits: data.Splits | None = None
        self._tuning_seeds = TUNING_SEEDS[:1] if options.smoke else TUNING_SEEDS
        self._seeds = SEEDS[:2] if options.smoke else SEEDS

    @property
    def splits(self) -> data.Splits:
        """Fashion-MNIST, read when first needed; a few examples in a smoke run."""
        if self._splits is None:
            self._splits = data.fashion_mnist()
            if self._options.smoke:
                self._splits = tuple((x[:2000], y[:2000]) for x, y in self._splits)
        return self._splits

    def tune(self, optimizer: str) -> None:
        """Trains with every learning rate of the grid, and extends it at its ends."""
        settings = self._settings(optimizer)
        runs = []
        for setting in settings:
            runs += self._tuning_runs(setting, self._grid(setting))
        self._execute(runs)
        for setting in settings:
            for _ in range(0 if self._options.smoke else GRID_EXTENSIONS):
                errors = mean_validation_errors(self._tuning_records(setting))
                best, tried = min(errors, key=errors.__getitem__), list(errors)
                if best not in (tried[0], tried[-1]):
                    break
                rate = best / 2 if best == tried[0] else best * 2
                self._execute(self._tuning_runs(setting, [rate]))
            rate = tuned_rate(self._tuning_records(setting))
            print(f"{_name(setting)}: rate {rate:g}", flush=True)

    def compare(self, optimizer: str) -> None:
        """Trains every method with its tuned rate once for each seed, interleaved."""
        settings = self._settings(optimizer)
        for setting in settings:
            runs = self._tuning_runs(setting, self._grid(setting))
            missing = sum(run not in self._records for run in runs)
            if missing:
                part = "tune" if optimizer == "sgd" else "adam"
                raise SystemExit(
                    f"{_name(setting)}: {missing} tuning runs are missing. Run "
                    f"`python -m examples.benchmarks.main {part}` first."
                )
        rates = [tuned_rate(self._tuning_records(setting)) for setting in settings]
        runs = []
        for seed in self._seeds if optimizer == "sgd" else self._seeds[:3]:
            seed_runs = [
                self._run("error", setting, rate, seed)
                for setting, rate in zip(settings, rates, strict=True)
            ]
            # Rotated, so that no method always follows the same other one.
            turn = seed % len(seed_runs)
            runs += seed_runs[turn:] + seed_runs[:turn]
        self._execute(runs)

    def _settings(self, optimizer: str) -> list[Record]:
        epochs = SGD_EPOCHS if optimizer == "sgd" else ADAM_EPOCHS
        networks = ("mlp", "cnn") if optimizer == "sgd" else ("cnn",)
        return [
            {"model": model, "optimizer": optimizer, "method": method, "epochs": length}
            for model in networks
            for method in SAMPLING
            for length in epochs[method]
            if model in self._options.models and method in self._options.methods
        ]

    def _grid(self, setting: Record) -> list[float]:
        rates = list(ADAM_RATES)
        if setting["optimizer"] == "sgd":
            base = models.LEARNING_RATES[setting["model"]]
            rates = [base * factor for factor in RATE_FACTORS]
        return rates[1:3] if self._options.smoke else rates

    def _run(self, part: str, setting: Record, rate: float, seed: int) -> Record:
        examples = len(self.splits[0][0])
        key = {"part": part, **setting, "rate": rate, "seed": seed}
        return {**key, "examples": examples}

    def _tuning_runs(self, setting: Record, rates: list[float]) -> list[Record]:
        return [
            self._run("tune", setting, rate, seed)
            for rate in rates
            for seed in self._tuning_seeds
        ]

    def _tuning_records(self, setting: Record) -> list[Record]:
        examples = len(self.splits[0][0])
        return self._records.select(part="tune", examples=examples, **setting)

    def _execute(self, keys: list[Record]) -> None:
        """Does the runs that are not yet recorded, and says how long it will take."""
        missing = [key for key in keys if key not in self._records]
        seconds = epochs = 0.0
        for number, key in enumerate(missing, start=1):
            started = time.perf_counter()
            run = training.Run(
                model=key["model"],
                sampling=SAMPLING[key["method"]],
                epochs=key["epochs"],
                rate=key["rate"],
                seed=key["seed"],
                optimizer=key["optimizer"],
            )
            _, measured = training.train(run, self.splits)
            self._records.append(key, measured)
            seconds += time.perf_counter() - started
            epochs += key["epochs"]
            left = sum(later["epochs"] for later in missing[number:])
            print(
                f"[{number}/{len(missing)}] {_name(key)} rate {key['rate']:g} seed "
                f"{key['seed']}: test error {measured['test_error']:.2f} %, validation "
                f"{measured['validation_error']:.2f} %, {measured['steps']} steps, "
                f"{measured['seconds']:.1f} s; {left * seconds / epochs / 60:.1f} min "
                "left",
                flush=True,
            )


def _name(setting: Record) -> str:
    return " ".join(
        [setting["model"], setting["optimizer"], setting["method"]]
        + [f"T={setting['epochs']}"]
    )


def _options() -> argparse.Namespace:
    smoke = "2000 examples and fewer repetitions, kept apart: does it run at all?"
    parser = command_line.parser(__doc__, PARTS, smoke)
    parser.add_argument(
        "--models", nargs="+", choices=tuple(models.BUILDERS), default=["mlp", "cnn"]
    )
    parser.add_argument(
        "--methods", nargs="+", choices=tuple(SAMPLING), default=list(SAMPLING)
    )
    return command_line.parsed(parser, "benchmark")


if __name__ == "__main__":
    main()

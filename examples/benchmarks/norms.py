"""Measures exact gradient norms, and the exact O-SGD they make possible.

    python -m examples.benchmarks.norms all

Every measurement is written to `examples/results/norms_runs.jsonl` when it ends and is
not repeated; `report` makes `norms.json`, `norms.md` and `osgd.png` from that file.

Parts, in the order in which `all` runs them:
    accuracy  relative error against single-example gradients: every kind of layer,
              reduction, weights, mode of execution and precision
    time      a step with exact norms over a plain step, in turn
    memory    the peak memory of both, each in a process of its own
    tune      learning rates for the next part, on validation error
    osgd      uniform training, RAIS and O-SGD on 5000 images: test error
    draws     O-SGD scored every 5 steps, drawn independently and reshuffled
    stale     O-SGD scored every 1, 5, 20 and 80 steps, at a constant rate
    gain      the gain ratio by exact norms and by the last layer's, in one training
    report    the tables and the figure
"""

import keras
import numpy as np

from examples.benchmarks import command_line, norm_steps, norms_report
from examples.common import data, models, training
from examples.common.records import Record, Records, mean_validation_errors, tuned_rate
from keras_osgd.sampling import RAIS, Oracle

PARTS = (
    "accuracy",
    "time",
    "memory",
    "tune",
    "osgd",
    "draws",
    "stale",
    "gain",
    "report",
)
EXAMPLES = 5000
METHODS = {
    "uniform": lambda: "plain",
    "rais": lambda: "rais",
    "rais, exact norms": lambda: RAIS(norm="exact"),
    "oracle": lambda: Oracle(),
    "oracle, every 20 steps": lambda: Oracle(refresh=20),
    "oracle, every 20 steps, no floor": lambda: Oracle(refresh=20, floor=0.0),
}
STALE = ((1, 0.0), (5, 0.0), (20, 0.0), (80, 0.0), (80, 0.1))  # refresh, floor
EPOCHS = (5, 10, 20)
RATE_FACTORS = (0.5, 1.0, 2.0)
TUNING_SEED = 100
SEEDS = (0, 1, 2)
_REPETITIONS = 25
_MEMORY_REPETITIONS = 3
# TensorFlow has no kernel for these in float64 on a CPU.
_NOT_IN_FLOAT64 = (
    "Conv1DTranspose, same, dilated",
    "Conv2DTranspose, same, dilated",
)


def main() -> None:
    """Runs the parts named on the command line."""
    smoke = "a few cases and examples, kept apart: does it run at all?"
    parser = command_line.parser(__doc__, PARTS, smoke)
    options = command_line.parsed(parser, "norms")
    records = Records(options.results / "norms_runs.jsonl")
    parts = {
        "accuracy": lambda: measure_accuracy(records, options.smoke),
        "time": lambda: measure_time(records, 3 if options.smoke else _REPETITIONS),
        "memory": lambda: measure_memory(
            records, 1 if options.smoke else _MEMORY_REPETITIONS
        ),
        "tune": lambda: train_all(records, options.smoke, tuning=True),
        "osgd": lambda: train_all(records, options.smoke, tuning=False),
        "draws": lambda: compare_draws(records, options.smoke),
        "stale": lambda: let_scores_age(records, options.smoke),
        "gain": lambda: compare_gains(records, options.smoke),
        "report": lambda: norms_report.write(records, options.results),
    }
    for part in PARTS if options.part == "all" else (options.part,):
        print(f"== {part}", flush=True)
        parts[part]()


def measure_accuracy(records: Records, smoke: bool) -> None:
    """Compares every case with a loop over single examples, in every mode."""
    from tests.helpers import norm_cases  # the very models that the tests go through

    cases = list(norm_cases.CASES)[:: 20 if smoke else 1]
    for floatx in ("float32", "float64"):
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(floatx)
        for case in cases:
            if floatx == "float64" and case in _NOT_IN_FLOAT64:
                continue
            for mode in norm_cases.MODES:
                for reduction in norm_cases.REDUCTIONS:
                    for weighted in (False, True):
                        key = {
                            "part": "accuracy",
                            "case": case,
                            "floatx": floatx,
                            "mode": mode,
                            "reduction": reduction,
                            "weighted": weighted,
                        }
                        if key in records:
                            continue
                        error = norm_cases.relative_error(
                            case, reduction, weighted, mode
                        )
                        records.append(key, {"relative_error": error})
            keras.backend.clear_session()
            print(f"{floatx} {case}", flush=True)
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def measure_time(records: Records, repetitions: int) -> None:
    """Times plain steps and steps with norms in turn, for every network."""
    for network in norm_steps.NETWORKS:
        key = {"part": "time", "network": network, "repetitions": repetitions}
        if key not in records:
            found = norm_steps.timed(network, repetitions)
            ratios = np.divide(found["exact"], found["plain"])
            records.append(key, {**found, "ratio": float(np.median(ratios))})
            print(f"{network}: {np.median(ratios):.3f}x", flush=True)


def measure_memory(records: Records, repetitions: int) -> None:
    """Weighs both kinds of step in fresh processes."""
    for network in norm_steps.NETWORKS:
        for repetition in range(repetitions):
            key = {"part": "memory", "network": network, "repetition": repetition}
            if key not in records:
                found = {
                    kind: norm_steps.peak_megabytes(network, kind)
                    for kind in norm_steps.KINDS
                }
                records.append(key, found)
                print(f"{network}: {found}", flush=True)


def train_all(records: Records, smoke: bool, tuning: bool) -> None:
    """Trains with every rate of the grid, or with the tuned one for every seed."""
    splits = _splits(1000 if smoke else EXAMPLES)
    base = models.LEARNING_RATES["mlp"]
    settings = [
        {"method": method, "epochs": epochs}
        for epochs in EPOCHS[: 1 if smoke else None]
        for method in METHODS
    ]
    if tuning:
        for setting in settings:
            for factor in RATE_FACTORS[1:2] if smoke else RATE_FACTORS:
                key = _key("tune", setting, base * factor, TUNING_SEED, splits)
                _train(records, key, METHODS[setting["method"]](), splits)
            edge = None if smoke else _beyond(records, setting, splits)
            if edge is not None:
                key = _key("tune", setting, edge, TUNING_SEED, splits)
                _train(records, key, METHODS[setting["method"]](), splits)
        return
    for seed in SEEDS[: 1 if smoke else None]:
        turn = seed % len(settings)
        for setting in settings[turn:] + settings[:turn]:
            rate = tuned_rate(_tuning(records, setting, splits))
            key = _key("osgd", setting, rate, seed, splits)
            _train(records, key, METHODS[setting["method"]](), splits)


def _tuning(records: Records, setting: Record, splits) -> list[Record]:
    return records.select(part="tune", examples=len(splits[0][0]), **setting)


def _beyond(records: Records, setting: Record, splits) -> float | None:
    """Returns the rate beyond the grid's end where the best one lies there."""
    errors = mean_validation_errors(_tuning(records, setting, splits))
    best, rates = min(errors, key=errors.__getitem__), sorted(errors)
    if len(rates) > len(RATE_FACTORS) or best not in (rates[0], rates[-1]):
        return None
    return best / 2 if best == rates[0] else best * 2


def compare_draws(records: Records, smoke: bool) -> None:
    """Trains by O-SGD, scored every 5 steps, with both kinds of draws."""
    oracles = {
        f"oracle, every 5 steps, {draws}": Oracle(refresh=5, draws=draws)
        for draws in ("independent", "reshuffled")
    }
    _train_oracles(records, "draws", oracles, smoke)


def let_scores_age(records: Records, smoke: bool) -> None:
    """Trains by O-SGD with scores of different ages, without a schedule."""
    oracles = {
        f"oracle, every {refresh} steps, floor {floor}": Oracle(refresh, floor)
        for refresh, floor in (STALE[-1:] if smoke else STALE)
    }
    _train_oracles(records, "stale", oracles, smoke)


def _train_oracles(records: Records, part: str, oracles: dict, smoke: bool) -> None:
    splits = _splits(1000 if smoke else EXAMPLES)
    for seed in SEEDS[: 1 if smoke else None]:
        for name, oracle in oracles.items():
            setting = {"method": name, "epochs": 10}
            key = _key(part, setting, models.LEARNING_RATES["mlp"], seed, splits)
            _train(records, key, oracle, splits)


def compare_gains(records: Records, smoke: bool) -> None:
    """Trains by exact norms on all images; the monitor shows both gain ratios."""
    splits = _splits(2000 if smoke else 50_000)
    for model in ("mlp", "cnn"):
        setting = {"method": "rais, exact norms", "epochs": 2 if smoke else 10}
        rate = models.LEARNING_RATES[model]
        key = {**_key("gain", setting, rate, 0, splits), "model": model}
        _train(records, key, RAIS(norm="exact"), splits)


def _key(part: str, setting: Record, rate: float, seed: int, splits) -> Record:
    examples = len(splits[0][0])
    return {"part": part, **setting, "rate": rate, "seed": seed, "examples": examples}


def _train(records: Records, key: Record, sampling, splits) -> None:
    if key in records:
        return
    run = training.Run(
        model=key.get("model", "mlp"),
        sampling=sampling,
        epochs=key["epochs"],
        rate=key["rate"],
        seed=key["seed"],
        decay=key["part"] != "stale",
    )
    _, measured = training.train(run, splits)
    records.append(key, measured)
    print(
        f"{key['part']} {key['method']} T={key['epochs']} rate {key['rate']:g} seed "
        f"{key['seed']}: test {measured['test_error']:.2f} %, validation "
        f"{measured['validation_error']:.2f} %, {measured['steps']} steps, "
        f"{measured['seconds']:.1f} s",
        flush=True,
    )


def _splits(examples: int) -> data.Splits:
    train, validation, test = data.fashion_mnist()
    return (train[0][:examples], train[1][:examples]), validation, test


if __name__ == "__main__":
    main()

"""Counts where importance sampling ends better or worse than uniform training.

    python -m examples.benchmarks.small_cases [RUNS.jsonl [PROBLEM ...]]

A hundred small trainings: five problems, four optimizers, five rates each, up to where
training becomes unstable. Every case is trained uniformly and by RAIS from the same
weights, and compared by the training loss at the end, averaged over seeds (the mean of
its logarithm; losses below 0.001 count as that). A control is trained beside them:
uniformly, from the same weights, in another order of the examples. It shows how many
cases chance alone counts.

A case gets three seeds, and three more, up to twelve, until it is decided: until both
limits, 1.5x better and 1.5x worse, are two standard errors away. Runs go to the file as
they end, and are not repeated. It takes two hours; by problems, it can be split. The
counts of what is in the file are printed, and written beside it.
"""

import gc
import itertools
import json
import pathlib
import sys
from typing import Any

import keras
import numpy as np
from sklearn import datasets

import keras_osgd
from keras_osgd.sampling import RAIS

EPOCHS, BATCH_SIZE = 20, 32
ROUND, MOST_SEEDS = 3, 12
METHODS = ("uniform", "rais", "control")
RUNS = "examples/results/small_cases_runs.jsonl"
RATES = {
    "sgd": (0.03, 0.1, 0.3, 1.0, 2.0),
    "momentum 0.9": (0.003, 0.01, 0.03, 0.1, 0.3),
    "momentum 0.99": (0.001, 0.003, 0.01, 0.03, 0.1),
    "adam": (0.001, 0.003, 0.01, 0.03, 0.1),
}
LEAST, LARGEST, FACTOR = 1e-3, 100.0, 1.5


def _standardised(x: np.ndarray) -> np.ndarray:
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)


def _rare_classes() -> tuple[np.ndarray, np.ndarray]:
    """Returns 600 points of four classes, two rare; one label in 20 is wrong."""
    rng = np.random.default_rng(0)
    centres = 1.2 * rng.normal(size=(4, 8))
    y = rng.choice(4, 600, p=[0.7, 0.2, 0.07, 0.03])
    x = _standardised(rng.normal(size=(600, 8)) + centres[y])
    return x, np.where(rng.random(600) < 0.05, rng.integers(0, 4, 600), y)


def problems() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns x and y by name; y of floats is a regression."""
    wine, cancer = datasets.load_wine(), datasets.load_breast_cancer()
    digits, diabetes = datasets.load_digits(), datasets.load_diabetes()
    return {
        "wine": (_standardised(wine.data), wine.target),
        "breast cancer": (_standardised(cancer.data), cancer.target),
        "digits": ((digits.data / 16).astype(np.float32), digits.target),
        "diabetes": (_standardised(diabetes.data), _standardised(diabetes.target)),
        "rare classes": _rare_classes(),
    }


def optimizer(name: str, rate: float) -> keras.optimizers.Optimizer:
    """Returns one of `RATES`."""
    if name == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(rate, momentum=float(name.partition(" ")[2] or 0))


def final_loss(
    x: np.ndarray, y: np.ndarray, given: Any, method: str, seed: int
) -> float:
    """Returns the loss over all of x after training by one of `METHODS`."""
    keras.backend.clear_session()
    gc.collect()
    keras.utils.set_random_seed(seed)
    regression = y.dtype.kind == "f"
    units = 1 if regression else int(y.max()) + 1
    hidden = 64 if x.shape[1] > 32 else 32
    layers = [keras.layers.Dense(hidden, "relu"), keras.layers.Dense(units)]
    model = keras_osgd.Sequential([keras.Input(x.shape[1:]), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sampling = RAIS() if method == "rais" else "uniform"
    model.compile(given, "mse" if regression else loss, sampling=sampling)
    if method == "control":
        keras.utils.set_random_seed(1000 + seed)
    try:
        model.fit(x, y, epochs=EPOCHS, batch_size=BATCH_SIZE, verbose=0)
    except RuntimeError:  # ten steps in a row were not finite
        return float("inf")
    return float(model.evaluate(x, y, verbose=0))


def log_ratio(losses: list[float], uniform: list[float]) -> tuple[float, float]:
    """Returns the mean log of the losses over uniform training's, and its error.

    The standard error takes the seeds of both for independent: after some steps near
    the limit of stability nothing is left of what the starts had in common.
    """
    logs = [
        np.log(np.clip(np.nan_to_num(part, nan=LARGEST), LEAST, LARGEST))
        for part in (losses, uniform)
    ]
    error = np.sqrt(sum(part.var(ddof=1) / len(part) for part in logs))
    return float(logs[0].mean() - logs[1].mean()), float(error)


def is_decided(losses: list[float], uniform: list[float]) -> bool:
    """Returns whether more seeds would hardly move a case over one of the limits."""
    ratio, error = log_ratio(losses, uniform)
    return abs(abs(ratio) - np.log(FACTOR)) > 2 * error


def summary(losses: dict[tuple, list[float]], method: str) -> str:
    """Returns how many cases end better or worse than uniformly, and which.

    Args:
        losses: of each (problem, optimizer, rate, method), one for each seed.
        method: what is compared with uniform training.
    """
    parts: dict[str, list[str]] = {"better by 1.5x": [], "worse by 1.5x": []}
    parts["diverge alone"] = []
    for *case, name in losses:
        if name != method:
            continue
        found, uniform = losses[*case, method], losses[*case, "uniform"]
        ratio, error = log_ratio(found, uniform)
        of = f"{' '.join(map(str, case))}: {np.exp(ratio):.2f} (x/ {np.exp(error):.2f})"
        of += f", {len(found)} seeds"
        if abs(ratio) > np.log(FACTOR):
            parts["better by 1.5x" if ratio < 0 else "worse by 1.5x"].append(of)
        diverged = [not np.all(np.array(part) < LARGEST) for part in (found, uniform)]
        if diverged == [True, False]:
            parts["diverge alone"].append(of)
    head = f"{method}, {sum(key[-1] == method for key in losses)} cases"
    lines = ["\n  ".join([f"{k}: {len(v)}", *v]) for k, v in parts.items()]
    return "\n".join([head, *lines])


def main() -> None:
    """Runs what is not in the file yet, and prints and writes the summaries."""
    path, names = pathlib.Path(*sys.argv[1:2] or [RUNS]), sys.argv[2:] or problems()
    done = path.read_text().splitlines() if path.exists() else []
    found = {tuple(key): loss for key, loss in map(json.loads, done)}

    def losses(*case: Any) -> list[float]:
        return [found[*case, i] for i in range(MOST_SEEDS) if (*case, i) in found]

    def train(problem: str, name: str, rate: float, method: str, seed: int) -> None:
        key = problem, name, rate, method, seed
        if key not in found:
            x, y = problems()[problem]
            found[key] = final_loss(x, y, optimizer(name, rate), method, seed)
            with path.open("a") as file:
                file.write(json.dumps([key, found[key]]) + "\n")

    for method, problem, name in itertools.product(METHODS[1:], names, RATES):
        for rate, seed in itertools.product(RATES[name], range(MOST_SEEDS)):
            case = problem, name, rate
            of = losses(*case, method)[:seed], losses(*case, "uniform")[:seed]
            whole_rounds = seed > 0 and seed % ROUND == 0
            if len(of[0]) < seed or (whole_rounds and is_decided(*of)):
                continue  # decided: no later seed is trained either
            train(*case, "uniform", seed)
            train(*case, method, seed)
    by_case: dict[tuple, list[float]] = {}
    for *case, _ in found:
        by_case[tuple(case)] = losses(*case)
    text = "\n\n".join(summary(by_case, method) for method in METHODS[1:])
    print(text)
    head = "# Small cases: training loss at the end over that of uniform training"
    path.with_name(path.name.replace("_runs.jsonl", ".md")).write_text(
        f"{head}\n\n```\n{text}\n```\n"
    )


if __name__ == "__main__":
    main()

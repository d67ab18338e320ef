"""Counts where importance sampling ends better or worse than uniform training.

    python -m examples.benchmarks.small_cases [results.jsonl]

A hundred small trainings: five problems, four optimizers, five rates each, up to where
training becomes unstable. Every case is trained uniformly and by RAIS from the same
weights, and compared by the training loss at the end, averaged over seeds (the mean of
its logarithm; losses below 0.001 count as that). Runs go to the file as they end, and
are not repeated. It takes an hour.
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

EPOCHS, BATCH_SIZE, SEEDS = 20, 32, (0, 1, 2)
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
    x: np.ndarray, y: np.ndarray, given: Any, sampling: Any, seed: int
) -> float:
    """Returns the loss over all of x after training."""
    keras.backend.clear_session()
    gc.collect()
    keras.utils.set_random_seed(seed)
    regression = y.dtype.kind == "f"
    units = 1 if regression else int(y.max()) + 1
    hidden = 64 if x.shape[1] > 32 else 32
    layers = [keras.layers.Dense(hidden, "relu"), keras.layers.Dense(units)]
    model = keras_osgd.Sequential([keras.Input(x.shape[1:]), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(given, "mse" if regression else loss, sampling=sampling)
    try:
        model.fit(x, y, epochs=EPOCHS, batch_size=BATCH_SIZE, verbose=0)
    except RuntimeError:  # ten steps in a row were not finite
        return float("inf")
    return float(model.evaluate(x, y, verbose=0))


def summary(losses: dict[tuple, list[float]]) -> str:
    """Returns how many cases end better or worse, and which.

    Args:
        losses: of each (problem, optimizer, rate, method), one for each seed.
    """
    better, worse, alone = [], [], []
    for *case, method in losses:
        if method != "uniform":
            continue
        of = [losses[*case, method] for method in ("uniform", "rais")]
        bounded = np.clip(np.nan_to_num(of, nan=LARGEST), LEAST, LARGEST)
        uniform, rais = np.exp(np.log(bounded).mean(axis=1))
        name = f"{' '.join(map(str, case))}: uniform {uniform:.4f}, RAIS {rais:.4f}"
        if rais * FACTOR < uniform:
            better.append(name)
        if rais > FACTOR * uniform:
            worse.append(name)
        diverged = [not np.all(np.array(part) < LARGEST) for part in of]
        if diverged == [False, True]:
            alone.append(name)
    parts = {"better by 1.5x": better, "worse by 1.5x": worse, "diverge alone": alone}
    return "\n".join(f"{k}: {len(v)}\n  " + "\n  ".join(v) for k, v in parts.items())


def main() -> None:
    """Runs what is not in the file yet, and prints the summary."""
    path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "small_cases.jsonl")
    done = path.read_text().splitlines() if path.exists() else []
    found = {tuple(key): loss for key, loss in map(json.loads, done)}
    for (problem, (x, y)), (name, rates), seed in itertools.product(
        problems().items(), RATES.items(), SEEDS
    ):
        for rate, method in itertools.product(rates, ("uniform", "rais")):
            key = (problem, name, rate, method, seed)
            if key in found:
                continue
            sampling = RAIS() if method == "rais" else method
            found[key] = final_loss(x, y, optimizer(name, rate), sampling, seed)
            with path.open("a") as file:
                file.write(json.dumps([key, found[key]]) + "\n")
    losses: dict[tuple, list[float]] = {}
    for key, loss in found.items():
        losses.setdefault(key[:-1], []).append(loss)
    print(summary(losses))


if __name__ == "__main__":
    main()

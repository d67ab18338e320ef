"""Finds flipped labels, by the draws of training and by cleanlab's rankings.

    python -m examples.benchmarks.label_errors            # ten minutes on two cores
    python -m examples.benchmarks.label_errors --smoke    # half a minute

Both rank the same models' predictions on their training set; `keras_osgd` has the count
of draws besides. `pip install cleanlab` for cleanlab's own code; without it, its two
formulas are written out here.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_osgd
from examples.common import data, models

try:
    from cleanlab.rank import get_label_quality_scores
except ImportError:
    get_label_quality_scores = None

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "label_errors.md"
_RATE = 0.04
_FOLDS, _FOLD_EPOCHS = 3, 5
_FIRST_SEED = 3  # 0 to 2 have chosen the constants of `find_label_errors`
# The class that each is most alike to: T-shirt and shirt, pullover and coat, ...
_ALIKE = np.array([6, 3, 4, 0, 2, 7, 0, 9, 4, 7])


def main() -> None:
    """Trains and ranks, seed after seed, and writes the table."""
    options = _options()
    _, ((x, y), _, _) = data.load()
    x, y = x[: options.examples], y[: options.examples].astype(np.int64)
    found: dict[tuple, list[tuple]] = {}
    for seed in range(_FIRST_SEED, _FIRST_SEED + options.seeds):
        for epochs in options.epochs:
            flipped, labels = flip(y, options.noise, seed)
            for ranking, row in compare(x, labels, flipped, epochs, seed, options.top):
                _add(found, ("any class", epochs, ranking), row)
        ranked = out_of_fold(x, labels, seed, options.fold_epochs)
        measured = _measures(ranked, flipped, options.top)
        key = (
            "any class",
            options.fold_epochs,
            "cleanlab, self-confidence, out of fold",
        )
        _add(found, key, (measured, np.nan))
        flipped, labels = flip(y, options.noise, seed, alike=True)
        middle = options.epochs[len(options.epochs) // 2]
        for ranking, row in compare(x, labels, flipped, middle, seed, options.top):
            _add(found, ("a class alike", middle, ranking), row)
        text = _table(found, len(x), options)
        if not options.smoke:  # as it stands, lest a run that is ended have none
            RESULTS.write_text(text)
    print(text)


def flip(
    y: np.ndarray, noise: float, seed: int, alike: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[n]` which labels were flipped, and the labels.

    Args:
        y: `[n]`, in 0..9.
        noise: the share that is flipped.
        seed: of the draw.
        alike: to the class that is most alike, else to any other class.
    """
    rng = np.random.default_rng(1000 + seed)
    flipped = rng.random(len(y)) < noise
    others = _ALIKE[y] if alike else (y + rng.integers(1, 10, len(y))) % 10
    return flipped, np.where(flipped, others, y)


def compare(x, labels, flipped, epochs: int, seed: int, top: int):
    """Yields (name of a ranking, (its precisions, share of flips learned by heart))."""
    model = _trained(x, labels, epochs, seed, "rais")
    probabilities = _probabilities(model, x)
    learned = float((probabilities.argmax(axis=1) == labels)[flipped].mean())
    suspects = keras_osgd.find_label_errors(model, x, labels, k=len(x))
    times = model.sampling_state.times_drawn
    rankings = {
        "find_label_errors": suspects.index,
        "draws alone": np.argsort(-times, kind="stable"),
        "cleanlab, self-confidence": by_cleanlab(
            labels, probabilities, "self_confidence"
        ),
        "cleanlab, normalized margin": by_cleanlab(
            labels, probabilities, "normalized_margin"
        ),
    }
    for name, order in rankings.items():
        yield name, (_measures(order, flipped, top), learned)


def by_cleanlab(labels, probabilities, method: str) -> np.ndarray:
    """Returns rows, the most suspicious first."""
    if get_label_quality_scores is not None:
        quality = get_label_quality_scores(labels, probabilities, method=method)
        return np.argsort(quality, kind="stable")
    rows, others = np.arange(len(labels)), probabilities.copy()
    own = probabilities[rows, labels]
    others[rows, labels] = 0
    margin = others.max(axis=1) if method == "normalized_margin" else 0.0
    return np.argsort(own - margin, kind="stable")


def out_of_fold(x, labels, seed: int, epochs: int) -> np.ndarray:
    """Returns rows ranked by predictions of models that did not see them."""
    fold = np.random.default_rng(seed).permutation(len(x)) % _FOLDS
    probabilities = np.zeros([len(x), 10])
    for k in range(_FOLDS):
        model = _trained(
            x[fold != k], labels[fold != k], epochs, 10 * seed + k, "uniform"
        )
        probabilities[fold == k] = _probabilities(model, x[fold == k])
    return by_cleanlab(labels, probabilities, "self_confidence")


def _trained(x, labels, epochs: int, seed: int, sampling: str) -> keras.Model:
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = models.mlp(keras_osgd.Sequential, x, 1000 * seed)
    rate = models.schedule(_RATE, epochs, len(x))
    model.compile(models.optimizer("sgd", rate), models.loss(), sampling=sampling)
    model.fit(x, labels, batch_size=models.BATCH_SIZE, epochs=epochs, verbose=0)
    return model


def _probabilities(model, x) -> np.ndarray:
    logits = model.predict(x, batch_size=1000, verbose=0).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def _measures(order, flipped, top: int) -> tuple[float, float]:
    """Returns the precision in the top, and among as many as there are flips."""
    count = int(flipped.sum())
    return float(flipped[order[:top]].mean()), float(flipped[order[:count]].mean())


def _add(found: dict, key: tuple, row: tuple) -> None:
    found.setdefault(key, []).append(row)
    print(*key, row, flush=True)


def _table(found: dict, n: int, options: argparse.Namespace) -> str:
    code = "its own code" if get_label_quality_scores else "its formulas, written out"
    lines = [
        "# Flipped labels",
        "",
        f"Fashion-MNIST, {n:,} images, MLP, {options.noise:.0%} of the labels flipped, "
        "mean over seeds (lowest to highest). Precision in the "
        f"{options.top:,} most suspicious, and among as many as there are flips. "
        '"Learned" is the share of the flipped labels that the trained model predicts. '
        f"cleanlab: {code}; its rankings are of the same model's predictions, but out "
        f"of fold, which are of {_FOLDS} models that had not seen the images. "
        "`python -m examples.benchmarks.label_errors`.",
        "",
        f"| flipped to | T | ranking | seeds | in the top {options.top:,} "
        "| among as many as flipped | learned |",
        "|---|---|---|---|---|---|---|",
    ]
    for (kind, epochs, ranking), rows in found.items():
        top, all_, learned = (
            np.array([r[0][0] for r in rows]),
            np.array([r[0][1] for r in rows]),
            np.mean([r[1] for r in rows]),
        )
        share = "-" if np.isnan(learned) else f"{learned:.2f}"
        lines.append(
            f"| {kind} | {epochs} | {ranking} | {len(rows)} | {_spread(top)} "
            f"| {_spread(all_)} | {share} |"
        )
    return "\n".join(lines) + "\n"


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ({values.min():.3f}-{values.max():.3f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs="+", default=[4, 10, 30])
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--top", type=int, default=1000)
    parser.add_argument(
        "--smoke", action="store_true", help="a small subset, one seed: does it run?"
    )
    options = parser.parse_args()
    options.fold_epochs = _FOLD_EPOCHS
    if options.smoke:
        options.seeds, options.examples, options.top = 1, 2000, 50
        options.epochs, options.fold_epochs = [4], 1
    return options


if __name__ == "__main__":
    main()

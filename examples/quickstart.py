"""Trains a network with uniform and with importance sampling, and compares them.

    python examples/quickstart.py

It prints errors, seconds and steps, and writes a plot and a SavedModel.
"""

import argparse
import math
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import datasets
import keras
import models
import numpy as np
import tensorflow as tf
import training

_SEED = 0
_SMOKE_EXAMPLES = 4000
# Between two seeds the test error of one network differs by about so many points.
_NOISE = 0.3


def main() -> None:
    """Trains, compares, plots, exports."""
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    name, splits = datasets.load()
    if options.smoke:
        splits = tuple((x[:_SMOKE_EXAMPLES], y[:_SMOKE_EXAMPLES]) for x, y in splits)

    uniform = _train("uniform", "plain", options.epochs, options.model, splits)[1]
    model, rais = _train("RAIS", "rais", options.epochs, options.model, splits)
    results = {"RAIS": rais, f"uniform, {options.epochs} epochs": uniform}
    # What uniform training makes of RAIS's seconds, with a schedule of its own.
    epochs = round(options.epochs * rais["seconds"] / uniform["seconds"])
    # Nor fewer steps than RAIS, if the clock says so: its steps are not the cheaper.
    epochs = max(epochs, math.ceil(rais["epochs_processed"] - 0.05))
    if epochs != options.epochs:
        title = f"uniform, {epochs} epochs"
        results[title] = _train("uniform", "plain", epochs, options.model, splits)[1]

    print(f"\n{_table(results)}\n\n{_comparison(rais, results)}\n")
    plot = options.output / "test_error.png"
    print(_plot(plot, f"{name}, {options.model.upper()}", results))
    saved_model = options.output / "saved_model"
    difference = _export(model, saved_model, splits[2][0][:256])
    print(
        f"SavedModel: {saved_model}; loaded again, its outputs agree with the model's "
        f"(largest difference {difference:.0e})."
    )


def _train(
    title: str, sampling: str, epochs: int, model: str, splits: datasets.Splits
) -> tuple[keras.Sequential, dict]:
    print(f"\n{title}: {model}, {epochs} epochs' worth of training")
    rate = models.LEARNING_RATES[model]
    run = training.Run(model, sampling, epochs, rate, _SEED, softmax=True)
    return training.train(run, splits, verbose="auto")


def _table(results: dict[str, dict]) -> str:
    lines = [
        f"{'':20}{'test error':>11}{'seconds':>9}{'steps':>8}{'epochs':>8}{'gain':>7}"
    ]
    for name, result in results.items():
        lines.append(
            f"{name:20}{result['test_error']:>9.2f} %{result['seconds']:>9.1f}"
            f"{result['steps']:>8}{result['epochs_processed']:>8.1f}"
            f"{result['gain']:>7.2f}"
        )
    first_steps = ", ".join(
        f"{result['first_step_seconds']:.1f}" for result in results.values()
    )
    lines.append(
        "Seconds are those of training, without evaluation and without the first step, "
        "in\nwhich TensorFlow traces the model "
        f"({first_steps} s). "
        "Gain: epochs' worth of progress per epoch."
    )
    return "\n".join(lines)


def _comparison(rais: dict, results: dict[str, dict]) -> str:
    """Returns how RAIS did against each uniform run, that of nearest time first."""
    uniform = [result for result in results.values() if result is not rais]
    uniform.sort(key=lambda result: abs(result["seconds"] - rais["seconds"]))
    lines = []
    for other in uniform:
        error_added = rais["test_error"] - other["test_error"]
        epochs = len(other["history"]["steps"])
        as_many = epochs == len(rais["history"]["steps"])
        equal = "as many epochs" if as_many else "about as much time"
        lines.append(
            f"In this run RAIS was {_in_words(error_added)} uniform training of "
            f"{epochs} epochs ({equal}):\n  {rais['test_error']:.2f} against "
            f"{other['test_error']:.2f} % test error in {rais['seconds']:.1f} and "
            f"{other['seconds']:.1f} s."
        )
    lines.append(
        f"One seed's luck is about {_NOISE} points. Many seeds, and learning rates "
        "tuned for\neach method: examples/experiments/results/report.md."
    )
    return "\n".join(lines)


def _in_words(error_added: float) -> str:
    """Returns better or worse, where it is by more than the luck of a seed."""
    if error_added > _NOISE:
        return "worse than"
    if error_added >= 0:
        return "no better than"
    return "better than" if error_added < -_NOISE else "not clearly better than"


def _plot(path: pathlib.Path, title: str, results: dict[str, dict]) -> str:
    """Saves the figure; returns where, or what to install."""
    try:
        import error_plot

        from keras_osgd.plots.style import STYLES
    except ImportError:
        return "No plot: it needs matplotlib. pip install 'keras_osgd[plot]'"
    curves = {}
    for name, result in results.items():
        history = result["history"]
        epochs_per_step = result["epochs_processed"] / result["steps"]
        epochs = [steps * epochs_per_step for steps in history["steps"]]
        curves[name] = error_plot.Curve(
            epochs, history["seconds"], history["test_error"]
        )
    error_plot.save(path, {title: curves}, STYLES)
    return f"Plot: {path}"


def _export(model: keras.Sequential, path: pathlib.Path, x: np.ndarray) -> float:
    """Exports, reloads, and returns the largest difference between the outputs."""
    model.export(path, verbose=False)
    # The loaded object must outlive the call: it owns the variables.
    loaded = tf.saved_model.load(str(path))
    served = loaded.serve(x).numpy()
    expected = model.predict_on_batch(x)
    difference = float(np.abs(served - expected).max())
    if difference > 1e-5:
        raise RuntimeError(
            f"The SavedModel's outputs differ from the model's by {difference:.1e}."
        )
    return difference


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--model", choices=tuple(models.BUILDERS), default="cnn")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("quickstart_output")
    )
    parser.add_argument(
        "--smoke", action="store_true", help="a small subset, 2 epochs: does it run?"
    )
    options = parser.parse_args()
    if options.smoke:
        options.epochs = 2
    if options.epochs < 1:
        parser.error("--epochs must be at least 1.")
    return options


if __name__ == "__main__":
    main()

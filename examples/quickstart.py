"""Trains a network with uniform and with importance sampling, and compares them.

    python examples/quickstart.py

It prints what was gained or lost, and writes a plot and a SavedModel.
"""

import argparse
import math
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import datasets
import error_plot
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
    results = {f"uniform, {options.epochs} epochs": uniform, "RAIS": rais}
    # What uniform training makes of the epochs RAIS needed, with a schedule of its own.
    short_epochs = math.ceil(rais["epochs_processed"] - 0.05)
    short = None
    if short_epochs < options.epochs:
        _, short = _train("uniform", "plain", short_epochs, options.model, splits)
        results[f"uniform, {short_epochs} epochs"] = short

    print(f"\n{_table(results)}\n\n{_verdict(uniform, rais, short)}\n")
    plot = options.output / "test_error.png"
    error_plot.save(plot, {f"{name}, {options.model.upper()}": _curves(results)})
    print(f"Plot: {plot}")
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


def _verdict(uniform: dict, rais: dict, short: dict | None) -> str:
    time_saved = 1 - rais["seconds"] / uniform["seconds"]
    error_added = rais["test_error"] - uniform["test_error"]
    time_text = f"{abs(time_saved):.0%} {'less' if time_saved > 0 else 'more'} time"
    error_text = (
        f"{abs(error_added):.2f} points "
        f"{'more' if error_added > 0 else 'less'} test error"
    )
    if abs(error_added) <= _NOISE:
        headline = "Time gained" if time_saved > 0 else "Nothing gained"
    elif error_added > 0:
        headline = (
            "Time gained, accuracy lost" if time_saved > 0 else "Time and accuracy lost"
        )
    else:
        headline = (
            "Time and accuracy gained"
            if time_saved > 0
            else "Accuracy gained, time lost"
        )
    lines = [f"{headline}: RAIS took {time_text} for {error_text}."]
    if short is not None:
        lines.append(
            f"Uniform training for {short['epochs_processed']:.0f} epochs (RAIS "
            f"needed {rais['epochs_processed']:.1f}), with a schedule of that length, "
            f"took {short['seconds']:.1f} s and ended at {short['test_error']:.2f} % "
            f"(RAIS: {rais['seconds']:.1f} s, {rais['test_error']:.2f} %)."
        )
    lines.append(
        f"This is one seed: differences below {_NOISE} points are noise. "
        "`examples/benchmark.py` has five seeds and tuned learning rates."
    )
    return "\n".join(lines)


def _curves(results: dict[str, dict]) -> dict[str, error_plot.Curve]:
    curves = {}
    # RAIS first: it then has the same colour here as in the benchmark's figure.
    for name in sorted(results, key=lambda name: name != "RAIS"):
        result, history = results[name], results[name]["history"]
        epochs_per_step = result["epochs_processed"] / result["steps"]
        epochs = [steps * epochs_per_step for steps in history["steps"]]
        curves[name] = error_plot.Curve(
            epochs, history["seconds"], history["test_error"]
        )
    return curves


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

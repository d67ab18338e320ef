"""Writes the files of a run's directory while a model trains."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.warn import warn, warned_of
from keras_osgd.fit.run import Run
from keras_osgd.gain.learning_rate import inner_optimizer
from keras_osgd.run_directory import PERCENTILES, RunFiles, percentile_name, share_curve
from keras_osgd.versions import versions

__all__ = ["RunLog", "probabilities_of", "run_of"]

_EXAMPLES = 1000  # listed in examples.csv
_OBSERVATIONS = 2000  # kept with their predictions


def run_of(model: keras.Model) -> Run | None:
    """Returns the model's present or last `fit` with importance sampling, or `None`."""
    return getattr(model, "sampling_run", None)


def probabilities_of(model: keras.Model) -> np.ndarray | None:
    """Returns `[n]`, p by the scores at the last plan, or `None`."""
    run = run_of(model)
    return None if run is None else run.probabilities()


class RunLog:
    """Writes the files of one run, epoch by epoch.

    A `fit` keeps the rows of the epochs before its first one and drops later rows,
    whose epochs it trains anew. So a resumed `fit` continues the log, and a `fit` from
    epoch 0 starts it afresh.

    Args:
        directory: see `RunFiles`.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        """Makes the directory."""
        self.files = RunFiles(directory)
        self.fresh = True  # whether no rows of an earlier `fit` stay
        self._rows: list[dict[str, float]] = []
        self._settings: dict[str, Any] = {"alarms": []}
        self._first_step = 0
        self._begun = self._aside = 0.0

    def begin(self, model: keras.Model, epoch: int, params: Mapping[str, Any]) -> None:
        """Keeps the rows of the epochs before `epoch`, which counts from 0."""
        rows, before, faults = self.files.read()
        if faults:
            warn(f"{' '.join(faults)} The log goes on without what is damaged.")
        self._rows = [row for row in rows if row["epoch"] <= epoch]
        self.fresh = not self._rows
        if self.fresh:
            if rows:
                warn(
                    f"{self.files.directory} held a run of {len(rows)} epochs, which "
                    "this one replaces. Name another `log_dir` to keep it, or give "
                    "`initial_epoch` to go on with it."
                )
            self.files.clear()
        last = self._rows[-1] if self._rows else {"steps": 0, "seconds": 0.0}
        taken = _steps(model)
        self._first_step = before.get("first_step", taken) if self._rows else taken
        if taken - self._first_step < last["steps"]:  # a new optimizer
            self._first_step = taken - int(last["steps"])
        self._begun = time.perf_counter() - last["seconds"]
        alarms = before.get("alarms", []) if self._rows else []
        self._settings = {
            "status": "training",
            "started": before.get("started", _now()) if self._rows else _now(),
            "first_step": self._first_step,
            **run_description(model, params),
            "alarms": alarms,
        }
        self.files.write_settings(self._settings)

    def pause(self) -> None:
        """Stops the clock until `go_on`."""
        self._aside = time.perf_counter()

    def go_on(self) -> None:
        """Starts the clock again."""
        self._begun += time.perf_counter() - self._aside

    def end_epoch(
        self, model: keras.Model, epoch: int, logs: Mapping[str, Any]
    ) -> dict[str, float]:
        """Writes the results of an epoch; returns its row.

        Args:
            model: in training.
            epoch: from 0 on.
            logs: the epoch's, with the numbers about the sampling.
        """
        self.pause()
        row: dict[str, float] = {"epoch": epoch + 1}
        row["steps"] = _steps(model) - self._first_step
        row["seconds"] = round(self._aside - self._begun, 3)
        row |= {"gain_ratio": 1.0, "effective_epochs": epoch + 1.0}  # if uniform
        row |= _numbers(logs)
        p = probabilities_of(model)
        if p is not None:
            found = np.percentile(len(p) * p, PERCENTILES)
            row |= dict(zip(map(percentile_name, PERCENTILES), found, strict=True))
            self._write_examples(model, p)
        self._rows.append(row)
        self.files.write_history(self._rows)
        self._write_settings(model)
        self.go_on()
        return row

    def end(self, model: keras.Model, status: str) -> None:
        """Writes the last alarms, and how training ended unless `status` is empty."""
        self._settings["status"] = status or self._settings["status"]
        self._write_settings(model)

    def close(self, model: keras.Model) -> None:
        """Writes the last draws, which are counted once `fit` has ended."""
        p = probabilities_of(model)
        if p is not None:
            self._write_examples(model, p)

    def _write_settings(self, model: keras.Model) -> None:
        run = run_of(model)
        told = warned_of(model) + (run.told if run is not None else [])
        alarms = dict.fromkeys(self._settings["alarms"] + told)
        self._settings["alarms"] = list(alarms)
        self._settings["updated"] = _now()
        self.files.write_settings(self._settings)

    def _write_examples(self, model: keras.Model, p: np.ndarray) -> None:
        most = model.sampling.most_sampled(_EXAMPLES)
        columns = {**most._asdict(), "probability": p[most.index]}
        self.files.write_examples(columns)
        shares = share_curve(model.sampling_state.known().times_drawn)
        arrays = {"share_of_draws": shares, **_predictions(run_of(model))}
        self.files.write_arrays(arrays)


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """Returns the logs; of a metric with a number for each class, a column for each."""
    found: dict[str, float] = {}
    for name, value in logs.items():
        each = np.asarray(value, float)
        names = [f"{name}_{i}" for i in range(each.size)] if each.ndim else [name]
        found |= dict(zip(names, each.ravel().tolist(), strict=True))
    return found


def _steps(model: keras.Model) -> int:
    iterations = inner_optimizer(model.optimizer).iterations
    return int(keras.ops.convert_to_numpy(iterations))  # also of several replicas


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def run_description(model: keras.Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns model, optimizer, sampling and data of a run, for JSON.

    Args:
        model: built and compiled.
        params: of a callback.
    """
    run, optimizer = run_of(model), inner_optimizer(model.optimizer)
    numbers = (bool, int, float, str, dict)
    options = optimizer.get_config()
    options = {k: v for k, v in options.items() if isinstance(v, numbers)}
    options.pop("name", None)  # which counts the optimizers of the process
    found = {
        "model": model.name,
        "parameters": model.count_params(),
        "optimizer": type(optimizer).__name__,
        "optimizer_options": options,
        "loss": getattr(model.loss, "name", model.loss),
        "sampling": repr(model.sampling) if run else "uniform",
        "epochs": params.get("epochs"),
        **dict(zip(("n", "batch_size"), _sizes(model), strict=True)),
        "seed": None,
    }
    if run is not None:
        found |= {
            "n": getattr(run, "n", None),  # a stream has no length
            "batch_size": run.batch_size,
            "seed": model.sampling_state.seed,
        }
    devices = [device.device_type for device in tf.config.list_logical_devices()]
    return {**found, "devices": devices, "versions": versions()}


def _sizes(model: keras.Model) -> tuple[int | None, int | None]:
    """Returns n and m of a uniform `fit` of keras_osgd, as far as they are known."""
    return getattr(getattr(model, "sampling_held", None), "sizes", (None, None))


def _predictions(run: Run) -> dict[str, np.ndarray]:
    """Returns the norms last observed, and what the uncertainty set predicts for them.

    `predicted` is <c, s>, `variance` is h <d, s>; s are the features before the draw.
    """
    window, taken = getattr(run.planner, "window", None), {}
    if window is not None:
        run.state.undivided(lambda: taken.update(window.state_dict()))
    fitted = run.state.uncertainty_set
    if fitted is None or not len(taken.get("norms", ())):
        return {}
    features = taken["features"][-_OBSERVATIONS:]
    mean, variance = (
        features @ fitted.mean,
        fitted.objective * (features @ fitted.spread),
    )
    return {
        "predicted": mean,
        "variance": variance,
        "observed": taken["norms"][-_OBSERVATIONS:],
        "weight": taken["weights"][-_OBSERVATIONS:],
    }

"""Figures of a `fit` that is under way, for bars, logs and files."""

from __future__ import annotations

from typing import Any

from keras_osgd.gain import learning_rate

__all__ = ["figures", "progress", "record"]


def progress(run: Any) -> dict[str, float]:
    """Returns gain ratio and effective epochs of a `Run` cheaply."""
    epochs = run.clock.effective_iterations() * run.batch_size / run.n
    return {
        "gain_ratio": run.planner.figures["gain_ratio"],
        "effective_epochs": epochs,
    }


def figures(run: Any) -> dict[str, float]:
    """Returns what `SamplingMonitor` shows of a `Run`; between two steps."""
    shown = dict(run.planner.figures)
    if run.scorer is not None:
        size = float(run.batch_size)
        shown["gain_ratio_exact"] = float(run.gain.current(size))
        shown["gain_ratio_last_layer"] = float(run.last_layer_gain.current(size))
    return {
        **shown,
        **progress(run),
        "sampling_share": run.planner.sampling_share(),
        "learning_rate_applied": learning_rate.applied_rate(
            run.optimizer, run.clock.gain, run.clock.lead
        ),
    }


def record(run: Any, history: dict[str, list[float]]) -> None:
    """Adds an epoch's figures, and the steps since `fit` began, to a history."""
    for name, value in {"steps": run.clock.step, **run.figures()}.items():
        history.setdefault(name, []).append(value)

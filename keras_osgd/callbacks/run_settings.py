"""What decides which examples a run draws, and what of it is another than before."""

from __future__ import annotations

import json
from typing import Any

from keras_osgd.fit.run import Run
from keras_osgd.sampling import Oracle

__all__ = ["changes", "same_table", "settings"]

_ALIKE = 10  # steps per execution up to which numbers of `RAIS` are the same


def settings(run: Run) -> dict[str, Any]:
    """Returns all that decides what is drawn, as JSON gives it back."""
    config = {**run.sampling.get_config(), "features": run.state.table.features}
    config.pop("seed", None)  # the draws go on with that of the checkpoint
    steps = run.key[2]
    alike = steps <= _ALIKE and not isinstance(run.sampling, Oracle)
    found = {
        "sampling": type(run.sampling).__name__,
        "batch_size": run.batch_size,
        "steps_per_execution": f"up to {_ALIKE}" if alike else steps,
        "learning_rate_follows_the_gain": run.adapt,
        **config,
    }
    return json.loads(json.dumps(found))


def changes(before: dict[str, Any] | None, now: dict[str, Any] | None) -> list[str]:
    """Returns what differs, in words; `None` means without importance sampling."""
    before, now = ({"sampling": "Uniform"} if s is None else s for s in (before, now))
    if before["sampling"] != now["sampling"]:
        before, now = ({"sampling": s["sampling"]} for s in (before, now))
    return [
        f"{name} {before.get(name)} → {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def same_table(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Returns whether scores are the same kind of numbers with both."""
    return all(before.get(name) == now.get(name) for name in ("features", "norm"))

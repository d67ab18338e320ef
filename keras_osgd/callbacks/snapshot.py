"""The state of a training run between two executions, collected and restored."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.replicas import copies
from keras_osgd.callbacks import method
from keras_osgd.callbacks.checkpoint_files import Saved
from keras_osgd.data.identity import Identity
from keras_osgd.data.training_data import PROBES, TrainingData
from keras_osgd.fit.fit_callback import Resumed
from keras_osgd.fit.run import Run, RunVariables
from keras_osgd.fit.strategies import scope_of
from keras_osgd.gain.learning_rate import inner_optimizer
from keras_osgd.sampling import Oracle
from keras_osgd.step.recovery import is_finite

__all__ = [
    "changes",
    "fault_of",
    "infinite",
    "load_metrics",
    "load_state_dict",
    "not_finite",
    "require_same",
    "resume",
    "state_dict",
]

_RESET = (
    "To keep the weights and start the scores afresh: "
    'Checkpoint(directory, scores="reset").'
)
_ALIKE = 10  # steps per execution up to which `RAIS` draws the same examples


def state_dict(
    model: keras.Model, run: Run | None, mid_epoch: bool, chief: bool = True
) -> Callable[[], tuple[dict[str, Any], dict[str, Any]]]:
    """Copies the variables of training; returns a function that collects all state.

    Args:
        model: built and compiled.
        run: the `fit` with importance sampling that is under way, or `None`.
        mid_epoch: whether an epoch is under way.
        chief: whether this is the first of several workers, or the only one; the others
            leave out the weights and the optimizer, which are the same on all.

    Returns:
        A function that returns arrays in nested dictionaries, and details that JSON can
        keep; call it in any thread.
    """
    variables, replicas = _taken(model, chief)
    if run is not None:
        collect = run.state_dict(mid_epoch)
    else:
        lead = model.sampling_state.lead
        stream = {} if lead is None else {"stream": {"lead": lead.numpy()}}
        collect = functools.partial(dict, stream)
    details = {
        "mid_epoch": mid_epoch,
        "settings": None if run is None else draw_settings(run.variables),
        "step": None if run is None else run.clock.step,
        "optimizer": _optimizer_of(model),
        "learning_rate": method.rate_of(model),
    }
    copied = {"variables": variables, "replicas": replicas}
    return lambda: ({**copied, **collect()}, details)


def _taken(model: keras.Model, chief: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns each variable's copy on this process's first replica, and on the others.

    Replicas differ in what is not trained, such as moving statistics and metrics.
    """
    trained = {id(variable) for variable in model.trainable_variables}
    strategy = model.distribute_strategy
    first: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for kind, of in _variables(model).items():
        first[kind], others[kind] = {}, {}
        for order, variable in enumerate(of):
            same = kind == "optimizer" or id(variable) in trained
            if same and not chief:
                continue
            own, *more = [np.array(copy.numpy()) for copy in copies(strategy, variable)]
            first[kind][str(order)] = own
            if more and not same:
                others[kind][str(order)] = np.stack(more)
    return first, others


def _variables(model: keras.Model) -> dict[str, list[keras.Variable]]:
    return {
        "model": model.variables,  # seeds too, which `save_weights` leaves out
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }


def infinite(model: keras.Model) -> list[int]:
    """Returns the places, in `model.variables`, of constants that are infinite.

    They are not trained, have an infinite entry and no NaN, such as a mask's.
    """
    trained = {id(v) for v in model.trainable_variables}
    return [
        place
        for place, variable in enumerate(model.variables)
        if id(variable) not in trained
        and not is_finite(keras_compat.tensor_of(variable))
        and not np.isnan(keras.ops.convert_to_numpy(variable)).any()
    ]


def not_finite(
    model: keras.Model, arrays: Mapping[str, Any], allowed: Sequence[int]
) -> list[str]:
    """Returns the weights, statistics and optimizer slots that must not be saved.

    Args:
        model: that the arrays belong to.
        arrays: of each kind, as in `state_dict`.
        allowed: places, in `model.variables`, of those that may be infinite.
    """
    found = []
    for kind in ("model", "optimizer"):
        names = [v.path for v in _variables(model)[kind]] if model.compiled else []
        for order, array in arrays.get(kind, {}).items():
            place = int(order)
            constant = kind == "model" and place in allowed
            if _finite(array) or constant and not np.isnan(array).any():
                continue
            found.append(names[place] if place < len(names) else f"{kind} {place}")
    return found


def _finite(array: np.ndarray) -> bool:
    return array.dtype.kind not in "fV" or bool(np.isfinite(array).all())


def fault_of(model: keras.Model, saved: Saved) -> str:
    """Returns why no training can go on from a checkpoint, or "".

    Later ones were looked at when they were written.
    """
    if "infinite" in saved.details:
        return ""
    names = not_finite(model, saved.arrays["variables"], infinite(model))
    return f"not finite in {', '.join(names)}" if names else ""


def _optimizer_of(model: keras.Model) -> str:
    return type(inner_optimizer(model.optimizer)).__name__


def load_state_dict(model: keras.Model, saved: Saved) -> None:
    """Restores weights, seeds and optimizer.

    A learning rate is left as it is if the checkpoint was made with a schedule.

    Args:
        model: built and compiled.
        saved: checkpoint with the arrays of `state_dict`.

    Raises:
        ValueError: before anything is changed, see `require_same`.
    """
    require_same(model, saved)
    for kind in ("model", "optimizer"):
        _assign(model, saved, kind)
    if "stream" in saved.arrays and hasattr(model, "sampling_state"):
        model.sampling_state.load_lead(saved.arrays["stream"]["lead"])


def require_same(model: keras.Model, saved: Saved) -> None:
    """Builds the optimizer; refuses a checkpoint of another model or optimizer.

    Args:
        model: built.
        saved: checkpoint with the arrays of `state_dict`.

    Raises:
        ValueError: if the arrays belong to another model or optimizer, or the model is
            not compiled.
    """
    if not model.compiled:
        raise ValueError(
            "The model must be compiled as in training to take over a checkpoint. "
            f"Received: {type(model).__name__} {model.name!r}, which is not compiled. "
            "Call `model.compile` first."
        )
    _check_optimizer(model, saved)
    if not model.optimizer.built:  # built twice, `LossScaleOptimizer` adds variables
        with scope_of(model):
            model.optimizer.build(model.trainable_variables)
    for kind in ("model", "optimizer"):
        _check_variables(model, saved, kind)


def load_metrics(model: keras.Model, data: TrainingData, saved: Saved) -> None:
    """Restores an epoch's running loss and metrics, unless `compile` has others."""
    compiled = method.described(model)["metrics"]
    if (saved.details.get("method") or {}).get("metrics", compiled) != compiled:
        return
    x, y, _ = data.batch(slice(1))
    y_pred = keras_compat.call_model(model, x, False)
    y_pred = keras.tree.map_structure(keras.ops.zeros_like, y_pred)  # never NaN
    model.compute_metrics(x, y, y_pred)  # some metrics are built by their first update
    model.reset_metrics()
    found = [v.shape for v in _variables(model)["metrics"]]
    if found == [v.shape for v in _arrays(model, saved, "metrics")]:
        _assign(model, saved, "metrics")


def _arrays(model: keras.Model, saved: Saved, kind: str) -> list[np.ndarray]:
    """Returns the arrays for the model's variables, as far as they are the same.

    Only a constant learning rate is a variable: that of a checkpoint is left out where
    a schedule goes on, and where it had a schedule the model's own rate goes on.
    """
    arrays = saved.arrays["variables"].get(kind, {})
    found = [arrays[str(order)] for order in range(len(arrays))]
    if kind != "optimizer" or "learning_rate" not in saved.details:
        return found
    before, now = saved.details["learning_rate"], method.rate_of(model)
    if (before is None) != (now is None):
        outer, inner = model.optimizer, inner_optimizer(model.optimizer)
        # The inner optimizer's come last: the steps, the rate, and all others.
        place = len(outer.variables) - len(inner.variables) + 1
        own = [] if now is None else [np.array(now, np.float32)]
        found[place : place + (before is not None)] = own
    return found


def _check_optimizer(model: keras.Model, saved: Saved) -> None:
    """Refuses another class, whose variables may have the same shapes."""
    now = _optimizer_of(model)
    before = saved.details.get("optimizer", now)  # early checkpoints do not have it
    if before != now:
        raise ValueError(
            "The checkpoint must have been made with this optimizer. Received: "
            f"{before} in {saved.path}, where the model has {now}. Compile the model "
            "as it was, or take another directory."
        )


def _check_variables(model: keras.Model, saved: Saved, kind: str) -> None:
    variables, arrays = _variables(model)[kind], _arrays(model, saved, kind)
    found = [(v.path, tuple(v.shape)) for v in variables]
    shapes = [array.shape for array in arrays]
    if [shape for _, shape in found] == shapes:
        return
    pairs = zip(found, shapes, strict=False)
    differ = [f"{path} of shape {shape}" for (path, shape), s in pairs if shape != s]
    raise ValueError(
        f"The checkpoint must have been made with this {kind}. Received: "
        f"{len(shapes)} variables in {saved.path}, where the {kind} has {len(found)}"
        f"{', such as ' + differ[0] + ', of another shape' if differ else ''}. "
        "Build and compile the model as it was, or take another directory."
    )


def _assign(model: keras.Model, saved: Saved, kind: str) -> None:
    others = saved.arrays.get("replicas", {}).get(kind, {})
    pairs = zip(_variables(model)[kind], _arrays(model, saved, kind), strict=True)
    for order, (v, array) in enumerate(pairs):
        own = copies(model.distribute_strategy, v)
        values = [array, *others.get(str(order), ())]
        if len(values) != len(own):
            values = _for_others(values, len(own), kind)
        for copy, value in zip(own, values, strict=True):
            copy.assign(tf.cast(value, copy.dtype))


def _for_others(
    values: Sequence[np.ndarray], count: int, kind: str
) -> list[np.ndarray]:
    """Returns the values of another number of replicas: sums of metrics stay sums."""
    if kind == "metrics":
        return [sum(values), *[np.zeros_like(values[0])] * (count - 1)]
    return [values[0]] * count


def resume(
    variables: RunVariables | None,
    data: TrainingData | None,
    saved: Saved,
    about: Mapping[str, Any],
    setter: str = "",
) -> Resumed:
    """Restores a run's state from a checkpoint; returns where `fit` goes on.

    Args:
        variables: those of the run that begins, or `None` without importance sampling.
        data: the training data; unused without importance sampling.
        saved: the checkpoint.
        about: details that checkpoints of this `fit` will have: "epochs", "scores",
            "columns", "steps_per_epoch", "n_of_all", "workers" and "method", with or
            without the layers.
        setter: see `method.line_on_rates`.

    Raises:
        ValueError: if the checkpoint was made for other data and scores are kept.
    """
    details = saved.details
    more, scores = about["epochs"] > details["epochs"], about["scores"]
    if scores == "reset" and not (details["finished"] and more):
        scores = "keep" if _began_afresh(variables, saved) else "reset"
    about = {**about, "scores": scores}
    resumed = _resume(variables, data, saved, about, setter)
    if not details["finished"] or more:
        return resumed
    line = (
        f"Training was complete after epoch {saved.details['epoch']}: its end is "
        f"loaded from {saved.path}. To train on, set more `epochs`; to train afresh, "
        "take another directory."
    )
    return resumed._replace(epoch=about["epochs"], line=line)


def _began_afresh(variables: RunVariables | None, saved: Saved) -> bool:
    """Returns whether the scores were already reset for this data."""
    reset = saved.details.get("scores") == "reset"
    if variables is None or not reset or saved.details["settings"] is None:
        return False
    changed = _identity(saved).changed(variables.state.identity)
    return changed is not None and not len(changed)


def _identity(saved: Saved) -> Identity:
    """Returns the identity of the data that a run with importance sampling had."""
    return Identity.of(saved.arrays["state"])


def _resume(
    variables: RunVariables | None,
    data: TrainingData | None,
    saved: Saved,
    about: Mapping[str, Any],
    setter: str,
) -> Resumed:
    details, arrays = saved.details, saved.arrays
    epoch, before = details["epoch"], details["settings"]
    now = None if variables is None else draw_settings(variables)
    sampled, scores = variables is not None and before is not None, about["scores"]
    found, changed = changes(before, now), np.zeros(0, np.int64)
    if sampled:
        if scores == "keep":
            changed = _changed_rows(variables, data, saved, about)
        found += _changes_of_fit(details, about, changed)
    metrics = sampled and details["mid_epoch"]  # else they begin anew
    other = method.differences(details.get("method"), about["method"], metrics)
    line = functools.partial(_line, saved, about["method"], setter)
    if not sampled:
        found += ["scores start afresh"] * (scores == "reset")
        found = found or ["batches of uniform training are drawn anew"]
        place = "from the epoch's beginning" if details["mid_epoch"] else ""
        return Resumed(epoch, None, 0.0, line(place, [*found, *other]))
    if not found:
        exact = _exactness(saved, variables.state.identity, data.n)
        _load_scores(variables, data, saved, changed)
        # Matters only at the end of training; early checkpoints lack it.
        if details["finished"] and details.get("altered"):
            other.insert(0, details["altered"])
        place = f"at step {details['step']}"
        return Resumed(epoch, arrays, 0.0, line(place, other, exact))
    if scores == "keep" and same_table(before, now):
        _load_scores(variables, data, saved, changed)
        variables.state.owed = np.zeros(data.n)  # its plan is dropped
    variables.state.load_lead(arrays["state"]["lead"])
    done, progress = float(arrays["clock"]["done"]), _effective_epochs(saved)
    return Resumed(epoch, None, done, line("", [*found, *other]), progress)


def _changes_of_fit(
    details: Mapping[str, Any], about: Mapping[str, Any], changed: np.ndarray
) -> list[str]:
    """Returns in words what differs beside the settings of the draws."""
    found, name = [], "steps_per_epoch"
    workers = details.get("workers", 1), about["workers"]
    if workers[0] != workers[1]:
        found.append("workers {} → {}".format(*workers))
    if details.get(name, about[name]) != about[name]:  # early checkpoints lack it
        found.append(f"{name} {details[name]} → {about[name]}")
    if len(changed):
        rows = f"{len(changed)} of {about['n']} rows changed"
        found.append(f"{rows}, their scores start afresh")
    if about["scores"] == "reset":
        found.append("scores start afresh")
    return found


def _effective_epochs(saved: Saved) -> float:
    """Returns the progress of a run with importance sampling, in epochs."""
    _, remaining, granted = saved.arrays["clock"]["iterations"].tolist()
    size, details = saved.details["settings"]["batch_size"], saved.details
    n = details.get("n_of_all", details["n"])  # early checkpoints lack it
    return (granted - remaining) * size / n


def _exactness(saved: Saved, now: Identity, n: int) -> str:
    """Returns how exactly training goes on where no difference was found."""
    unknown = _identity(saved).differing(now) is None
    if n <= PROBES or now.whole and not unknown:
        return "bit-exact"
    where = "" if unknown else " on the disk"
    return f"bit-exact if the rows{where} are the same ({PROBES} of them were compared)"


def _line(
    saved: Saved,
    compiled: Mapping[str, Any],
    setter: str,
    place: str,
    inexact: list[str],
    exact: str = "bit-exact",
) -> str:
    """Returns the line on where training goes on, how exactly, and at which rate."""
    begun = f"Resumed epoch {saved.details['epoch'] + 1} from {saved.path}"
    exact = f"not bit-exact: {'; '.join(inexact)}" if inexact else exact
    parts = ", ".join(filter(None, (begun, place, exact)))
    return f"{parts}.{method.line_on_rates(saved.details, compiled, setter)}"


def _load_scores(
    variables: RunVariables, data: TrainingData, saved: Saved, changed: np.ndarray
) -> None:
    state, identity = variables.state, variables.state.identity
    state.load_state_dict(saved.arrays["state"])
    classes = data.classes() if len(changed) else None
    state.undivided(state.forget, changed, classes, identity)


def _changed_rows(
    variables: RunVariables,
    data: TrainingData,
    saved: Saved,
    about: Mapping[str, Any],
) -> np.ndarray:
    """Returns `[k]`, the rows that differ; refuses data of which most rows do."""
    n = saved.details["n"]
    if n != data.n:
        n = saved.details.get("n_of_all", n)
        raise ValueError(
            f"The checkpoint {saved.path} was made for {n} examples, the data has "
            f"{about['n_of_all']}. {_RESET}"
        )
    before, now = _identity(saved), variables.state.identity
    changed = before.changed(now)
    if changed is not None:
        return changed
    columns = about["columns"]
    others = _pairs(saved.details.get("columns", columns), columns)
    if others:  # early checkpoints lack them
        raise ValueError(
            f"The checkpoint {saved.path} was made for other columns or types: "
            f"{'; '.join(others)}. Pass the data as it was. {_RESET}"
        )
    differing = before.differing(now)
    if differing is not None:
        found = f"{len(differing)} of {n} rows differ"
    else:
        differ = np.count_nonzero(saved.arrays["probes"] != data.probes())
        found = f"the fingerprint differs ({differ} of {PROBES} probe rows)"
    raise ValueError(
        f"The checkpoint {saved.path} was made for other rows, or the same in another "
        f"order: {found}. Pass the data as it was. {_RESET}"
    )


def draw_settings(variables: RunVariables) -> dict[str, Any]:
    """Returns all settings that decide the draws, as JSON gives them back."""
    sampling, key = variables.sampling, variables.key
    config = {**sampling.get_config(), "features": variables.state.table.features}
    config.pop("seed", None)  # the checkpoint's seed stays in use
    steps = key.steps_per_execution
    alike = steps <= _ALIKE and not isinstance(sampling, Oracle)
    found = {
        "sampling": sampling.name,
        "batch_size": key.batch_size,
        "steps_per_execution": f"up to {_ALIKE}" if alike else steps,
        "learning_rate_follows_the_gain": key.adapt,
        **config,
    }
    if config.get("draws") == "reshuffled":  # early checkpoints: weight
        found["unit_of_what_is_owed"] = "visits"
    return json.loads(json.dumps(found))


def changes(before: dict[str, Any] | None, now: dict[str, Any] | None) -> list[str]:
    """Returns the changed settings, in words; `None` means no importance sampling."""
    before, now = ({"sampling": "Uniform"} if s is None else s for s in (before, now))
    if before["sampling"] != now["sampling"]:
        before, now = ({"sampling": s["sampling"]} for s in (before, now))
    return _pairs(before, now)


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {before.get(name)} → {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def same_table(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Returns whether the scores of both settings are numbers of the same kind."""
    return all(before.get(name) == now.get(name) for name in ("features", "norm"))

"""Finds everything that stands in the way of importance sampling, before training."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import keras

from keras_osgd import checks, losses, training_data
from keras_osgd.oracle import refresh_steps
from keras_osgd.sampling import RAIS, Oracle, Sampling, Uniform
from keras_osgd.sampling import get as get_sampling

__all__ = ["Finding", "check"]

_SAYING_NOTHING = ("Exception encountered", "in user code", "Traceback", "File ")


class Finding(NamedTuple):
    """One thing to know before training.

    Attributes:
        kind: "error" (`fit` raises), "warning" (`fit` warns) or "note".
        text: what must hold, what was found and what to do.
    """

    kind: Literal["error", "warning", "note"]
    text: str

    def __str__(self) -> str:
        """Returns one paragraph."""
        return f"{self.kind}: {self.text}"


def check(
    model: keras.Model,
    x: Any,
    y: Any,
    sample_weight: Any = None,
    batch_size: int = 32,
    sampling: Any = None,
    print_fn: Callable[[str], None] | None = print,
    class_weight: dict | None = None,
) -> list[Finding]:
    """Finds every obstacle to importance sampling at once, each with its remedy.

    Nothing is trained and no weight is changed. Where exact gradient norms are not
    asked for, what stands in their way is only noted.

    Args:
        model: a compiled Keras model, of whatever class.
        x: as in `fit`; all of it is checked, a few examples are run.
        y: as in `fit`.
        sample_weight: as in `fit`.
        batch_size: as in `fit`.
        sampling: as in `keras_osgd.Model.compile`; `None` takes the model's own.
        print_fn: called with each finding; `None` prints nothing.
        class_weight: as in `fit`.

    Returns:
        The findings, errors first; empty where there is nothing to say.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        >>> x, y = np.zeros([8, 2]), np.full([8], 7)
        >>> [finding] = check(model, x, y, batch_size=4, print_fn=None)
        >>> finding.text[:51]
        'y has label 7 at index 0 but the model has 3 output'
    """
    method = get_sampling(sampling or getattr(model, "sampling", "rais"))
    warned = vars(model).pop("_keras_osgd_warned", None)
    try:
        given = (x, y, sample_weight, class_weight)
        findings = _findings(model, method, given, batch_size)
    finally:  # `fit` is to warn all the same
        vars(model).pop("_keras_osgd_warned", None)
        if warned is not None:
            vars(model)["_keras_osgd_warned"] = warned
    findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.kind))
    for finding in findings if print_fn else ():
        print_fn(str(finding))
    return findings


def _findings(
    model: keras.Model, method: Sampling, given: tuple, batch_size: int
) -> list[Finding]:
    if isinstance(method, Uniform):
        text = (
            'sampling="uniform" is Keras\' own training: nothing can stand in its way.'
        )
        return [Finding("note", text)]
    if not model.compiled:
        text = "The model must be compiled. Received: one that is not. Call `compile`."
        return [Finding("error", text)]
    findings: list[Finding] = []

    def tried(function: Callable, *args: Any, noted: bool = False) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return function(*args)
            except ValueError as error:
                findings.append(Finding("error", str(error)))
            except Exception as error:
                if not noted:
                    raise
                findings.append(Finding("error", _line_of(error)))
            finally:
                texts = [str(w.message) for w in caught if w.category is UserWarning]
                findings.extend(Finding("warning", text) for text in texts)
        return None

    tried(checks.check_model, model)
    data = tried(training_data.prepare, *given, batch_size, None)
    described = None if data is None else tried(losses.describe, model, data)
    if described is not None:
        tried(checks.warn_of_what_follows_the_draws, model)
        line = tried(checks.check_size, model, method, data)
        findings.extend([Finding("note", line)] if line else [])
        tried(checks.check_optimizer, model, method)
        tried(_try_plans, model, method, data)
        _try_exact_norms(model, method, described, data, findings, tried)
    return list(dict.fromkeys(findings))


def _try_plans(model, method: RAIS | Oracle, data) -> None:
    """Warns of, or refuses, what the planner would in the course of training."""
    if checks.has_no_bound(method, data):
        checks.warn_of_floor(model, method)
    if isinstance(method, Oracle):
        refresh_steps(method, data.n, data.batch_size, model.steps_per_execution)


def _line_of(error: Exception) -> str:
    """Returns the first line of an error that says something, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m|\{\{.*?\}\}", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(_SAYING_NOTHING)]
    return f"{type(error).__name__}: {[*said, *lines, 'no message'][0]}"


def _try_exact_norms(model, method: Sampling, described, data, findings, tried) -> None:
    """Takes exact norms of three examples, as in training."""
    if not model.trainable_weights:
        return
    before = len(findings)
    noted = method.norm != "exact"
    exact = RAIS(norm="exact") if noted else method
    tried(checks.prepare_scorer, model, exact, described, data, noted=noted)
    if not noted:
        return
    for i, finding in enumerate(findings[before:], start=before):
        text = f"With exact gradient norms, which are not asked for: {finding.text}"
        findings[i] = Finding("note", text)

"""Finds everything that stands in the way of importance sampling, before training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import keras

from keras_osgd import checks, losses, training_data
from keras_osgd.sampling import RAIS, Sampling, Uniform
from keras_osgd.sampling import get as get_sampling

__all__ = ["Finding", "check"]


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
        findings = _findings(model, method, (x, y, sample_weight), batch_size)
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

    def tried(function: Callable, *args: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return function(*args)
            except ValueError as error:
                findings.append(Finding("error", str(error)))
            finally:
                texts = [str(w.message) for w in caught if w.category is UserWarning]
                findings.extend(Finding("warning", text) for text in texts)
        return None

    tried(checks.check_model, model)
    data = tried(training_data.prepare, *given, None, batch_size, None)
    described = None if data is None else tried(losses.describe, model, data)
    if described is not None:
        tried(checks.warn_of_unweighted_losses, model)
        line = tried(checks.check_size, model, method, data)
        findings.extend([Finding("note", line)] if line else [])
        tried(checks.check_optimizer, model, method)
        _try_exact_norms(model, method, described, data, findings, tried)
    return list(dict.fromkeys(findings))


def _try_exact_norms(model, method: RAIS, described, data, findings, tried) -> None:
    """Takes exact norms of three examples, as in training."""
    if not model.trainable_weights:
        return
    before = len(findings)
    tried(checks.prepare_scorer, model, RAIS(norm="exact"), described, data)
    if method.norm == "exact":
        return
    for i, finding in enumerate(findings[before:], start=before):
        text = f"With exact gradient norms, which are not asked for: {finding.text}"
        findings[i] = Finding("note", text)

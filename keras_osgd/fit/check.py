"""Finds everything that stands in the way of importance sampling, before training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import keras

from keras_osgd.base.refusals import Refusals
from keras_osgd.data import streams, training_data
from keras_osgd.data.datasets import from_dataset
from keras_osgd.data.streams import Stream
from keras_osgd.data.training_data import TrainingData
from keras_osgd.draws.oracle import refresh_steps
from keras_osgd.fit import checks, strategies
from keras_osgd.fit.arguments import FitArguments
from keras_osgd.fit.run import RunKey, RunVariables
from keras_osgd.losses.described import OutputLoss, describe
from keras_osgd.norms.scorer import Scorer
from keras_osgd.pools.stream_run import StreamRun
from keras_osgd.sampling import RAIS, Oracle, Presample, Sampling, Uniform
from keras_osgd.sampling import get as get_sampling
from keras_osgd.step import metrics, own_train_step
from keras_osgd.step.metrics import Shown

__all__ = [
    "Examined",
    "ExaminedStream",
    "Finding",
    "check",
    "examine",
    "examine_stream",
]


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
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int | None = None,
    sampling: Any = None,
    print_fn: Callable[[str], None] | None = print,
    class_weight: dict | None = None,
) -> list[Finding]:
    """Finds every obstacle to importance sampling at once, each with its remedy.

    Nothing is trained and no weight is changed. Obstacles to exact gradient norms are
    only noted where these are not asked for.

    Args:
        model: a compiled Keras model, of any class.
        x: as in `fit`, datasets too; all of it is checked, a few examples are run.
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
        arguments = FitArguments(
            x,
            y,
            batch_size=batch_size,
            sample_weight=sample_weight,
            class_weight=class_weight,
        )
        findings = _findings(model, method, arguments)
    finally:  # `fit` must still warn
        vars(model).pop("_keras_osgd_warned", None)
        if warned is not None:
            vars(model)["_keras_osgd_warned"] = warned
    findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.kind))
    for finding in findings if print_fn else ():
        print_fn(str(finding))
    return findings


def _findings(
    model: keras.Model, method: Sampling, arguments: FitArguments
) -> list[Finding]:
    if isinstance(method, Uniform):
        text = (
            'sampling="uniform" is Keras\' own training: nothing can stand in its way.'
        )
        return [Finding("note", text)]
    if not model.compiled:
        text = "The model must be compiled. Received: one that is not. Call `compile`."
        return [Finding("error", text)]
    refusals, asides = Refusals(), Refusals(all_kinds=True)
    if isinstance(method, Presample):
        with _caught() as caught:
            one = arguments.replace(steps_per_epoch=1)
            examine_stream(refusals, model, method, one)
        findings = [Finding("error", text) for text in refusals.texts]
        return findings + [Finding("warning", text) for text in _texts(caught)]
    x, _ = refusals.tried(from_dataset, arguments.x, None, False) or (None, None)
    if refusals.texts:
        return [Finding("error", text) for text in refusals.texts]
    with _caught() as caught:
        seen = examine(refusals, model, method, arguments.replace(x=x))
        if seen.data is not None and checks.has_no_bound(method, seen.data):
            checks.warn_of_floor(model, method)
    findings = [Finding("error", text) for text in refusals.texts]
    findings += [Finding("warning", text) for text in _texts(caught)]
    findings += [Finding("note", seen.line)] if seen.line else []
    if method.norm != "exact" and seen.losses and model.trainable_weights:
        exact = RAIS(norm="exact")
        with _caught() as caught:
            asides.tried(checks.prepare_scorer, model, exact, seen.losses, seen.data)
        findings += [
            Finding("note", f"With exact gradient norms, which are not asked for: {t}")
            for t in (*asides.texts, *_texts(caught))
        ]
    return list(dict.fromkeys(findings))


def _caught() -> warnings.catch_warnings:
    return warnings.catch_warnings(record=True, action="always")


def _texts(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if w.category is UserWarning]


class Examined(NamedTuple):
    """Data, losses and scorer of a `fit`, found before the first step.

    Attributes:
        data: the training data; `None` where they were refused.
        losses: described; empty where they were refused.
        metrics: how each metric of `compile` is shown.
        adapt: whether the learning rate can follow the gain ratio.
        scorer: takes exact norms; `None` where those are not asked for.
        line: a line of information, or `None`.
    """

    data: TrainingData | None
    losses: list[OutputLoss]
    metrics: tuple[Shown, ...]
    adapt: bool
    scorer: Scorer | None
    line: str | None


class ExaminedStream(NamedTuple):
    """Stream and losses of a `fit`, found before the first step.

    Attributes:
        stream: `None` where it was refused.
        losses: described; empty where they were refused.
        metrics: how each metric of `compile` is shown.
        adapt: whether the learning rate can follow the gain ratio.
    """

    stream: Stream | None
    losses: list[OutputLoss]
    metrics: tuple[Shown, ...]
    adapt: bool


def examine(
    refusals: Refusals,
    model: keras.Model,
    method: RAIS | Oracle,
    arguments: FitArguments,
    earlier: RunVariables | None = None,
) -> Examined:
    """Looks for obstacles to importance sampling, for `fit` and `check` alike.

    Args:
        refusals: collects errors, so that one does not hide the others.
        model: compiled.
        method: the sampling method.
        arguments: of `fit`; a dataset has been read.
        earlier: variables of the last run; what was found of metrics, and the scorer,
            serve again if nothing that they depend on has changed.
    """
    data = refusals.tried(
        training_data.prepare,
        arguments.x,
        arguments.y,
        arguments.sample_weight,
        arguments.class_weight,
        arguments.batch_size,
        arguments.steps_per_epoch,
    )
    if data is None:
        return Examined(None, [], (), False, None, None)
    refusals.tried(strategies.require_strategy, model, method, data)
    described = refusals.tried(describe, model, data) or []
    if described:
        checks.warn_of_what_follows_the_draws(model)
    line = refusals.tried(checks.require_size, model, method, data)
    if isinstance(method, Oracle):
        sizes = data.n, data.batch_size, model.steps_per_execution
        refusals.tried(refresh_steps, method, *sizes)
    if not model.built:
        return Examined(data, described, (), False, None, line)
    adapt = bool(refusals.tried(checks.rate_can_follow, model, method))
    serves = earlier and earlier.serves(RunKey.of(model, data, adapt), described)
    step = earlier.step_state if serves else None
    shown: tuple[Shown, ...] = ()
    if described:
        shown = step.metrics if step else metrics.try_out(model, data)
    alone = strategies.replicas_of(model) == 1
    if described and model.trainable_weights and alone:
        tried = model, described, shown, data, method.norm
        refusals.tried(own_train_step.verify, *tried)
    if step:
        return Examined(data, described, shown, adapt, step.scorer, line)
    scorer = None
    if model.trainable_weights:
        scorer = refusals.tried(checks.prepare_scorer, model, method, described, data)
    return Examined(data, described, shown, adapt, scorer, line)


def examine_stream(
    refusals: Refusals,
    model: keras.Model,
    method: Presample,
    arguments: FitArguments,
    earlier: StreamRun | None = None,
) -> ExaminedStream:
    """Looks for obstacles to sampling within pools.

    Args:
        refusals: collects errors.
        model: compiled; built by the first batch if it is not.
        method: the sampling method.
        arguments: of `fit`.
        earlier: the last run, as in `examine`.
    """
    refusals.tried(strategies.refuse_streams, model)
    stream = refusals.tried(
        streams.opened,
        arguments.x,
        arguments.y,
        arguments.sample_weight,
        arguments.class_weight,
        arguments.batch_size,
        arguments.steps_per_epoch,
        arguments.shuffle,
    )
    if stream is None:
        return ExaminedStream(None, [], (), False)
    described = refusals.tried(describe, model, stream.first) or []
    if not (described and model.built):
        return ExaminedStream(stream, described, (), False)
    checks.warn_of_what_follows_the_draws(model)
    adapt = bool(refusals.tried(checks.rate_can_follow, model, method))
    if earlier is not None and earlier.serves(described, adapt):
        shown = earlier.step_state.metrics
    else:
        shown = metrics.try_out(model, stream.first)
    if model.trainable_weights:
        tried = model, described, shown, stream.first, method.norm
        refusals.tried(own_train_step.verify, *tried)
    return ExaminedStream(stream, described, shown, adapt)

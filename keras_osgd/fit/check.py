"""Finds everything that stands in the way of importance sampling, before training."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import keras

from keras_osgd.base.model_state import build, seeds_kept, state_kept
from keras_osgd.base.refusals import Refusals
from keras_osgd.base.replacing import replaced
from keras_osgd.data import datasets, streams, training_data
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.streams import Stream
from keras_osgd.data.training_data import TrainingData
from keras_osgd.draws.oracle import refresh_steps
from keras_osgd.fit import checks, strategies
from keras_osgd.fit.arguments import FitArguments, require_arguments
from keras_osgd.fit.fit_callback import ResumingCallback
from keras_osgd.fit.run import RunKey, RunVariables
from keras_osgd.losses import probe
from keras_osgd.losses.described import OutputLoss, WithoutLoss, describe
from keras_osgd.norms.scorer import Scorer
from keras_osgd.pools.stream_run import StreamRun
from keras_osgd.sampling import RAIS, Auto, Oracle, Presample, Sampling, Uniform
from keras_osgd.sampling import get as get_sampling
from keras_osgd.step import metrics, own_train_step
from keras_osgd.step.metrics import Shown
from keras_osgd.step.recovery import require_finite

__all__ = [
    "Examined",
    "ExaminedStream",
    "Finding",
    "check",
    "examine",
    "examine_stream",
    "require_alone",
    "require_enough",
    "require_worth_reading",
]


_UNTRIED = (
    "Model and loss were not tried, since the data were refused: call `check` again "
    "with data that are not."
)


class Finding(NamedTuple):
    """One thing to know before training.

    Attributes:
        kind: "error" (`fit` raises), "reason" (`fit` trains as in Keras), "warning"
            (`fit` warns) or "note".
        text: what must hold, what was found and what to do.
    """

    kind: Literal["error", "reason", "warning", "note"]
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
    only noted where these are not asked for. Where the data are refused, as without y,
    model and loss cannot be tried, and a note says so.

    Whether a loss couples the examples of a batch is tried on five of them. It is not
    seen if these do not show it, if the loss draws random numbers, or if a layer of
    yours couples them, as by batch statistics. Your own `train_step` is tried on one
    batch, by the gradients of single examples' losses with respect to x, y and what
    layers make of whole numbers. Mixtures of whole numbers themselves, and comparisons
    behind a `stop_gradient`, are not seen, nor examples that `tf.random.shuffle` mixes.

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
    method = get_sampling(sampling or getattr(model, "sampling", "auto"))
    arguments = FitArguments(
        x,
        y,
        batch_size=batch_size,
        sample_weight=sample_weight,
        class_weight=class_weight,
    )
    with replaced(model, {"_keras_osgd_warned": {}}):  # `fit` must still warn
        findings = _findings(model, method, arguments)
    if isinstance(method, Auto) and model.compiled:
        findings = [
            Finding("reason", f.text) if f.kind == "error" else f for f in findings
        ]
    kinds = ("error", "reason", "warning", "note")
    findings.sort(key=lambda finding: kinds.index(finding.kind))
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
    refusals, asides = Refusals(), Refusals()
    refusals.tried(require_arguments, arguments)
    if isinstance(method, Presample) and not refusals.texts:
        with _caught() as caught:
            one = arguments.replace(steps_per_epoch=1)
            seen = examine_stream(refusals, model, method, one)
        lines = [checks.line_on_rate(model, method, seen.adapt)]
        return _as_findings(refusals, caught, lines)
    if isinstance(method, Auto) and not refusals.texts:
        refusals.tried(require_worth_reading, model, method, arguments)
    if not refusals.texts:
        read = refusals.tried(datasets.from_dataset, arguments.x, None, False)
    if refusals.texts:
        return [Finding("error", text) for text in refusals.texts]
    with _caught() as caught:
        seen = examine(refusals, model, method, arguments.with_examples(read[0]))
        if seen.data is not None and checks.has_no_bound(method, seen.data):
            checks.warn_of_floor(model, method)
    lines = [seen.line, checks.line_on_rate(model, method, seen.adapt)]
    lines += [_UNTRIED] * (seen.data is None)
    findings = _as_findings(refusals, caught, lines)
    if method.norm != "exact" and seen.losses and model.trainable_weights:
        exact = RAIS(norm="exact")
        with _caught() as caught:
            asides.tried(checks.prepare_scorer, model, exact, seen.losses, seen.data)
        findings += [
            Finding("note", f"With exact gradient norms, which are not asked for: {t}")
            for t in (*asides.texts, *_texts(caught))
        ]
    return list(dict.fromkeys(findings))


def _as_findings(
    refusals: Refusals,
    caught: list[warnings.WarningMessage],
    lines: list[str | None],
) -> list[Finding]:
    """Returns errors, warnings and, of the lines that there are, notes."""
    texts = ("error", refusals.texts), ("warning", _texts(caught))
    texts += (("note", filter(None, lines)),)
    return [Finding(kind, text) for kind, some in texts for text in some]


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
        handed: whether a user's own step gets the weights with its data.
    """

    data: TrainingData | None
    losses: list[OutputLoss]
    metrics: tuple[Shown, ...]
    adapt: bool
    scorer: Scorer | None
    line: str | None
    handed: bool = True


class ExaminedStream(NamedTuple):
    """Stream and losses of a `fit`, found before the first step.

    Attributes:
        stream: `None` where it was refused.
        losses: described; empty where they were refused.
        metrics: how each metric of `compile` is shown.
        adapt: whether the learning rate can follow the gain ratio.
        handed: whether a user's own step gets the weights with its data.
    """

    stream: Stream | None
    losses: list[OutputLoss]
    metrics: tuple[Shown, ...]
    adapt: bool
    handed: bool = True


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
        model.loss,
    )
    if data is None:
        if isinstance(method, Auto):
            refusals.tried(require_enough, method, arguments)
        return Examined(None, [], (), False, None, None)
    with _without_a_trace(model, data):
        return _examine(refusals, model, method, (arguments, data), earlier)


@contextlib.contextmanager
def _without_a_trace(model: keras.Model, data: TrainingData) -> Iterator[None]:
    """Builds the model, and restores after the block all that a trial may change."""
    with contextlib.suppress(Exception):  # the trial says better what is amiss
        build(model, lambda: data.batch(probe.rows(data))[0])
    with state_kept(model), seeds_kept():
        yield


def _examine(
    refusals: Refusals,
    model: keras.Model,
    method: RAIS | Oracle,
    given: tuple[FitArguments, TrainingData],
    earlier: RunVariables | None,
) -> Examined:
    arguments, data = given
    refusals.tried(strategies.require_strategy, model, method, data)
    refusals.tried(_require_finite, model, arguments)
    held_out = training_data.targets_held_out(arguments.validation_data)
    described = refusals.tried(_described, model, data, held_out) or []
    if described:
        checks.warn_of_what_follows_the_draws(model)
    line = refusals.tried(checks.require_size, model, method, data)
    if isinstance(method, Auto):
        steps = arguments.steps_per_epoch or -(-data.n // data.batch_size)
        refusals.tried(method.require_enough, data.n, steps)
    if isinstance(method, Oracle):
        sizes = data.n, data.batch_size, model.steps_per_execution
        refusals.tried(refresh_steps, method, *sizes)
    if not model.built:
        return Examined(data, described, (), False, None, line)
    shown, handed = _shown(model, described, data, earlier), True
    if described and model.trainable_weights:
        given = data.arrays[2] is not None
        tried = model, described, shown, data, method.norm, given
        handed = bool(refusals.tried(own_train_step.verify, *tried))
    adapt, scorer = bool(refusals.tried(checks.rate_can_follow, model, method)), None
    key = RunKey.of(model, data, adapt, handed)
    if earlier is not None and earlier.serves(key, described):
        scorer = earlier.step_state.scorer
    elif model.trainable_weights:
        scorer = refusals.tried(checks.prepare_scorer, model, method, described, data)
    return Examined(data, described, shown, adapt, scorer, line, handed)


def _described(
    model: keras.Model, data: TrainingData, held_out: Any
) -> list[OutputLoss]:
    try:
        return describe(model, data, held_out)
    except WithoutLoss:
        own_train_step.require_compute_loss(model)
        raise


def _require_finite(model: keras.Model, arguments: FitArguments) -> None:
    """Raises for weights that are not finite, unless a checkpoint may replace them."""
    given = keras.tree.flatten(arguments.callbacks or [])
    given = [x for c in given for x in getattr(c, "callbacks", [c])]
    if not any(isinstance(c, ResumingCallback) for c in given):
        require_finite(model)


def _shown(
    model: keras.Model,
    described: list[OutputLoss],
    data: TrainingData,
    earlier: RunVariables | StreamRun | None,
) -> tuple[Shown, ...]:
    """Returns how metrics are shown, found by a trial unless the last run has it."""
    if not described:
        return ()
    if earlier is not None and earlier.step_state.losses == described:
        return earlier.step_state.metrics
    return metrics.try_out(model, data)


def require_enough(method: Auto, arguments: FitArguments) -> None:
    """Raises where too little to learn from is given, as far as that is known at once.

    Args:
        method: the sampling method.
        arguments: of `fit`; nothing is read, and no model is tried.
    """
    x, steps = arguments.x, None
    if datasets.is_dataset(x):
        with contextlib.suppress(ValueError):  # without a length: told of later
            n, steps = datasets.length_of(x)
    else:
        part = arguments.validation_split
        n, size = training_data.sizes(x, arguments.batch_size, part)
        if n is not None:
            steps = arguments.steps_per_epoch or -(-n // size)
    if steps is not None and steps >= 0:  # not an endless dataset's
        method.require_enough(n, steps)


def require_alone(arguments: FitArguments) -> None:
    """Raises for what Keras does not take beside a dataset, which need not be read."""
    if datasets.is_dataset(arguments.x):
        given = arguments.y, arguments.sample_weight
        whole = arguments.validation_data is not None
        part = None if whole else arguments.validation_split
        training_data.refuse_beside_dataset(*given, part)


def require_worth_reading(
    model: keras.Model, method: Auto, arguments: FitArguments
) -> None:
    """Raises where a dataset would be read to the end only to be refused.

    Args:
        model: compiled.
        method: the sampling method.
        arguments: of `fit`; anything but a dataset as x passes.

    Raises:
        ValueError: with all reasons that can be found before reading.
    """
    x, refusals = arguments.x, Refusals()
    if not datasets.is_dataset(x):
        return
    refusals.tried(require_alone, arguments)
    refusals.tried(datasets.require_batches, x)
    refusals.tried(datasets.require_readable, x, datasets.MEMORY_LIMIT)
    refusals.end()
    length = refusals.tried(datasets.length_of, x)
    refusals.end()
    refusals.tried(method.require_enough, *length)
    rows = refusals.tried(datasets.stand_in, x)
    if rows is not None:
        size = len(keras.tree.flatten(rows)[0])
        made = Indexed((*rows, None, None)[:3], None, size)
        trial = arguments.with_examples(made).replace(class_weight=None)
        unheard = replaced(model, {"_keras_osgd_warned": {}})
        with unheard, _caught():  # they would be of rows that were made up
            examine(refusals, model, RAIS(**method.get_config()), trial)
    refusals.end()


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
        model.loss,
    )
    if stream is None:
        return ExaminedStream(None, [], (), False)
    refusals.tried(_require_finite, model, arguments)
    with _without_a_trace(model, stream.first):
        held_out = training_data.targets_held_out(arguments.validation_data)
        return _examine_first(refusals, model, method, (stream, held_out), earlier)


def _examine_first(
    refusals: Refusals,
    model: keras.Model,
    method: Presample,
    given: tuple[Stream, Any],
    earlier: StreamRun | None,
) -> ExaminedStream:
    """Examines the first batch of a stream, and targets to validate on."""
    stream, held_out = given
    described = refusals.tried(_described, model, stream.first, held_out) or []
    if not (described and model.built):
        return ExaminedStream(stream, described, (), False)
    checks.warn_of_what_follows_the_draws(model)
    first, handed = stream.first, True
    adapt = bool(refusals.tried(checks.rate_can_follow, model, method))
    shown = _shown(model, described, first, earlier)
    if model.trainable_weights:
        given = first.arrays[2] is not None or stream.class_weight is not None
        tried = model, described, shown, first, method.norm, given
        handed = bool(refusals.tried(own_train_step.verify, *tried))
    return ExaminedStream(stream, described, shown, adapt, handed)

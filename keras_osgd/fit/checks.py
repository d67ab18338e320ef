"""Checks before the first step: refusals, warnings, lines of information."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from keras_osgd.base import keras_compat
from keras_osgd.base.warn import warn_once
from keras_osgd.data.training_data import TrainingData
from keras_osgd.gain.learning_rate import inner_optimizer, rule_for
from keras_osgd.losses import shares
from keras_osgd.losses.described import OutputLoss
from keras_osgd.norms.normalization import couples_examples
from keras_osgd.norms.scorer import Scorer
from keras_osgd.norms.verification import verify
from keras_osgd.sampling import RAIS, Oracle, Presample
from keras_osgd.step.own_train_step import own_train_step

__all__ = [
    "rate_can_follow",
    "line_on_rate",
    "losses_are_known",
    "require_size",
    "has_no_bound",
    "prepare_scorer",
    "warn_of_floor",
    "warn_of_monitors",
    "warn_of_what_follows_the_draws",
]

_ACTING = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)


def rate_can_follow(model: keras.Model, sampling: RAIS | Oracle) -> bool:
    """Returns whether the rate can follow the gain ratio; warns of limitations.

    Raises:
        ValueError: if the model, which must have been built, has nothing to train.
    """
    if not model.trainable_weights:
        raise ValueError(
            "The model must have trainable weights: an example's importance is the "
            "gradient with respect to them. Received: none. Set `trainable` of a layer "
            'to True, or compile with sampling="uniform".'
        )
    optimizer = inner_optimizer(model.optimizer)
    _warn_of_clipping(model, optimizer)
    if not sampling.adapt_learning_rate:
        return False
    name = type(optimizer).__name__
    if getattr(optimizer, "gradient_accumulation_steps", None):
        warn_once(
            model,
            "rule",
            f"{name} accumulates gradients: the gain ratio is that of one batch, so "
            "the learning rate does not follow it. Use a larger batch instead.",
        )
        return False
    rule = rule_for(optimizer)
    if rule == "none":
        warn_once(
            model,
            "rule",
            f"{name}: no rule is known for how its learning rate follows the gain "
            "ratio, so it stays as it is: expect next to no speed-up. SGD, Adam, "
            "AdamW, Nadam, Adamax and RMSprop are supported.",
        )
    return rule != "none"


def line_on_rate(
    model: keras.Model, sampling: RAIS | Oracle | Presample, adapt: bool
) -> str | None:
    """Returns what to do about an adaptive optimizer's rate, `None` for SGD's.

    Args:
        model: compiled.
        sampling: the sampling method.
        adapt: whether the rate follows the gain ratio.
    """
    optimizer = inner_optimizer(model.optimizer)
    if not adapt or rule_for(optimizer) != "square_root":
        return None
    method = f"keras_osgd.sampling.{type(sampling).__name__}"
    return (
        f"{type(optimizer).__name__}: the learning rate is multiplied by the root of "
        "the gain ratio. If training becomes unsteady, halve your rate, or keep it as "
        f"it is by sampling={method}(adapt_learning_rate=False)."
    )


def _warn_of_clipping(
    model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> None:
    names = ("clipnorm", "clipvalue", "global_clipnorm")
    clips = {name: getattr(optimizer, name, None) for name in names}
    clips = {name: value for name, value in clips.items() if value is not None}
    if clips:
        warn_once(
            model,
            "clip",
            f"Gradient clipping ({clips}) acts on the weighted gradient: rare examples "
            "with large weights are cut more, which biases the gradient. Clip less, or "
            "raise `floor`.",
        )


def prepare_scorer(
    model: keras.Model,
    sampling: RAIS | Oracle,
    described: list[OutputLoss],
    data: TrainingData,
) -> Scorer | None:
    """Returns the scorer of exact norms, tried out on three examples, or `None`.

    Raises:
        ValueError: listing every layer that has no per-example gradients.
    """
    if sampling.norm != "exact":
        return None
    if isinstance(sampling, Oracle):
        warn_of_staleness(model, sampling, data)
    scorer = Scorer(model, described, data)
    verify(scorer, in_training=True)
    if scorer.holds_statistics:
        warn_once(
            model,
            "statistics",
            "BatchNormalization has no per-example gradient in training mode: norms "
            f"are taken with the statistics of {scorer.holds_statistics} held at their "
            "moving averages, in a second pass: a step takes about twice as long.",
        )
    return scorer


def losses_are_known(
    model: keras.Model, sampling: RAIS | Oracle, described: list[OutputLoss]
) -> bool:
    """Returns whether steps leave behind the loss of each example.

    Not with a `train_step` of the user, which shows a loss of its own. The oracle draws
    by exact norms: it keeps no losses.
    """
    if isinstance(sampling, Oracle) or own_train_step(model) is not None:
        return False
    return shares.are_known(model, described)


def require_size(
    model: keras.Model, sampling: RAIS | Oracle, data: TrainingData
) -> str | None:
    """Warns of, or refuses, very few examples.

    Returns:
        A line of information, or `None`.
    """
    if data.n == 1:
        warn_once(
            model,
            "one example",
            "The training data has 1 example: there is nothing to choose between, and "
            "every draw is that example.",
        )
    if data.n >= data.batch_size:
        return None
    if sampling.require_full_batches:
        raise ValueError(
            "There must be at least `batch_size` examples, as `require_full_batches` "
            f"asks. Received: {data.n} examples with batch_size={data.batch_size}. "
            "Lower `batch_size`."
        )
    return (
        f"{data.n} examples are fewer than batch_size={data.batch_size}: batches stay "
        "full, with examples drawn more than once."
    )


def warn_of_what_follows_the_draws(model: keras.Model) -> None:
    """Warns of losses and statistics that never see the importance weights."""
    if shares.has_terms_of_the_batch(model):
        warn_once(
            model,
            "add_loss",
            "`add_loss` and `activity_regularizer` terms that depend on the batch are "
            "not importance-weighted: they follow the drawn examples, not the data.",
        )
    if any(map(couples_examples, keras_compat.layers_of(model))):
        warn_once(
            model,
            "moving statistics",
            "BatchNormalization's moving statistics follow the drawn examples, not the "
            "data. After training, before `evaluate`, `predict` or saving, call "
            "`keras_osgd.recalibrate_batch_normalization(model, x)`.",
        )


def has_no_bound(sampling: RAIS | Oracle, data: TrainingData) -> bool:
    """Returns whether importance weights may grow without bound.

    False with an oracle's fresh norms: weight times norm is then the same for all.
    """
    steps = sampling.block_steps(data.n, data.batch_size)
    return sampling.floor == 0 and not (isinstance(sampling, Oracle) and steps == 1)


def warn_of_floor(
    model: keras.Model, sampling: RAIS | Oracle, largest: float | None = None
) -> None:
    """Warns of importance weights without bound, and names the largest if known."""
    if sampling.floor == 0:
        now = "" if largest is None else f"The largest weight is now {largest:.3g}. "
        warn_once(
            model,
            "floor",
            "`floor` is 0: importance weights have no bound, and one rare draw can "
            f"undo much training. {now}Use 0.05.",
        )


def warn_of_monitors(
    model: keras.Model, callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    """Warns once of each callback that acts on the noise of a training quantity."""
    for callback in callbacks:
        acts = isinstance(callback, _ACTING)
        if isinstance(callback, keras.callbacks.ModelCheckpoint):
            acts = callback.save_best_only
        if acts and not callback.monitor.startswith("val_"):
            name, monitor = type(callback).__name__, callback.monitor
            warn_once(
                model,
                f"{name} {monitor}",
                f"{name} monitors {monitor!r}. With importance sampling that is an "
                "estimate from the drawn examples, and it also rises and falls where "
                "Keras' own `fit` would show it falling steadily. Monitor "
                f"'val_{monitor}', or allow for the noise by more `patience`.",
            )


def warn_of_staleness(model: keras.Model, sampling: Oracle, data: TrainingData) -> None:
    """Warns once where `refresh` leaves scores to age."""
    steps = sampling.block_steps(data.n, data.batch_size)
    if steps == 1:
        return
    by_default = " by default" if sampling.refresh is None else ""
    warn_once(
        model,
        "stale",
        f"{data.n} examples are scored every {steps} steps{by_default}: in between, "
        "the oracle is a stale point estimate. Measured on 5,000 examples, the test "
        "error was 15.7 % scored every step and 20.4 / 21.1 % every 5 / 20 steps at a "
        "constant rate; under a cosine schedule 15.8 %, and every 20 steps 15.9 % with "
        "a floor of 0.1 and 16.2 % without. `Oracle(refresh=...)` sets the steps; a "
        f"scoring costs about as much as {-(-data.n // data.batch_size)} of them. "
        'sampling="rais" is made for scores that age.',
    )

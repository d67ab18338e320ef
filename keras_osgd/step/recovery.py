"""The last state of training that was found finite, and the way back to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_osgd.base.replicas import copies
from keras_osgd.gain.learning_rate import inner_optimizer
from keras_osgd.scores.bad_examples import MOST_IN_A_ROW
from keras_osgd.step.skipping import Skips, all_finite, statistics_of

__all__ = ["LAST_FINITE", "Recovery", "is_finite", "require_finite"]

LAST_FINITE = "The model has the last weights that were found finite."

_POLL = 8  # steps between two questions whether steps are being skipped
_LOOK = 32  # steps between two looks while none is
_TOLD = 3  # returns to a copy told of in a `fit`
_MOST_RETURNS = 3  # in a row
_NAMED = 3  # variables that a message names


class _Kept(NamedTuple):
    """A copy of a state that was found finite, and the step after which it was made."""

    values: Sequence[tf.Tensor]
    lead: tf.Tensor
    remaining: tf.Tensor
    in_a_row: tf.Tensor
    granted: float
    step: int


class Recovery:
    """Looks at all that an update changes, and goes back to a copy if that is needed.

    A step whose loss and gradient are finite may still leave weights that are not, as
    at an infinite learning rate. Looked at are trainable weights, optimizer slots and
    statistics, after 32 steps, or 8 if steps are being skipped, as they are with such
    weights: a look at every step, with the old values at hand, would take 7 % of a step
    of a small network with SGD, and 11 % with Adam. A non-trainable variable that was
    not finite beforehand is not looked at.

    Args:
        clock: of the steps, which is taken back too.
        skips: counts the steps taken back as skipped.

    Attributes:
        at_fault: whether it went back, and no step has gone well since.
    """

    def __init__(self, clock: Any, skips: Skips) -> None:
        """Looks at nothing yet."""
        self._clock, self._skips = clock, skips
        self._model: keras.Model | None = None
        self._looked_at: tuple[list, list] = [], []
        self._kept: _Kept | None = None
        self._poll_at = self._look_at = self._returns = self._returns_in_a_row = 0
        self.at_fault = False

    def restart(self) -> None:
        """Forgets the copy, at the beginning and the end of a `fit`."""
        self._kept, self._returns, self.at_fault = None, 0, False
        self._returns_in_a_row = 0

    def begin(self, model: keras.Model, step: int) -> None:
        """Makes the first copy of an epoch; does nothing if there is one.

        Args:
            model: built; its optimizer is built if it is not.
            step: number of steps done.

        Raises:
            ValueError: if trainable weights or optimizer slots are not finite.
        """
        if self._kept is not None:
            return
        if not model.optimizer.built:  # else its slots would be unknown here
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        require_finite(model)
        self._model = model
        variables = _copies_of(model, [*_updated(model), *statistics_of(model)])
        looked_at = [v for v in variables if is_finite(v)], variables
        if list(map(_ids, looked_at)) != list(map(_ids, self._looked_at)):
            self._looked_at = looked_at
            counts = *self._clock.counts, self._skips.in_a_row
            self._take = _taking(*looked_at, *counts)
        self._keep(self._take()[1:], step)

    def _keep(self, taken: Sequence[Any], step: int) -> None:
        self._kept = _Kept(*taken, self._clock.granted, step)
        self._poll_at, self._look_at = step + _POLL, step + _LOOK

    def due(self, step: int) -> bool:
        """Returns whether it is time to look; `step` steps are done."""
        if step < self._poll_at:
            return False
        self._poll_at = step + _POLL
        return step >= self._look_at or int(self._skips.in_a_row) > 0

    def look(self, step: int, epoch_over: bool = False) -> str:
        """Copies the state if it is finite, and else goes back to the last copy.

        Args:
            step: number of steps done.
            epoch_over: whether the next step begins an epoch, before which others may
                change the weights, so that the copy is made anew by `begin`.

        Returns:
            A warning where it went back, "" else.
        """
        if self._kept is None:
            return ""
        finite, *taken = self._take()
        text = ""
        # A sum of large numbers may overflow though each is finite.
        if finite or all(map(is_finite, self._looked_at[0])):
            self._returns_in_a_row = 0
            if self.at_fault:  # until no steps are skipped any more
                self.at_fault = bool(taken[-1] > 0)
            self._keep(taken, step)
        elif step > self._kept.step:
            text = self._go_back(step)
        if epoch_over:
            self._kept = None
        return text

    def _go_back(self, step: int) -> str:
        kept, (checked, variables) = self._kept, self._looked_at
        bad = {id(v) for v in checked if not is_finite(v)}
        for variable, value in zip(variables, kept.values, strict=True):
            variable.assign(value)
        self._clock.take_back(kept.lead, kept.remaining, kept.granted)
        in_a_row = self._spoiled(step)
        self._skips.in_a_row.assign(in_a_row)
        self._kept = kept._replace(in_a_row=in_a_row, step=step)
        self._poll_at, self._look_at = step + _POLL, step + _POLL
        self.at_fault = True
        if self._returns > _TOLD:
            return ""
        model = self._model
        every = [*_updated(model), *statistics_of(model)]
        names = [
            v.path for v in every if bad.intersection(_ids(_copies_of(model, [v])))
        ]
        more = " Later ones are not told of." if self._returns == _TOLD else ""
        return (
            f"Training was taken back to step {kept.step} from step {step}: an update "
            f"left {_named(names)} not finite. {self._advice()}{more}"
        )

    def _spoiled(self, step: int) -> tf.Tensor:
        """Returns the steps in a row that were spoiled, the update at fault included.

        Steps before that update, since the copy, went well: then these alone count. But
        where all looks find the same, no step may have gone well.
        """
        self._returns, kept = self._returns + 1, self._kept
        self._returns_in_a_row += 1
        if self._returns_in_a_row == _MOST_RETURNS:
            return tf.constant(MOST_IN_A_ROW, tf.int64)
        since = step - kept.step
        skipped = min(int(self._skips.in_a_row), since)
        if skipped >= since - 1:
            return kept.in_a_row + since
        return tf.constant(skipped + 1, tf.int64)

    def too_many_in_a_row(self, step: int) -> str:
        """Returns why training ends after `step` steps, where updates are at fault."""
        return (
            "An update must leave weights, optimizer slots and statistics finite. "
            f"Received: some that are not, again and again before step {step}; the "
            f"steps were taken back. {self._advice()}"
        )

    def _advice(self) -> str:
        rate = inner_optimizer(self._model.optimizer).learning_rate
        rate = float(tf.convert_to_tensor(rate))  # also of several replicas
        return (
            f"No example is blamed. The learning rate is now {rate:g}: lower it, look "
            "for a callback that sets it or weights, or train in a wider float type."
        )


def require_finite(model: keras.Model) -> None:
    """Raises unless the weights to train, and the optimizer's slots, are finite.

    Args:
        model: what is not built yet is not looked at.

    Raises:
        ValueError: naming the variables.
    """
    bad = [
        v.path
        for v in _updated(model)
        if not all(map(is_finite, _copies_of(model, [v])))
    ]
    if bad:
        raise ValueError(
            "Weights and optimizer slots must be finite before a step. Received: NaN "
            f"or infinity in {_named(bad)}. No example is blamed. Load or initialise "
            "the weights anew, and compile with a new optimizer if its slots are named."
        )


def is_finite(variable: Any) -> bool:
    """Returns whether all entries are finite; True for types that cannot be otherwise.

    Example:
        >>> is_finite(tf.constant([1.0, float("inf")])), is_finite(tf.constant(1))
        (False, True)
    """
    if not variable.dtype.is_floating:
        return True
    return bool(tf.reduce_all(tf.math.is_finite(variable)))


def _updated(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables that an optimizer's update changes.

    The learning rate is the user's. A `LossScaleOptimizer` looks after its own scale.
    """
    optimizer = inner_optimizer(model.optimizer)
    slots = optimizer.variables if optimizer.built else []
    return [*model.trainable_weights, *(v for v in slots if not _is_rate(v))]


def _is_rate(variable: keras.Variable) -> bool:
    return variable.path.split("/")[-1] == "learning_rate"


def _copies_of(model: keras.Model, variables: Iterable[Any]) -> list[tf.Variable]:
    """Returns the variables of every replica on this process."""
    strategy = model.distribute_strategy
    return [copy for v in variables for copy in copies(strategy, v)]


def _taking(checked: list, variables: list, *counts: tf.Variable) -> Any:
    """Returns a function that tells whether variables are finite, and copies them.

    A copy shares memory with its variable until that is assigned anew.
    """
    checked = [v for v in checked if v.dtype.is_floating]

    def take() -> tuple:
        finite = all_finite(tf.zeros([]), checked)
        values = [tf.identity(v) for v in variables]
        return finite, values, *[tf.identity(v) for v in counts]

    # Concrete, as TensorFlow warns of the traces of one model after another.
    return tf.function(take, autograph=False).get_concrete_function()


def _ids(variables: Iterable[Any]) -> list[int]:
    return [id(v) for v in variables]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"

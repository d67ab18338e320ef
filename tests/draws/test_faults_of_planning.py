"""Faults of what plans the draws: training goes on, and says once what happened."""

import numpy as np
import pytest

from keras_osgd.draws import blocks, planner
from keras_osgd.draws.observations import Window
from keras_osgd.sampling import RAIS
from keras_osgd.scores.table import ScoreTable
from tests.helpers import small
from tests.helpers.small import X, Y

# Row 41

N = len(X)
LONG = 14  # epochs: well into the blocks that are planned by the scores


def model(**options):
    options = {"seed": 0, "retreat_below": 0.0, "window": 100, **options}
    return small.model(sampling=RAIS(**options))


def failing(monkeypatch, owner, name, from_call=1, error=RuntimeError, until=10**9):
    """Lets a function raise from some call on; returns the list of its calls."""
    calls, original = [], getattr(owner, name)

    def function(*args, **kwargs):
        calls.append(args)
        if from_call <= len(calls) < until:
            raise error("made to fail")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)
    return calls


def trained(made, epochs=4):
    """Returns the warnings; the model has trained to the end."""
    messages = small.warned(small.fit, made, epochs=epochs)
    assert made.sampling_run.clock.effective_iterations() >= epochs * 15 - 1e-6
    assert np.isfinite(small.flat(made)).all()
    return messages


def test_a_fit_that_fails_leaves_the_last_good_one_is_counted_and_warned_of_once(
    monkeypatch,
):
    fits, original = [], Window.fit

    def noted(*args):
        fits.append(original(*args))
        return fits[-1]

    monkeypatch.setattr(Window, "fit", noted)
    calls = failing(monkeypatch, Window, "fit", from_call=3, error=MemoryError)
    made = model()
    [message] = trained(made, LONG)
    state = made.sampling_state
    assert len(fits) == 2 and state.uncertainty_set is fits[-1]
    assert state.fit_failures == len(calls) - 2 >= 2
    assert made.sampling_run.planner.last_plan.importance
    assert message.startswith("Draws must be planned from the gradient norms observed.")
    assert "Received: MemoryError: " in message and "made to fail" in message
    assert "by the last good fit" in message and "Look for a loss" in message


def test_without_any_fit_draws_follow_the_norms_last_observed(monkeypatch):
    failing(monkeypatch, Window, "fit")
    made = model(floor=0.1)
    planned, original = [], planner.RAISPlanner._candidate

    def noted(self):
        found = original(self)
        planned.append((self._state.table.last_norms(), *found))
        return found

    monkeypatch.setattr(planner.RAISPlanner, "_candidate", noted)
    assert len(trained(made)) == 1
    assert made.sampling_state.uncertainty_set is None
    norms, probability, importance = planned[-1]
    assert importance
    expected = 0.9 * norms / norms.sum(dtype=np.float64) + 0.1 / N
    np.testing.assert_allclose(probability, expected, rtol=1e-6)


def test_without_any_fit_and_without_last_norms_draws_are_uniform(monkeypatch):
    failing(monkeypatch, Window, "fit")
    made = model(features=["constant", "class_mean"])
    assert len(trained(made)) == 1
    np.testing.assert_allclose(made.sampling_run.probabilities(), 1 / N, rtol=1e-12)
    assert not made.sampling_run.planner.last_plan.importance


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ScoreTable, "features_of"),  # the draws, which need it even where uniform
        (ScoreTable, "observe"),  # what is taken in
    ],
)
def test_a_plan_that_fails_anywhere_is_made_uniformly_instead(owner, name, monkeypatch):
    calls = failing(monkeypatch, owner, name)
    made = model()
    messages = trained(made)
    assert len(messages) == 1 and "RuntimeError: made to fail" in messages[0]
    assert made.sampling_state.fit_failures >= len(calls) // 2 > 0
    plan = made.sampling_run.planner.last_plan
    assert not plan.importance
    np.testing.assert_allclose(plan.probability, plan.credit / N, rtol=1e-12)


def test_scores_that_are_not_finite_are_not_drawn_by(monkeypatch):
    nan = np.full(N, np.nan)
    monkeypatch.setattr(ScoreTable, "combine", lambda self, by: nan.copy())
    made = model()
    [message] = trained(made)
    assert "`norms` must be finite and >= 0" in message
    np.testing.assert_allclose(made.sampling_run.probabilities(), 1 / N, rtol=1e-12)


def test_after_a_plan_that_failed_the_next_is_by_the_scores_again(monkeypatch):
    failing(monkeypatch, blocks, "reshuffled", from_call=3, until=4)
    changes, original = [], blocks.Blocks.make_uniform

    def noted(self, start):
        before = self._state.owed
        original(self, start)
        changes.append(self._state.owed - before)

    monkeypatch.setattr(blocks.Blocks, "make_uniform", noted)
    made = model()
    assert len(trained(made, LONG)) == 1
    state = made.sampling_state
    assert state.fit_failures == 1
    assert made.sampling_run.planner.last_plan.importance
    [change] = changes  # credited alike, and debited its visits
    assert abs(change.sum()) < 1e-9 and len(np.unique(change)) > 1


def test_a_failure_at_the_very_end_of_fit_loses_nothing(monkeypatch):
    failing(monkeypatch, blocks.Blocks, "give_back")
    made = model()
    [message] = trained(made, epochs=1)
    assert "made to fail" in message
    assert made.sampling_state.fit_failures == 1
    small.fit(made, X, Y)  # and the next one trains

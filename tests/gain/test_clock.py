import numpy as np
import pytest
import tensorflow as tf

from keras_osgd.draws.pipeline import READ_AHEAD
from keras_osgd.gain.clock import Clock

FAR = tf.int64.max


def _clock(steps_per_execution=1):
    lead = tf.Variable(0.0, dtype=tf.float64)
    end = tf.Variable(FAR, dtype=tf.int64)
    clock = Clock(lead, end, steps_per_execution)
    clock.restart()
    return clock, lead, end


def _train(clock, end, gains, epochs, effective_iterations, size=1):
    """Follows the training loop; returns the steps each epoch ended at."""
    ends, step = [], 0

    @tf.function(autograph=False)
    def train_step(gain):
        clock.advance(gain, None)

    for _ in range(epochs):
        clock.begin_epoch(effective_iterations)
        complete = False
        while not complete:
            for _ in range(min(size, int(min(int(end), step + size)) - step)):
                train_step(tf.constant(gains[step]))
                step += 1
            complete = clock.count_execution()
        ends.append(step)
        assert clock.step == step
    return ends


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_epochs_end_where_the_sum_of_gains_reaches_their_share(size):
    gains = 1.5 + 0.3 * np.sin(np.arange(2000) / 30)
    clock, lead, end = _clock(size)
    ends = _train(clock, end, gains, 4, 300, size)
    progress = np.cumsum(gains)
    # Off by what the gain moves in the 40 steps from the decision to the end.
    bound = 40 * 0.3 / 30 * 40 / 2 + gains.max()
    for epoch, step in enumerate(ends, start=1):
        assert abs(progress[step - 1] - 300 * epoch) < bound
    assert float(lead) == pytest.approx(progress[ends[-1] - 1] - ends[-1])
    assert clock.effective_iterations() == pytest.approx(progress[ends[-1] - 1])


def test_steps_per_execution_does_not_move_the_ends():
    gains = np.random.default_rng(0).uniform(1, 3, 2000)
    found = []
    for size in (1, 4, 10):
        clock, _, end = _clock(size)
        found.append(_train(clock, end, gains, 5, 200, size))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("size", [1, 7, 10, 20])
def test_the_end_is_known_before_the_pipeline_can_have_read_so_far(size):
    clock, _, end = _clock(size)
    advance = tf.function(clock.advance, autograph=False)
    for before in range(40, 60):  # far from the end at a gain of 1, beyond it at 8
        clock.restart()
        clock.begin_epoch(before + 8 * size + 50)
        gains = iter([1.0] * before + [8.0] * (10 * size + 100))
        while int(end) == FAR:
            for _ in range(size):
                advance(tf.constant(next(gains)), None)
            assert not clock.count_execution()
        # Three batches ahead of an execution are read, and one is in the making.
        assert int(end) - clock.step >= READ_AHEAD + 1


def test_epochs_shorter_than_the_decision_is_ahead_have_the_right_length():
    clock, _, end = _clock()
    assert _train(clock, end, np.ones(100), 5, 7) == [7, 14, 21, 28, 35]
    clock, _, end = _clock()
    # The first cannot know of the gain; what it did too much the second makes up for.
    assert _train(clock, end, np.full(100, 2.0), 4, 8) == [8, 9, 12, 16]


def test_steps_that_were_not_applied_do_not_count():
    clock, lead, _ = _clock()
    clock.begin_epoch(100)
    for applied in (True, False, True):
        clock.advance(tf.constant(3.0), tf.constant(applied))
    assert float(lead) == 4.0  # two steps of 3, counted by the optimizer as 2


def test_a_clock_goes_on_with_all_that_it_had():
    clock, _, end = _clock()
    _train(clock, end, np.full(2000, 1.3), 2, 70)
    clock.begin_epoch(70)
    for _ in range(20):
        clock.advance(tf.constant(1.2), None)
        clock.count_execution()
    saved, (other, *_) = clock.state_dict(mid_epoch=True), _clock()
    other.load_state_dict(saved)
    again = other.state_dict(mid_epoch=True)
    assert 0.2 < saved["done"] < 0.5
    for name, value in saved.items():
        np.testing.assert_array_equal(again[name], value)
    other.begin_epoch(70)  # is that which is under way
    assert other.effective_iterations() == clock.effective_iterations()

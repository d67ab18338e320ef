"""What workers tell each other; with several processes see `fit/test_worker_*`."""

import numpy as np
import pytest
import tensorflow as tf

from keras_osgd.base import workers
from keras_osgd.base.replicas import Share

ALONE = tf.distribute.get_strategy()
LOST = tf.errors.UnavailableError(None, None, "Collective ops is aborted by: reset")


def _two(monkeypatch, *told):
    """Lets another worker, of rank 0, tell these things, one after another."""
    monkeypatch.setattr(workers, "share_of", lambda strategy: Share(2, 1))
    told = list(told)
    monkeypatch.setattr(
        workers, "told_by_all", lambda strategy, own: [told.pop(0), own]
    )


def test_one_worker_agrees_with_itself():
    assert workers.told_by_all(ALONE, [1, "a"]) == [[1, "a"]]
    np.testing.assert_array_equal(workers.gathered(ALONE, [1.5]), [[1.5]])
    assert workers.agreed(ALONE, max, 2, 3) == 3
    with pytest.raises(ZeroDivisionError):
        workers.agreed(ALONE, lambda: 1 // 0)


def test_an_error_of_another_worker_is_raised_here_with_its_class(monkeypatch):
    _two(monkeypatch, [0, 28, "[Errno 28] full"], [3, None, "other data"], None)
    with pytest.raises(OSError, match="worker 0: .*full") as raised:
        workers.agreed(ALONE, int)
    assert raised.value.errno == 28
    with pytest.raises(ValueError, match="worker 0: other data"):
        workers.agreed(ALONE, int)
    assert workers.agreed(ALONE, int, "7") == 7


def test_a_lost_worker_is_told_of_only_where_there_are_several(monkeypatch):
    lost = workers.lost_workers_told(ALONE)
    with pytest.raises(tf.errors.UnavailableError), lost:
        raise LOST
    _two(monkeypatch)
    lost, must = workers.lost_workers_told(ALONE), "All 2 workers must stay alive"
    with pytest.raises(RuntimeError, match=f"{must}.*than worker 1 ended"), lost:
        raise LOST


def test_each_worker_s_values_are_taken_once_however_many_replicas_it_has(monkeypatch):
    others = iter([[1], [7.0]])
    monkeypatch.setattr(workers, "share_of", lambda strategy: Share(2, 0, replicas=2))
    monkeypatch.setattr(
        workers,
        "_of_all",
        lambda _, own: np.concatenate([own, own, *2 * [next(others)]]),
    )
    one, other = workers.gathered(ALONE, np.array([1.0, 2.0]))
    assert (one.tolist(), other.tolist()) == ([1.0, 2.0], [7.0])

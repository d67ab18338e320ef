"""Two fits at once: of one model, by one callback, into one directory."""

import threading

import keras
import numpy as np
import pytest

from keras_osgd.base.directory_lock import NAME
from keras_osgd.callbacks import Checkpoint, SamplingMonitor, checkpoint_files
from keras_osgd.sampling import RAIS, Presample
from tests.helpers import small
from tests.helpers.checkpoints import EveryState


class Once(keras.callbacks.Callback):
    """Calls a function after a step, and keeps what it returns or raises."""

    def __init__(self, function, step=3):
        super().__init__()
        self.function, self.step, self.seen = function, step, None

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.step and self.seen is None:
            try:
                self.seen = self.function(self.model)
            except Exception as error:
                self.seen = error


def in_a_thread(function):
    """Returns what a function returns or raises in another thread."""
    seen = []

    def tried():
        try:
            seen.append(function())
        except Exception as error:
            seen.append(error)

    thread = threading.Thread(target=tried)
    thread.start()
    thread.join()
    return seen[0]


@pytest.fixture(scope="module")
def alone():
    """The weights after a `fit` that nothing disturbs, by sampling method."""
    found = {}
    for method in (RAIS, Presample):
        model = small.model(sampling=method(seed=0))
        small.fit(model)
        found[method] = small.flat(model)
    return found


WAYS = {
    "nested": lambda function: function(),
    "in a thread": in_a_thread,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [RAIS, Presample])
def test_a_second_fit_of_a_model_is_refused_and_the_first_goes_on(method, way, alone):
    model = small.model(sampling=method(seed=0))
    once = Once(lambda model: WAYS[way](lambda: small.fit(model)))
    history = small.fit(model, callbacks=[once])
    assert isinstance(once.seen, RuntimeError)
    assert "One `fit` with importance sampling must train a model" in str(once.seen)
    np.testing.assert_array_equal(small.flat(model), alone[method])
    assert history.epoch == [0]
    small.fit(model)  # the model is free again


def test_a_second_fit_that_is_not_caught_ends_the_first_cleanly():
    def again(batch, logs):
        if batch == 3:
            small.fit(model)

    model = small.model()
    nested = keras.callbacks.LambdaCallback(on_train_batch_end=again)
    with pytest.raises(RuntimeError, match="Call it when that has ended"):
        small.fit(model, callbacks=[nested])
    assert int(model.sampling_state.times_drawn.sum()) == 4 * small.BATCH_SIZE
    small.fit(model)


def test_evaluating_predicting_and_steps_of_the_users_own_disturb_no_fit(alone):
    def looks(model):
        x, y = small.X[:8], small.Y[:8]
        before = small.flat(model)
        found = model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)
        clock = model.sampling_run.clock.step
        model.train_on_batch(x, y)
        changed = np.any(small.flat(model) != before)
        start = 0
        for w in model.weights:
            w.assign(before[start : start + w.shape.num_elements()].reshape(w.shape))
            start += w.shape.num_elements()
        return found, changed, model.sampling_run.clock.step - clock

    model = small.model()
    once = Once(looks)
    small.fit(model, callbacks=[once])
    (loss, predicted), changed, steps = once.seen
    assert np.isfinite(loss) and predicted.shape == (8, 3)
    assert changed and steps == 0
    np.testing.assert_array_equal(small.flat(model), alone[RAIS])


@pytest.mark.auto
@pytest.mark.parametrize("sampling", ["uniform", "auto"])
def test_keras_own_fit_in_keras_own_fit_is_as_in_keras(sampling):
    def trained(model):
        once = Once(lambda model: small.fit(model, shuffle=False).epoch)
        small.fit(model, shuffle=False, callbacks=[once])
        assert once.seen == [0]
        return small.flat(model)

    keras.utils.set_random_seed(0)
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    plain.compile("sgd", small.crossentropy())
    expected = trained(plain)
    np.testing.assert_array_equal(trained(small.model(sampling=sampling)), expected)


@pytest.mark.auto
def test_what_could_be_sampled_trains_as_in_keras_beside_keras_own_fit():
    x, y = np.tile(small.X, (20, 1)), np.tile(small.Y, 20)

    def inner(model):
        small.fit(model, x, y, batch_size=60)
        return model.sampling_run, model.sampling_held.reasons

    model = small.model(sampling="auto")
    once = Once(inner)
    small.fit(model, callbacks=[once])
    run, (reason,) = once.seen
    assert run is None and "must be the only one of its model" in reason
    small.fit(model, x, y, batch_size=60)
    assert model.sampling_run is not None  # alone it is sampled

    def other_method(model):
        model.sampling_held.configure(RAIS(seed=0))
        small.fit(model)

    once = Once(other_method)
    small.fit(model, callbacks=[once])
    assert isinstance(once.seen, RuntimeError) and "Call it when" in str(once.seen)


@pytest.mark.parametrize("kind", [Checkpoint, SamplingMonitor])
def test_a_callback_takes_part_in_one_fit_at_a_time(kind, tmp_path):
    callback = kind(tmp_path)
    other = small.model()
    before = small.flat(other)
    once = Once(lambda model: small.fit(other, callbacks=[callback]))
    small.fit(small.model(), callbacks=[once, callback])
    assert isinstance(once.seen, RuntimeError)
    assert f"`{kind.__name__}` must be given to one `fit`" in str(once.seen)
    np.testing.assert_array_equal(small.flat(other), before)
    if kind is Checkpoint:
        assert checkpoint_files.newest(tmp_path).details["finished"]
    small.fit(other, callbacks=[kind(tmp_path / "new")])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sampling", [RAIS, lambda seed: "uniform"])
def test_a_second_writer_of_a_directory_is_refused_before_any_step(
    way, sampling, tmp_path
):
    other = small.model(sampling=sampling(seed=0))
    before = small.flat(other)

    def second(model):
        assert (tmp_path / NAME).exists()
        given = {"callbacks": [Checkpoint(tmp_path)], "epochs": 2}
        return WAYS[way](lambda: small.fit(other, **given))

    once = Once(second)
    small.fit(small.model(), callbacks=[once, EveryState(tmp_path, every=1)])
    assert isinstance(once.seen, RuntimeError)
    assert str(tmp_path) in str(once.seen) and "take another dir" in str(once.seen)
    np.testing.assert_array_equal(small.flat(other), before)
    assert not (tmp_path / NAME).exists()
    assert checkpoint_files.newest(tmp_path).details["finished"]


def test_the_mark_goes_however_a_fit_ends(tmp_path):
    def fails(batch, logs):
        raise KeyError

    failing = keras.callbacks.LambdaCallback(on_train_batch_end=fails)
    with pytest.raises(KeyError):
        small.fit(small.model(), callbacks=[failing, Checkpoint(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    small.fit(small.model(), callbacks=[Checkpoint(tmp_path)])
    with pytest.raises(ValueError, match="must have been made with this"):
        small.fit(small.model(units=5), callbacks=[Checkpoint(tmp_path)])
    assert not (tmp_path / NAME).exists()


def test_files_of_who_took_a_directory_over_are_left_alone(tmp_path):
    """As after a process of another host was suspended for long."""

    def taken_over(model):
        (tmp_path / NAME).write_text('{"host": "elsewhere", "pid": 1, "token": "b"}')
        for number in range(1, 9):
            (tmp_path / f"checkpoint-{number:08d}.npz").write_bytes(b"theirs")
            (tmp_path / f"checkpoint-{number:08d}.json").write_bytes(b"theirs")
        return {path: path.read_bytes() for path in tmp_path.iterdir()}

    once = Once(taken_over)
    saving = EveryState(tmp_path, every=1, keep=1)
    with pytest.raises(RuntimeError, match="another one has taken over"):
        small.fit(small.model(), callbacks=[once, saving])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == once.seen

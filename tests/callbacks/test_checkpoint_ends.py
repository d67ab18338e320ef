"""Ends of a training with checkpoints: complete, and by signals."""

import os
import shutil
import signal
import threading

import keras
import numpy as np
import pytest

from keras_osgd.callbacks import Checkpoint
from keras_osgd.sampling import RAIS
from tests.helpers import small
from tests.helpers.checkpoints import ENDS, going_on, net, state_of

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def four():
    """A model that trained four epochs without a checkpoint; to look at."""
    model = net(RAIS(seed=3))
    small.fit(model, epochs=4)
    return model


def test_a_finished_training_is_loaded_and_one_of_more_epochs_goes_on(
    four, tmp_path, capsys
):
    shorter = net(RAIS(seed=3))
    small.fit(shorter, epochs=2, callbacks=[Checkpoint(tmp_path)])
    model, said = going_on(tmp_path, RAIS(seed=3), capsys, epochs=2)
    assert "complete after epoch 2: its end is loaded" in said
    for a, b in zip(state_of(shorter), state_of(model), strict=True):
        np.testing.assert_array_equal(a, b)
    model, said = going_on(tmp_path, RAIS(seed=3), capsys)
    assert "Resumed epoch 3" in said
    assert ", bit-exact" in said
    for a, b in zip(state_of(four), state_of(model), strict=True):
        np.testing.assert_array_equal(a, b)


class Signal(keras.callbacks.Callback):
    """Sends this process a signal, as a user or a scheduler does."""

    def __init__(self, number, step, times=1):
        super().__init__()
        self.number, self.step, self.times, self.steps = number, step, times, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.steps += 1
        if self.steps == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_ends_training_after_its_step_with_a_checkpoint(
    number, four, tmp_path, capsys
):
    handlers = [signal.getsignal(n) for n in ENDS]
    given = [Checkpoint(tmp_path), Signal(number, step=22)]
    with pytest.raises(ENDS[number]) as raised:
        small.fit(net(RAIS(seed=3)), epochs=4, callbacks=given)
    if number == signal.SIGTERM:
        assert raised.value.code == 143  # what a shell reports of a terminated process
    name = signal.Signals(number).name
    said = f"{name}: training ends. The last good checkpoint is {given[0].newest}."
    assert said in capsys.readouterr().out
    assert [signal.getsignal(n) for n in ENDS] == handlers
    if number == signal.SIGINT:
        return
    model, said = going_on(tmp_path, RAIS(seed=3), capsys)
    assert "at step 22, bit-exact" in said
    for a, b in zip(state_of(four), state_of(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_signal_in_the_last_step_of_an_epoch_ends_training_after_validation(
    tmp_path, capsys
):
    given = [Checkpoint(tmp_path), Signal(signal.SIGINT, step=15)]
    validation = {"validation_data": (small.X, small.Y)}
    with pytest.raises(KeyboardInterrupt):
        small.fit(net(RAIS(seed=3)), epochs=4, callbacks=given, **validation)
    _, said = going_on(tmp_path, RAIS(seed=3), capsys, epochs=2)
    assert "Resumed epoch 2" in said
    assert "at step 15, bit-exact" in said


def test_a_signal_in_validation_saves_what_was_trained_at_once(four, tmp_path, capsys):
    own, then = tmp_path / "own", tmp_path / "then"

    class InValidation(keras.callbacks.Callback):
        def on_test_batch_begin(self, batch, logs=None):
            if batch == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if batch == 2:  # a kill may be next
                shutil.copytree(own, then)

    validation = {"validation_data": (small.X, small.Y)}
    given = [Checkpoint(own), InValidation()]
    with pytest.raises(SystemExit):
        small.fit(net(RAIS(seed=3)), epochs=4, callbacks=given, **validation)
    assert len(list(then.glob("*.json"))) == 1
    assert len(list(own.glob("*.json"))) == 2  # the other one after validation
    model = net(RAIS(seed=3))
    for directory in (own, then):
        _, said = going_on(directory, RAIS(seed=3), capsys, model=model)
        assert "Resumed epoch 2" in said
        assert "at step 15, bit-exact" in said
        for a, b in zip(state_of(four), state_of(model), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_second_ctrl_c_is_obeyed_at_once(tmp_path):
    model = net(RAIS(seed=3))
    given = [Checkpoint(tmp_path), Signal(signal.SIGINT, step=22, times=2)]
    with pytest.raises(KeyboardInterrupt):
        small.fit(model, epochs=4, callbacks=given)
    assert float(model.optimizer.iterations) == 21
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_users_own_is_called_after_the_checkpoint(tmp_path):
    seen = []

    def handler(number, frame):
        seen.append(sorted(path.name for path in tmp_path.glob("*.json")))

    before = signal.signal(signal.SIGTERM, handler)
    try:
        model = net(RAIS(seed=3))
        given = [Checkpoint(tmp_path, every=10**6), Signal(signal.SIGTERM, step=5)]
        small.fit(model, epochs=2, callbacks=given)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [["checkpoint-00000001.json"]]
    assert float(model.optimizer.iterations) > 5


def test_signals_are_left_alone_outside_of_the_main_thread(tmp_path):
    handlers = [signal.getsignal(n) for n in ENDS]
    found = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            found.append([signal.getsignal(n) for n in ENDS])

    model = net(RAIS(seed=3))
    given = {"callbacks": [Checkpoint(tmp_path), Look()]}
    thread = threading.Thread(target=small.fit, args=[model], kwargs=given)
    thread.start()
    thread.join()
    assert found and all(each == handlers for each in found)
    assert Checkpoint(tmp_path).restore(net(RAIS(seed=3))).exists()

"""Going on from a checkpoint with all that users put into models and callbacks."""

import datetime
import os
import shutil
import signal
import threading

import keras
import numpy as np
import pytest

import keras_osgd
from keras_osgd.callbacks import Checkpoint, checkpoint_files
from keras_osgd.callbacks.writer import Schedule
from keras_osgd.sampling import RAIS, Oracle
from tests.helpers import small
from tests.helpers.checkpoints import ENDS, EveryState, net, saved_midway, state_of

layers, metrics, optimizers = keras.layers, keras.metrics, keras.optimizers
MANY = np.random.default_rng(1).integers(0, 2, (60, 3)).astype("float32")


class AlwaysNoise(layers.Layer):
    """Draws from a seed whether in training or not."""

    def __init__(self):
        super().__init__()
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + 0.1 * keras.random.normal(keras.ops.shape(x), seed=self.seed)


def made(*first, optimizer="sgd", loss=None, sampling=None, **options):
    keras.utils.set_random_seed(0)
    inner = [*first, layers.Dense(6, "relu"), layers.Dropout(0.2), layers.Dense(3)]
    model = keras_osgd.Sequential([keras.Input((4,)), *inner])
    loss = loss or small.crossentropy()
    model.compile(optimizer, loss, sampling=sampling or RAIS(seed=3), **options)
    return model


def half_precision():
    """The loss scale grows within the test."""
    inner = optimizers.Adam(0.01)
    scaled = optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=9)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return made(optimizer=scaled)
    finally:
        keras.config.set_dtype_policy("float32")


def with_late_metrics():
    """Metrics that are built by their first update, which draws from a seed, too."""
    auc = metrics.AUC(multi_label=True, from_logits=True, name="auc")
    given = [auc, metrics.F1Score(threshold=0.5, name="f1")]
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return made(AlwaysNoise(), loss=loss, metrics=given)


def averaged():
    return made(optimizer=optimizers.Adam(0.01, use_ema=True))


def accumulated():
    return made(optimizer=optimizers.SGD(0.1, gradient_accumulation_steps=4))


def swapping():
    return [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]


MODELS = {
    # What makes the model, y, other callbacks, and the checkpoints to go on from.
    "half precision": (half_precision, small.Y, list, [3]),
    "late metrics": (with_late_metrics, MANY, list, [3, 2, 1]),
    "averages swapped": (averaged, small.Y, swapping, [2]),
    "accumulated gradients": (accumulated, small.Y, list, [3]),
    "exact": (lambda: made(sampling=RAIS(seed=3, norm="exact")), small.Y, list, [3]),
}


@pytest.mark.long
@pytest.mark.parametrize("case", MODELS)
def test_all_kinds_of_models_go_on_bit_for_bit(case, tmp_path, capsys):
    make, y, others, numbers = MODELS[case]
    whole = make()
    saving = EveryState(tmp_path / "all", every=10, keep=10**6)
    history = small.fit(whole, y=y, epochs=4, callbacks=[*others(), saving])
    # Step 30, while the second block is planned, into a new model; 20 and 10, after
    # the first epoch and within it, into one that is at another state.
    model = make()
    for number in numbers:
        directory = tmp_path / str(number)
        directory.mkdir()
        for path in (tmp_path / "all").glob(f"checkpoint-{number:08d}.*"):
            shutil.copy(path, directory)
        keras.utils.set_random_seed(99)
        given = {"callbacks": [*others(), Checkpoint(directory)], "verbose": 2}
        resumed = small.fit(model, y=y, epochs=4, **given)
        assert ", bit-exact" in capsys.readouterr().out
        for a, b in zip(state_of(whole), state_of(model), strict=True):
            np.testing.assert_array_equal(a, b)
        for name, values in resumed.history.items():
            np.testing.assert_array_equal(values, history.history[name][-len(values) :])


@pytest.mark.long
def test_other_weights_at_the_end_are_said_where_more_epochs_are_not_bit_exact(
    tmp_path, capsys
):
    def stops():
        stop = keras.callbacks.EarlyStopping("loss", 99.0, restore_best_weights=True)
        stop.patience = 9
        return [stop]

    for name, make, others, said in (
        ("averages", averaged, list, "took averages for weights."),
        ("best", made, stops, "brought back the best weights."),
    ):
        model = make()
        for epochs in (2, 3):
            given = [*others(), Checkpoint(tmp_path / name)]
            small.fit(model, epochs=epochs, callbacks=given, verbose=2)
        assert f"not bit-exact: the end of training {said}" in capsys.readouterr().out


class Ends(Exception):
    """Stands for whatever may fail in `fit`."""


class Fails(keras.callbacks.Callback):
    """Does something at a step, or at the end of training."""

    def __init__(self, step, what):
        super().__init__()
        self.step, self.what = step, what

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            self.what()

    def on_train_end(self, logs=None):
        if self.step == "end":
            self.what()


def fail():
    raise Ends


@pytest.fixture(scope="module")
def whole():
    """A model that trained three epochs without a checkpoint; to look at."""
    model = net(RAIS(seed=3))
    small.fit(model, epochs=3)
    return model


def test_a_fit_that_fails_leaves_no_thread_and_no_handler_and_can_go_on(
    whole, tmp_path
):
    threads, handlers = threading.active_count(), [signal.getsignal(n) for n in ENDS]
    saving = Checkpoint(tmp_path, every=5)
    model = net(RAIS(seed=3))
    with pytest.raises(Ends):
        small.fit(model, epochs=3, callbacks=[saving, Fails(20, fail)])
    assert threading.active_count() <= threads
    assert [signal.getsignal(n) for n in ENDS] == handlers
    assert saving.newest == checkpoint_files.newest(tmp_path).path
    small.fit(model, epochs=2, callbacks=[saving])  # the same objects serve again
    small.fit(model, epochs=3, callbacks=[saving])
    for a, b in zip(state_of(whole), state_of(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("step", ["end", 17])
def test_a_signal_after_the_last_checkpoint_is_obeyed_when_fit_ends(step, tmp_path):
    def interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        if step != "end":
            raise Ends

    model, given = small.model(), [Checkpoint(tmp_path), Fails(step, interrupt)]
    handlers = [signal.getsignal(n) for n in ENDS]
    with pytest.raises(SystemExit):
        small.fit(model, epochs=2, callbacks=given)
    assert [signal.getsignal(n) for n in ENDS] == handlers


def test_a_training_that_was_stopped_is_never_saved_as_one_to_go_on_with(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model, given = small.model(), [Stop(), Checkpoint(tmp_path, keep=9)]
    small.fit(model, epochs=4, callbacks=given)
    steps = [checkpoint_files._read(p).details for p in sorted(tmp_path.glob("*.npz"))]
    assert [(d["epoch"], d["finished"]) for d in steps] == [(1, False), (2, True)]


def test_the_path_in_an_error_is_that_of_a_checkpoint_that_is_there(tmp_path):
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            saving._writer._writing and saving._writer._writing.result()
            seen.append(self.model.sampling_run.where_saved())

    saving = Checkpoint(tmp_path, every=1, keep=1)
    small.fit(small.model(), callbacks=[Look(), saving])
    assert [f"{k:08d}.npz" in said for k, said in enumerate(seen)][1:] == [True] * (
        len(seen) - 1
    )


def test_blocks_of_another_length_are_not_taken_for_the_same(tmp_path, capsys):
    for epochs, steps in ((1, 1), (2, 5)):
        model = small.model(sampling=Oracle(refresh=10), steps_per_execution=steps)
        options = {"epochs": epochs, "callbacks": [Checkpoint(tmp_path)]}
        small.fit(model, verbose=2, **options)
    said = capsys.readouterr().out
    assert "not bit-exact: steps_per_execution 1 → 5" in said


def test_keras_never_calls_it_beside_a_step():
    assert not getattr(Checkpoint, "async_safe", False)


def test_a_period_of_time_is_counted_from_one_checkpoint_to_the_next(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    schedule = Schedule(datetime.timedelta(minutes=1), keep=2)
    found = []
    for now[0] in (1, 59, 60, 61, 119, 120):
        found.append(schedule.due)
        if schedule.due:
            schedule.restart()
    assert found == [False, False, True, False, False, True]


def test_the_epoch_is_the_checkpoints_whatever_backup_and_restore_says(whole, tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    own = tmp_path / "own"
    options = {"stop_after": 32, "callbacks": [backup()]}
    model = saved_midway(own, RAIS(seed=3), every=10, **options)
    checkpoint_files.newest(own).path.unlink()  # the second of the three is left
    checkpoint_files.place_of(own, 3).with_suffix(".json").unlink()
    resumed = small.fit(model, epochs=3, callbacks=[backup(), Checkpoint(own)])
    assert resumed.epoch == [1, 2]
    for a, b in zip(state_of(whole), state_of(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_steps_are_counted_from_one_checkpoint_to_the_next(tmp_path):
    given = [EveryState(tmp_path, every=10, keep=9)]
    small.fit(small.model(), epochs=2, callbacks=given)
    saved = [checkpoint_files._read(p).details for p in sorted(tmp_path.glob("*.npz"))]
    assert [d["step"] for d in saved if not d["finished"]][:2] == [10, 20]
    assert len(saved) <= 4

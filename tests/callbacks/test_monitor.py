"""The directory of a run, as `SamplingMonitor` writes it."""

import json
import os
import shutil
import sys
import time

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

import keras_osgd
from keras_osgd import run_directory
from keras_osgd.callbacks import Checkpoint, SamplingMonitor
from keras_osgd.data import training_data
from keras_osgd.fit.fit_callback import FitCallback
from keras_osgd.run_directory import PERCENTILES, RunFiles, load
from tests.helpers import small

N = len(small.X)
UNTIMED = {"seconds", "sampling_share"}


class Looks(keras.callbacks.Callback):
    """Keeps what `look(model)` returns at the end of every epoch."""

    def __init__(self, look):
        super().__init__()
        self.look, self.seen = look, []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.look(self.model))


class Dies(keras.callbacks.Callback):
    """Ends `fit` by an exception in the midst of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.at, self.now = epoch, -1

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.at and batch == 6:
            raise InterruptedError


def look(model):
    run, state = model.sampling_run, model.sampling_state
    window, fitted = run.planner.window.state_dict(), state.uncertainty_set
    return (
        run.probabilities(),
        model.sampling.most_sampled(1000),
        np.sort(state.times_drawn)[::-1],
        window,
        fitted,
    )


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    directory = tmp_path_factory.mktemp("logged") / "run"
    model, looks = small.model(metrics=["accuracy"]), Looks(look)
    callbacks = [looks, SamplingMonitor(directory, tensorboard=False)]
    validation = {"validation_data": (small.X, small.Y), "validation_freq": 2}
    history = small.fit(model, epochs=6, callbacks=callbacks, **validation)
    seen = [*looks.seen, look(model)]  # at the epochs' ends, and when `fit` has ended
    return model, history, seen, load(directory), directory


def test_the_history_has_what_keras_and_the_sampler_say_of_every_epoch(logged):
    model, history, _, record, _ = logged
    for name, values in history.history.items():
        found = record.history[name][1 if name.startswith("val_") else 0 :]
        found = found[::2] if name.startswith("val_") else found
        np.testing.assert_array_equal(found, values)
    assert np.isnan(record.history["val_loss"]).tolist() == [True, False] * 3
    for name in ("steps", "gain_ratio", "effective_epochs", "largest_weight"):
        np.testing.assert_array_equal(
            record.history[name], model.sampling.history[name]
        )
    assert record.history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (np.diff(record.history["seconds"]) >= 0).all()


def test_a_metric_of_each_class_has_a_column_for_each(tmp_path):
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model = small.model(loss, metrics=[keras.metrics.F1Score(name="f1")])
    callbacks = [SamplingMonitor(tmp_path, tensorboard=False)]
    y = np.eye(3, dtype="float32")[small.Y]
    small.fit(model, y=y, epochs=2, verbose=2, callbacks=callbacks)
    found = load(tmp_path).history
    expected = np.array(model.history.history["f1"])
    assert expected.shape == (2, 3) and expected.std() > 0
    for label in range(3):
        np.testing.assert_array_equal(found[f"f1_{label}"], expected[:, label])


def test_percentiles_are_those_of_n_p_as_planned(logged):
    _, _, seen, record, _ = logged
    for epoch, (p, *_) in enumerate(seen[:-1]):
        values = np.sort(N * p)
        for percentile in PERCENTILES:
            place = percentile / 100 * (N - 1)
            low = int(place)
            high = min(low + 1, N - 1)
            expected = values[low] + (place - low) * (values[high] - values[low])
            found = record.history[run_directory.percentile_name(percentile)][epoch]
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_examples_are_the_most_drawn_with_their_probabilities(logged):
    model, _, seen, record, _ = logged
    p, most, counts, *_ = seen[-1]
    assert counts.sum() == model.sampling_run.clock.step * small.BATCH_SIZE
    assert list(record.examples) == [*most._fields, "probability"]
    for name, column in most._asdict().items():
        read = np.array(record.examples[name], column.dtype)
        np.testing.assert_array_equal(read, column)
    written = np.array(record.examples["probability"], float)
    np.testing.assert_array_equal(written, p[most.index])


def test_the_shares_of_draws_are_those_of_the_most_drawn_examples(logged):
    counts = logged[2][-1][2]
    shares = logged[3].arrays["share_of_draws"]
    for percent in (0, 10, 35, 100):  # of 60 examples a whole number each
        expected = counts[: percent * N // 100].sum() / counts.sum()
        np.testing.assert_allclose(shares[percent], expected, rtol=1e-12)


def test_predictions_are_those_of_the_uncertainty_set_for_the_window(logged):
    *_, window, fitted = logged[2][-1]
    arrays = logged[3].arrays
    for i, features in enumerate(window["features"]):
        mean = sum(c * s for c, s in zip(fitted.mean, features, strict=True))
        spread = sum(d * s for d, s in zip(fitted.spread, features, strict=True))
        np.testing.assert_allclose(arrays["predicted"][i], mean, rtol=1e-9)
        variance = fitted.objective * spread
        np.testing.assert_allclose(arrays["variance"][i], variance, rtol=1e-9)
    np.testing.assert_array_equal(arrays["observed"], window["norms"])
    np.testing.assert_array_equal(arrays["weight"], window["weights"])


def test_the_settings_say_what_was_trained_how(logged):
    model, _, _, record, _ = logged
    found = record.settings
    expected = {
        "status": "complete",
        "parameters": 15,
        "optimizer": "SGD",
        "loss": "sparse_categorical_crossentropy",
        "sampling": repr(model.sampling),
        "epochs": 6,
        "n": N,
        "batch_size": small.BATCH_SIZE,
        "seed": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["optimizer_options"]["learning_rate"] == pytest.approx(0.01)
    assert found["versions"]["keras"] == keras.__version__


def test_alarms_and_warnings_of_the_run_are_among_the_settings(tmp_path):
    optimizer = keras.optimizers.SGD(clipnorm=1.0)
    model = small.model(optimizer=optimizer)
    x = small.X.copy()
    x[3] = np.nan
    monitor = SamplingMonitor(tmp_path, tensorboard=False)
    told = small.warned(small.fit, model, x=x, epochs=2, callbacks=[monitor])
    alarms = load(tmp_path).settings["alarms"]
    assert any("Gradient clipping" in text for text in alarms)
    assert any("example(s) [3]" in text for text in alarms)
    assert set(told) <= set(alarms)


def test_a_run_that_fails_says_so_and_why(tmp_path):
    x = np.full_like(small.X, np.nan)
    monitor = SamplingMonitor(tmp_path, tensorboard=False)
    with pytest.raises(RuntimeError, match="At most 1 %"):
        small.warned(small.fit, small.model(), x=x, callbacks=[monitor])
    settings = json.loads((tmp_path / "run.json").read_text())
    assert settings["status"].startswith("ended by RuntimeError: At most 1 % of the")
    assert any("Skipped step 0" in text for text in settings["alarms"])


def test_event_files_have_the_same_figures_and_the_distribution(tmp_path):
    pytest.importorskip("tensorboard")
    model, monitor = small.model(), SamplingMonitor(tmp_path)
    small.fit(model, epochs=2, callbacks=[monitor])
    small.fit(model, epochs=3, callbacks=[monitor])  # afresh: the old file goes
    (path,) = tmp_path.glob("events.out.tfevents.*")
    scalars, histograms = {}, {}
    for event in tf.compat.v1.train.summary_iterator(str(path)):
        for value in event.summary.value:
            kind = value.metadata.plugin_data.plugin_name
            into = scalars if kind == "scalars" else histograms
            into[value.tag, event.step] = tf.make_ndarray(value.tensor)
    history = load(tmp_path).history
    assert history.pop("epoch").tolist() == [1, 2, 3]  # what TensorBoard calls steps
    assert len(scalars) == 3 * len(history)
    for name, values in history.items():
        for epoch, value in enumerate(values):
            written = scalars[f"sampling/{name}", epoch + 1]
            np.testing.assert_array_equal(written, np.float32(value))
    bins = histograms["sampling/n_p", 3]  # [left, right, count]
    assert bins[:, 2].sum() == N
    np.testing.assert_allclose(bins[-1, 1], history["n_p_100"][-1])
    assert ("sampling/log10_n_p", 3) in histograms


def test_tensorboard_is_asked_for_only_where_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_osgd\[tensorboard\]'"):
        SamplingMonitor(tmp_path / "run")
    monitors = [SamplingMonitor(), SamplingMonitor(tmp_path, tensorboard=False)]
    small.fit(small.model(), callbacks=monitors)
    assert {path.name for path in tmp_path.iterdir()} == {
        "history.csv",
        "run.json",
        "examples.csv",
        "sampling.npz",
    }


def test_a_resumed_run_has_the_log_of_one_that_never_ended(tmp_path, logged):
    def parts():
        return [
            Checkpoint(tmp_path / "checkpoints", every=5),
            SamplingMonitor(tmp_path / "run", tensorboard=False),
        ]

    model = small.model(metrics=["accuracy"])
    with pytest.raises(InterruptedError):
        small.fit(model, epochs=6, callbacks=[*parts(), Dies(3)])
    before = load(tmp_path / "run")
    assert before.settings["status"] == "ended by InterruptedError"
    assert len(before.history["loss"]) == 3
    small.fit(model, epochs=6, callbacks=parts())
    found, whole = load(tmp_path / "run"), logged[3]
    assert found.settings["started"] == before.settings["started"]
    assert (np.diff(found.history["seconds"]) > 0).all()
    for name in set(found.history) - UNTIMED:
        np.testing.assert_array_equal(found.history[name], whole.history[name])
    assert found.examples == whole.examples
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


def test_later_epochs_go_on_and_epoch_0_starts_afresh(tmp_path):
    monitor = SamplingMonitor(tmp_path, tensorboard=False)
    small.fit(small.model(), epochs=2, callbacks=[monitor])
    other = small.model()  # whose optimizer counts from 0
    small.fit(other, initial_epoch=2, epochs=3, callbacks=[monitor])
    steps = load(tmp_path).history["steps"]
    assert len(steps) == 3 and steps[2] == steps[1] + other.optimizer.iterations
    assert load(tmp_path).examples
    other.compile("sgd", small.crossentropy(), sampling="uniform")
    with pytest.warns(UserWarning, match="held a run of 3 epochs, which this one"):
        small.fit(other, epochs=1, callbacks=[monitor])
    afresh = load(tmp_path)
    assert afresh.history["steps"].tolist() == [15]  # not 30
    assert not afresh.examples and not afresh.arrays


@pytest.mark.parametrize("plain", [False, True])
def test_uniform_training_and_plain_keras_are_logged_too(tmp_path, plain):
    model = small.model(sampling="uniform")
    if plain:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", small.crossentropy())
    monitor = SamplingMonitor(tmp_path, tensorboard=False)
    history = small.fit(model, epochs=2, callbacks=[monitor])
    assert set(history.history) == {"loss"}
    record = load(tmp_path)
    assert record.history["effective_epochs"].tolist() == [1, 2]
    assert record.history["gain_ratio"].tolist() == [1, 1]
    assert record.history["steps"].tolist() == [15, 30]
    assert record.settings["sampling"] == "uniform" and not record.examples
    sizes = [record.settings[name] for name in ("n", "batch_size")]
    assert sizes == ([None, None] if plain else [60, small.BATCH_SIZE])


def test_seconds_are_those_of_training_without_validation(tmp_path):
    class Clock(FitCallback):
        adds_to_logs = True  # so that it begins before the monitor

        def on_epoch_begin(self, epoch, logs=None):
            self.begun = time.perf_counter()

    class Slow(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            time.sleep(0.6)

        def on_epoch_end(self, epoch, logs=None):
            self.ended = time.perf_counter()

    clock, slow = Clock(), Slow()
    callbacks = [clock, SamplingMonitor(tmp_path, tensorboard=False), slow]
    validation = {"validation_data": (small.X[:8], small.Y[:8])}
    small.fit(small.model(), callbacks=callbacks, **validation)
    total = slow.ended - clock.begun
    assert load(tmp_path).history["seconds"][0] <= total - 2 * 0.6  # of two batches


def test_a_run_outlives_files_that_cannot_be_written_and_warns_once(tmp_path):
    class Removes(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    model = small.model()
    monitor = SamplingMonitor(tmp_path / "run", tensorboard=False)
    callbacks = [monitor, Removes()]
    told = small.warned(small.fit, model, epochs=3, callbacks=callbacks)
    assert len(told) == 1 and "Training goes on: make room" in told[0]
    assert model.optimizer.iterations >= 3 * 15 - 1


def test_a_file_that_is_not_written_to_its_end_leaves_the_one_before(tmp_path):
    files = RunFiles(tmp_path)
    files.write_history([{"epoch": 1, "loss": 0.25}])

    class Unprintable:
        def __str__(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_history([{"epoch": Unprintable()}])
    (tmp_path / "history.csv.part").write_bytes(b"half")
    assert load(tmp_path).history["loss"].tolist() == [0.25]
    files.write_settings({"a": np.float32(1.5)})
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": "1.5"}
    assert os.listdir(tmp_path).count("run.json.part") == 0


def test_what_is_no_directory_of_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must have a history.csv.*SamplingMonitor"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`tensorboard` must be True.*='no'"):
        SamplingMonitor(tensorboard="no")
    with pytest.raises(ValueError, match="`log_dir` must be a directory.*Name one"):
        SamplingMonitor(tmp_path / "file", tensorboard=False)


_DATASET = tf.data.Dataset.from_tensor_slices((small.X, small.Y)).batch(4)


@pytest.mark.parametrize(
    ("x", "batch_size", "split", "expected"),
    [
        (small.X, 4, 0.0, (60, 4)),
        ({"a": small.X}, None, 0.25, (45, 32)),
        (tf.RaggedTensor.from_row_lengths(np.arange(9.0), [2, 3, 4]), 2, 0.0, (3, 2)),
        (tf.sparse.from_dense(small.X), 4, 0.0, (60, 4)),
        (scipy.sparse.csr_matrix(small.X), 4, 0.0, (60, 4)),
        (_DATASET, None, 0.0, (None, None)),
        (_DATASET, 7, 0.0, (None, None)),  # which Keras passes over
        (None, None, 0.0, (None, None)),
    ],
)
def test_the_sizes_of_uniform_training_are_those_of_its_data(
    x, batch_size, split, expected
):
    assert training_data.sizes(x, batch_size, split) == expected
    indexed = keras_osgd.data.indexed(_DATASET, verbose=False)
    assert training_data.sizes(indexed, batch_size, split) == (60, batch_size or 4)


def test_a_fit_that_a_checkpoint_refuses_leaves_nothing_of_the_run_before(tmp_path):
    callbacks = [
        SamplingMonitor(tmp_path / "log", tensorboard=False),
        Checkpoint(tmp_path / "saved"),
    ]
    model = small.model()
    small.fit(model, epochs=2, callbacks=callbacks)
    written = load(tmp_path / "log").examples
    for rows in (60, 90):
        x, y = np.resize(small.X, (rows, 4)) + 1, (np.resize(small.Y, rows) + 1) % 3
        with pytest.raises(ValueError, match="The checkpoint .* was made for"):
            small.fit(model, x, y, callbacks=callbacks)
        after = load(tmp_path / "log").examples
        for name, values in written.items():
            np.testing.assert_array_equal(after[name], values)
        assert model.sampling.probabilities() is None
        assert model.sampling.history == {}
        labels = model.sampling.most_sampled(rows)
        np.testing.assert_array_equal(labels.label, y[labels.index])


def test_a_stream_of_pools_has_a_directory_too_and_leaves_the_labels_of_the_table(
    tmp_path,
):
    model = small.model()
    small.fit(model)
    before = model.sampling.most_sampled(5)
    model.compile("sgd", small.crossentropy(), sampling="presample")
    monitor = SamplingMonitor(tmp_path, tensorboard=False)
    model.fit(_DATASET.repeat(), steps_per_epoch=8, verbose=0, callbacks=[monitor])
    found = load(tmp_path)
    assert found.history["steps"].tolist() == [8]
    assert found.settings["n"] is None and found.settings["batch_size"] == 4
    np.testing.assert_array_equal(model.sampling.most_sampled(5).label, before.label)

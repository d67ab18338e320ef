"""What a resumed `fit` says, takes and refuses where it is not the one before."""

import csv
import functools
import shutil

import keras
import numpy as np
import pytest

from keras_osgd.callbacks import Checkpoint, SamplingMonitor, method
from keras_osgd.sampling import RAIS, Presample
from tests.helpers import small
from tests.helpers.checkpoints import EveryState

_rng = np.random.default_rng(0)
N = 200  # more than the 64 rows that are compared on a disk
X = _rng.normal(size=(N, 4)).astype("float32")
Y = _rng.integers(0, 3, N)
SGD, Scaled = keras.optimizers.SGD, keras.optimizers.LossScaleOptimizer
Decay = functools.partial(keras.optimizers.schedules.ExponentialDecay, 0.02, 50, 0.9)


class Stop(keras.callbacks.Callback):
    """Ends training in the second epoch, like a kill, after a checkpoint there."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) > 30:
            raise InterruptedError


def made(optimizer="sgd", sampling=None):
    return small.model(optimizer=optimizer, sampling=sampling or RAIS(seed=3))


def train(directory, *callbacks, model=None, optimizer="sgd", x=X, y=Y, **options):
    """Trains with checkpoints, 25 steps an epoch; returns the model."""
    options = {"epochs": 3, "batch_size": 8, "verbose": 2, **options}
    model = model or made(optimizer, options.pop("sampling", None))
    callbacks = [*callbacks, EveryState(directory, every=10)]
    model.fit(x, y, callbacks=callbacks, **options)
    return model


def monitor(directory):
    return SamplingMonitor(directory, tensorboard=False)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A model that was killed at step 31, and the directory it left."""
    model, directory = made(), tmp_path_factory.mktemp("killed")
    with pytest.raises(InterruptedError):
        train(directory, monitor(directory / "log"), Stop(), model=model)
    return model, directory


def test_another_length_of_epochs_is_not_bit_exact(killed, tmp_path, capsys):
    model = killed[0]
    shutil.copytree(killed[1], tmp_path, dirs_exist_ok=True)
    train(tmp_path, model=model, steps_per_epoch=10, epochs=2)
    assert "not bit-exact: steps_per_epoch None → 10.\n" in capsys.readouterr().out
    train(tmp_path, model=model, steps_per_epoch=10)
    assert ", bit-exact.\n" in capsys.readouterr().out
    train(tmp_path, model=model, steps_per_epoch=25, epochs=4)  # that of N / 8
    assert "not bit-exact: steps_per_epoch 10 → None.\n" in capsys.readouterr().out


def test_exactness_is_promised_for_the_rows_that_were_compared(
    killed, tmp_path, capsys
):
    train_ = functools.partial(train, model=killed[0])
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    train_(tmp_path / "mapped", x=mapped, epochs=1)
    mapped[10:12] += 1.0  # no probes
    train_(tmp_path / "mapped", x=mapped, epochs=2)
    told = "bit-exact if the rows{} are the same (64 of them were compared).\n"
    assert told.format(" on the disk") in capsys.readouterr().out
    train_(tmp_path / "mapped", x=np.array(mapped))  # no hashes to compare them with
    assert told.format("") in capsys.readouterr().out
    few = np.load(tmp_path / "x.npy", mmap_mode="r")[:64]  # all are compared
    for epochs in (1, 2):
        train_(tmp_path / "few", x=few, y=Y[:64], epochs=epochs)
    assert ", bit-exact.\n" in capsys.readouterr().out


def progress(log_dir):
    with open(log_dir / "history.csv") as file:
        return [float(row["effective_epochs"]) for row in csv.DictReader(file)]


def test_progress_goes_on_after_a_resume_that_is_not_exact(killed, tmp_path, capsys):
    shutil.copytree(killed[1], tmp_path, dirs_exist_ok=True)
    log, given = tmp_path / "log", {"model": killed[0], "batch_size": 10}
    train(tmp_path, monitor(log), **given)
    assert "not bit-exact: batch_size 8 → 10" in capsys.readouterr().out
    train(tmp_path, monitor(log), epochs=4, **given)
    assert ", bit-exact" in capsys.readouterr().out
    train(tmp_path, monitor(log), epochs=6, steps_per_epoch=10, **given)
    expected = [1.0, 2.0, 3.0, 4.0, 4.5, 5.0]  # to some steps, of 0.04 or more
    np.testing.assert_allclose(progress(log), expected, atol=0.15)


@pytest.mark.parametrize("sampling", ["rais", "presample"])
def test_progress_goes_on_from_the_initial_epoch(sampling, tmp_path):
    sampling = RAIS(seed=3) if sampling == "rais" else Presample(ratio=2, seed=3)
    model = small.model(sampling=sampling)
    for first in (0, 2):
        options = {"initial_epoch": first, "epochs": first + 2, "batch_size": 8}
        small.fit(model, X, Y, callbacks=[monitor(tmp_path)], **options)
    np.testing.assert_allclose(progress(tmp_path), [1, 2, 3, 4], atol=0.15)


RATES = {
    "0.05 → ExponentialDecay": (lambda: 0.05, Decay),
    "ExponentialDecay → 0.05": (Decay, lambda: 0.05),
}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("change", RATES)
def test_a_schedule_or_a_rate_instead_of_it_goes_on_with_all_else(
    change, scaled, tmp_path, capsys
):
    def optimizer(rate):
        inner = SGD(rate(), momentum=0.9)
        return Scaled(inner) if scaled else inner

    before, now = RATES[change]
    old = train(tmp_path, optimizer=optimizer(before), epochs=1)
    new = made(optimizer(now))
    Checkpoint(tmp_path).restore(new)
    values = [
        {
            v.path: v.numpy()
            for v in model.optimizer.variables
            if v.name != "learning_rate"
        }
        for model in (old, new)
    ]
    assert [len(v) for v in values] == [6 if scaled else 3] * 2
    for a, b in zip(*(v.values() for v in values), strict=True):
        np.testing.assert_array_equal(a, b)
    capsys.readouterr()
    model = train(tmp_path, model=new, epochs=2)
    said = capsys.readouterr().out
    assert f"not bit-exact: optimizer learning_rate {change}. The " in said
    found = float(method.inner_optimizer(model.optimizer).learning_rate)
    if now is Decay:
        assert "The schedule given to `compile` goes on" in said
        steps = float(method.inner_optimizer(model.optimizer).iterations)
        np.testing.assert_allclose(found, 0.02 * 0.9 ** (steps / 50), rtol=1e-5)
    else:
        assert "The learning rate given to `compile`, 0.05, goes on.\n" in said
        assert found == np.float32(0.05)


def test_other_variables_of_an_optimizer_are_refused_before_a_line(tmp_path, capsys):
    train(tmp_path, optimizer=SGD(0.05), epochs=1)
    capsys.readouterr()
    for rate in (0.05, Decay()):
        with pytest.raises(ValueError, match="with this optimizer. Received: [12] var"):
            train(tmp_path, optimizer=SGD(rate, use_ema=True))
        assert "Resumed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"y": Y.astype("int32")}, "y int64 → int32"),
        ({"sample_weight": np.ones(N)}, "sample_weight None → float"),
        ({"class_weight": {0: 2.0}}, "sample_weight None → float"),
        ({"y": Y[:, None]}, r"y int64 → int64 \(1,\)"),
    ],
)
def test_other_types_and_columns_are_named(change, named, killed, tmp_path):
    shutil.copytree(killed[1], tmp_path, dirs_exist_ok=True)
    message = rf"other columns or types: {named}.*\. Pass .*scores=.reset"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, model=killed[0], **change)


class Assigns(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate.assign(0.02)


class Reads(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        assert float(self.model.optimizer.learning_rate) > 0


def test_a_callback_that_sets_the_rate_is_not_advised_twice(tmp_path, capsys):
    train(tmp_path, optimizer=SGD(0.05), epochs=1)
    setters = [
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.02),
        keras.callbacks.ReduceLROnPlateau("loss"),
        Assigns(),
        keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: model.optimizer.learning_rate.assign(1)
        ),
    ]
    for setter in setters:
        assert method.rate_setter([Reads(), setter]) == type(setter).__name__
    others = [Reads(), keras.callbacks.TensorBoard(tmp_path), SamplingMonitor()]
    assert method.rate_setter([*others, Checkpoint(tmp_path)]) == ""
    model = train(tmp_path, setters[0], optimizer=SGD(0.02), epochs=2)
    said = capsys.readouterr().out
    assert "0.02 that the model has, until `LearningRateScheduler` sets" in said
    assert "pass the callback" not in said


def test_a_checkpoint_that_cannot_be_written_is_told_once_for_each_cause(tmp_path):
    def fit():
        train(tmp_path, optimizer=SGD(np.inf), sampling="uniform", epochs=1)

    said = [text for text in small.warned(fit) if "No checkpoint was" in text]
    assert len(said) == len(set(said)) == 1
    assert "NaN or infinity in " in said[0] and "learning_rate" in said[0]

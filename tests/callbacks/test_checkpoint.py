"""Going on from a checkpoint: bit for bit, from every state of a run."""

import shutil
import threading

import keras
import numpy as np
import pytest

import keras_osgd
from keras_osgd.callbacks import Checkpoint, SamplingMonitor, checkpoint_files, method
from keras_osgd.sampling import RAIS, Oracle
from tests.helpers import small
from tests.helpers.checkpoints import (
    EveryState,
    going_on,
    net,
    saved_midway,
    state_of,
)
from tests.helpers.paths import ROOT
from tests.helpers.selection import long_but

FIXTURE = ROOT / "tests" / "fixtures" / "checkpoint_1"  # of format 1


class SomeStates(EveryState):
    """Saves the first step, and those at the ends of epochs and of blocks' quarters."""

    def on_train_batch_end(self, batch, logs=None):
        step = self.model.sampling_run.clock.step
        if step == 1 or 0 in (step % 13, step % 15):
            super().on_train_batch_end(batch, logs)


class Draws(keras.callbacks.Callback):
    """Keeps the rows that every step was trained on, by step."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def on_train_batch_end(self, batch, logs=None):
        run = self.model.sampling_run
        before = max(0, run.clock.step - self.model.steps_per_execution)
        for step in range(before, run.clock.step):
            row = run.buffers.index[step % run.buffers.rows]
            self.rows[step] = row.numpy().tolist()


CASES = {
    # Sampling, steps per execution, epochs, and which kinds of states are restored.
    "rais": (lambda: RAIS(seed=3), 1, 5, range(1, 5)),
    "executions, independent, ordinary epochs": (
        lambda: RAIS(seed=3, draws="independent", adapt_learning_rate=False),
        5,
        5,
        [2],
    ),
    "oracle": (lambda: Oracle(seed=3, refresh=10), 1, 3, [2]),
}
SECONDS = {"sampling_share", "scoring_seconds"}  # no two runs have the same


def one_of_each_kind(saved, epoch, block):
    """Returns a checkpoint of each kind of state that a run goes through.

    Args:
        saved: files of all its checkpoints; the last one is of its end.
        epoch: steps of the first epoch.
        block: steps of a block of draws.
    """
    steps = [checkpoint_files._read(path).details["step"] for path in saved[:-1]]
    planning = next(i for i, step in enumerate(steps) if step >= block - block // 4)
    edge = next(i for i, step in enumerate(steps) if step >= block)
    places = 0, steps.index(epoch), planning, edge, len(steps) - 1
    return [saved[place] for place in sorted(places)]


@pytest.mark.parametrize("case", long_but(["rais", "oracle"], CASES))
def test_a_restore_of_any_state_goes_on_bit_for_bit(case, tmp_path, capsys):
    sampling, per_execution, epochs, kinds = CASES[case]
    whole, everywhere = net(sampling(), per_execution), Draws()
    saving = SomeStates(tmp_path / "all", every=1, keep=10**6)
    given = [saving, everywhere, SamplingMonitor()]
    history = small.fit(whole, epochs=epochs, callbacks=given)
    saved = sorted((tmp_path / "all").glob("*.npz"))
    steps, block = int(whole.optimizer.iterations), whole.sampling_run.buffers
    block, epoch = block.block_steps, whole.sampling.history["steps"][0]
    assert steps > block + block // 4  # well into the second block
    expected = state_of(whole)
    # The last state goes into a new model; then it is at another one, with its traces.
    model = net(sampling(), per_execution) if len(kinds) > 1 else whole
    paths = one_of_each_kind(saved, epoch, block)
    for kind in reversed(kinds):
        directory = tmp_path / str(kind)
        directory.mkdir()
        for suffix in (".npz", ".json"):
            shutil.copy(paths[kind].with_suffix(suffix), directory)
        keras.utils.set_random_seed(kind)  # nothing of the process may matter
        draws = Draws()
        given = [Checkpoint(directory, every=10**6), draws, SamplingMonitor()]
        resumed = small.fit(model, epochs=epochs, callbacks=given, verbose=2)
        assert "not bit-exact" not in capsys.readouterr().out
        assert all(everywhere.rows[step] == rows for step, rows in draws.rows.items())
        for a, b in zip(expected, state_of(model), strict=True):
            np.testing.assert_array_equal(a, b)
        for name in resumed.history.keys() - SECONDS:
            values = resumed.history[name]
            np.testing.assert_array_equal(values, history.history[name][-len(values) :])


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A model that a kill left after 70 steps, and the directory, to look at."""
    directory = tmp_path_factory.mktemp("far")
    given = {"epochs": 9, "stop_after": 70, "every": 10, "keep": 9}
    return saved_midway(directory, RAIS(seed=3), **given), directory


@pytest.fixture(scope="module")
def used(killed):
    """The model; one that goes on from a checkpoint may be at any state."""
    return killed[0]


@pytest.fixture(scope="module")
def far(killed):
    """The directory, whose newest checkpoint is in the second block."""
    return killed[1]


@pytest.fixture(scope="module")
def begun(far, tmp_path_factory):
    """The directory as it was after 20 steps; not to be written in."""
    directory = tmp_path_factory.mktemp("begun")
    for path in far.glob("checkpoint-00000002.*"):
        shutil.copy(path, directory)
    return directory


def test_other_rows_are_refused_with_the_remedy_and_how_many_differ(
    begun, used, capsys
):
    message = "was made for 60 examples, the data has 59.*start the scores afresh"
    with pytest.raises(ValueError, match=message):
        going_on(begun, None, capsys, small.X[:59], small.Y[:59], model=used)
    order = np.arange(60)
    order[:31] = np.roll(order[:31], 1)
    message = r"31 of 60 rows differ\. .*scores=\"reset\""
    with pytest.raises(ValueError, match=message):
        going_on(begun, None, capsys, small.X[order], small.Y[order], model=used)


def test_rows_that_changed_start_afresh_and_the_others_go_on(far, tmp_path, capsys):
    shutil.copytree(far, tmp_path, dirs_exist_ok=True)
    before = checkpoint_files.newest(far).arrays["state"]
    rows, y = [3, 17, 58], small.Y.copy()
    y[rows] = (y[rows] + 1) % 3
    found = {}

    def look(logs):
        found.update(model.sampling_state.state_dict())

    model = net(RAIS(seed=3))
    looking = keras.callbacks.LambdaCallback(on_train_begin=look)
    callbacks = [looking, Checkpoint(tmp_path, every=1)]
    small.fit(model, y=y, epochs=6, verbose=2, callbacks=callbacks)
    said = capsys.readouterr().out
    assert "not bit-exact: 3 of 60 rows changed, their scores start afresh." in said
    unseen = np.isin(np.arange(60), rows)
    for name, fresh in (
        ("table.last", -1),
        ("times_drawn", 0),
        ("last_losses", np.nan),
    ):
        expected = np.where(unseen, fresh, before[name])
        np.testing.assert_array_equal(found[name], expected)
    small.fit(model, y=y, epochs=6, verbose=2, callbacks=[Checkpoint(tmp_path)])
    assert "rows changed" not in capsys.readouterr().out


def test_records_are_other_data_if_a_probe_of_them_changed(tmp_path, capsys):
    x = [row.copy() for row in small.X]
    source = keras_osgd.data.records(list(zip(x, small.Y, strict=True)), verbose=False)
    model = net(RAIS(seed=3))
    given = {"batch_size": 4, "verbose": 2, "callbacks": [Checkpoint(tmp_path)]}
    model.fit(source, epochs=1, **given)
    x[0][:] = 0  # of 64 probes in 60 rows, two see the first
    with pytest.raises(ValueError, match=r"differs \(2 of 64 probe rows\)"):
        model.fit(source, epochs=2, **given)


CHANGES = {
    "batch_size 4 → 8; draws reshuffled → independent; floor 0.05 → 0.1": (
        {"floor": 0.1, "draws": "independent"},
        {"batch_size": 8},
    ),
    "features": ({"features": ("constant", "last")}, {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_are_taken_and_said_not_to_be_bit_exact(
    change, far, tmp_path, capsys
):
    sampling, options = CHANGES[change]
    shutil.copytree(far, tmp_path, dirs_exist_ok=True)
    before = checkpoint_files.newest(far).arrays["state"]
    iterations = 70 + float(before["lead"])
    options = {"epochs": 6, **options}
    model, said = going_on(tmp_path, RAIS(seed=3, **sampling), capsys, **options)
    assert f"not bit-exact: {change}" in said
    after = model.sampling_state
    if change == "features":
        assert after.drawn == float(model.optimizer.iterations - 70) * 4
    else:
        assert after.drawn > before["drawn"] - 2 * 50 * 4
        assert after.table.share_unseen == 0
    # What is left of the epochs, in effective iterations, at either batch size.
    steps = float(model.optimizer.iterations) + float(after.lead) - iterations
    left = (6 - iterations / 15) * 60 / options.get("batch_size", 4)
    assert abs(steps - left) < 3


def test_probabilities_are_known_at_once_after_going_on(far, used, tmp_path):
    shutil.copytree(far, tmp_path, dirs_exist_ok=True)
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: seen.append(used.sampling_run.probabilities())
    )
    saved, callbacks = checkpoint_files.newest(tmp_path), [look, Checkpoint(tmp_path)]
    small.fit(used, epochs=5, callbacks=callbacks)
    candidate = saved.arrays["planner"]["blocks"]["candidate"]
    np.testing.assert_array_equal(seen[0], candidate)
    assert seen[0].shape == (60,)


def test_schedules_go_on_where_they_were_if_the_scores_start_afresh(
    far, used, tmp_path, capsys
):
    shutil.copytree(far, tmp_path, dirs_exist_ok=True)
    lead = float(checkpoint_files.newest(far).arrays["state"]["lead"])
    assert lead != 0
    used.sampling_state.load_lead(0.0)
    going_on(tmp_path, None, capsys, scores="reset", epochs=0, model=used)
    assert float(used.sampling_state.lead) == lead


def test_scores_are_reset_once_and_an_interrupted_run_on_the_data_goes_on(
    begun, tmp_path, capsys
):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    x, y = small.X[:59], small.Y[:59]

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.sampling_run.clock.step == 5:
                raise InterruptedError

    saving = EveryState(tmp_path, every=1, scores="reset")
    given = {"epochs": 2, "callbacks": [Stop(), saving], "verbose": 2}
    model = net(RAIS(seed=3))
    with pytest.raises(InterruptedError):
        small.fit(model, x, y, **given)
    assert "not bit-exact: scores start afresh" in capsys.readouterr().out
    options = {"x": x, "y": y, "scores": "reset"}
    _, said = going_on(tmp_path, None, capsys, epochs=2, model=model, **options)
    assert "at step 4, bit-exact" in said
    assert model.sampling_state.table.size == 59
    again, said = going_on(tmp_path, RAIS(seed=3), capsys, epochs=2, **options)
    assert "complete after epoch 2" in said
    for a, b in zip(state_of(model), state_of(again), strict=True):
        np.testing.assert_array_equal(a, b)
    options["model"] = model  # at its end, too
    _, said = going_on(tmp_path, RAIS(seed=3), capsys, epochs=3, **options)
    assert "not bit-exact: scores start afresh" in said  # another training


def test_scores_that_were_reset_are_reset_again_for_rows_that_changed(tmp_path, capsys):
    model = saved_midway(tmp_path, RAIS(seed=3), stop_after=5, scores="reset")
    y = small.Y.copy()
    y[7] = (y[7] + 1) % 3
    given = {"scores": "reset", "epochs": 1, "model": model}
    _, said = going_on(tmp_path, None, capsys, y=y, **given)
    assert "not bit-exact: scores start afresh." in said


def test_another_model_or_optimizer_is_refused_before_any_step(begun):
    other = small.model()
    with pytest.raises(ValueError, match="made with this model.*the model has 2"):
        small.fit(other, callbacks=[Checkpoint(begun)])
    model = net(RAIS(seed=3))
    # One has other variables, the other variables of the same shapes.
    for optimizer, named in (("adam", "Adam"), ("rmsprop", "RMSprop")):
        model.compile(optimizer, small.crossentropy(), sampling=RAIS(seed=3))
        weights = model.get_weights()
        message = f"made with this optimizer. Received: SGD in .* has {named}"
        with pytest.raises(ValueError, match=message):
            small.fit(model, callbacks=[Checkpoint(begun)])
        for before, after in zip(weights, model.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
    model.compile("sgd", small.crossentropy())
    message = "made with this optimizer. Received: 8 variables .* has 2"
    with pytest.raises(ValueError, match=message):
        Checkpoint(begun).restore(model)


def test_callbacks_of_keras_go_on_all_at_once(tmp_path):
    """With their patience, their best weights, and rates that are multiplied once."""

    def callbacks(name):
        (tmp_path / name).mkdir(exist_ok=True)
        best = tmp_path / name / "best.weights.h5"
        options = {"monitor": "val_loss", "min_delta": 0.05}
        return [
            keras.callbacks.BackupAndRestore(tmp_path / name / "backup", save_freq=10),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.95 * rate),
            keras.callbacks.ModelCheckpoint(  # the first epoch's
                best,
                "learning_rate",
                mode="max",
                save_best_only=True,
                save_weights_only=True,
            ),
            keras.callbacks.ReduceLROnPlateau(patience=2, **options),
            keras.callbacks.EarlyStopping(
                patience=3, restore_best_weights=True, **options
            ),
            keras.callbacks.TerminateOnNaN(),
        ]

    data = {"epochs": 30, "validation_data": (small.X, small.Y)}
    whole, saving = net(RAIS(seed=3)), Checkpoint(tmp_path / "saved whole")
    history = small.fit(whole, callbacks=[*callbacks("whole"), saving], **data)
    directory, killed = tmp_path / "saved", callbacks("killed")
    options = {"callbacks": killed, "stop_after": 50, **data}
    model = saved_midway(directory, RAIS(seed=3), **options)
    given = [*callbacks("killed"), Checkpoint(directory)]
    resumed = small.fit(model, callbacks=given, **data)
    for a, b in zip(state_of(whole), state_of(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert resumed.epoch == history.epoch[-len(resumed.epoch) :]
    assert 1 < len(history.epoch) < 30
    for name, values in resumed.history.items():
        assert values == history.history[name][-len(values) :]
    rates = np.array(history.history["learning_rate"])
    assert (rates[1:] / rates[:-1]).min() < 0.2  # the plateau's
    best = []
    for name in ("whole", "killed"):
        model.load_weights(tmp_path / name / "best.weights.h5")
        best.append(small.flat(model))
    np.testing.assert_array_equal(*best)


def test_weights_that_are_not_numbers_are_never_saved(tmp_path):
    model = net("uniform")
    saving = Checkpoint(tmp_path, every=1)
    x = small.X.copy()
    x[40] = np.nan  # in the eleventh step
    stops = keras.callbacks.TerminateOnNaN()
    options = {"epochs": 2, "shuffle": False, "callbacks": [stops, saving]}
    with pytest.warns(
        UserWarning, match="NaN or infinity in .*kernel.*last good"
    ) as told:
        small.fit(model, x, **options)
    (said,) = [str(w.message) for w in told if "No checkpoint" in str(w.message)]
    assert str(saving.newest) in said
    good = net("uniform")
    Checkpoint(tmp_path).restore(good)
    assert np.isfinite(small.flat(good)).all()
    assert 0 < float(good.optimizer.iterations) <= 10


def test_three_failures_in_a_row_end_training_and_fewer_do_not(tmp_path, monkeypatch):
    real, failing = checkpoint_files.write, []

    def write(*args):
        if failing.pop(0):
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(checkpoint_files, "write", write)
    failing[:] = [False, True, True, False, True, True, True]
    given = {"epochs": 9, "callbacks": [EveryState(tmp_path, every=4)]}

    def fails():
        with pytest.raises(RuntimeError, match="failure number 3.*start again"):
            small.fit(small.model(), **given)

    said = [text for text in small.warned(fails) if "No space left" in text]
    assert len(said) == 2  # each time at first, until one was written
    assert all("Training goes on" in text for text in said)
    assert str(tmp_path / "checkpoint-00000001.npz") in said[0]
    assert failing == []
    Checkpoint(tmp_path).restore(small.model())


def test_training_does_not_wait_for_a_slow_disk(tmp_path, monkeypatch):
    done, real, taken = threading.Event(), checkpoint_files.write, []

    def write(directory, arrays, details, *others):
        taken.append(details["step"])
        assert done.wait(60)
        return real(directory, arrays, details, *others)

    class Done(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                done.set()

    monkeypatch.setattr(checkpoint_files, "write", write)
    saving = Checkpoint(tmp_path, every=1)
    small.fit(small.model(), epochs=2, callbacks=[Done(), saving])
    assert taken[0] == 1
    assert taken[1] >= 25  # nothing was copied while the disk was busy


def test_uniform_training_goes_on_from_the_interrupted_epochs_beginning(
    tmp_path, capsys
):
    model = saved_midway(tmp_path, "uniform", stop_after=20)
    _, said = going_on(tmp_path, None, capsys, epochs=2, model=model)
    assert "Resumed epoch 2" in said
    assert "from the epoch's beginning, not bit-exact" in said
    assert float(model.optimizer.iterations) == 20 + 15
    _, said = going_on(tmp_path, RAIS(seed=3), capsys, epochs=3)
    assert "not bit-exact: sampling Uniform → RAIS" in said


class Net(keras_osgd.Model):
    """Is built by the first batch."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(x)


@pytest.mark.parametrize("sampling", ["rais", "uniform"])
def test_a_model_that_is_not_built_goes_on_too(sampling, tmp_path):
    def made():
        keras.utils.set_random_seed(0)
        model = Net()
        model.compile("sgd", small.crossentropy(), sampling=sampling)
        return model

    first, second = made(), made()
    small.fit(first, epochs=2, callbacks=[Checkpoint(tmp_path)])
    details = checkpoint_files.newest(tmp_path).details
    assert details["method"]["layers"] == method.layers_of(first)["layers"] != []
    assert not second.built
    small.fit(second, epochs=2, callbacks=[Checkpoint(tmp_path)])
    np.testing.assert_array_equal(small.flat(first), small.flat(second))


def test_arguments_and_models_that_cannot_be_are_refused(tmp_path):
    for every in (0, -1, True, "step", 1.5):
        with pytest.raises(ValueError, match="`every` must be"):
            Checkpoint(tmp_path, every=every)
    with pytest.raises(ValueError, match="`keep`.* at least 1"):
        Checkpoint(tmp_path, keep=0)
    with pytest.raises(ValueError, match="`directory` must be a path.*directory=5"):
        Checkpoint(5)
    with pytest.raises(ValueError, match="`scores` must be"):
        Checkpoint(tmp_path, scores="forget")
    with pytest.raises(ValueError, match="one `Checkpoint` at most"):
        small.fit(small.model(), callbacks=[Checkpoint(tmp_path), Checkpoint(tmp_path)])
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    plain.compile("sgd", small.crossentropy())
    with pytest.raises(ValueError, match="must train a model of keras_osgd"):
        plain.fit(small.X, small.Y, verbose=0, callbacks=[Checkpoint(tmp_path)])
    with pytest.raises(ValueError, match="There must be a checkpoint to restore"):
        Checkpoint(tmp_path).restore(small.model())
    with pytest.raises(ValueError, match="must be compiled as in training.*is not"):
        Checkpoint(FIXTURE).restore(keras.Sequential([keras.Input((4,))]))


def test_a_checkpoint_of_the_first_version_loads_for_ever(used, tmp_path, capsys):
    shutil.copytree(FIXTURE, tmp_path / "first")
    _, said = going_on(tmp_path / "first", None, capsys, model=used)
    assert "Resumed epoch 2" in said
    assert "not bit-exact: unit_of_what_is_owed None → visits." in said
    assert used.sampling_state.blocks > 0
    # What was saved is what is there, whatever later versions compute from it.
    arrays = dict(np.load(next(FIXTURE.glob("*.npz"))))
    Checkpoint(FIXTURE).restore(model := net(RAIS(seed=3)))
    for order, variable in enumerate(model.variables):
        saved = arrays[f"variables/model/{order}"]
        np.testing.assert_array_equal(variable.numpy(), saved)
    for name, value in model.sampling_state.state_dict().items():
        if name in ("gain", "lead") or name.startswith("table."):
            np.testing.assert_array_equal(value, arrays[f"state/{name}"])

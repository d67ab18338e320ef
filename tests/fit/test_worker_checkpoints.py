"""Checkpoints of two processes, which run `tests.helpers.checkpoint_workers`."""

import shutil

import numpy as np
import pytest

from keras_osgd.callbacks import Checkpoint, checkpoint_files
from keras_osgd.sampling import RAIS
from keras_osgd.scores.dealt import interleaved
from tests.helpers import checkpoints, processes, small

pytestmark = pytest.mark.slow


def _story(directory, name, late=0.0):
    processes.ended(processes.started(directory, name, late=late))
    return processes.left(directory, name)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("worker_checkpoints")


@pytest.fixture(scope="module")
def ended_twice(directory):
    return _story(directory, "ended_twice")


@pytest.fixture(scope="module")
def going_on(directory, ended_twice):
    saving = Checkpoint(directory / "of_one", every=4)
    model = checkpoints.net(RAIS(seed=3, retreat_below=0))
    small.fit(model, epochs=1, callbacks=[saving])
    shutil.copytree(directory / "run", directory / "run_when_killed")
    return _story(directory, "going_on", late=3.0)


def test_a_directory_that_workers_do_not_share_is_refused_on_each(ended_twice):
    for told in ended_twice[0]:
        assert "must be one that all workers share" in told["apart"]["error"]
        assert "worker 0" in told["apart"]["error"]
        assert told["apart"]["step"] is None


def test_no_file_stays_of_the_look_at_the_directory(directory, going_on):
    assert not list(directory.rglob("worker-*"))


def test_sigterm_on_one_worker_ends_all_at_one_step(ended_twice):
    for told in ended_twice[0]:
        assert told["terminated"]["error"] == "SystemExit: 143"
        assert told["terminated"]["step"] == 8


def test_the_others_end_with_one_clear_error_after_a_kill(ended_twice):
    told, _, logs = ended_twice
    assert "killed" not in told[0]
    error = told[1]["killed"]["error"]
    assert error.startswith("RuntimeError: All 2 workers must stay alive")
    assert "Start all workers again" in error
    assert "run/checkpoint-" in error
    assert "at step 8, bit-exact" in logs[1]


def _of(arrays, name):
    return [v for k, v in arrays.items() if k.rpartition(" ")[0] == name]


def test_a_run_ended_twice_goes_on_bit_for_bit(ended_twice, going_on):
    for rank in (0, 1):
        before, after = (part[1][rank] for part in (ended_twice, going_on))
        alone, resumed = _of(before, "left_alone"), _of(after, "resumed")
        assert len(alone) == len(resumed) > 20
        for expected, array in zip(alone, resumed, strict=True):
            np.testing.assert_array_equal(array, expected)
        histories = ended_twice[0][rank]["left_alone"], going_on[0][rank]["resumed"]
        last = [{k: v[-1] for k, v in h["history"].items()} for h in histories]
        assert last[0].items() <= last[1].items()  # the monitor adds some
        assert {"loss", "accuracy"} <= last[0].keys()
        assert "bit-exact" in going_on[2][rank].split("not bit-exact")[0]


def test_two_workers_go_on_from_a_checkpoint_of_one(directory, going_on):
    told, _, logs = going_on
    for rank in (0, 1):
        assert "not bit-exact: workers 1 → 2" in logs[rank]
        assert told[rank]["from_one"]["step"] > 0
    one, two = (going_on[1][rank] for rank in (0, 1))
    weights = [_of(part, "from_one")[1] for part in (one, two)]
    np.testing.assert_array_equal(*weights)


def test_uniform_training_goes_on_from_the_last_epoch(going_on):
    for told in going_on[0]:
        assert len(told["more_of_uniform"]["history"]["loss"]) == 1
    weights = [_of(part, "more_of_uniform")[1] for part in going_on[1]]
    np.testing.assert_array_equal(*weights)


def test_a_part_that_cannot_be_written_is_told_of_on_all(going_on):
    told, _, logs = going_on
    for rank in (0, 1):
        assert "No checkpoint was written" in logs[rank]
        assert "No space left on device" in logs[rank]
        assert "error" not in told[rank]["full_disk"]
    assert "worker 1: " in logs[0]
    assert not [name for name in told[0]["files"] if "00000002" in name]


def test_one_process_goes_on_from_a_checkpoint_of_two(directory, going_on, capsys):
    copy = directory / "for_one"
    shutil.copytree(directory / "run_when_killed", copy)
    saved = checkpoint_files.newest(copy)
    model, told = checkpoints.going_on(copy, RAIS(seed=3, retreat_below=0), capsys)
    assert "not bit-exact: workers 2 → 1" in told
    parts = [saved, saved.parts[1]]
    drawn = [part.arrays["state"]["times_drawn"] for part in parts]
    now = model.sampling_state.times_drawn
    for rank in (0, 1):  # each row's own went on
        assert (now[rank::2] >= drawn[rank]).all()


def _parts(copy):
    """Returns the second worker's parts of the checkpoints that are whole."""
    whole = sorted(copy.glob("checkpoint-????????.json"))
    parts = [path.with_name(f"{path.stem}.worker-1.npz") for path in whole]
    assert len(parts) == 2
    return parts


def test_a_part_of_another_step_is_no_part(directory, going_on):
    copy = directory / "stale"
    shutil.copytree(directory / "run_when_killed", copy)
    first, last = _parts(copy)
    for suffix in (".npz", ".json"):
        shutil.copy(first.with_suffix(suffix), last.with_suffix(suffix))
    with pytest.warns(UserWarning, match="is of another checkpoint"):
        saved = checkpoint_files.newest(copy)
    assert saved.path.stem == first.stem.removesuffix(".worker-1")


def test_a_checkpoint_without_a_whole_part_is_passed_over(directory, going_on):
    copy = directory / "torn"
    shutil.copytree(directory / "run_when_killed", copy)
    first, last = _parts(copy)
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="damaged"):
        saved = checkpoint_files.newest(copy)
    assert saved.path.stem == first.stem.removesuffix(".worker-1")


def test_parts_without_the_marker_are_no_checkpoint(directory, going_on):
    copy = directory / "begun"  # all parts are there, but the first worker was killed
    shutil.copytree(directory / "run_when_killed", copy)
    first, last = _parts(copy)
    last.with_name(last.name.replace(".worker-1.npz", ".json")).unlink()
    saved = checkpoint_files.newest(copy)
    assert saved.path.stem == first.stem.removesuffix(".worker-1")


# What is known of all rows


def test_each_worker_knows_the_draws_and_p_of_all_rows(going_on):
    told, arrays, _ = going_on
    times = interleaved([part["own times"] for part in arrays])
    p = interleaved([part["own q"] for part in arrays]) / 2
    assert times.sum() > 200 and p.std() > 0
    for rank in (0, 1):
        found = arrays[rank]
        np.testing.assert_array_equal(found["times"], times[found["most"]])
        np.testing.assert_array_equal(found["labels"], small.Y[found["most"]])
        np.testing.assert_array_equal(found["p"], p)
        assert told[rank]["monitored"]


def test_numbers_are_logged_of_all_workers(going_on):
    own = [told["own logged"] for told in going_on[0]]
    assert own[0] != own[1]
    for told in going_on[0]:
        assert told["logged"].keys() == own[0].keys()
        for name in told["logged"].keys() - {"sampling_share"}:  # of time, that goes on
            value = told["logged"][name]
            of_each = [found[name] for found in own]
            expected = max(of_each) if name == "largest_weight" else np.mean(of_each)
            np.testing.assert_allclose(value, expected, err_msg=name)


def test_label_errors_are_looked_for_among_all_rows(going_on):
    one, two = (part["suspects"] for part in going_on[1])
    np.testing.assert_array_equal(one, two)


def test_the_first_worker_alone_writes_the_monitors_files(directory, going_on):
    history = (directory / "monitored" / "history.csv").read_text().splitlines()
    assert len(history) == 2  # the names, and the epoch after the kill


def test_saved_weights_hold_the_scores_of_all_rows(directory, going_on, capsys):
    _, arrays, logs = going_on
    times = interleaved([part["own times"] for part in arrays])
    model = checkpoints.net(RAIS(seed=3, retreat_below=0))
    model.load_weights(directory / "of_all_1.weights.h5")
    np.testing.assert_array_equal(model.sampling_state.times_drawn, times)
    small.fit(model, epochs=1, verbose=2)
    assert "start afresh" not in capsys.readouterr().out
    assert (model.sampling_state.times_drawn >= times).all()
    for rank in (0, 1):  # and each of two workers takes its own rows
        now = arrays[rank]["loaded times"]
        assert (now >= arrays[rank]["own times"]).all() and now.sum() > times.sum() / 2

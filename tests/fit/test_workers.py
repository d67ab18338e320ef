"""Training in two processes, which run `tests.helpers.workers`."""

import json
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

import keras_osgd
from keras_osgd.fit import continuation
from keras_osgd.sampling import RAIS
from tests.helpers import replayed
from tests.helpers.paths import ROOT
from tests.helpers.processes import free_ports

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What two processes that trained together found: (arrays, others) of each."""
    directory = tmp_path_factory.mktemp("workers")
    ports = free_ports(2)
    command = [sys.executable, "-m", "tests.helpers.workers"]
    commands = [[*command, str(r), *ports, directory] for r in (0, 1)]
    running = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for command in commands
    ]
    try:
        told = [process.communicate(timeout=400)[0].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(told)
    return [
        (
            np.load(directory / f"{rank}.npz"),
            json.loads((directory / f"{rank}.json").read_text()),
        )
        for rank in (0, 1)
    ]


def test_two_processes_end_with_the_same_weights_and_show_the_same(workers):
    (arrays, told), (others, also_told) = workers
    for name in ("uniform", "weights", "exact weights", "own weights", "predicted"):
        np.testing.assert_array_equal(arrays[name], others[name])
    for name in ("history", "uniform_history", "evaluated"):
        assert told[name] == also_told[name]


@pytest.mark.parametrize("kind", ["", "exact ", "own "])
def test_two_processes_train_as_one_on_the_same_draws(workers, kind):
    names = ("index", "probability", "norms", "gains", "weights")
    parts = [{k: arrays[kind + k] for k in names} for arrays, _ in workers]
    index = np.concatenate([2 * part["index"] + r for r, part in enumerate(parts)], 1)
    q = np.concatenate([part["probability"] for part in parts], axis=1)
    p = q / 2  # of all rows; a worker's own are drawn with q
    start = replayed.model(keras.Sequential).get_weights()
    expected = replayed.replay(start, index, p, exact=kind == "exact ")
    norms = np.concatenate([part["norms"] for part in parts], axis=1)
    np.testing.assert_allclose(norms, expected.norms, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(parts[0]["weights"], expected.weights, atol=2e-5)
    for part in parts:
        np.testing.assert_allclose(part["gains"], expected.gains, rtol=1e-4)


def test_each_process_has_a_table_of_its_own_rows(workers):
    assert [told["examples"] for _, told in workers] == [31, 30]
    for arrays, told in workers:
        assert arrays["index"].max() < told["examples"]


def test_keras_own_training_still_fails_in_two_processes_without_our_mends(workers):
    """Where this fails, Keras is mended: take `UnderStrategy` out."""
    for _, told in workers:
        assert "PerReplica" in told["plain"]
        assert "reduction dimension" in told["first"]


def test_each_worker_draws_by_random_numbers_of_its_own(monkeypatch):
    """The same numbers would draw neighbours together: rows are dealt out in turn."""
    for rank in (0, 3):
        with monkeypatch.context() as patch:
            of_rank = types.SimpleNamespace(rank=rank)
            patch.setattr(continuation, "share_of", lambda strategy, r=of_rank: r)
            model = replayed.model(keras_osgd.Sequential, sampling=RAIS(seed=7))
            model.fit(replayed.X, replayed.Y, epochs=1, verbose=0)
        assert model.sampling_state.seed == 7 + rank

"""One of several processes that resume together; for `fit/test_worker_checkpoints`.

python -m tests.helpers.checkpoint_workers RANK PORTS DIRECTORY STORY

PORTS are joined by ",", one for each worker. What a story found is in DIRECTORY, in
STORY.RANK.npz and STORY.RANK.json.
"""

import json
import os
import pathlib
import signal
import sys
import time
import traceback

RANK, PORTS = int(sys.argv[1]), sys.argv[2].split(",")
DIRECTORY, STORY = pathlib.Path(sys.argv[3]), sys.argv[4]
os.environ["TF_CONFIG"] = json.dumps(
    {
        "cluster": {"worker": [f"127.0.0.1:{port}" for port in PORTS]},
        "task": {"type": "worker", "index": RANK},
    }
)

import tensorflow as tf  # noqa: E402

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before all else, or it raises

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_osgd  # noqa: E402
from keras_osgd.callbacks import (  # noqa: E402
    Checkpoint,
    SamplingMonitor,
    checkpoint_files,
)
from keras_osgd.sampling import RAIS  # noqa: E402
from tests.helpers import checkpoints, small  # noqa: E402

EVERY, EPOCHS = 4, 4  # of 15 steps; from the 50th on draws follow the scores
found, arrays = {}, {}


class Signal(keras.callbacks.Callback):
    """Sends this process a signal after a step of one worker."""

    def __init__(self, rank, step, number):
        super().__init__()
        self.rank, self.step, self.number = rank, step, number

    def on_train_batch_end(self, batch, logs=None):
        now = self.model.sampling_run.clock.step
        if (RANK, now) == (self.rank, self.step):
            os.kill(os.getpid(), self.number)


def train(
    name, directory, *others, sampling=None, epochs=EPOCHS, batch_size=4, every=EVERY
):
    """Trains, and keeps the end and how it came about under a name."""
    with strategy.scope():
        model = checkpoints.net(sampling or RAIS(seed=3, retreat_below=0))
    callbacks = [*others, Checkpoint(directory, every=every)]
    told = found[name] = {}
    try:
        given = {"batch_size": batch_size, "verbose": 2, "callbacks": callbacks}
        history = small.fit(model, epochs=epochs, **given)
        told["history"] = history.history
        for order, array in enumerate(checkpoints.state_of(model)):
            arrays[f"{name} {order}"] = array
    except (Exception, SystemExit) as error:
        told["error"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()  # into the log
    run = model.sampling_run
    told["step"] = run and run.clock.step
    keep()
    return model


def keep():
    """Writes what was found so far: a kill may follow."""
    np.savez(DIRECTORY / f"{STORY}.{RANK}.npz", **arrays)
    (DIRECTORY / f"{STORY}.{RANK}.json").write_text(json.dumps(found))


def ended_twice():
    """A run left alone; then one that SIGTERM ends on one worker, and SIGKILL."""
    train("apart", DIRECTORY / f"of_worker_{RANK}", epochs=1)
    train("left_alone", DIRECTORY / "left_alone")
    train("terminated", DIRECTORY / "run", Signal(1, 7, signal.SIGTERM))
    train("killed", DIRECTORY / "run", Signal(0, 57, signal.SIGKILL))


def know_all_rows(model, monitor):
    """Keeps what a worker knows of its own rows, and of all; saves and loads it."""
    most = model.sampling.most_sampled(len(small.Y))
    arrays["own times"] = model.sampling_state.times_drawn
    arrays["own q"] = model.sampling_run.planner.candidate
    arrays["times"], arrays["most"] = most.times_seen, most.index
    arrays["labels"], arrays["p"] = most.label, model.sampling.probabilities()
    run = model.sampling_run
    found["logged"], found["own logged"] = run.logged(), run.own_logged()
    found["monitored"] = np.array_equal(monitor.probabilities(), arrays["p"])
    suspects = keras_osgd.find_label_errors(model, small.X, small.Y, k=3)
    arrays["suspects"] = np.stack([suspects.index, suspects.times_seen])
    model.save_weights(DIRECTORY / f"of_all_{RANK}.weights.h5")
    with strategy.scope():
        loaded = checkpoints.net(RAIS(seed=3, retreat_below=0))
    loaded.load_weights(DIRECTORY / f"of_all_{RANK}.weights.h5")
    small.fit(loaded, epochs=1, verbose=2)
    arrays["loaded times"] = loaded.sampling_state.times_drawn
    keep()


def going_on():
    """The run that was killed goes on; and others, from one process and of Keras."""
    monitor = SamplingMonitor(DIRECTORY / "monitored")
    model = train("resumed", DIRECTORY / "run", monitor)
    know_all_rows(model, monitor)
    train("from_one", DIRECTORY / "of_one", epochs=2)
    train("uniform", DIRECTORY / "uniform", sampling="uniform", epochs=1)
    train("more_of_uniform", DIRECTORY / "uniform", sampling="uniform", epochs=2)
    put = checkpoint_files.put_arrays

    def full_disk(path, *content):
        if path.name.startswith("checkpoint-00000002.worker-1"):
            raise OSError(28, "No space left on device")
        return put(path, *content)

    checkpoint_files.put_arrays = full_disk
    train("full_disk", DIRECTORY / "full_disk", epochs=1)
    found["files"] = sorted(p.name for p in (DIRECTORY / "full_disk").iterdir())
    keep()


class Pause(keras.callbacks.Callback):
    """Lets steps last, and tells of the first one by a file."""

    def on_train_batch_end(self, batch, logs=None):
        (DIRECTORY / "begun").touch()
        time.sleep(0.05)


def endured():
    """A run with a checkpoint as often as can be, to be killed at any moment."""
    train("run", DIRECTORY / "run", Pause(), batch_size=6, every=1, epochs=12)


def longer():
    """The same run, for more epochs, whatever the number of workers."""
    epochs = int((DIRECTORY / "epochs").read_text())
    train("run", DIRECTORY / "run", batch_size=6, every=1, epochs=epochs)


if __name__ == "__main__":
    stories = ended_twice, going_on, endured, longer
    {story.__name__: story for story in stories}[STORY]()

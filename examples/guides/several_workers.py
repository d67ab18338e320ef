"""
Title: Several workers, one of them killed
Description: Two processes train one model; one dies, both start again, nothing is lost.
Accelerator: None
Needs: nothing beyond keras_osgd; a minute or two on two CPU cores.
"""

"""
## Introduction

`tf.distribute.MultiWorkerMirroredStrategy` trains one model in several processes, on
one machine or on many. Each draws from its own share of the rows, with scores of its
own. With many machines one of them fails every so often, and TensorFlow cannot go on
without it. `keras_osgd.callbacks.Checkpoint` saves what all of them know, at one and
the same step, so that the same script, started again on all of them, goes on as if
nothing had happened.
"""

"""
## Setup
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import guide_data
import keras
import numpy as np
import tensorflow as tf

import keras_osgd

n, epochs = guide_data.size(10_000, smoke=400), guide_data.size(3, smoke=2)
every, crash = guide_data.size(50, smoke=4), guide_data.size(230, smoke=12)

"""
## What every worker runs

TensorFlow finds out from the environment variable `TF_CONFIG` who the workers are and
which one this is. On real machines the scheduler sets it, or you do:

    {"cluster": {"worker": ["host-a:2222", "host-b:2222"]},
     "task": {"type": "worker", "index": 0}}

with another `index` on each machine. The strategy must be made before any computation,
and the model and `compile` go into its scope. All workers call the same `fit` on the
same data; the batch is that of all workers. The directory must be one that all of them
see, such as a network file system: one that some do not see is refused.
"""


def worker(directory):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    (x_train, y_train), _, _ = guide_data.images(n)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras_osgd.Sequential(
            [
                keras.Input(x_train.shape[1:]),
                keras.layers.Flatten(),
                keras.layers.Dense(64, "relu"),
                keras.layers.Dense(10, "softmax"),
            ]
        )
        model.compile(
            keras.optimizers.SGD(0.03, momentum=0.9),
            "sparse_categorical_crossentropy",
            sampling=keras_osgd.sampling.RAIS(seed=0),
        )
    checkpoint = keras_osgd.callbacks.Checkpoint(directory, every=every)
    callbacks = [*crashes(), checkpoint]
    given = {"batch_size": 64, "epochs": epochs, "verbose": 2, "callbacks": callbacks}
    model.fit(x_train, y_train, **given)
    rank = strategy.cluster_resolver.task_id
    np.savez(f"{directory}.{rank}.npz", *model.get_weights())


"""
## A machine that fails

To see it happen, a worker that is told to kills itself at some step, as `kill -9` or a
power failure would. You need nothing of this.
"""


def crashes():
    class Crash(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            if self.steps == crash:
                os.kill(os.getpid(), signal.SIGKILL)

    return [Crash()] if "CRASH" in os.environ else []


"""
## Two processes on one machine

This script starts itself: without `TF_CONFIG` it is the scheduler, with it a worker.
"""


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start(directory, who_crashes=None):
    hosts = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    running = []
    for index in range(2):
        config = {"cluster": {"worker": hosts}}
        config["task"] = {"type": "worker", "index": index}
        given = {"TF_CONFIG": json.dumps(config)}
        given["PYTHONPATH"] = os.pathsep.join(sys.path)
        given |= {"CRASH": "1"} if index == who_crashes else {}
        command = [sys.executable, __file__, directory]
        with open(f"{directory}.{index}.log", "w") as log:
            streams = {"stdout": log, "stderr": subprocess.STDOUT}
            running.append(subprocess.Popen(command, env=os.environ | given, **streams))
    return [process.wait() for process in running]


"""
## A crash, and going on

First a run that nothing interrupts. Then one in which worker 0 dies, and worker 1 ends
with an error that says what to do. Then the very same call again.

A scheduler that restarts a job as a whole (Slurm's `--requeue`, a Kubernetes Job with
its `restartPolicy`, a cloud's spot machines) does the second call by itself: `fit`
ended with an error on every worker, so that all processes end. If it warns by SIGTERM
beforehand, all workers save and end at the same step, whichever of them got it.
"""


def lines_of(path):
    with open(path) as log:
        return log.read().strip().splitlines()


def main():
    shutil.rmtree("workers", ignore_errors=True)  # of an earlier run of this guide
    os.makedirs("workers")
    print("Left alone, the workers return", start("workers/alone"))
    print("With a crash they return", start("workers/crashed", who_crashes=0))
    print("Worker 1:", lines_of("workers/crashed.1.log")[-1])
    print("Started again they return", start("workers/crashed"))
    lines = lines_of("workers/crashed.1.log")
    print(next(line for line in lines if line.startswith("Resumed")))
    same = []
    for rank in range(2):
        alone = np.load(f"workers/alone.{rank}.npz")
        resumed = np.load(f"workers/crashed.{rank}.npz")
        same += [np.array_equal(alone[name], resumed[name]) for name in alone]
    print(f"Equal bit for bit: weights of both workers {all(same)}.")


if __name__ == "__main__":
    if "TF_CONFIG" in os.environ:
        worker(sys.argv[1])
    else:
        main()

"""
## More to know

- With another number of workers, one included, the same script goes on too: each row's
  score goes to the row's new owner. The draws are then other ones, and `fit` says so.
- `every` may be a `datetime.timedelta`: the workers agree on the step.
- A full disk on one worker is told of on all, and training goes on. A checkpoint counts
  only when every part of it is on the disk.
- For a checkpoint the workers tell each other a few numbers every 8 steps.
"""

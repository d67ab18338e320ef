"""
Title: Several workers, one of them killed
Description: Two processes train one model; one dies, both start again, nothing is lost.
Accelerator: None
Needs: nothing beyond keras_osgd; a minute or two on two CPU cores.
"""

"""
## Introduction

`tf.distribute.MultiWorkerMirroredStrategy` trains one model in several processes,
called workers, on one machine or on many. Each worker draws from its own share of the
rows. If one of them dies, TensorFlow cannot go on without it, and training ends on all.
`keras_osgd.callbacks.Checkpoint` saves the state of all workers at the same step. The
same script, started again on all of them, goes on from there as if nothing had
happened.
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

The environment variable `TF_CONFIG` tells TensorFlow who the workers are, and which of
them this process is. On real machines the scheduler sets it, or you do:

    {"cluster": {"worker": ["host-a:2222", "host-b:2222"]},
     "task": {"type": "worker", "index": 0}}

Each machine has another `index`. The strategy must be made before any computation, and
model and `compile` go into its scope. All workers call the same `fit` on the same data,
and `batch_size` counts the examples of all workers together. All workers must see the
directory of the checkpoints, as on a network file system; otherwise it is refused.
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

This callback is for the demonstration alone: where `CRASH` is set in the environment,
the worker kills itself at some step, as `kill -9` or a power failure would.
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

The first run is not interrupted. In the second one worker 0 dies, and worker 1 ends
with an error that says what to do. The third one is the same call as the second, again,
and goes on where it ended.

Many schedulers make that call by themselves, as they restart a job whose processes have
ended: Slurm with `--requeue`, a Kubernetes Job by its `restartPolicy`, or a cloud's
spot machines. If the scheduler sends SIGTERM beforehand, to any of the workers, all of
them save and end at the same step.
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

- The same script goes on with another number of workers too, also with one. Each row's
  score goes to the worker that draws the row now. The draws differ from those of an
  uninterrupted run, and `fit` says so.
- `every` may be a `datetime.timedelta`: the workers agree on the step.
- If a disk is full on one worker, a warning says so on all, and training goes on. A
  checkpoint counts only when all its parts are on the disk.
"""

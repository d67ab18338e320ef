"""Long checks, which the ordinary tests only begin.

python -m tests.endurance kills [COUNT]    SIGKILL at random moments, and going on
python -m tests.endurance workers [COUNT]  the same with two processes, then three, one
python -m tests.endurance soak [EPOCHS]    memory, speed and sums over many epochs
"""

import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

EPOCHS = 60  # of 15 steps: longer than the kills take


def train(directory: pathlib.Path, log: pathlib.Path, pause: float) -> None:
    """Trains until the end or a kill, with a checkpoint as often as can be."""
    import keras
    import numpy as np

    from keras_osgd.callbacks import Checkpoint
    from keras_osgd.sampling import RAIS
    from tests.helpers import small
    from tests.helpers.checkpoints import net

    class Log(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.write({"begins": self.model.sampling_run.clock.step})

        def on_train_batch_end(self, batch, logs=None):
            run = self.model.sampling_run
            row = run.buffers.index[(run.clock.step - 1) % run.buffers.rows]
            self.write({"step": run.clock.step, "rows": row.numpy().tolist()})
            time.sleep(pause)

        def write(self, what):
            with open(log, "a") as file:
                file.write(json.dumps(what) + "\n")

    model = net(RAIS(seed=3))
    callbacks = [Log(), Checkpoint(directory, every=1)]
    small.fit(model, epochs=EPOCHS, callbacks=callbacks)
    np.save(directory / "weights.npy", small.flat(model))


def kills(count: int) -> str:
    """Kills a training run again and again and compares it with one left alone.

    Args:
        count: number of kills.

    Returns:
        A line on what was seen.

    Raises:
        AssertionError: if a checkpoint was lost, a step repeated that had been saved,
            or the end is another one.
    """
    import numpy as np

    from keras_osgd.callbacks import checkpoint_files

    rng = random.Random(0)
    folder = pathlib.Path(tempfile.mkdtemp())
    alone, killed = folder / "alone", folder / "killed"
    command = [sys.executable, "-m", "tests.endurance", "train"]
    alone.mkdir()
    killed.mkdir()
    reference = [*command, str(alone), str(folder / "alone.log"), "0"]
    subprocess.run(reference, check=True)
    saved_step, repeated, log = 0, 0, folder / "killed.log"
    # Until `count` kills are done, no run gets far enough to end.
    pause = 0.02
    for _ in range(count):
        log.unlink(missing_ok=True)
        child = subprocess.Popen([*command, str(killed), str(log), str(pause)])
        while child.poll() is None and len(_lines(log)) < 2:  # until the first step
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        assert child.poll() is None, "training ended by itself: let it be longer"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        lines = _lines(log)
        assert lines[0] == {"begins": saved_step}, "a step that was saved was repeated"
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of damage: there must be none
            saved = checkpoint_files.newest(killed)
        if saved is None:
            assert saved_step == 0, "all checkpoints are gone"
            continue
        reached = lines[-1].get("step", saved_step)
        before, saved_step = saved_step, saved.details["step"]
        # A step may have been saved whose line the kill cut off.
        assert before <= saved_step <= reached + 1
        repeated += max(0, reached - saved_step)
        assert not (killed / "weights.npy").exists()
    log.unlink(missing_ok=True)
    subprocess.run([*command, str(killed), str(log), "0"], check=True)
    lines, whole = _lines(log), _lines(folder / "alone.log")
    assert lines[0] == {"begins": saved_step}
    assert lines[1:] == whole[1 + saved_step :], "other rows were drawn"
    weights = np.load(alone / "weights.npy")
    np.testing.assert_array_equal(np.load(killed / "weights.npy"), weights)
    return (
        f"{count} kills: an intact checkpoint after each, {repeated} steps repeated in "
        f"all, the last one at step {saved_step} of {len(whole) - 1}; rows drawn and "
        "weights at the end are those of a run left alone, bit for bit"
    )


def _lines(log: pathlib.Path) -> list[dict]:
    lines = log.read_text().split("\n") if log.exists() else [""]
    return [json.loads(line) for line in lines[:-1]]  # the last may be cut off


def workers(count: int) -> str:
    """Kills random ones of two workers at random moments; then goes on with 3, and 1.

    Args:
        count: number of kills.

    Returns:
        A line on what was seen.

    Raises:
        AssertionError: if the end is another one than that of a run left alone, or a
            worker that was not killed ends in another way than with the error for it.
    """
    import numpy as np

    from tests.helpers import processes

    rng = random.Random(0)
    alone, killed = (pathlib.Path(tempfile.mkdtemp()) for _ in range(2))
    assert processes.ended(processes.started(alone, "endured")) == [0, 0]
    steps, longest = [], 0.0
    for _ in range(count):
        (killed / "begun").unlink(missing_ok=True)
        running = processes.started(killed, "endured")
        while not (killed / "begun").exists():
            assert all(process.poll() is None for process in running)
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5))
        victim = rng.randrange(2)
        running[victim].kill()
        begun = time.monotonic()
        codes = processes.ended(running, 120)
        longest = max(longest, time.monotonic() - begun)
        assert codes[victim] == -signal.SIGKILL
        told = json.loads((killed / f"endured.{1 - victim}.json").read_text())["run"]
        assert "All 2 workers must stay alive" in told["error"]
        steps.append(told["step"])
    assert processes.ended(processes.started(killed, "endured")) == [0, 0]
    ends = [processes.left(folder, "endured")[1] for folder in (alone, killed)]
    for rank in range(2):
        assert ends[0][rank].keys() == ends[1][rank].keys()
        for name, array in ends[0][rank].items():
            np.testing.assert_array_equal(ends[1][rank][name], array, name)
    for epochs, number, said in ((13, 3, "2 → 3"), (14, 1, "3 → 1")):
        (killed / "epochs").write_text(str(epochs))
        running = processes.started(killed, "longer", number)
        assert processes.ended(running) == [0] * number
        told, arrays, logs = processes.left(killed, "longer", number)
        assert all(f"not bit-exact: workers {said}" in log for log in logs)
        assert all("error" not in found["run"] for found in told)
        for name in ("run 0", "run 1", "run 2"):
            assert all((of[name] == arrays[0][name]).all() for of in arrays)
    return (
        f"{count} kills of one of two workers, at steps {steps}: the other one ended "
        f"with one clear error, after {longest:.0f} s at most; the end is that of a "
        "run left alone, bit for bit; 3 workers and then 1 went on from there"
    )


def soak(epochs: int) -> str:
    """Trains a small model for many effective epochs.

    Args:
        epochs: effective ones.

    Returns:
        A line on what was seen.

    Raises:
        AssertionError: if memory grows by more than 2 % from a tenth of the way to the
            end, probabilities do not sum to 1, or mean weights drift.
    """
    import keras
    import numpy as np

    import keras_osgd
    from keras_osgd.callbacks import Checkpoint

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 20)).astype("float32")
    y = (x[:, :3].sum(axis=1) + rng.normal(size=4000) > 0).astype("int64")
    model = keras_osgd.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(2, "softmax"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy"
    )

    class Watch(keras.callbacks.Callback):
        seen: list = []

        def on_epoch_begin(self, epoch, logs=None):
            self.begun, self.steps = time.perf_counter(), 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1

        def on_epoch_end(self, epoch, logs=None):
            seconds = (time.perf_counter() - self.begun) / self.steps
            run = self.model.sampling_run
            p = run.probabilities()
            off = 0.0 if p is None else abs(p.sum() - 1)
            owed = float(self.model.sampling_state.owed.mean())
            self.seen.append((_resident(), seconds, off, owed))

    with tempfile.TemporaryDirectory() as directory:
        watch = Watch()
        callbacks = [watch, Checkpoint(directory, every=200)]
        model.fit(x, y, batch_size=64, epochs=epochs, verbose=0, callbacks=callbacks)
    memory, seconds, off, owed = (
        np.array(column) for column in zip(*watch.seen, strict=True)
    )
    tenth = max(1, epochs // 10)
    growth = memory[-tenth:].max() / memory[tenth : 2 * tenth].max() - 1
    slower = np.median(seconds[-tenth:]) / np.median(seconds[tenth : 2 * tenth])
    assert growth < 0.02, f"memory grew by {growth:.1%}"
    assert off.max() < 1e-12, f"sum p is off by {off.max()}"
    assert np.abs(owed).max() < 2, f"owed mass drifts: {owed}"
    return (
        f"{epochs} effective epochs, {int(model.optimizer.iterations)} steps: memory "
        f"{growth:+.2%} at {memory[-1]:.0f} MB, steps {slower:.2f}x as long at the end "
        f"as near the start, sum of p off by {off.max():.0e} at most, mean owed mass "
        f"between {owed.min():.2f} and {owed.max():.2f}"
    )


def _resident() -> float:
    """Returns the resident memory in MB; its peak where the system tells no more."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Does what the command line names."""
    name, *arguments = sys.argv[1:]
    if name == "train":
        directory, log, pause = arguments
        train(pathlib.Path(directory), pathlib.Path(log), float(pause))
    elif name == "kills":
        print(kills(int(arguments[0]) if arguments else 25))
    elif name == "workers":
        print(workers(int(arguments[0]) if arguments else 10))
    elif name == "soak":
        print(soak(int(arguments[0]) if arguments else 200))


if __name__ == "__main__":
    main()

"""Worker processes that train, one run at a time each."""

import concurrent.futures
import multiprocessing
import os
import threading
import traceback

from examples.experiments.setting import Setting

_RUNS_PER_PROCESS = 40  # then a fresh one: TensorFlow never gives back all memory

Outcome = tuple[str, object]
"""("done", record), ("missing", what brings the data) or ("error", what went wrong)."""


class Pool:
    """Carries out settings in processes of their own.

    Args:
        jobs: processes. With more than one, each keeps to a single thread; one alone
            has the whole machine, as a user's training has.
        smoke: whether on small parts of the data.
    """

    def __init__(self, jobs: int, smoke: bool) -> None:
        self._jobs, self._smoke = jobs, smoke
        self._lock = threading.Lock()
        self._processes = self._fresh()

    def run(self, setting: Setting) -> Outcome:
        """Carries out one setting and waits for it; never raises for its faults."""
        with self._lock:
            processes = self._processes
            answer = processes.submit(_work, setting, self._smoke)
        try:
            return answer.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            with self._lock:
                if self._processes is processes:
                    self._processes = self._fresh()
            return "error", f"A process ended during this run: {error}"
        except concurrent.futures.CancelledError:
            return "error", "interrupted"

    def close(self) -> None:
        """Waits for the runs under way and drops the rest."""
        self._processes.shutdown(cancel_futures=True)

    def _fresh(self) -> concurrent.futures.ProcessPoolExecutor:
        return concurrent.futures.ProcessPoolExecutor(
            self._jobs,
            multiprocessing.get_context("spawn"),
            _prepare,
            (1 if self._jobs > 1 else None,),
            max_tasks_per_child=_RUNS_PER_PROCESS,
        )


def _prepare(threads: int | None) -> None:
    """Limits TensorFlow, which reads this when it first computes."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if threads is not None:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
        os.environ["TF_NUM_INTEROP_THREADS"] = str(threads)
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # each run is a new model and traces anew


def _work(setting: Setting, smoke: bool) -> Outcome:
    """Trains or measures; an exception is text, as not every one can be sent back."""
    from examples.experiments import runner, sets

    try:
        if setting.purpose == "overhead":
            return "done", _overhead(setting, sets.load(setting.data, smoke), smoke)
        return "done", runner.run(setting, smoke)
    except sets.Missing as error:
        return "missing", str(error)
    except Exception:
        return "error", traceback.format_exc()


def _overhead(setting: Setting, data: object, smoke: bool) -> dict[str, object]:
    from examples.experiments import overhead

    repetitions, steps = (3, 20) if smoke else (9, 200)
    found = overhead.measure(setting.network, data, repetitions, steps)
    return {"measures": found}

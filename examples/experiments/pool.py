"""Worker processes that train, one run at a time each."""

import concurrent.futures
import multiprocessing
import os
import traceback

from experiments.setting import Setting

_RUNS_PER_PROCESS = 40  # then a fresh one: TensorFlow never gives back all memory


class Pool:
    """Runs settings in processes of their own.

    Args:
        jobs: processes. With more than one, each keeps to a single thread; one alone
            has the whole machine, as a user's training has.
        smoke: whether on small parts of the data.
    """

    def __init__(self, jobs: int, smoke: bool) -> None:
        self.jobs = jobs
        self._smoke = smoke
        self._processes = concurrent.futures.ProcessPoolExecutor(
            jobs,
            multiprocessing.get_context("spawn"),
            _prepare,
            (1 if jobs > 1 else None,),
            max_tasks_per_child=_RUNS_PER_PROCESS,
        )

    def submit(self, setting: Setting) -> concurrent.futures.Future:
        """Returns a future of `training.run(setting)`; see `_work`."""
        return self._processes.submit(_work, setting, self._smoke)

    def measure_overhead(self, setting: Setting) -> concurrent.futures.Future:
        """Returns a future of `overhead.measure`."""
        return self._processes.submit(_overhead, setting, self._smoke)

    def close(self) -> None:
        """Waits for what is under way and drops the rest."""
        self._processes.shutdown(cancel_futures=True)


def _prepare(threads: int | None) -> None:
    """Limits TensorFlow, which must not have been imported yet."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if threads is not None:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
        os.environ["TF_NUM_INTEROP_THREADS"] = str(threads)
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # each run is a new model and traces anew


def _work(setting: Setting, smoke: bool) -> tuple[str, object]:
    """Returns ("done", record), ("missing", what brings the data) or ("error", trace).

    Never raises: an exception that cannot be pickled would break the pool.
    """
    from experiments import sets, training

    try:
        return "done", training.run(setting, smoke)
    except sets.Missing as error:
        return "missing", str(error)
    except Exception:
        return "error", traceback.format_exc()


def _overhead(setting: Setting, smoke: bool) -> tuple[str, object]:
    from experiments import overhead, sets

    try:
        repetitions, steps = (3, 20) if smoke else (9, 200)
        data = sets.load(setting.data, smoke)
        found = overhead.measure(setting.network, data, repetitions, steps)
        return "done", {"measures": found}
    except sets.Missing as error:
        return "missing", str(error)
    except Exception:
        return "error", traceback.format_exc()

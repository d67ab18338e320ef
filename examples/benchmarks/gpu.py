"""Measures on a GPU what RAIS costs beside plain Keras, and where its work is done.

    python -m examples.benchmarks.gpu all

It takes at most eight minutes, or `--minutes`; call it again to go on. Every
measurement is written to `examples/results/gpu_runs.jsonl` when it ends and is not
repeated. `report` makes `gpu.md` from that file. Without a GPU it runs with `--smoke`
or `--cpu` only; there a second CPU device of TensorFlow stands for the GPU where copies
and operations are counted.

Parts, in the order in which `all` runs them:
    graph       devices of variables and operations, copies, reads by the host
    steps       the time of a step, RAIS over plain Keras, for four networks
    planning    the time of a step while a plan for a million examples is made, and else
    memory      the peak of a training
    comparison  that of `examples/compare.py`, one seed of each method
    report      the page
"""

import argparse
import gc
import pathlib
import runpy
import sys
import time
from collections.abc import Iterator
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from examples.benchmarks import command_line, gpu_models, gpu_report, gpu_trace
from examples.benchmarks.process_memory import memory_bytes, reset_peak
from examples.common.clock import Clock
from examples.common.records import Record, Records

PARTS = ("graph", "steps", "planning", "memory", "comparison", "report")
BATCH_SIZE = 128
_EXAMPLES = pathlib.Path(__file__).parents[1]
_NO_GPU = (
    "TensorFlow sees no GPU here, so nothing was measured. Add `--smoke` to see that "
    "the benchmark runs, or `--cpu` to measure on the CPU all the same."
)
_TRACED, _TRACED_OF = (16, 24), 48  # first step and number of those traced, of a fit
# Networks of each part by whether XLA compiles them; those of a smoke run.
_EVERY, _TWO = tuple(gpu_models.NETWORKS), ("mlp", "residual")
_NETWORKS = {
    "graph": {True: _TWO, False: _TWO},
    "steps": {True: _EVERY, False: _EVERY},
    "planning": {True: ("mlp",), False: ("mlp",)},
    "memory": {True: _TWO},
}
_FEW = {
    "graph": {True: ("mlp",)},
    "steps": {False: ("mlp",)},
    "planning": {False: ("mlp",)},
    "memory": {False: ("mlp",)},
}


def main() -> None:
    """Runs the parts named on the command line."""
    parser = command_line.parser(__doc__, PARTS, "tiny networks, few steps, kept apart")
    parser.add_argument("--cpu", action="store_true", help="measure without a GPU too")
    parser.add_argument("--minutes", type=float, default=8.0, help="then it stops")
    options = command_line.parsed(parser, "gpu")
    device = accelerator()
    no_gpu = device.startswith("CPU")
    if no_gpu and not (options.smoke or options.cpu or options.part == "report"):
        sys.exit(_NO_GPU)
    records = Records(options.results / "gpu_runs.jsonl")
    bench = Benchmark(records, device, options)
    for part in PARTS if options.part == "all" else (options.part,):
        print(f"== {part}", flush=True)
        if part == "report":
            gpu_report.write(records, options.results)
        else:
            getattr(bench, part)()


def accelerator() -> str:
    """Returns the device that is measured, a second CPU device where there is no GPU.

    A GPU's memory is then taken as it is needed, so that peaks can be measured.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        return "GPU:0"
    parts = [tf.config.LogicalDeviceConfiguration()] * 2
    cpu = tf.config.list_physical_devices("CPU")[0]
    if tf.config.get_logical_device_configuration(cpu) is None:
        tf.config.set_logical_device_configuration(cpu, parts)
    return "CPU:1"


class Benchmark:
    """The measurements: which there are, which are still to do, and doing them.

    Args:
        records: where they go.
        device: from `accelerator`.
        options: of the command line.
    """

    def __init__(
        self, records: Records, device: str, options: argparse.Namespace
    ) -> None:
        self._records, self._device, self._tiny = records, device, options.smoke
        self._until = time.monotonic() + 60 * options.minutes
        self._networks = _FEW if options.smoke else _NETWORKS
        self._machine = "CPU"
        if device.startswith("GPU"):
            gpu = tf.config.list_physical_devices("GPU")[0]
            details = tf.config.experimental.get_device_details(gpu)
            self._machine = details.get("device_name", "GPU")
        self._batch_size = 8 if options.smoke else BATCH_SIZE

    def _missing(self, keys: list[Record]) -> Iterator[Record]:
        """Yields what is to be measured, as long as there is time."""
        for key in keys:
            key["machine"] = self._machine
            if key in self._records:
                continue
            if time.monotonic() > self._until:
                print("The time is up. The same command goes on from here.")
                return
            yield key
            keras.backend.clear_session()
            gc.collect()

    def _cases(self, part: str, **more: int) -> list[Record]:
        return [
            {"part": part, "network": name, "jit_compile": jit_compile, **more}
            for jit_compile, names in self._networks[part].items()
            for name in names
        ]

    def _model(self, key: Record, method: str) -> keras.Model:
        named = key["network"], method, key["jit_compile"]
        return gpu_models.compiled(*named, self._tiny)

    def _data(self, name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
        return gpu_models.examples(name, steps * self._batch_size, self._tiny)

    def graph(self) -> None:
        """Counts operations, copies and reads in the steps of both methods."""
        for key in self._missing(self._cases("graph")):
            # The counts are the same for any batch; those of a GPU also tell of time.
            size = BATCH_SIZE if self._device.startswith("GPU") else 8
            n = size * _TRACED_OF
            data = gpu_models.examples(key["network"], n, self._tiny)
            found = {m: self._counted(key, m, data) for m in gpu_models.METHODS}
            self._records.append(key, found)
            gpu_report.tell(key, {m: found[m]["outside"] for m in found})

    def _counted(self, key: Record, method: str, data: tuple) -> Record:
        # On a GPU TensorFlow's own choice of devices is what is to be seen.
        on_cpu = self._device.startswith("CPU")
        size = len(data[1]) // _TRACED_OF
        with tf.device(self._device if on_cpu else None):
            model, graphs = self._model(key, method), []
            with gpu_trace.graphs_of_steps(graphs):
                model.fit(*data, size, verbose=0)
            traced = gpu_trace.Traced(self._device, *_TRACED)
            model.fit(*data, size, callbacks=[traced], verbose=0)
        (of_steps,) = graphs
        counts = gpu_trace.counts_of_graphs(of_steps, self._device)
        return counts | {
            "trace": traced.counts,
            "reads": {place: n / _TRACED[1] for place, n in traced.reads.items()},
            "variables": gpu_trace.variables_of(model),
        }

    def steps(self) -> None:
        """Times steps of both methods in turn."""
        rounds, steps = (2, 6) if self._tiny else (7, 400)
        for key in self._missing(self._cases("steps")):
            data = self._data(key["network"], steps)
            trained = {m: self._model(key, m) for m in gpu_models.METHODS}
            found: dict[str, list] = {m: [] for m in trained}
            first = {m: self._milliseconds(trained[m], data)[1] for m in trained}
            for turn in range(rounds):
                for method in list(trained)[:: -1 if turn % 2 else 1]:
                    milliseconds, _ = self._milliseconds(trained[method], data)
                    found[method].append(milliseconds)
            self._records.append(key, {"milliseconds": found, "first_step": first})
            gpu_report.tell(key, {m: float(np.median(found[m])) for m in found})

    def _milliseconds(self, model: keras.Model, data: tuple) -> tuple[float, float]:
        """Returns the time of a step of an epoch, and the seconds of the first one."""
        times = _Times()
        model.fit(*data, self._batch_size, callbacks=[times], verbose=0)
        return 1000 * times.seconds / (len(times.begun) - 1), times.first_step

    def planning(self) -> None:
        """Times steps while a plan is made beside them, and the others."""
        n = 4_096 if self._tiny else 1_000_000
        for key in self._missing(self._cases("planning", examples=n)):
            rng = np.random.default_rng(0)
            x = rng.standard_normal((n, 8 if self._tiny else 64), np.float32)
            data = x, rng.integers(0, gpu_models.CLASSES, n)
            with mock.patch.dict(
                gpu_models.NETWORKS,
                mlp=gpu_models.NETWORKS["mlp"]._replace(shape=x.shape[1:]),
            ):
                trained = {m: self._model(key, m) for m in gpu_models.METHODS}
            found = {m: self._step_times(trained[m], data) for m in trained}
            self._records.append(key, found)
            gpu_report.tell(key, found)

    def _step_times(self, model: keras.Model, data: tuple) -> Record:
        times = _Times()
        # The same batch size as anywhere, and one epoch: blocks are an eighth of it.
        size = 32 if self._tiny else BATCH_SIZE
        model.fit(*data, size, callbacks=[times], verbose=0)
        return by_plans(times)

    def memory(self) -> None:
        """Measures the most memory that a training takes."""
        for key in self._missing(self._cases("memory")):
            data = self._data(key["network"], 30 if self._tiny else 200)
            found = {m: self._peak(key, m, data) for m in gpu_models.METHODS}
            self._records.append(key, found)
            gpu_report.tell(key, found)

    def _peak(self, key: Record, method: str, data: tuple) -> Record:
        """Returns bytes above what was held before the model was made."""
        keras.backend.clear_session()
        gc.collect()
        if self._device.startswith("GPU"):
            before = tf.config.experimental.get_memory_info(self._device)["current"]
            tf.config.experimental.reset_memory_stats(self._device)
        else:
            before = memory_bytes("VmRSS")
            reset_peak()
        self._model(key, method).fit(*data, self._batch_size, verbose=0)
        if self._device.startswith("GPU"):
            peak = tf.config.experimental.get_memory_info(self._device)["peak"]
        else:
            peak = memory_bytes("VmHWM")
        return {"peak": peak - before}

    def comparison(self) -> None:
        """Runs a part of `examples/compare.py`, which imports what is beside it."""
        for key in self._missing([{"part": "comparison"}]):
            with mock.patch.object(sys, "path", [str(_EXAMPLES), *sys.path]):
                script = runpy.run_path(str(_EXAMPLES / "compare.py"))
            found = {}
            for method, curves in script["compare"]([0], self._tiny).items():
                figures = script["ends"](curves)[:, 0].tolist()
                named = zip(("error", "seconds", "steps"), figures, strict=True)
                found[script["title"](method, curves)] = dict(named)
            self._records.append(key, {"runs": found})


def by_plans(times: "_Times") -> Record:
    """Returns milliseconds of steps by whether a plan was in the making meanwhile."""
    begun = np.array(times.begun[1:])
    taken, beside = np.diff(begun), np.zeros(len(begun) - 1, bool)
    for start, end in times.plans:
        beside |= (begun[1:] > start) & (begun[:-1] < end)
    mean = 1000 * times.seconds / (len(times.begun) - 1)
    found = {"steps": len(taken), "mean": mean, "longest": 1000 * float(taken.max())}
    for name, chosen in (("without_plan", ~beside), ("with_plan", beside)):
        some = 1000 * taken[chosen] if any(chosen) else np.zeros(1)
        found[name] = {
            "steps": int(chosen.sum()),
            "median": float(np.median(some)),
            "mean": float(some.mean()),
        }
    return found | {"plans": [end - start for start, end in times.plans]}


class _Times(keras.callbacks.Callback):
    """The time at which each step begins, and the times of the plans beside them.

    Attributes:
        begun: seconds; the first two steps are not counted among the times of steps.
        plans: start and end of each plan but the first, which nothing is beside.
        seconds: of the steps after the first.
        first_step: seconds until the second step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[float] = []
        self.plans: list[tuple[float, float]] = []
        self._clock = Clock()

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Listens to the planner, if there is one."""
        planner = getattr(getattr(self.model, "sampling_run", None), "planner", None)
        if planner is None:
            return
        plan = planner.plan

        def timed(*args: int) -> object:
            start = time.perf_counter()
            try:
                return plan(*args)
            finally:
                self.plans.append((start, time.perf_counter()))

        planner.plan = timed

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Notes the time."""
        self.begun.append(time.perf_counter())
        self._clock.execution_begins()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Stops the clock; Keras has read the epoch's logs, so all steps are done."""
        self._clock.stop()
        self.seconds = self._clock.seconds()
        self.first_step = self._clock.first_step_seconds


if __name__ == "__main__":
    main()

"""What importance sampling costs: the time of a step, and of planning a block."""

import concurrent.futures
import multiprocessing
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence

import datasets
import keras
import models
import numpy as np
import tensorflow as tf
import training
from benchmark_records import Records

from keras_osgd.observations import ObservationLog
from keras_osgd.pipeline import PlanBuffers
from keras_osgd.planner import Planner
from keras_osgd.sampling import RAIS
from keras_osgd.score_table import ScoreTable
from keras_osgd.state import SamplingState

METHODS = ("plain", "uniform", "rais")
SCALES = (60_000, 1_000_000, 10_000_000)
_WARMUP_EPOCHS = 3
_EPOCHS = 2
_LEARNING_RATE = 0.01
_SCHEDULE_EPOCHS = 100  # more than are trained: the rate must not reach 0
_PLANNING_REPETITIONS = 7


def measure_overhead(
    records: Records,
    splits: datasets.Splits,
    networks: Sequence[str],
    repetitions: int,
) -> None:
    """Times the steps of plain Keras, `sampling="uniform"` and RAIS in turn.

    RAIS does not adapt its learning rate here, so that all three take the same
    steps: two epochs a repetition, after a warm-up of three. The first step of each
    is not counted. A repetition lasts seconds, so that all methods meet the same
    load of the machine.
    """
    train = splits[0]
    for network in networks:
        keys = [
            {
                "part": "overhead",
                "model": network,
                "repetition": repetition,
                "examples": len(train[0]),
            }
            for repetition in range(repetitions)
        ]
        missing = [key for key in keys if key not in records]
        if not missing:
            continue
        trained = {
            method: _overhead_model(network, method, train) for method in METHODS
        }
        for model in trained.values():
            milliseconds_a_step(model, train, _WARMUP_EPOCHS)
        for number, key in enumerate(missing, start=1):
            turn = key["repetition"] % len(METHODS)
            step_milliseconds = {
                method: milliseconds_a_step(trained[method], train, _EPOCHS)
                for method in (*METHODS[turn:], *METHODS[:turn])
            }
            records.append(key, {"step_milliseconds": step_milliseconds})
            times = ", ".join(
                f"{method} {step_milliseconds[method]:.3f} ms" for method in METHODS
            )
            print(f"[{number}/{len(missing)}] {network}: {times}", flush=True)


def measure_scale(records: Records) -> None:
    """Measures planning for every number of examples, each in a fresh process."""
    for examples in SCALES:
        key = {"part": "scale", "examples": examples}
        if key in records:
            continue
        # A process of its own: memory that was freed once hides the next peak.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            measured = pool.submit(_measure_planning, examples).result()
        records.append(key, measured)
        print(
            f"{examples} examples: {measured['step_milliseconds']:.4f} ms a step, "
            f"{measured['held_megabytes']:.0f} MB held, "
            f"{measured['peak_megabytes']:.0f} MB at most",
            flush=True,
        )


def block_planner(
    examples: int, batch_size: int, seed: int
) -> tuple[Callable[[], object], int]:
    """Prepares a sampler with synthetic scores, and says how to plan one block.

    Args:
        examples: n; scores are drawn from a log-normal distribution.
        batch_size: |M|.
        seed: of the scores and of the draws.

    Returns:
        A function that plans the next block (features, probabilities, draws, all
        that is done once a block) and the number of steps in a block.
    """
    sampling = RAIS(seed=seed, retreat_below=0.0)
    rng = np.random.default_rng(seed)
    table = ScoreTable(
        examples, rng.integers(0, 10, examples), sampling.features_for(examples)
    )
    state = SamplingState()
    state.allocate(table, "synthetic", seed, "last_layer")
    buffers = PlanBuffers(sampling.block_steps(examples, batch_size), batch_size)
    log = ObservationLog(buffers)
    norms = rng.lognormal(size=examples).astype(np.float32)
    planner = Planner(sampling, state, buffers, log, steps_per_execution=1)
    planner.start()
    state.drawn += sampling.uniform_draws(examples)  # from here on by importance

    def plan_block() -> None:
        plan = planner.last_plan
        step = plan.start + buffers.block_steps
        positions = np.arange(len(plan.index)) + plan.start % buffers.rows * batch_size
        for first in range(0, len(positions), 1_000_000):
            part = slice(first, first + 1_000_000)
            gains = tf.constant(2.0)
            observed = tf.constant(norms[plan.index[part]])
            log.write(tf.constant(positions[part]), observed, gains)
        planner.plan(step, step)

    return plan_block, buffers.block_steps


def _overhead_model(
    network: str, method: str, train: datasets.Split
) -> keras.Sequential:
    sampling: object = method
    if method == "rais":
        sampling = RAIS(adapt_learning_rate=False)
    run = training.Run(network, sampling, _SCHEDULE_EPOCHS, _LEARNING_RATE, seed=0)
    return training.build(run, train)


def milliseconds_a_step(
    model: keras.Model,
    train: datasets.Split,
    epochs: int,
    steps_per_epoch: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> float:
    """Returns the mean time of a step of `fit`, without its first execution."""
    timer = _StepTimer()
    model.fit(
        *train,
        batch_size=models.BATCH_SIZE,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        callbacks=[*callbacks, timer],
        verbose=0,
    )
    return timer.milliseconds()


class _StepTimer(keras.callbacks.Callback):
    """Counts and times the executions after the first."""

    def __init__(self) -> None:
        super().__init__()
        self._executions = 0
        self._started = self._ended = 0.0

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._executions += 1
        if self._executions == 2:
            self._started = time.perf_counter()

    def on_train_end(self, logs: dict | None = None) -> None:
        self._ended = time.perf_counter()

    def milliseconds(self) -> float:
        steps = (self._executions - 1) * self.model.steps_per_execution
        return 1000 * (self._ended - self._started) / steps


def _measure_planning(examples: int) -> dict[str, float | int | None]:
    before = _memory_megabytes("VmRSS")
    plan_block, steps = block_planner(examples, models.BATCH_SIZE, seed=0)
    plan_block()
    held = _memory_megabytes("VmRSS")
    _reset_peak_memory()
    seconds = []
    for _ in range(_PLANNING_REPETITIONS):
        started = time.perf_counter()
        plan_block()
        seconds.append(time.perf_counter() - started)
    return {
        "steps_per_block": steps,
        "block_milliseconds": 1000 * statistics.median(seconds),
        "step_milliseconds": 1000 * statistics.median(seconds) / steps,
        "held_megabytes": held - before,
        "peak_megabytes": _memory_megabytes("VmHWM") - before,
    }


def _memory_megabytes(name: str) -> float:
    """Returns this process's memory now ("VmRSS") or at its peak ("VmHWM")."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        raise OSError("Memory is measured through /proc, which only Linux has.")
    (line,) = [
        line for line in status.read_text().splitlines() if line.startswith(name)
    ]
    return int(line.split()[1]) / 1024


def _reset_peak_memory() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")

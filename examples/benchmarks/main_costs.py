"""What importance sampling costs: the time of a step, and of planning a block."""

import concurrent.futures
import multiprocessing
import statistics
from collections.abc import Sequence

import keras

from examples.benchmarks import synthetic_planner
from examples.benchmarks.process_memory import memory_bytes, reset_peak
from examples.common import data, models, training
from examples.common.clock import milliseconds_a_step
from examples.common.records import Records
from keras_osgd.sampling import RAIS

METHODS = ("plain", "uniform", "rais")
SCALES = (60_000, 1_000_000, 10_000_000)
_WARMUP_EPOCHS = 3
_EPOCHS = 2
_LEARNING_RATE = 0.01
_SCHEDULE_EPOCHS = 100  # more than are trained: the rate must not reach 0
_PLANNING_REPETITIONS = 7


def measure_overhead(
    records: Records,
    splits: data.Splits,
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


def _overhead_model(network: str, method: str, train: data.Split) -> keras.Sequential:
    sampling: object = method
    if method == "rais":
        sampling = RAIS(adapt_learning_rate=False)
    run = training.Run(network, sampling, _SCHEDULE_EPOCHS, _LEARNING_RATE, seed=0)
    return training.build(run, train)


def _measure_planning(examples: int) -> dict[str, float | int | None]:
    before = memory_bytes("VmRSS")
    norms = synthetic_planner.synthetic_norms(examples, seed=0)
    plan_block, draws, _ = synthetic_planner.synthetic(norms, models.BATCH_SIZE, seed=0)
    steps = draws // models.BATCH_SIZE
    plan_block()
    held = memory_bytes("VmRSS")
    reset_peak()
    seconds = synthetic_planner.seconds_of_plans(plan_block, _PLANNING_REPETITIONS)
    return {
        "steps_per_block": steps,
        "block_milliseconds": 1000 * statistics.median(seconds),
        "step_milliseconds": 1000 * statistics.median(seconds) / steps,
        "held_megabytes": (held - before) / 2**20,
        "peak_megabytes": (memory_bytes("VmHWM") - before) / 2**20,
    }

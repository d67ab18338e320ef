"""Where the time of a step goes: Keras, the pipeline, the sampling, exact norms."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_osgd
from examples.common import models
from examples.common.clock import milliseconds_a_step
from examples.common.planned import planned_batches
from examples.experiments import networks
from keras_osgd.sampling import RAIS

TRAINED = ("keras", "uniform", "rais", "rais_exact")
STEPS_PER_EXECUTION = (1, 10)
_LEARNING_RATE = 0.001
_WARMUP_STEPS = 100  # beyond the first pass: into draws by importance


def measure(
    network: str, data: Any, repetitions: int = 9, steps: int = 200
) -> dict[str, Any]:
    """Returns the time of a step by part; all parts in turn, in this one process.

    RAIS does not adapt its learning rate, so that all take the same steps. Each model
    is trained beforehand, past tracing and RAIS's uniform first pass. A segment's first
    execution is not counted, hence no first plan either.

    Args:
        network: one of `networks.NAMES`.
        data: `experiments.sets.Data`; all of its training part is drawn from.
        repetitions: segments of each part.
        steps: of a segment, a multiple of 10. Two plans of RAIS or more are made in it
            if it has a quarter as many steps as an epoch.

    Returns:
        `n`, `steps` and, for each number of `steps_per_execution` ("1" and "10"), the
        parts: "keras" (plain `fit`), "uniform", "rais", "rais_exact"; "planning",
        beside the steps, its "planning_cpu" and "waiting" for it, all three of "rais";
        with "1" also "pipeline", which iterates over batches and does not train. Each
        has its `median`, `quartiles` and `all` segments, in milliseconds a step.

    Raises:
        ValueError: if `steps` is no multiple of 10, or more than an epoch has.
    """
    most = len(data.train[0]) // models.BATCH_SIZE
    if steps > most:
        raise ValueError(
            "Keras' own `fit` must have so many batches in an epoch: `steps` is at "
            f"most {most} for these data. Received: {steps}. Take more examples."
        )
    if steps < 20 or steps % max(STEPS_PER_EXECUTION):
        raise ValueError(
            "`steps` must be a multiple of 10, at least 20: an execution can have 10 "
            f"steps, and the first does not count. Received: {steps}. Take 200."
        )
    found: dict[str, Any] = {"n": len(data.train[0]), "steps": steps}
    for steps_per_execution in STEPS_PER_EXECUTION:
        segments = _segments(network, data, steps, steps_per_execution)
        times: dict[str, list[float]] = {}
        order = list(segments)
        for _ in range(repetitions):
            for name in order:
                for part, milliseconds in segments[name]().items():
                    times.setdefault(part, []).append(milliseconds)
            order = order[1:] + order[:1]  # whatever disturbs one disturbs others
        found[str(steps_per_execution)] = {
            part: _summary(values) for part, values in times.items()
        }
    return found


def _summary(values: list[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "quartiles": [float(q) for q in np.percentile(values, (25, 75))],
        "all": values,
    }


def _segments(
    network: str, data: Any, steps: int, steps_per_execution: int
) -> dict[str, Callable[[], dict[str, float]]]:
    """Returns, for each part, a function that measures one segment of it, warm."""
    made: dict[str, Callable[[], dict[str, float]]] = {}
    for method in TRAINED:
        model = _model(network, method, data, steps_per_execution)
        segment = functools.partial(_trained_segment, model, method, data.train, steps)
        first = math.ceil(len(data.train[0]) / models.BATCH_SIZE) + _WARMUP_STEPS
        first = first if method.startswith("rais") else steps
        first = 10 * math.ceil(first / 10)
        _trained_segment(model, method, data.train, first)
        segment()
        made[method] = segment
    if steps_per_execution == 1:
        made["pipeline"] = functools.partial(_pipeline_segment, data.train, steps)
        made["pipeline"]()
    return made


def _model(
    network: str, method: str, data: Any, steps_per_execution: int
) -> keras.Model:
    keras.utils.set_random_seed(0)
    sampling = {
        "uniform": "uniform",
        "rais": RAIS(adapt_learning_rate=False, seed=0),
        "rais_exact": RAIS(adapt_learning_rate=False, seed=0, norm="exact"),
    }
    options = {} if method == "keras" else {"sampling": sampling[method]}
    base = keras.Sequential if method == "keras" else keras_osgd.Sequential
    model = networks.build(network, base, data, seed=0)
    model.compile(
        models.optimizer("sgd", _LEARNING_RATE),
        models.loss(),
        steps_per_execution=steps_per_execution,
        **options,
    )
    return model


def _trained_segment(
    model: keras.Model, method: str, train: tuple, steps: int
) -> dict[str, float]:
    watch = _PlannerWatch()
    callbacks = [watch] if method == "rais" else []
    found = {method: milliseconds_a_step(model, train, 1, steps, callbacks)}
    if method == "rais":
        found |= {part: 1000 * s / steps for part, s in watch.seconds.items()}
    return found


class _PlannerWatch(keras.callbacks.Callback):
    """Times what the planner does once training has begun.

    Attributes:
        seconds: of planning, by the clock and of the processor, and of the training
            thread's waiting for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = {"planning": 0.0, "planning_cpu": 0.0, "waiting": 0.0}

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Puts clocks around the planner of this `fit`; its first plan is made."""
        planner = self.model.sampling_run.planner
        plan, advance = planner.plan, planner.advance

        def timed_plan(*args: int) -> None:
            begun, begun_cpu = time.perf_counter(), time.thread_time()
            plan(*args)
            self.seconds["planning"] += time.perf_counter() - begun
            self.seconds["planning_cpu"] += time.thread_time() - begun_cpu

        def timed_advance(step: int) -> None:
            begun = time.perf_counter()
            advance(step)
            self.seconds["waiting"] += time.perf_counter() - begun

        planner.plan, planner.advance = timed_plan, timed_advance


def _pipeline_segment(train: tuple, steps: int) -> dict[str, float]:
    """Times the batches of one plan, gathered and read ahead as in training."""
    batch = iter(planned_batches(train, steps))
    next(batch)
    begun = time.perf_counter()
    count = sum(1 for _ in batch)
    return {"pipeline": 1000 * (time.perf_counter() - begun) / count}

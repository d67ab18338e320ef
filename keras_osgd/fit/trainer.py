"""What our model classes add to Keras': `compile(sampling=...)` and its `fit`."""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf

from keras_osgd.base import replicas
from keras_osgd.base.keras_compat import UnderStrategy
from keras_osgd.draws.pipeline import Sample
from keras_osgd.fit import continuation, fitting, strategies, streaming
from keras_osgd.fit.fitting import checkpointing
from keras_osgd.fit.run import Run
from keras_osgd.fit.sampling_view import SamplingView
from keras_osgd.pools.stream_run import StreamRun
from keras_osgd.sampling import Presample, Sampling, Uniform
from keras_osgd.sampling import get as get_sampling
from keras_osgd.scores.state import SamplingState
from keras_osgd.step.metrics import update
from keras_osgd.step.own_train_step import replaced
from keras_osgd.step.sampled_step import make_core

__all__ = ["ImportanceSampled"]


class Held:
    """Keeps what Keras and TensorFlow must not track or save with the model."""

    def __init__(self) -> None:
        self.sampling: Sampling = get_sampling("rais")
        self.state = SamplingState()
        self.run: Run | StreamRun | None = None
        self.history: dict[str, list[float]] = {}  # of the last `fit`, by epoch
        self.targets: Any = None  # y of the last `fit`
        self.core: Any = None  # a tf.function on the model would break its export
        self.indexed: tuple | None = None  # the dataset of the last `fit`, once read
        self.importance_weights: tuple | None = None  # inside a sampled step
        self.wrapped = False  # whether `train_function` is ours
        self.sizes: tuple = (None, None)  # n and m of a uniform `fit`, if known
        self.stop_requested = False
        self.epoch_complete = False


class ImportanceSampled(UnderStrategy):
    """What our model classes add to Keras': `compile(sampling=...)` and its `fit`."""

    @property
    def sampling_held(self) -> Held:
        """What belongs to the sampling but must not be tracked or saved."""
        kept = vars(self)
        if "_keras_osgd_held" not in kept:
            kept["_keras_osgd_held"] = Held()
        return kept["_keras_osgd_held"]

    @property
    def sampling(self) -> SamplingView:
        """The sampling method given to `compile`, and which examples it drew."""
        return SamplingView(self.sampling_held)

    @property
    def sampling_state(self) -> SamplingState:
        """What is learned about the training examples; saved with the weights."""
        return self.sampling_held.state

    @property
    def sampling_run(self) -> Run | StreamRun | None:
        """What the current or last `fit` with importance sampling consists of."""
        return self.sampling_held.run

    def compile(self, *args: Any, sampling: Any = "rais", **kwargs: Any) -> None:
        """Configures the model for training, as `keras.Model.compile`.

        Args:
            *args: as in Keras.
            sampling: "rais", "oracle", "presample" (for streams), "uniform" (Keras' own
                training to the bit) or an object such as
                `keras_osgd.sampling.RAIS(floor=0.1)`.
            **kwargs: as in Keras.
        """
        method = get_sampling(sampling)
        super().compile(*args, **kwargs)
        self.sampling_held.sampling, self.sampling_held.run = method, None
        continuation.restart_clock(self)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns Keras' compile configuration with the sampling method."""
        config = super().get_compile_config()
        if config:
            method = self.sampling_held.sampling
            method = keras.saving.serialize_keras_object(method)
            config = {**config, "sampling": method}
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model as it was when it was saved."""
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    @property
    def stop_training(self) -> bool:
        """Whether `fit` is to stop; for a moment also where an epoch is complete."""
        held = self.sampling_held
        return held.stop_requested or held.epoch_complete

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        self.sampling_held.stop_requested = value

    def begin_next_epoch(self) -> None:
        """Lets `fit` go on after an epoch that ended early; called between epochs."""
        self.sampling_held.epoch_complete = False

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
    ) -> keras.callbacks.History:
        """Trains the model as `keras.Model.fit`, with importance sampling.

        An epoch is an epoch's worth of progress (see `sampling.RAIS`). All arguments as
        in Keras; x, y and `sample_weight` are arrays or tensors, nested or not, and
        `class_weight` and `sample_weight` may be given together. Streams: see
        `sampling.Presample`.

        Raises:
            ValueError: before any step, for data, losses or models that cannot be
                sampled; one for all that `check` finds, saying what to do.
        """
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        with checkpointing(callbacks) as (checkpoint, given["callbacks"]):
            if isinstance(self.sampling_held.sampling, Uniform) or not self.compiled:
                fitting.leave_run(self, given)
                return super().fit(**fitting.resumed(self, checkpoint, given))
            begin = fitting.importance_sampling
            if isinstance(self.sampling_held.sampling, Presample):
                begin = streaming.pool_sampling
            with begin(self, checkpoint, given) as prepared:
                return super().fit(**prepared)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes Keras' training function and looks ahead after each execution."""
        run = self.sampling_held.run
        if run is None or (self.train_function is not None and not force):
            return super().make_train_function(force)
        held = self.sampling_held
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            held.core = make_core(self, run, jit_compile)
            with replaced(self, {"train_step": self._step_for(self.train_step)}):
                super().make_train_function(force)
        finally:
            self.jit_compile = jit_compile
        keras_function = self.train_function

        def function(iterator: Any) -> Any:
            if held.run is None or not held.run.active:  # as in `train_on_batch`
                return keras_function(iterator)
            logs, held.epoch_complete = held.run.execution(keras_function, iterator)
            return logs

        self.train_function = function
        held.wrapped = True
        return function

    def _step_for(self, own: Any) -> Any:
        """Returns the step that Keras is to make: `own`, but for batches we drew."""

        def step(data: Any) -> dict[str, tf.Tensor]:
            ours = functools.partial(ImportanceSampled.train_step, self)
            return (ours if _is_drawn(data) else own)(data)

        return step

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Trains on one batch; a batch without a `Sample` is trained on as in Keras."""
        if not _is_drawn(data):
            return super().train_step(data)
        held = self.sampling_held
        data = strategies.received(data)
        logs, norms, gain = held.core(data)
        # Outside the compiled core, which reaches no other device than the model's.
        held.run.log.write(data[-1].position, norms, gain)
        replicas.once(lambda each: held.run.clock.decide())
        return logs

    train_step.importance_sampled = True

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, tf.Tensor]:
        """Updates the metrics; in a sampled step all of them importance-weighted."""
        if self.sampling_held.importance_weights is None:
            return super().compute_metrics(x, y, y_pred, sample_weight)
        update(self, self.sampling_held.importance_weights, y, y_pred)
        return self.get_metrics_result()


def _is_drawn(data: Any) -> bool:
    return isinstance(data, tuple) and isinstance(data[-1], Sample)

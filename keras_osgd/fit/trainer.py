"""`compile(sampling=...)` and `fit` of our model classes."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_osgd.base.keras_compat import UnderStrategy
from keras_osgd.base.placement import HOST
from keras_osgd.base.replacing import replaced
from keras_osgd.base.warn import warn_once
from keras_osgd.base.workers import lost_workers_told
from keras_osgd.draws.pipeline import Sample
from keras_osgd.fit import continuation, fitting, strategies
from keras_osgd.fit.arguments import FitArguments, require_known
from keras_osgd.fit.beginning import beginning
from keras_osgd.fit.held import Held
from keras_osgd.fit.run import Run
from keras_osgd.fit.sampling_view import SamplingView
from keras_osgd.pools.stream_run import StreamRun
from keras_osgd.sampling import Auto, Uniform
from keras_osgd.sampling import get as get_sampling
from keras_osgd.scores.state import SamplingState
from keras_osgd.step.sampled_step import make_core
from keras_osgd.step.state import StepState

__all__ = ["ImportanceSampled"]

_LOST_IN_H5 = (
    "The sampling method and the scores must go into a `.keras` file to be kept. "
    "Received: {}, an HDF5 file of a whole model, which keeps neither. Save to a name "
    "that ends in `.keras`, or keep weights and scores by `save_weights` to one that "
    "ends in `.weights.h5`."
)


class ImportanceSampled(UnderStrategy):
    """Base that adds `compile(sampling=...)` and its `fit` to Keras' model classes."""

    @property
    def sampling_held(self) -> Held:
        """The model's `Held`: its sampling, which Keras must neither track nor save."""
        kept = vars(self)
        if "_keras_osgd_held" not in kept:
            kept["_keras_osgd_held"] = Held()
        return kept["_keras_osgd_held"]

    @property
    def sampling(self) -> SamplingView:
        """The sampling method given to `compile`, and the record of its draws."""
        return SamplingView(self.sampling_held)

    @property
    def sampling_state(self) -> SamplingState:
        """The state learned about the training examples; saved with the weights."""
        return self.sampling_held.state

    @property
    def sampling_run(self) -> Run | StreamRun | None:
        """The run of the current or last `fit` with importance sampling, or `None`."""
        return self.sampling_held.run

    def compile(self, *args: Any, sampling: Any = "auto", **kwargs: Any) -> None:
        """Configures the model for training, as `keras.Model.compile`.

        Args:
            *args: as in Keras.
            sampling: "auto" ("rais" where it can be applied and may pay, else Keras'
                own training), "rais", "oracle", "presample" (for streams), "uniform"
                (Keras' own training to the bit) or an object such as
                `keras_osgd.sampling.RAIS(floor=0.1)`.
            **kwargs: as in Keras.
        """
        method = get_sampling(sampling)
        super().compile(*args, **kwargs)
        self.sampling_held.configure(method)
        continuation.restart_clock(self)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the model, as `keras.Model.save`; warns of what an HDF5 file loses."""
        held = self.sampling_held
        chosen = not isinstance(held.sampling, Auto | Uniform)
        if (chosen or held.state.table is not None) and str(filepath).endswith(
            (".h5", ".hdf5")
        ):
            warn_once(self, "h5", _LOST_IN_H5.format(filepath))
        super().save(filepath, *args, **kwargs)

    @property
    def stop_training(self) -> bool:
        """Whether `fit` is to stop; briefly also true when an epoch is complete."""
        return self.sampling_held.stop_training

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        self.sampling_held.request_stop(value)

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
        **others: Any,
    ) -> keras.callbacks.History:
        """Trains the model as `keras.Model.fit`, with importance sampling.

        An epoch is an epoch's worth of progress (see `sampling.RAIS`). All arguments as
        in Keras; `class_weight` and `sample_weight` may be given together. What cannot
        be sampled trains by Keras' own `fit`, after a line that says why; other methods
        than `sampling.Auto`, the default, refuse it. Streams: see `sampling.Presample`.

        Raises:
            ValueError: before any step, for data, losses or models that the method
                given to `compile` cannot sample. One error lists all that `check`
                finds, each with its remedy.
            RuntimeError: likewise, while another such `fit` of the model is under way.
            TypeError: for arguments that Keras' `fit` does not have.
        """
        require_known(others)
        arguments = FitArguments(
            x,
            y,
            batch_size,
            epochs,
            verbose,
            callbacks,
            validation_split,
            validation_data,
            shuffle,
            class_weight,
            sample_weight,
            initial_epoch,
            steps_per_epoch,
            validation_steps,
            validation_batch_size,
            validation_freq,
        )
        held = self.sampling_held
        with (
            held.one_fit(),
            fitting.with_fit_callbacks(arguments) as (arguments, checkpoint),
            lost_workers_told(self.distribute_strategy, checkpoint),
            beginning(self, held, checkpoint, arguments) as prepared,
        ):
            return super().fit(**prepared.for_keras())

    def make_train_function(self, force: bool = False) -> Any:
        """Makes Keras' training function, with planning around each execution."""
        held = self.sampling_held
        if held.run is None or (self.train_function is not None and not force):
            return super().make_train_function(force)
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            step = self._step_for(self.train_step, held.run.step_state, jit_compile)
            with replaced(self, {"train_step": step}):
                super().make_train_function(force)
        finally:
            self.jit_compile = jit_compile
        self.train_function = held.trained_by(self.train_function)
        return self.train_function

    def _step_for(self, own: Any, state: StepState, jit_compile: Any) -> Any:
        """Returns the step that Keras compiles: `own`, except for batches we drew."""
        core = make_core(self, state, jit_compile)

        def sampled(data: Any) -> dict[str, tf.Tensor]:
            *batch, sample = strategies.received(data)
            logs, observed = core((*batch, sample._replace(row=None)))
            # Outside the compiled core, which reaches only the model's own device.
            with tf.device(HOST):
                state.log.write(sample.row, observed)
            return logs

        def step(data: Any) -> dict[str, tf.Tensor]:
            return (sampled if _is_drawn(data) else own)(data)

        return step


def _is_drawn(data: Any) -> bool:
    return isinstance(data, tuple) and isinstance(data[-1], Sample)

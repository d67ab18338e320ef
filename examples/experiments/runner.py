"""One training run: a `Setting` in, what was measured out."""

import dataclasses
import functools
import gc
import math

import keras

import keras_osgd
from examples.common import models
from examples.experiments import cleaning, control, networks, rivals, sets, variance
from examples.experiments.methods import METHODS, Method
from examples.experiments.recorder import Recorder, errors
from examples.experiments.setting import Setting

Record = dict[str, object]


def run(setting: Setting, smoke: bool = False) -> Record:
    """Trains once and measures.

    Args:
        setting: what and how.
        smoke: whether on a small part of the data.

    Returns:
        What was measured: `steps`, `gradients`, `forward`,
        `epochs_processed`, `effective_epochs`, `seconds`, `first_step_seconds`,
        `validation`, `test` of a final run, `history`, `n`, `failed` and
        `measures`.

    Raises:
        sets.Missing: if the data is not on this machine.
    """
    data = _load(setting.data, smoke)
    keras.backend.clear_session()
    gc.collect()
    method = METHODS[setting.method]
    recorder = Recorder(data, setting)
    measures: Record = {}
    with method.without():
        if method.rival:
            model = _train_rival(setting, data, recorder)
        elif method.cleans:
            model, measures = _train_twice(setting, method, data, recorder)
        elif method.controlled:
            model, measures = _train_with_control(setting, method, data, recorder)
        elif method.measured and setting.purpose == "error":
            x, y = data.train
            frozen = variance.FrozenVariance(x, y, setting.batch_size)
            model = _train_in_fit(setting, method, data, recorder, frozen)
            measures = {"variance": frozen.measured}
        else:
            model = _train_in_fit(setting, method, data, recorder)
    measured = recorder.measured() | {"measures": measures}
    measured["validation"] = errors(model, data.validation, data)
    if setting.purpose in ("error", "target"):
        measured["test"] = errors(model, data.test, data)
    return measured


@functools.lru_cache(maxsize=2)
def _load(name: str, smoke: bool) -> sets.Data:
    return sets.load(name, smoke)


def build(setting: Setting, base: type[keras.Model], data: sets.Data) -> keras.Model:
    """Returns the compiled, untrained network; `sampling` is left to the caller."""
    keras.utils.set_random_seed(setting.seed)
    return networks.build(setting.network, base, data, setting.seed)


def compile_options(setting: Setting, data: sets.Data) -> dict[str, object]:
    """Returns what every method's `compile` is given."""
    rate = schedule(setting, len(data.train[0]))
    is_regression = data.kind == "regression"
    loss = keras.losses.MeanSquaredError() if is_regression else models.loss()
    return {"optimizer": optimizer(setting.optimizer, rate), "loss": loss}


def schedule(
    setting: Setting, n: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate over (effective) iterations, the same for all."""
    return models.schedule(setting.rate, setting.epochs, n, setting.batch_size)


def optimizer(name: str, rate: object) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a study.

    Raises:
        ValueError: if the name is none of those in `Setting`.
    """
    makers = {
        "sgd": keras.optimizers.SGD,
        "momentum": functools.partial(models.optimizer, "sgd"),
        "adam": functools.partial(models.optimizer, "adam"),
        "adamw": keras.optimizers.AdamW,
    }
    if name not in makers:
        raise ValueError(
            f"`optimizer` must be one of {sorted(makers)}. Received: {name!r}. "
            "Correct it in `studies.py`."
        )
    return makers[name](rate)


def _train_in_fit(
    setting: Setting,
    method: Method,
    data: sets.Data,
    recorder: Recorder,
    *further: keras.callbacks.Callback,
) -> keras.Model:
    base, options, callbacks = keras.Sequential, {}, [recorder, *further]
    if method.sampling is not None:
        base = keras_osgd.Sequential
        options = {"sampling": method.sampling(setting.seed)}
        callbacks.append(keras_osgd.callbacks.SamplingMonitor())
    x, y = data.train
    model = build(setting, base, data)
    alone = setting.purpose in ("seconds", "target")
    model.compile(
        **compile_options(setting, data),
        **options,
        steps_per_execution=1 if alone else method.steps_per_execution,
    )
    try:
        model.fit(
            x,
            y,
            batch_size=setting.batch_size,
            epochs=setting.epochs,
            callbacks=callbacks,
            verbose=0,
        )
    except RuntimeError as error:
        if "must be finite" not in str(error):
            raise
        recorder.failed = str(error)
    return model


def _train_twice(
    setting: Setting, method: Method, data: sets.Data, recorder: Recorder
) -> tuple[keras.Model, Record]:
    """Trains, takes the suspects out and trains afresh, unless the first diverged."""
    scores = cleaning.MeanProbability()
    model = _train_in_fit(setting, method, data, recorder, scores)
    if recorder.failed:
        return model, {}
    kept, measures = cleaning.cleaned(data, scores.value)
    recorder.begin_second()
    return _train_in_fit(setting, method, kept, recorder), measures


def _train_with_control(
    setting: Setting, method: Method, data: sets.Data, recorder: Recorder
) -> tuple[keras.Model, Record]:
    """Trains by RAIS, then plain Keras for as many steps: see `control`."""
    (x, y), batch_size = data.train, setting.batch_size
    in_epoch = math.ceil(len(x) / batch_size)
    trajectory = control.Trajectory(most=2 * setting.epochs * in_epoch)
    with trajectory.recorded():
        trained = _train_in_fit(setting, method, data, recorder)
    steps = int(trained.optimizer.iterations)

    def plain(**changes: object) -> keras.Model:
        planned = dataclasses.replace(setting, **changes)
        model = build(planned, keras.Sequential, data)
        model.compile(**compile_options(planned, data))
        return model

    replayed = plain()
    trajectory.replay(replayed.optimizer)
    own_schedule = plain(rate=setting.parameter, epochs=steps / in_epoch)
    for model in (replayed, own_schedule):
        control.fit_for(model, x, y, batch_size, steps)
    found = {"rais": trained, "at_its_rates": replayed, "own_schedule": own_schedule}
    measures = {name: errors(model, data.test, data) for name, model in found.items()}
    return trained, {"steps": steps, **measures}


def _train_rival(setting: Setting, data: sets.Data, recorder: Recorder) -> keras.Model:
    x, _ = data.train
    model = build(setting, keras.Sequential, data)
    model.compile(**compile_options(setting, data))
    recorder.set_model(model)
    recorder.clock.start()
    try:
        rivals.train(
            model,
            data.train,
            rivals.RIVALS[setting.method](setting.parameter),
            schedule(setting, len(x)),
            setting.batch_size,
            setting.epochs,
            setting.seed,
            recorder.add_counts,
        )
    except rivals.Diverged as error:
        recorder.failed = str(error)
    return model

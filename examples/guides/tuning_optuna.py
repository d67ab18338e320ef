"""
Title: Tuning with Optuna
Description: Search the learning rate of RAIS with Optuna, and end poor trials early.
Accelerator: None
Needs: optuna (`pip install 'keras_osgd[tuning]'`); a minute on two CPU cores.
"""

"""
## Introduction

This guide searches for the learning rate and the momentum with Optuna. Optuna calls
your function with a trial, and gets the validation error back. Poor trials end early:
pruning compares trials at the same epoch, which is fair, since an epoch means the same
progress in all of them, however many steps it takes.
"""

"""
## Setup
"""

import guide_data
import keras

try:
    import optuna
except ImportError as error:
    raise SystemExit("This guide takes: pip install optuna") from error

import keras_osgd

optuna.logging.set_verbosity(optuna.logging.WARNING)
n, epochs = guide_data.size(10_000, smoke=300), guide_data.size(5, smoke=2)
(x, y), _, _ = guide_data.images(n)
x_train, y_train, x_val, y_val = x[n // 5 :], y[n // 5 :], x[: n // 5], y[: n // 5]

"""
## Report each epoch, and end poor trials
"""


class Report(keras.callbacks.Callback):
    def __init__(self, trial):
        super().__init__()
        self.trial = trial

    def on_epoch_end(self, epoch, logs=None):
        self.trial.report(1 - logs["val_accuracy"], epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


"""
Raising an error in a callback ends `fit`, as in Keras.

## One trial

RAIS multiplies the learning rate by the gain ratio, which is 8 at most. So the best
rate for uniform training need not be the best one here: tune it anew.
"""


def validation_error(trial):
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    rate = trial.suggest_float("rate", 0.003, 0.3, log=True)
    model.compile(
        keras.optimizers.SGD(rate, momentum=trial.suggest_float("momentum", 0.5, 0.95)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        sampling=keras_osgd.sampling.RAIS(seed=0),
    )
    history = model.fit(
        x_train,
        y_train,
        batch_size=64,
        epochs=epochs,
        validation_data=(x_val, y_val),
        callbacks=[Report(trial)],
        verbose=0,
    )
    trial.set_user_attr("steps", int(model.sampling.history["steps"][-1]))
    return 1 - history.history["val_accuracy"][-1]


"""
## Search

The first four trials have random values and run to their end. Optuna chooses the values
of the others by what it has found so far. From the second epoch on it ends a trial that
is worse than the median of the trials before.
"""

study = optuna.create_study(
    sampler=optuna.samplers.TPESampler(n_startup_trials=4, seed=0),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
)
study.optimize(validation_error, n_trials=guide_data.size(10, smoke=1))

print("trial  validation error   rate  momentum  steps")
for trial in study.trials:
    pruned = trial.state == optuna.trial.TrialState.PRUNED
    error = "pruned" if pruned else f"{trial.value:.4f}"
    rate, momentum = trial.params["rate"], trial.params["momentum"]
    steps = trial.user_attrs.get("steps", "")
    print(f"{trial.number:5}  {error:>16}  {rate:.3f}  {momentum:8.2f}  {steps:>5}")
print("Best:", {name: round(value, 3) for name, value in study.best_params.items()})

"""
To go on with a study later, give `create_study` a `storage`. To go on with a trial that
was killed, give `fit` a `keras_osgd.callbacks.Checkpoint`, with a directory for each
trial.
"""

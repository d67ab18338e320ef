"""One of two processes that train together, for `fit/test_workers.py`.

python -m tests.helpers.workers RANK PORT PORT DIRECTORY
"""

import json
import os
import pathlib
import sys

RANK, PORTS, DIRECTORY = int(sys.argv[1]), sys.argv[2:4], pathlib.Path(sys.argv[4])
os.environ["TF_CONFIG"] = json.dumps(
    {
        "cluster": {"worker": [f"127.0.0.1:{port}" for port in PORTS]},
        "task": {"type": "worker", "index": RANK},
    }
)

import tensorflow as tf  # noqa: E402

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before all else, or it raises

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_osgd  # noqa: E402
from keras_osgd.base.keras_compat import UnderStrategy  # noqa: E402
from keras_osgd.sampling import RAIS  # noqa: E402
from tests.helpers import replayed, small  # noqa: E402

OPTIONS = {
    "x": replayed.X,
    "y": replayed.Y,
    "batch_size": replayed.BATCH_SIZE,
    "verbose": 0,
}


class FirstMended(UnderStrategy, keras.Sequential):
    """Keras' own with the first mend alone."""

    _make_function = keras.Sequential._make_function


def why_it_fails(cls) -> str:
    """Returns the error of Keras' own training, "" where there is none."""
    with strategy.scope():
        model = replayed.model(cls)
    try:
        model.fit(**OPTIONS)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def train(sampling, cls=keras_osgd.Sequential, **options):
    """Returns a trained model and its history."""
    with strategy.scope():
        model = replayed.model(cls, sampling=sampling)
    return model, model.fit(**OPTIONS, **options).history


def trained_so(**options):
    """Returns the weights and draws of a short training, into the second block."""
    draws = replayed.Draws()
    sampling = RAIS(seed=0, retreat_below=0, norm=options.pop("norm", "last_layer"))
    model, _ = train(sampling, epochs=8, callbacks=[draws], **options)
    return {"weights": small.flat(model), **draws.arrays()}


found = {"plain": why_it_fails(keras.Sequential), "first": why_it_fails(FirstMended)}
validation = {"validation_data": (replayed.X, replayed.Y)}
uniform, found["uniform_history"] = train("uniform", epochs=1, **validation)
others = {"exact": trained_so(norm="exact"), "own": trained_so(cls=replayed.Own)}
draws = replayed.Draws()
options = {"epochs": 8, "validation_freq": 8, "callbacks": [draws], **validation}
model, found["history"] = train(RAIS(seed=0, retreat_below=0), **options)
found["evaluated"] = model.evaluate(replayed.X, replayed.Y, batch_size=8, verbose=0)
found["examples"] = model.sampling_state.table.size
np.savez(
    DIRECTORY / f"{RANK}.npz",
    uniform=small.flat(uniform),
    weights=small.flat(model),
    predicted=model.predict(replayed.X, batch_size=8, verbose=0),
    **draws.arrays(),
    **{f"{kind} {k}": v for kind, of in others.items() for k, v in of.items()},
)
(DIRECTORY / f"{RANK}.json").write_text(json.dumps(found))

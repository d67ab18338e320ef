"""Going on from a checkpoint: bit for bit, from every state of a run."""

import shutil

import keras
import numpy as np
import pytest
import small

import keras_osgd
from keras_osgd.callbacks import Checkpoint
from keras_osgd.sampling import RAIS, Oracle


class EveryState(Checkpoint):
    """Waits until each checkpoint is written, so that there is one of every state."""

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        self._writer.wait()


class Draws(keras.callbacks.Callback):
    """Keeps the rows that every step was trained on, by step."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def on_train_batch_end(self, batch, logs=None):
        run = self.model.sampling_run
        before = max(0, run.clock.step - self.model.steps_per_execution)
        for step in range(before, run.clock.step):
            row = run.buffers.index[step % run.buffers.rows]
            self.rows[step] = row.numpy().tolist()


def net(sampling, steps_per_execution=1):
    """A model with all kinds of state: momentum, seeds, normalisation statistics."""
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential(
        [
            keras.Input((4,)),
            keras.layers.GaussianNoise(0.1),
            keras.layers.Dense(8, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        small.crossentropy(),
        metrics=["accuracy"],
        sampling=sampling,
        steps_per_execution=steps_per_execution,
    )
    return model


def state_of(model):
    """All that a resumed run must share with the uninterrupted one."""
    state = model.sampling_state
    return [
        *(np.array(v) for v in model.variables + model.optimizer.variables),
        *(state.collect()[name] for name in sorted(state.collect())),
    ]


CASES = {
    "rais": (lambda: RAIS(seed=3), 1, 8),
    "executions": (lambda: RAIS(seed=3), 5, 8),
    "independent": (lambda: RAIS(seed=3, draws="independent"), 1, 5),
    "ordinary epochs": (lambda: RAIS(seed=3, adapt_learning_rate=False), 1, 5),
    "oracle": (lambda: Oracle(seed=3, refresh=10), 1, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_a_restore_of_any_state_goes_on_bit_for_bit(case, tmp_path, capsys):
    sampling, per_execution, epochs = CASES[case]
    whole, everywhere = net(sampling(), per_execution), Draws()
    saving = EveryState(tmp_path / "all", every=1, keep=10**6)
    history = small.fit(whole, epochs=epochs, callbacks=[saving, everywhere])
    saved = sorted((tmp_path / "all").glob("*.npz"))
    assert len(saved) > 30 // per_execution
    expected = state_of(whole)
    for path in saved[:: max(1, len(saved) // 12)]:
        directory = tmp_path / path.stem
        directory.mkdir()
        for suffix in (".npz", ".json"):
            shutil.copy(path.with_suffix(suffix), directory)
        keras.utils.set_random_seed(99)  # nothing of the new process may matter
        model, draws = net(sampling(), per_execution), Draws()
        goes_on = Checkpoint(directory, every=10**6)
        resumed = small.fit(model, epochs=epochs, callbacks=[goes_on, draws], verbose=2)
        assert "not bit-exact" not in capsys.readouterr().out
        assert all(everywhere.rows[step] == rows for step, rows in draws.rows.items())
        for a, b in zip(expected, state_of(model), strict=True):
            np.testing.assert_array_equal(a, b)
        for name, values in resumed.history.items():
            assert values == history.history[name][-len(values) :]

"""Updates that leave what is not finite are undone, and no example is blamed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.callbacks import Checkpoint, checkpoint_files
from keras_osgd.sampling import RAIS, Auto, Oracle, Presample, Uniform
from keras_osgd.step import recovery
from keras_osgd.step.recovery import is_finite, require_finite
from keras_osgd.step.skipping import Skips
from tests.helpers import small
from tests.helpers.checkpoints import EveryState
from tests.helpers.selection import long_but

INF, NAN = np.inf, np.nan
BAD = 10  # steps before the bad one
STEPS = 15  # of an epoch


@pytest.fixture(name="looks")
def _looks(monkeypatch):
    """Lets looks be after every 8 steps, and at the epoch's end."""
    monkeypatch.setattr(recovery, "_LOOK", 8)


class Adding(keras.layers.Layer):
    """Adds to a statistic of its own, and multiplies by a constant."""

    def build(self, shape):
        options = {"shape": (), "trainable": False}
        self.added = self.add_weight(**options, initializer="zeros", name="added")
        self.total = self.add_weight(**options, initializer="zeros", name="total")
        fill = keras.initializers.Constant(-INF)
        self.mask = self.add_weight(**options, initializer=fill, name="mask")

    def call(self, x):
        self.total.assign(self.total + self.added)
        return x + keras.ops.exp(self.mask)


def _model(optimizer="sgd", **options):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3), keras.layers.BatchNormalization(), Adding()]
    model = keras_osgd.Sequential([keras.Input((4,)), *layers])
    options = {"sampling": RAIS(seed=0), **options}
    model.compile(optimizer, small.crossentropy(), **options)
    return model


def _momentum():
    return keras.optimizers.SGD(0.1, momentum=0.9)


class Spoiling(keras.callbacks.Callback):
    """Spoils one update, or all from one on; keeps the variables after each step."""

    def __init__(self, spoil, repair):
        super().__init__()
        self.spoil, self.repair, self.values, self.done = spoil, repair, [], []

    def now(self):
        optimizer = self.model.optimizer
        kept = [*self.model.weights, *optimizer.variables]
        return [np.array(v) for v in kept if "learning_rate" not in v.path]

    def on_train_batch_begin(self, batch, logs=None):
        if len(self.values) == BAD:
            self.spoil(self.model)
        if len(self.values) == BAD + 1:
            self.repair(self.model)

    def on_train_batch_end(self, batch, logs=None):
        clock = self.model.sampling_run.clock
        self.values.append(self.now())
        self.done.append((clock.effective_iterations(), float(clock.lead)))


def _rate(value):
    def spoil(model):
        model.optimizer.learning_rate = value

    return spoil


def _statistic(model):  # whose next value overflows
    model.layers[-1].total.assign(3e38)
    model.layers[-1].added.assign(3e38)


def _calm(model):
    model.layers[-1].added.assign(0.0)


KINDS = {
    "rate": (_momentum, _rate(INF), _rate(0.1), "dense.*kernel", {}),
    "nan": ("adam", _rate(NAN), _rate(0.1), "dense.*kernel", {"run_eagerly": True}),
    "jit": (_momentum, _rate(INF), _rate(0.1), "dense.*kernel", {"jit_compile": True}),
    "statistic": (_momentum, _statistic, _calm, "adding.*/total", {}),
    "oracle": (_momentum, _rate(INF), _rate(0.1), "kern", {"sampling": Oracle(15)}),
}


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("kind", long_but(["rate", "statistic"], KINDS))
def test_an_update_that_leaves_infinities_is_undone_and_blamed_on_no_example(kind):
    optimizer, spoil, repair, named, options = KINDS[kind]
    if options.get("jit_compile"):
        options = {**options, "metrics": []}
    optimizer = optimizer if isinstance(optimizer, str) else optimizer()
    model, spoiling = _model(optimizer, **options), Spoiling(spoil, repair)
    told = small.warned(small.fit, model, epochs=2, callbacks=[spoiling])
    [text] = [text for text in told if "taken back to step 8 from step 15" in text]
    assert text.count("No example is blamed. The learning rate is now 0.1") == 1
    assert any(name in text for name in named.split(".*")[-1:])
    wrong = [
        not all(np.isfinite(v[v != -INF]).all() for v in s) for s in spoiling.values
    ]
    assert wrong == [BAD <= k < STEPS - 1 for k in range(len(wrong))]
    for a, b in zip(spoiling.values[7], spoiling.values[14], strict=True):
        np.testing.assert_array_equal(a, b)
    assert spoiling.done[7] == spoiling.done[14]
    assert not model.sampling_state.bad_examples
    assert not any("Skipped step" in text for text in told)
    assert spoiling.done[-1][0] >= 2 * STEPS - 8  # the epoch's end had been decided


def _settled(model):
    values = [
        *small.flat(model),
        *np.concatenate([np.ravel(v) for v in _slots_of(model)]),
    ]
    return np.isfinite([v for v in values if v != -INF]).all()


def _slots_of(model):
    return [np.array(v) for v in model.optimizer.variables if "rate" not in v.path]


def test_a_rate_that_stays_infinite_ends_training_and_saves_nothing_bad(tmp_path):
    model, saving = _model(_momentum()), Checkpoint(tmp_path, every=1)
    spoiling = Spoiling(_rate(INF), _rate(INF))
    message = (
        r"An update must leave.*again and again before step \d\d; .*No example is "
        r"blamed. The learning rate is now inf.*found finite. The last good checkpoint"
    )

    def fails():
        with pytest.raises(RuntimeError, match=message):
            small.fit(model, epochs=3, callbacks=[spoiling, saving])

    told = small.warned(fails)
    lines = [text for text in told if "No checkpoint was written" in text]
    assert lines and all("/learning_rate. The last" in text for text in lines)
    assert not any("kernel" in text for text in lines)  # taken back before
    assert _settled(model) and not model.sampling_state.bad_examples
    assert len(spoiling.values) <= BAD + 16
    fresh = _model(_momentum())
    Checkpoint(tmp_path).restore(fresh)
    assert _settled(fresh) and 0 < int(fresh.optimizer.iterations) <= BAD


def test_looks_come_after_32_steps_or_8_if_steps_are_skipped():
    model, spoiling = _model(_momentum()), Spoiling(_rate(INF), _rate(0.1))
    told = small.warned(small.fit, model, epochs=2, callbacks=[spoiling])
    assert any("taken back to step 0 from step 15" in text for text in told)
    one = recovery.Recovery(None, Skips())
    one._poll_at, one._look_at, found = 1, 33, []
    for step in range(1, 34):
        if step == 20:
            one._skips.in_a_row.assign(1)
        if one.due(step):
            found.append(step)
            one._skips.in_a_row.assign(0)
    assert found == [25, 33]  # asked from step 1 on


@pytest.mark.usefixtures("looks")
def test_a_stream_is_taken_back_too():
    model = small.model(sampling=Presample(ratio=2, seed=0), optimizer=_momentum())
    spoiling = Spoiling(_rate(INF), _rate(0.1))
    told = small.warned(small.fit, model, epochs=2, callbacks=[spoiling])
    assert any("taken back to step 8 from step 16" in text for text in told)
    for a, b in zip(spoiling.values[7], spoiling.values[15], strict=True):
        np.testing.assert_array_equal(a, b)
    model = small.model(sampling=Presample(ratio=2, seed=0))
    with pytest.raises(RuntimeError, match="An update must leave.*rate is now nan"):
        spoiling = Spoiling(_rate(NAN), _rate(NAN))
        small.warned(small.fit, model, epochs=3, callbacks=[spoiling])
    assert _settled(model)


@pytest.mark.parametrize("sampling", [RAIS(seed=0), Presample(seed=0), Auto()])
def test_weights_and_slots_that_are_not_finite_beforehand_are_named(sampling, capsys):
    for spoiled in ("kernel", "momentum"):
        model = _model(_momentum(), sampling=sampling)
        model.optimizer.build(model.trainable_variables)
        found = [*model.weights, *model.optimizer.variables]
        [variable, *_] = [v for v in found if spoiled in v.path]
        variable.assign(np.full(variable.shape, NAN))
        before = model.get_weights()
        if isinstance(sampling, Auto):
            data = np.tile(small.X, (170, 1)), np.tile(small.Y, 170)
            model.fit(*data, batch_size=50, epochs=1, verbose=2)
            assert f"NaN or infinity in {variable.path}." in capsys.readouterr().out
            continue
        with pytest.raises(ValueError, match=f"infinity in {variable.path}. No exa"):
            small.fit(model)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_checkpoint_takes_the_place_of_weights_that_are_not_finite(tmp_path):
    small.fit(_model(_momentum()), callbacks=[Checkpoint(tmp_path)])
    model = _model(_momentum())
    model.layers[0].kernel.assign(np.full((4, 3), NAN))
    small.fit(model, epochs=2, callbacks=[Checkpoint(tmp_path)])
    assert _settled(model)


def _older(directory, number, spoiled):
    """Writes a checkpoint as an earlier version did, with an infinite kernel or not."""
    saved = checkpoint_files.newest(directory)
    details = {k: v for k, v in saved.details.items() if k != "infinite"}
    arrays = saved.arrays
    [place] = [k for k, a in arrays["variables"]["model"].items() if a.shape == (4, 3)]
    value = np.full((4, 3), INF if spoiled else 0.5 + number, np.float32)
    arrays["variables"]["model"][place] = value
    return checkpoint_files.write(directory, arrays, details, 9)


@pytest.mark.parametrize("sampling", [RAIS(seed=0), Uniform()])
def test_earlier_checkpoints_with_infinite_weights_are_passed_over(sampling, tmp_path):
    small.fit(_model(sampling=sampling), callbacks=[Checkpoint(tmp_path)])
    good = _older(tmp_path, 2, spoiled=False)
    bad = [_older(tmp_path, k, spoiled=True) for k in (3, 4)]
    model, saving = _model(sampling=sampling), Checkpoint(tmp_path, keep=3)
    with pytest.warns(UserWarning, match="its weights finite") as told:
        assert saving.restore(model) == good
    text = str([w.message for w in told if "weights finite" in str(w.message)][0])
    assert all(f"{p}: not finite in " in text and "kernel" in text for p in bad)
    assert (np.array(model.layers[0].kernel) == 2.5).all()
    small.warned(small.fit, model, epochs=2, callbacks=[saving])
    left = {p.name for p in tmp_path.glob("*.npz")}
    assert good.name in left and len(left) == 3
    assert not left & {p.name for p in bad}  # which do not count for `keep`


def test_without_a_finite_checkpoint_there_is_an_error(tmp_path):
    small.fit(_model(), callbacks=[Checkpoint(tmp_path)])
    bad = _older(tmp_path, 2, spoiled=True)
    for path in set(tmp_path.glob("*.json")) - {bad.with_suffix(".json")}:
        path.unlink()
    with pytest.raises(ValueError, match="intact and finite. Tried.*not fin") as error:
        small.fit(_model(), callbacks=[Checkpoint(tmp_path)])
    assert str(bad) in str(error.value)


def test_uniform_training_saves_no_infinite_weights_and_keeps_the_finite_ones(tmp_path):
    model = _model(_momentum(), sampling="uniform")

    class Rate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == BAD:
                self.model.optimizer.learning_rate = INF

    saving = EveryState(tmp_path, 1)
    told = small.warned(small.fit, model, epochs=2, callbacks=[Rate(), saving])
    assert not np.isfinite(model.layers[0].kernel).all()  # as in Keras
    lines = [text for text in told if "No checkpoint was written" in text]
    assert lines and "NaN or infinity in " in lines[0] and "The last good" in lines[0]
    fresh = _model(_momentum(), sampling="uniform")
    Checkpoint(tmp_path).restore(fresh)
    assert _settled(fresh) and int(fresh.optimizer.iterations) == BAD


@pytest.mark.parametrize("bad", [(9, 11), (9, 17), (12, 23)])
def test_steps_that_went_well_between_two_bad_updates_are_not_counted(bad):
    class Twice(keras.callbacks.Callback):
        done = 0

        def on_train_batch_end(self, batch, logs=None):
            self.done += 1
            rate = NAN if self.done in bad else 0.1
            self.model.optimizer.learning_rate.assign(rate)

    model = _model(_momentum())
    told = small.warned(small.fit, model, epochs=3, callbacks=[Twice()])
    assert any("taken back" in text for text in told) and _settled(model)


def test_where_every_look_finds_what_shows_in_no_loss_training_ends():
    spoiling = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: _statistic(model)
    )
    model = _model(_momentum())
    with pytest.raises(RuntimeError, match="An update must leave.*again and again"):
        small.fit(model, epochs=9, callbacks=[spoiling])


def test_a_fit_that_is_stopped_shows_finite_weights_and_keeps_the_best():
    class Stopping(keras.callbacks.Callback):
        seen = ()

        def on_train_batch_end(self, batch, logs=None):
            if batch == 9:
                self.model.optimizer.learning_rate.assign(INF)
            if batch == 10:
                self.model.stop_training = True

        def on_test_end(self, logs=None):
            self.seen = [*self.seen, _settled(self.model)]

    best = keras.callbacks.EarlyStopping("val_loss", restore_best_weights=True)
    model, stopping = _model(_momentum()), Stopping()
    options = {"validation_data": (small.X, small.Y), "callbacks": [stopping, best]}
    small.fit(model, epochs=3, **options)
    assert stopping.seen == [True]
    for found, kept in zip(model.get_weights(), best.best_weights, strict=True):
        np.testing.assert_array_equal(found, kept)


def test_weights_whose_sum_overflows_are_finite():
    huge = np.float32([3e38, 3e38])
    assert is_finite(tf.constant(huge)) and not np.isfinite(huge.sum())
    model = _model(_momentum())
    model.layers[0].bias.assign(np.float32([3e38, 3e38, 3e38]))
    require_finite(model)

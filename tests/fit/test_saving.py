"""Saving, loading, exporting, and models that join later."""

import copy
import functools
import os
import subprocess
import sys
import threading
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.draws.blocks import lead_steps
from keras_osgd.draws.planner import RAISPlanner
from keras_osgd.sampling import RAIS
from keras_osgd.scores.table import ScoreTable
from tests.helpers import small
from tests.helpers.paths import ROOT
from tests.helpers.selection import long_but

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 8)).astype("float32")
Y = (X[:, 0] > 0).astype("int64") + (X[:, 1] > 1)


def _functional(base):
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(8, "relu")(inputs)
    return base(inputs, keras.layers.Dense(3, "softmax")(hidden))


def _sequential(base):
    return base(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(3, "softmax"),
        ]
    )


@keras.saving.register_keras_serializable(package="test_saving")
class Net(keras_osgd.Model):
    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = keras.layers.Dense(units, "relu")
        self.head = keras.layers.Dense(3, "softmax")

    def call(self, x):
        return self.head(self.hidden(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


MODELS = {
    "functional": lambda: _functional(keras_osgd.Model),
    "sequential": lambda: _sequential(keras_osgd.Sequential),
    "subclassed": Net,
}


def _trained(make, **compile_arguments):
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **compile_arguments,
    )
    model.fit(X, Y, batch_size=16, epochs=4, verbose=0)  # into the second block
    return model


@pytest.fixture(scope="module")
def trained():
    """Returns the model of a kind, trained; the same for all tests, to look at."""
    sampling = RAIS(floor=0.1, seed=3)
    return functools.cache(lambda kind: _trained(MODELS[kind], sampling=sampling))


def _assert_same_state(a, b):
    left, right = a.sampling_state, b.sampling_state
    for name, value in left.table.state_dict().items():
        np.testing.assert_array_equal(value, right.table.state_dict()[name])
    np.testing.assert_array_equal(left.owed, right.owed)
    np.testing.assert_array_equal(left.uncertainty_set.mean, right.uncertainty_set.mean)
    for name in ("armed", "blocks", "drawn", "observed", "seed", "norm"):
        assert getattr(left, name) == getattr(right, name)
    for name, value in left.identity.state_dict().items():
        np.testing.assert_array_equal(value, right.identity.state_dict()[name])
    np.testing.assert_array_equal(left.lead.numpy(), right.lead.numpy())
    np.testing.assert_array_equal(
        left.gain.averages.numpy(), right.gain.averages.numpy()
    )


@pytest.mark.parametrize("kind", long_but(["subclassed"], MODELS))
def test_a_keras_file_brings_everything_back_and_trains_on(
    kind, trained, tmp_path, capsys
):
    model = trained(kind)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded) is type(model)
    assert repr(loaded.sampling) == repr(model.sampling)
    _assert_same_state(model, loaded)
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    if kind != "subclassed":
        return
    model = _trained(MODELS[kind], sampling=RAIS(floor=0.1, seed=3))  # as the saved one
    for each in (model, loaded):
        each.fit(X, Y, batch_size=16, epochs=2, verbose=2)
    assert "afresh" not in capsys.readouterr().out
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_keras_file_of_version_0_1_0_loads_for_ever_and_trains_on(tmp_path, capsys):
    path = ROOT / "tests" / "fixtures" / "model_0.1.0.keras"
    model = keras.models.load_model(path)
    with zipfile.ZipFile(path) as file:
        file.extract("model.weights.h5", tmp_path)
    with h5py.File(tmp_path / "model.weights.h5") as file:
        saved = {}
        file.visititems(lambda name, item: saved.update({name: item}))
        saved = {k: v[()] for k, v in saved.items() if isinstance(v, h5py.Dataset)}
    scores = "sampling_state/vars/"
    assert type(model) is type(_functional(keras_osgd.Model)) and model.name == "old"
    assert (model.sampling.floor, model.sampling.seed) == (0.1, 0)
    for i, weight in enumerate(model.get_layer("dense").get_weights()):
        np.testing.assert_array_equal(weight, saved[f"layers/dense/vars/{i}"])
    for i, variable in enumerate(model.optimizer.variables):
        np.testing.assert_array_equal(variable.numpy(), saved[f"optimizer/vars/{i}"])
    # All that is known of the examples and of where training was, under its old name.
    # But what is owed was in another unit: the draws begin anew.
    state = _saved(model.sampling_state)
    np.testing.assert_array_equal(state["visits_owed"], np.zeros(len(small.X)))
    del saved[scores + "owed"]
    for name in (name for name in saved if name.startswith(scores)):
        found = state[name.removeprefix(scores)]
        np.testing.assert_array_equal(found, saved[name], err_msg=name)
    assert len(model.sampling_state.table.last_norms()) == len(small.X)
    assert (model.sampling_state.table.last_norms() > 0).all()
    lead, before = saved[scores + "lead"], small.flat(model)
    assert float(model.sampling_state.lead) == lead > 0
    blocks = model.sampling_state.blocks
    small.fit(model, verbose=2)
    assert "afresh" not in capsys.readouterr().out  # the rows are known again
    assert model.sampling_state.blocks > blocks
    assert float(model.optimizer.iterations) > saved["optimizer/vars/0"] > 75
    assert (small.flat(model) != before).all()


@pytest.mark.parametrize("kind", long_but(["functional"], MODELS))
def test_weights_files_carry_the_scores_and_a_plain_keras_model_can_load_them(
    kind, trained, tmp_path
):
    model = trained(kind)
    model.save_weights(tmp_path / "w.weights.h5")
    other = MODELS[kind]()
    other.build((None, 8))
    other.load_weights(tmp_path / "w.weights.h5")
    _assert_same_state(model, other)
    if kind == "subclassed":
        return
    make = _functional if kind == "functional" else _sequential
    plain = make(keras.Model if kind == "functional" else keras.Sequential)
    plain.load_weights(tmp_path / "w.weights.h5")
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_made_without_the_add_on_load_and_keep_the_scores_there_are(
    trained, tmp_path
):
    plain = _sequential(keras.Sequential)
    plain.save_weights(tmp_path / "w.weights.h5")
    model = copy.deepcopy(trained("sequential"))
    norms = model.sampling_state.table.last_norms()
    model.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(model.sampling_state.table.last_norms(), norms)
    fresh = MODELS["sequential"]()
    fresh.load_weights(tmp_path / "w.weights.h5")
    assert fresh.sampling_state.table is None


def test_weights_made_without_the_add_on_start_with_fresh_scores_and_say_so(
    tmp_path, capsys
):
    plain = _sequential(keras.Sequential)
    plain.save_weights(tmp_path / "w.weights.h5")
    line = "The weights were loaded without scores: they start afresh."
    for load, times in ((True, 1), (False, 0)):
        model = MODELS["sequential"]()
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        if load:
            model.load_weights(tmp_path / "w.weights.h5")
        for _ in range(2):
            model.fit(X[:60], Y[:60], epochs=1, verbose=2)
        assert capsys.readouterr().out.count(line) == times
        assert model.sampling_state.table.share_unseen < 1


def test_scores_of_other_data_loaded_inside_fit_are_refused(trained, tmp_path):
    trained("sequential").save_weights(tmp_path / "w.weights.h5")
    model = MODELS["sequential"]()
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)

    class Load(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.load_weights(tmp_path / "w.weights.h5")

    with pytest.raises(ValueError, match="100 examples .* Received: 300 examples"):
        model.fit(X[:100], Y[:100], epochs=2, verbose=0, callbacks=[Load()])


def test_scores_of_another_norm_loaded_inside_fit_are_refused(trained, tmp_path):
    trained("sequential").save_weights(tmp_path / "w.weights.h5")
    model, loss = MODELS["sequential"](), "sparse_categorical_crossentropy"
    sampling = RAIS(norm="exact", seed=0)
    model.compile("sgd", loss, sampling=sampling, run_eagerly=True)

    class Load(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.load_weights(tmp_path / "w.weights.h5")

    with pytest.raises(ValueError, match="norm='exact'. Received: .*'last_layer'"):
        model.fit(X, Y, batch_size=100, epochs=2, verbose=0, callbacks=[Load()])


def test_files_bring_back_the_norm_and_those_without_one_have_the_last_layer_s():
    store = {}
    model = small.model(sampling=RAIS(norm="exact", seed=0), run_eagerly=True)
    small.fit(model, batch_size=30)
    model.sampling_state.save_own_variables(store)
    loaded = small.model()
    loaded.sampling_state.load_own_variables(store)
    assert loaded.sampling_state.norm == "exact"
    del store["norm"]
    loaded.sampling_state.load_own_variables(store)
    assert loaded.sampling_state.norm == "last_layer"


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_the_scores_are_no_weights_and_no_part_of_an_export(kind, trained, tmp_path):
    model = trained(kind)
    assert len(model.weights) == 4
    assert model.count_params() == 8 * 8 + 8 + 8 * 3 + 3
    model.export(tmp_path / "export", verbose=False)
    exported = tf.saved_model.load(tmp_path / "export")
    served = exported.serve(X)
    np.testing.assert_allclose(served, model.predict(X, verbose=0), rtol=1e-6)
    tf.saved_model.save(model, tmp_path / "saved")
    for folder in ("export", "saved"):
        shapes = [
            shape
            for _, shape in tf.train.list_variables(
                str(tmp_path / folder / "variables" / "variables")
            )
        ]
        assert all(300 not in shape for shape in shapes)


@pytest.mark.long
def test_an_export_and_an_accelerated_models_file_load_without_the_add_on(tmp_path):
    model = keras_osgd.accelerate(_trained(lambda: _sequential(keras.Sequential)))
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    model.export(tmp_path / "export", verbose=False)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", model.predict(X, verbose=0))
    script = (
        "import sys, keras, numpy as np, tensorflow as tf\n"
        "assert 'keras_osgd' not in sys.modules\n"
        "x, y = np.load('x.npy'), np.load('y.npy')\n"
        "m = keras.models.load_model('m.keras')\n"
        "assert m.compiled\n"
        "np.testing.assert_allclose(m.predict(x, verbose=0), y, rtol=1e-5)\n"
        "exported = tf.saved_model.load('export')\n"
        "served = exported.serve(x)\n"
        "np.testing.assert_allclose(served, y, rtol=1e-5)\n"
        "assert 'keras_osgd' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True
    )


def test_accelerate_and_release_keep_weights_and_optimizer():
    keras.utils.set_random_seed(0)
    model = _sequential(keras.Sequential)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy"
    )
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    before = [v.numpy() for v in (*model.weights, *model.optimizer.variables)]
    own_class = type(model)
    assert keras_osgd.accelerate(model) is model
    after = [v.numpy() for v in (*model.weights, *model.optimizer.variables)]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    assert model.sampling_state.observed > 0
    iterations = int(model.optimizer.iterations.numpy())
    assert keras_osgd.release(model) is model
    assert type(model) is own_class
    assert not [name for name in vars(model) if "osgd" in name]
    assert model.train_function is None  # which has our step in it
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    assert model.optimizer.iterations.numpy() == iterations + 19


def test_accelerate_called_again_trains_by_the_new_method():
    model = _sequential(keras.Sequential)
    model.compile("sgd", "sparse_categorical_crossentropy")
    planners = []
    for method in ("oracle", RAIS(norm="exact")):
        assert keras_osgd.accelerate(model, method) is model
        model.fit(X, Y, batch_size=60, verbose=0)
        planners.append(type(model.sampling_run.planner).__name__)
        assert (model.sampling_run.step_state.scorer is None) == (
            model.sampling.norm != "exact"
        )
    assert planners == ["OraclePlanner", "RAISPlanner"]
    model.train_on_batch(X[:16], Y[:16])
    keras_osgd.accelerate(model, "uniform")
    model.fit(X, Y, batch_size=16, verbose=0)
    assert model.sampling_run is None


def test_accelerate_takes_loaded_subclassed_and_uncompiled_models(tmp_path):
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(3, "softmax")

        def call(self, x):
            return self.head(x)

    options = {"optimizer": "sgd", "loss": "sparse_categorical_crossentropy"}
    options["run_eagerly"] = True
    plain = keras_osgd.accelerate(Plain(), sampling=RAIS(floor=0.2))
    plain.compile(**options, sampling=RAIS(floor=0.2))
    plain.fit(X, Y, batch_size=60, verbose=0)
    assert plain.sampling.floor == 0.2
    functional = _functional(keras.Model)
    functional.compile(**options)
    functional.save(tmp_path / "m.keras")
    loaded = keras_osgd.accelerate(keras.models.load_model(tmp_path / "m.keras"))
    loaded.fit(X, Y, batch_size=60, verbose=0)
    assert loaded.sampling_state.observed > 0


@pytest.mark.long
def test_a_keras_application_joins_without_being_rewritten():
    model = keras.applications.MobileNet(
        (32, 32, 3), alpha=0.25, weights=None, classes=3
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    keras_osgd.accelerate(model)
    images = RNG.uniform(size=(40, 32, 32, 3)).astype("float32")
    model.fit(images, Y[:40], batch_size=8, epochs=3, verbose=0)
    assert np.isfinite(model.sampling_state.table.last_norms()).all()


@pytest.mark.parametrize("accelerated", [True, False])
def test_a_train_step_without_a_loss_is_refused(accelerated):
    base = keras.Sequential if accelerated else keras_osgd.Sequential

    class Own(base):
        def train_step(self, data):
            return {"loss": 0.0}

    model = Own([keras.Input((8,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    if accelerated:
        keras_osgd.accelerate(model)
    with pytest.raises(ValueError, match="Own.train_step, which never calls"):
        model.fit(X, Y, verbose=0)


def test_what_cannot_be_accelerated_or_released_is_refused():
    with pytest.raises(ValueError, match="takes a Keras model. Received: int"):
        keras_osgd.accelerate(3)
    with pytest.raises(ValueError, match="was not accelerated"):
        keras_osgd.release(_sequential(keras.Sequential))


def test_all_our_models_are_instances_of_our_model():
    class Wrapped(keras_osgd.Model):
        pass

    made = [MODELS[kind]() for kind in MODELS]
    made += [_functional(Wrapped), keras_osgd.Sequential(), keras_osgd.Model()]
    made += [type(made[0]).from_config(made[0].get_config())]
    assert all(isinstance(model, keras_osgd.Model) for model in made)
    assert type(made[0]) is type(made[-1]) is not keras_osgd.Model


def test_our_classes_keep_their_bases_whatever_is_made_of_them():
    bases = {c: c.__bases__ for c in (keras_osgd.Model, keras_osgd.Sequential)}

    class Wrapped(keras_osgd.Model):
        pass

    class Built(keras_osgd.Model):
        def __init__(self):
            inputs = keras.Input((8,))
            outputs = keras.layers.Dense(3, "softmax")(inputs)
            super().__init__(inputs=inputs, outputs=outputs)

    made = [_functional(keras_osgd.Model), _functional(Wrapped), Built(), Net()]
    options = {"optimizer": "sgd", "loss": "sparse_categorical_crossentropy"}
    options["run_eagerly"] = True
    for model in made[1:3]:  # others are trained above
        model.compile(**options)
        model.fit(X, Y, batch_size=100, verbose=0)

    class Later(keras_osgd.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(3, "softmax")

        def call(self, x):
            return self.head(x)

    later = Later()
    later.compile(**options)
    later.fit(X, Y, batch_size=100, verbose=0)
    for cls, expected in bases.items():
        assert cls.__bases__ == expected


def test_backup_and_restore_brings_the_scores_back(tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 4:
                raise RuntimeError("crash")

    def make():
        keras.utils.set_random_seed(0)
        model = MODELS["sequential"]()
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    first = make()
    with pytest.raises(RuntimeError, match="crash"):
        first.fit(X, Y, batch_size=16, epochs=5, verbose=0, callbacks=[backup, Crash()])
    second = make()
    restored = []
    keep = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: restored.append(float(second.sampling_state.lead))
    )
    history = second.fit(
        X, Y, batch_size=16, epochs=5, verbose=0, callbacks=[backup, keep]
    )
    assert history.epoch == [4]
    assert second.sampling_state.observed > 19 * 16  # of one epoch alone
    # The optimizer was new when `fit` began, and no longer when it was restored.
    assert restored == [float(first.sampling_state.lead)] and restored[0] > 0.1


def _saved(state):
    store = {}
    state.save_own_variables(store)
    return {name: np.array(value) for name, value in store.items()}


def _same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def to_plan_on():
    """A model whose score table planners may change."""
    return _trained(MODELS["sequential"], sampling="rais")


def _planner_amid_observing(model, monkeypatch):
    """Returns a planner whose thread has updated half of the score table.

    It goes on when the event is set that is returned too, or after a second; then a
    third plan may begin at the step that is returned last.
    """
    run, half, go_on = model.sampling_run, threading.Event(), threading.Event()
    steps = run.buffers.block_steps
    planner = RAISPlanner(RAIS(seed=0), run.state, run.buffers, run.log, 1)
    planner.start()
    write = ScoreTable._write

    def halting(table, name, index, values):
        if name == "last":
            half.set()
            go_on.wait(timeout=1)
        write(table, name, index, values)

    monkeypatch.setattr(ScoreTable, "_write", halting)
    planner.advance(steps - lead_steps(steps, 1))
    assert half.wait(timeout=60)
    return planner, go_on, steps


def test_what_is_saved_while_a_block_is_planned_is_the_state_before_or_after(
    to_plan_on, monkeypatch
):
    state, before = to_plan_on.sampling_state, {}
    plan = RAISPlanner.plan

    def keeping(planner, start, observed_until):
        if start > 0:
            before.update(_saved(state))
        plan(planner, start, observed_until)

    monkeypatch.setattr(RAISPlanner, "plan", keeping)
    planner, go_on, steps = _planner_amid_observing(to_plan_on, monkeypatch)
    saved = _saved(state)
    go_on.set()
    planner.advance(steps)  # waits for the plan
    after = _saved(state)
    planner.finish(0)
    assert not any(np.array_equal(before[k], after[k]) for k in CHANGED)
    assert _same(saved, before) or _same(saved, after)


CHANGED = ("table.last", "table.average_0.75", "visits_owed", "drawn", "blocks")


def test_what_is_loaded_while_a_block_is_planned_replaces_all_of_it(
    to_plan_on, monkeypatch
):
    state = to_plan_on.sampling_state
    stored = _saved(state)
    planner, go_on, steps = _planner_amid_observing(to_plan_on, monkeypatch)
    state.load_own_variables(stored)
    go_on.set()
    planner.advance(steps)
    assert _same(_saved(state), stored)
    planner.finish(0)


@pytest.mark.long
def test_files_saved_inside_fit_can_be_loaded_and_change_no_draw(tmp_path):
    def trained(callbacks):
        keras.utils.set_random_seed(0)
        model = _sequential(keras_osgd.Sequential)
        model.compile("sgd", "sparse_categorical_crossentropy", sampling=RAIS(seed=0))
        model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
        return model

    path = tmp_path / "{epoch}-{batch}.keras"
    saving = keras.callbacks.ModelCheckpoint(path, save_freq=23)
    for a, b in zip(
        trained([]).get_weights(), trained([saving]).get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    files = sorted(tmp_path.iterdir())
    assert len(files) >= 5
    loaded = keras.models.load_model(files[-1])
    assert loaded.sampling_state.observed > 0

"""Clones, copies, pickles and files of models, and what models leave behind."""

import copy
import functools
import gc
import io
import pickle
import weakref

import keras
import numpy as np
import pytest

import keras_osgd
from keras_osgd.sampling import RAIS
from keras_osgd.scores.state import SamplingState
from tests.helpers import small

METHOD = RAIS(floor=0.25, seed=1)
registered = keras.saving.register_keras_serializable("test_model")


def sequential(base):
    return base([keras.Input((4,)), keras.layers.Dense(3)])


def functional(base):
    inputs = keras.Input((4,))
    return base(inputs, keras.layers.Dense(3)(inputs))


class Parts:
    """What a subclassed model needs so that Keras can make it anew."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.head, self.units = keras.layers.Dense(units), units

    def call(self, x):
        return self.head(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@registered
class Net(Parts, keras_osgd.Model):
    pass


@registered
class KerasNet(Parts, keras.Model):
    pass


@registered
class Own(keras_osgd.Model):
    """A functional model with a constructor of its own, as `KerasOwn`."""

    def __init__(self, width=4, **kwargs):
        inputs = keras.Input((width,))
        super().__init__(inputs, keras.layers.Dense(3)(inputs), **kwargs)

    def get_config(self):
        return {"width": 4}


@registered
class KerasOwn(keras.Model):
    def __init__(self, width=4, **kwargs):
        inputs = keras.Input((width,))
        super().__init__(inputs, keras.layers.Dense(3)(inputs), **kwargs)

    get_config = Own.get_config


OURS = {
    "sequential": lambda: sequential(keras_osgd.Sequential),
    "functional": lambda: functional(keras_osgd.Model),
    "subclassed": Net,
    "own_constructor": Own,
}
ACCELERATED = {
    "sequential": lambda: sequential(keras.Sequential),
    "functional": lambda: functional(keras.Model),
    "subclassed": KerasNet,
    "own_constructor": KerasOwn,
}
KINDS = [(True, "sequential"), (True, "functional")]
KINDS += [(False, "functional"), (False, "subclassed")]


def named(kind):
    return "accelerated_" * (not kind[0]) + kind[1]


def made(kind):
    """Returns a new model: of our class, or of Keras' class and accelerated."""
    ours, name = kind
    if ours:
        return OURS[name]()
    return keras_osgd.accelerate(ACCELERATED[name](), METHOD)


def compiled(model, **options):
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, small.crossentropy(), **options)
    return model


@pytest.fixture(scope="module")
def trained():
    """Returns the model of a kind, trained; the same for all tests, to look at."""

    @functools.cache
    def train(kind):
        model = compiled(made(kind), sampling=METHOD)
        small.fit(model, epochs=4)  # into the second block
        return model

    return train


def through_joblib(model):
    joblib, file = pytest.importorskip("joblib"), io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


def through_cloudpickle(model):
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(model))


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def assert_same(copied, model):
    """Asserts that the copy has all that the model has, and shares none of it."""
    mine, theirs = ([c.__qualname__ for c in type(m).__mro__] for m in (copied, model))
    assert mine == theirs and copied.__class__ is model.__class__
    assert copied.compiled == model.compiled
    assert repr(copied.sampling) == repr(model.sampling)
    mine, theirs = (m.sampling_state.state_dict() for m in (copied, model))
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(mine[name], value)
    pairs = list(zip(copied.weights, model.weights, strict=True))
    if model.compiled:
        variables = (m.optimizer.variables for m in (copied, model))
        pairs += zip(*variables, strict=True)
    for a, b in pairs:
        assert a is not b
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_a_copy_has_all_that_the_model_has(kind, trained):
    new, model = made(kind), trained(kind)
    assert model.sampling_state.table is not None
    for way in (copy.copy, copy.deepcopy, through_pickle):
        assert_same(way(new), new)
        assert_same(way(model), model)


@pytest.mark.parametrize("way", [through_joblib, through_cloudpickle])
def test_other_packages_pickle_an_accelerated_model_too(way, trained):
    model = trained((False, "subclassed"))
    assert_same(way(model), model)


def test_a_copy_made_amid_fit_is_the_model_of_then_and_trains_on():
    copies = []

    class Copy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:  # while a block is planned
                copies.append(through_pickle(self.model))
                assert_same(copies[-1], self.model)

    model = compiled(made((False, "functional")), sampling=METHOD)
    small.fit(model, epochs=3, callbacks=[Copy()])
    copied, seen = copy.deepcopy(model), copies[-1].sampling_state.observed
    for each in (model, copied, copies[-1]):
        small.fit(each)
    np.testing.assert_array_equal(small.flat(copied), small.flat(model))
    assert_same(copied, model)
    assert copies[-1].sampling_state.observed > seen > 0


CLONES = {  # Keras makes its own class of any `Sequential` and of own constructors
    (True, "sequential"): keras.Sequential,
    (True, "functional"): type(functional(keras_osgd.Model)),
    (True, "subclassed"): Net,
    (True, "own_constructor"): type(functional(keras.Model)),
    (False, "sequential"): keras.Sequential,
    (False, "functional"): type(functional(keras.Model)),
    (False, "subclassed"): KerasNet,
    (False, "own_constructor"): type(functional(keras.Model)),
}


@pytest.mark.parametrize("kind", CLONES, ids=named)
def test_a_clone_is_new_and_compiled_as_the_model(kind):
    model = made(kind)
    assert not keras.models.clone_model(model).compiled
    compiled(model, sampling=METHOD)
    clone = keras.models.clone_model(model)
    assert type(clone) is CLONES[kind]
    assert clone.optimizer.get_config() == model.optimizer.get_config()
    assert clone.loss.get_config() == model.loss.get_config()
    if hasattr(clone, "sampling"):
        assert repr(clone.sampling) == repr(model.sampling)
    for a, b in zip(clone.weights, model.weights, strict=True):
        assert a.shape == b.shape and a is not b


@pytest.mark.parametrize("kind", [(True, "sequential"), (True, "functional")])
def test_a_clone_takes_what_keras_takes_and_trains(kind):
    model = compiled(made(kind))

    def clone_function(layer):
        config = {**layer.get_config(), "name": "cloned"}
        return type(layer).from_config(config)

    def call_function(layer, *args, **kwargs):
        return 2.0 * layer(*args, **kwargs)

    options = {"clone_function": clone_function, "input_tensors": keras.Input((4,))}
    if kind[1] == "functional":
        options["call_function"] = call_function
        options["input_tensors"] = [options["input_tensors"]]
        model = compiled(keras_osgd.Model(*([t] for t in (model.input, model.output))))
    clone = keras.models.clone_model(model, **options)
    layer, factor = clone.get_layer("cloned"), 1 + ("call_function" in options)
    clone.set_weights(model.get_weights())
    expected = factor * (small.X @ layer.kernel.numpy())
    predicted = keras.tree.flatten(clone.predict(small.X, verbose=0))[0]
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)
    before = small.flat(clone)
    small.fit(clone)
    assert not np.array_equal(small.flat(clone), before)
    again = keras.models.clone_model(clone)
    assert type(again) is type(clone)
    assert getattr(again, "sampling_state", SamplingState()).table is None
    assert int(again.optimizer.iterations) == 0


def test_the_configuration_of_a_model_that_is_not_compiled_adds_nothing_to_it():
    model = made((True, "sequential"))
    before = set(vars(model))
    keras.saving.serialize_keras_object(model)
    assert set(vars(model)) == before


# Files


FILES = {  # what they keep: the class, the method, the scores; and the warnings
    "m.keras": (True, True, True, 0),
    "m.h5": (False, False, False, 1),
    "m.hdf5": (False, False, False, 1),
    "m.weights.h5": (True, False, True, 0),
    "m.weights.json": (True, False, True, 0),
}


def _written_and_read(model, path):
    """Returns what a file gives back, written twice."""
    for _ in range(2):
        if ".weights." in path.name:
            sharded = {"max_shard_size": 1} if path.suffix == ".json" else {}
            model.save_weights(path, **sharded)
        else:
            model.save(path)
    if ".weights." not in path.name:
        return keras.models.load_model(path)
    read = compiled(made((True, "sequential")))
    read.load_weights(path)
    return read


@pytest.mark.parametrize("name", FILES)
def test_a_file_keeps_the_sampling_or_saving_says_once_that_it_does_not(
    name, trained, tmp_path
):
    model, read = copy.deepcopy(trained((True, "sequential"))), []
    warned = small.warned(
        lambda: read.append(_written_and_read(model, tmp_path / name))
    )
    of_ours, method, scores, times = FILES[name]
    assert isinstance(read[0], keras_osgd.Sequential) == of_ours
    np.testing.assert_array_equal(small.flat(read[0]), small.flat(model))
    if of_ours:
        assert (repr(read[0].sampling) == repr(METHOD)) == method
        assert (read[0].sampling_state.table is not None) == scores
    said = [text for text in warned if f"{name}, an HDF5 file" in text]
    assert len(said) == times
    uniform = compiled(made((True, "sequential")), sampling="uniform")
    warned = small.warned(_written_and_read, uniform, tmp_path / name)
    assert not [text for text in warned if "HDF5" in text]


def test_the_scores_of_an_accelerated_model_come_back_by_load_weights(
    trained, tmp_path
):
    model, path = trained((False, "subclassed")), tmp_path / "m.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded) is KerasNet and loaded.compiled
    keras_osgd.accelerate(loaded, METHOD).load_weights(path)
    assert_same(loaded, model)


# Classes with a `compile` of their own


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_compile_of_the_users_own_is_treated_as_keras_treats_it(
    whole, accelerated, tmp_path
):
    def loaded(base, join):
        class OwnCompile(base):
            def compile(self, optimizer, loss):
                super().compile(optimizer, loss)

        class WithConfig(OwnCompile):
            def get_compile_config(self):
                return {"optimizer": "adam"}

            def compile_from_config(self, config):
                self.compile(config["optimizer"], small.crossentropy())

        cls = WithConfig if whole else OwnCompile
        model = join(sequential(cls))
        model.compile("sgd", small.crossentropy())
        model.save(tmp_path / "m.keras")
        with keras.saving.custom_object_scope({cls.__name__: cls}):
            models, load = [], keras.models.load_model
            said = small.warned(lambda: models.append(load(tmp_path / "m.keras")))
        optimizer = type(getattr(models[0], "optimizer", None)).__name__
        return said, models[0].compiled, optimizer

    base = keras.Sequential if accelerated else keras_osgd.Sequential
    join = keras_osgd.accelerate if accelerated else lambda model: model
    expected = loaded(keras.Sequential, lambda model: model)
    assert len(expected[0]) == (not whole)
    assert loaded(base, join) == expected


# What is left behind


def _graphs():
    """Returns the number of TensorFlow's graphs of functions that are alive."""
    gc.collect()
    return sum("FuncGraph" in type(each).__name__ for each in gc.get_objects())


def _scaled():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())


LEAVING = {
    "rais": small.model,
    "scaled": lambda: small.model(optimizer=_scaled()),
    "presample": lambda: small.model(sampling="presample"),
    "accelerated": lambda: compiled(
        made((False, "sequential")), sampling=RAIS(norm="exact", seed=0)
    ),
}


@pytest.mark.long
def test_a_model_that_is_dropped_leaves_no_graph_and_none_of_its_parts():
    def train(name):
        model = LEAVING[name]()
        small.fit(model, epochs=4)
        held = model.sampling_held
        return [weakref.ref(each) for each in (model, held, held.run, held.state)]

    before = _graphs()
    parts = {name: train(name) for name in LEAVING}
    assert _graphs() == before
    for name, left in parts.items():
        assert [part() for part in left] == [None] * 4, name


@pytest.mark.parametrize("method", ["rais", "oracle", "presample"])
def test_a_model_keeps_none_of_the_data_it_was_trained_on(method):
    def train(model):
        x, y, weights = small.X.copy(), small.X[:, :3].copy(), np.ones(60, np.float32)
        held_out = x.copy(), y.copy()
        options = {"sample_weight": weights, "batch_size": 20}
        small.fit(model, x, y, validation_data=held_out, **options)
        return [weakref.ref(a) for a in (x, y, weights, *held_out)]

    model = small.model("mse", sampling=method, run_eagerly=True)
    kept = train(model)
    gc.collect()
    assert [each() is not None for each in kept] == [False] * 5

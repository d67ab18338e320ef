"""The default: what can be sampled is, and all else trains by Keras' own `fit`."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.base.warn import warned_of
from keras_osgd.data import datasets
from keras_osgd.fit.arguments import FitArguments
from keras_osgd.fit.check import require_worth_reading
from keras_osgd.sampling import RAIS, Auto
from tests.helpers import small
from tests.helpers.selection import long_but

pytestmark = pytest.mark.auto

L = keras.layers
M, N = 64, 1024
_rng = np.random.default_rng(0)
X = _rng.normal(size=(N, 4)).astype("float32")
Y = _rng.integers(0, 3, N)
FEW = slice(40)


def layers(*more):
    return [keras.Input((4,)), L.Dropout(0.2), *more, L.Dense(3)]


def compiled(base, *more, loss=None, **options):
    keras.utils.set_random_seed(0)
    model = base(layers(*more))
    model.compile("sgd", loss or small.crossentropy(), **options)
    return model


def shuffled():
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    return dataset.shuffle(N, seed=1).batch(M)


def augmented():
    noise = L.GaussianNoise(0.1, seed=1)
    return shuffled().map(lambda x, y: (noise(x, training=True), y))


def generated():
    for start in range(0, N, M):
        yield X[start : start + M], Y[start : start + M]


class Augmenting(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()
        self.read = []

    def __len__(self):
        return N // M

    def __getitem__(self, index):
        self.read.append(index)
        x = X[index * M : index * M + M]
        return x + np.random.normal(size=x.shape), Y[index * M : index * M + M]


def mean_of_batch(y, y_pred):
    return keras.ops.mean(keras.ops.abs(y_pred))


class Activity(L.Layer):
    def call(self, x):
        self.add_loss(keras.ops.mean(x))
        return x


class Noise(L.Layer):
    """Draws in inference too, by seeds of its own and of Keras; counts its calls."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(3)

    def build(self, shape):
        self.calls = self.add_weight(initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        x = x + keras.random.normal([4], seed=self.seeds)
        return x + keras.random.normal([4])


class Unbuilt:
    """A subclassed model that its first batch builds."""

    def __init__(self):
        super().__init__()
        self.all = [Noise(), L.Dense(3)]

    def call(self, x):
        return self.all[1](self.all[0](x))


def noisy(base):
    keras.utils.set_random_seed(0)
    subclassed = keras.Model if base is keras.Sequential else keras_osgd.Model
    model = type("Subclassed", (Unbuilt, subclassed), {})()
    model.compile("sgd", mean_of_batch)
    return model


def own_step(base):
    class Own(base):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = keras.ops.mean(self(x, training=True) ** 2)
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply(gradients, self.trainable_weights)
            return {"loss": loss}

    return compiled(Own)


def frozen(base):
    model = compiled(base)
    model.trainable = False
    model.compile("sgd", small.crossentropy())
    return model


def without_loss(base):
    keras.utils.set_random_seed(0)
    model = base([*layers(), Activity()])
    model.compile("sgd")
    return model


def replaced(**others):
    """Returns the arguments of `fit` for all examples, some of them replaced."""
    return {"x": X, "y": Y, "batch_size": M, **others}


def of_batch(base):
    return compiled(base, loss=mean_of_batch)


# What it is -> (model of a base class, arguments of `fit` made anew, part of the line).
OTHERS = {
    "a generator": (compiled, lambda: {"x": generated()}, "must be arrays"),
    "an endless dataset": (
        compiled,
        lambda: {"x": shuffled().repeat(), "steps_per_epoch": 5},
        "is infinite",
    ),
    "a dataset of unknown length": (
        compiled,
        lambda: {"x": shuffled().filter(lambda x, y: True)},
        "assert_cardinality",
    ),
    "augmentation in a dataset": (
        compiled,
        lambda: {"x": augmented()},
        "functions that draw at random.*indexed.dataset, map=",
    ),
    "augmentation in a PyDataset": (
        compiled,
        lambda: {"x": Augmenting()},
        "examples that were not there.*indexed.dataset, map=",
    ),
    "a short dataset": (compiled, lambda: {"x": shuffled().take(7)}, "7 batches"),
    "few examples": (
        compiled,
        lambda: replaced(x=X[FEW], y=Y[FEW], batch_size=8),
        "1000 examples.*40 examples in 5 batches",
    ),
    "a loss of the batch, random in inference": (
        noisy,
        lambda: replaced(),
        "one value per example",
    ),
    "few steps": (
        compiled,
        lambda: replaced(batch_size=150),
        "8 batches.*1024 examples in 7",
    ),
    "a loss of the batch": (of_batch, lambda: replaced(), "one value per example"),
    "its dataset": (of_batch, lambda: {"x": shuffled()}, "one value per example"),
    "no trainable weights": (frozen, lambda: replaced(), "trainable weights"),
    "only add_loss": (without_loss, lambda: {"x": X, "batch_size": M}, "`y` must be"),
    "a train_step without compute_loss": (
        own_step,
        lambda: replaced(),
        "`train_step` of your own",
    ),
}


DAILY = [
    "a generator",
    "a dataset of unknown length",
    "augmentation in a dataset",
    "few examples",
    "a loss of the batch, random in inference",
    "a train_step without compute_loss",
]


@pytest.mark.parametrize("kind", long_but(DAILY, OTHERS))
def test_what_is_not_sampled_trains_as_in_keras_to_the_bit_and_is_not_read_before(
    kind, capsys, monkeypatch
):
    def read(*args):
        pytest.fail("read to be thrown away")

    monkeypatch.setattr(datasets, "read", read)
    build, arguments, reason = OTHERS[kind]
    plain = build(keras.Sequential)
    expected = plain.fit(**arguments(), verbose=0)
    model = build(keras_osgd.Sequential)
    capsys.readouterr()
    history = model.fit(**arguments(), verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert model.sampling_run is None
    assert history.history == expected.history
    np.testing.assert_array_equal(small.flat(model), small.flat(plain))
    told = [line for line in lines if "without importance sampling" in line]
    assert len(told) == 1 and lines[0] == told[0]
    assert re.search(reason, told[0]), told[0]


@pytest.mark.parametrize("kind", ["arrays", "a dataset"])
def test_what_can_be_sampled_is_as_with_rais(kind, capsys):
    trained = []
    for sampling in ("auto", "rais"):
        x = {"x": X, "y": Y, "batch_size": M} if kind == "arrays" else {"x": shuffled()}
        model = compiled(keras_osgd.Sequential, sampling=sampling)
        model.fit(**x, verbose=0)
        assert model.sampling_run is not None
        trained.append(small.flat(model))
    np.testing.assert_array_equal(*trained)
    assert "without importance sampling" not in capsys.readouterr().out


def test_it_is_the_default_and_is_saved(tmp_path):
    model = compiled(keras_osgd.Sequential)
    assert type(model.sampling_held.sampling) is Auto
    plain = keras_osgd.accelerate(compiled(keras.Sequential))
    assert type(plain.sampling_held.sampling) is Auto
    model.compile("sgd", "mse", sampling=Auto(floor=0.1))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert repr(loaded.sampling) == repr(Auto(floor=0.1))


def test_nothing_is_printed_where_keras_prints_nothing(capsys):
    model = compiled(keras_osgd.Sequential)
    model.fit(X[FEW], Y[FEW], verbose=0)
    assert capsys.readouterr().out == ""
    assert len(model.sampling.reasons) == 1
    assert "40 examples in 2 batches" in model.sampling.reasons[0]
    model.compile("sgd", small.crossentropy(), sampling="rais")
    model.fit(X[FEW], Y[FEW], verbose=0)
    assert model.sampling.reasons == ()


WORDS = np.array(["a", "b", "a b", "b a"] * (N // 4))


def of_words():
    layer = L.TextVectorization(output_sequence_length=3)
    layer.adapt(WORDS[:4])
    inputs = keras.Input((), dtype="string")
    outputs = L.Flatten()(L.Embedding(4, 3)(layer(inputs)))
    model = keras_osgd.Model(inputs, L.Dense(3)(outputs))
    model.compile("sgd", small.crossentropy())
    return model


@pytest.mark.parametrize(
    ("parts", "class_weight"),
    [
        ((X, Y, np.ones(N, "float32")), None),
        ((X, Y.astype("float32")), {0: 1.0, 1: 2.0, 2: 3.0}),
        ((WORDS, Y), None),
    ],
)
def test_rows_that_stand_in_for_a_dataset_give_no_reason_and_no_warning(
    parts, class_weight
):
    model = of_words() if parts[0] is WORDS else compiled(keras_osgd.Sequential)
    dataset = tf.data.Dataset.from_tensor_slices(parts).batch(M)
    arguments = FitArguments(dataset, class_weight=class_weight)
    warned = small.warned(require_worth_reading, model, Auto(), arguments)
    assert warned == [] and warned_of(model) == []


def test_a_dataset_larger_than_the_memory_is_not_read(monkeypatch, capsys):
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", X.nbytes)
    model = compiled(keras_osgd.Sequential)
    model.fit(shuffled(), verbose=2)
    told = capsys.readouterr().out.splitlines()[0]
    assert "must fit into memory" in told and "cache=directory" in told


@pytest.mark.parametrize("sampling", ["auto", "rais"])
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"validation_split": 0.2}, "validation_split"),
        ({"y": Y}, "y"),
        ({"sample_weight": Y}, "sample_weight"),
    ],
)
def test_a_dataset_is_not_read_where_arguments_beside_it_are_refused(
    sampling, given, name, monkeypatch, capsys
):
    monkeypatch.setattr(datasets, "read", lambda *args: pytest.fail("read in vain"))
    model = compiled(keras_osgd.Sequential, sampling=sampling)
    with pytest.raises(ValueError, match=f"`{name}"):
        model.fit(shuffled(), **given, verbose=2)
    told = f"importance sampling. `{name}` must" in capsys.readouterr().out
    assert told == (sampling == "auto")  # and then Keras' own error


def test_masks_have_the_weights_of_their_classes_where_keras_fails_on_them():
    x, y = X[FEW, :, None, None], (X[FEW, :, None] > 0).astype("int32")
    kernel = keras.initializers.Constant([[[[-0.5, 0.5]]]])
    inputs, outputs = keras.Input((4, 1, 1)), L.Conv2D(2, 1, kernel_initializer=kernel)
    model = keras_osgd.Model(inputs, outputs(inputs))
    model.compile(keras.optimizers.SGD(0.0), small.crossentropy())
    weights, batch = {0: 1.0, 1: 40.0}, {"batch_size": len(x), "verbose": 0}
    shown = model.fit(x, y, class_weight=weights, **batch).history["loss"][0]
    assert model.sampling_run is None
    expected = model.evaluate(x, y, sample_weight=np.where(y == 1, 40.0, 1.0), **batch)
    assert shown == pytest.approx(expected, rel=1e-5)


def test_rais_refuses_it_with_all_reasons_at_once():
    model = compiled(keras_osgd.Sequential, loss=mean_of_batch, sampling="rais")
    model.trainable = False
    with pytest.raises(ValueError, match="(?s)1. Each loss.*2. The model must have"):
        model.fit(X[FEW], Y[FEW])


def test_check_lists_the_reasons():
    model = compiled(keras_osgd.Sequential, loss=mean_of_batch)
    for x in ((X[FEW], Y[FEW]), (augmented(),)):
        found = keras_osgd.check(model, *x, print_fn=None)
        assert {finding.kind for finding in found} == {"reason"}
    found = keras_osgd.check(model, X[FEW], Y[FEW], sampling="rais", print_fn=None)
    assert {finding.kind for finding in found} == {"error"}


def test_steps_per_epoch_are_steps_as_in_keras_or_effective_iterations(capsys):
    plain = compiled(keras_osgd.Sequential)
    plain.fit(X[FEW], Y[FEW], steps_per_epoch=3, verbose=2)
    assert "effective" not in capsys.readouterr().out
    assert int(plain.optimizer.iterations) == 3
    model = compiled(keras_osgd.Sequential)
    model.fit(X, Y, batch_size=M, steps_per_epoch=9, verbose=2)
    assert "`steps_per_epoch`=9 effective iterations" in capsys.readouterr().out


def test_warnings_of_sampling_are_given_only_with_it():
    model = compiled(keras_osgd.Sequential, L.BatchNormalization())
    assert small.warned(model.fit, X[FEW], Y[FEW], verbose=0) == []
    told = small.warned(model.fit, X, Y, batch_size=M, verbose=0)
    assert len(told) == 1 and "moving statistics" in told[0]


def test_training_goes_on_by_either_kind():
    model, drawn = compiled(keras_osgd.Sequential), 0
    for x, sampled in [((X, Y), True), ((X[FEW], Y[FEW]), False), ((X, Y), True)]:
        before = int(model.optimizer.iterations)
        model.fit(*x, batch_size=M, verbose=0)
        run, steps = model.sampling_run, int(model.optimizer.iterations) - before
        assert (run is not None) == sampled
        drawn += steps * M * sampled
        assert steps == (run.clock.step if sampled else 1)
        assert model.sampling_state.times_drawn.sum() == drawn


NAN = np.where(np.arange(N) == 77, np.nan, X[:, 0]).astype("float32")


@pytest.mark.parametrize("sampling", ["auto", "presample"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_loss_that_is_not_finite_ends_fit_as_in_keras(sampling, steps, capsys):
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential([keras.Input((4,)), L.Dense(1)])
    model.compile("sgd", "mse", sampling=sampling, steps_per_execution=steps)
    ends = keras.callbacks.TerminateOnNaN()
    history = model.fit(X, NAN, batch_size=M, epochs=3, callbacks=[ends], verbose=0)
    assert len(history.epoch) == 1 and np.isnan(history.history["loss"]).all()
    assert "Invalid loss, terminating training" in capsys.readouterr().out
    assert np.isfinite(small.flat(model)).all()  # better than in Keras


def test_a_diverging_trial_ends_without_an_error():
    model = keras_osgd.Sequential([keras.Input((4,)), L.Dense(8), L.Dense(1)])
    model.compile(keras.optimizers.SGD(1e6), "mse", sampling=RAIS(seed=0))
    ends = keras.callbacks.TerminateOnNaN()
    history = model.fit(X, X[:, 0], batch_size=M, epochs=9, callbacks=[ends], verbose=0)
    assert np.isnan(history.history["loss"][-1])
    ends = keras.callbacks.TerminateOnNaN(raise_error=True)
    with pytest.raises(RuntimeError, match="Terminating training immediately"):
        model.fit(X, NAN, batch_size=M, callbacks=[ends], verbose=0)

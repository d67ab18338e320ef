"""Numbers given to `fit`, and labels to validate on: refused before any step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.fit.arguments import FitArguments, require_arguments
from keras_osgd.sampling import RAIS, Presample
from tests.helpers import small

VALIDATED = {"validation_data": (small.X, small.Y)}
REFUSED = {
    "batch_size": (2.5, "8", -3, [4], float("nan")),
    "steps_per_epoch": (2.5, "2", -1),
    "epochs": (2.5, "2", None),
    "initial_epoch": (0.5, "1"),
    "validation_split": (1.5, 1.0, -0.1, "x", float("nan"), [0.5]),
    "validation_batch_size": (2.5, "8", -3),
    "validation_steps": (2.5, "8"),
    "validation_freq": (2.5, "8", 0),
}
CASES = [(name, value) for name, values in REFUSED.items() for value in values]


@pytest.fixture(scope="module", params=[RAIS, Presample], ids=["rais", "presample"])
def model(request):
    return small.model(sampling=request.param(seed=0))


@pytest.mark.parametrize(("name", "value"), CASES)
def test_numbers_that_keras_fails_on_are_refused_before_any_step(model, name, value):
    before = small.flat(model)
    given = VALIDATED if name in ("validation_steps", "validation_freq") else {}
    given = VALIDATED if name == "validation_batch_size" else given
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}=") as e:
        small.fit(model, **{**given, name: value})
    assert repr(value) in str(e.value)
    np.testing.assert_array_equal(small.flat(model), before)
    if name == "batch_size":
        assert (
            name in keras_osgd.check(model, small.X, small.Y, batch_size=value)[0].text
        )


def test_what_keras_takes_is_taken_as_keras_takes_it():
    for given in (
        {"batch_size": np.int64(30), "epochs": 0, "initial_epoch": -1},
        {"validation_freq": "x", "validation_steps": "x"},  # without validation
        {**VALIDATED, "validation_split": 7, "validation_steps": -1},
    ):
        require_arguments(FitArguments(**given))
    given = {"batch_size": 0, "steps_per_epoch": 0, "validation_split": None}
    for sampling in ("uniform", RAIS(seed=0, adapt_learning_rate=False)):
        trained = small.model(sampling=sampling)
        assert list(small.fit(trained, **given).history) == ["loss"]
        assert int(trained.optimizer.iterations) == 2  # batches of 32, as by default


def test_the_batch_size_beside_a_dataset_is_for_validation_alone():
    given = FitArguments("dataset", batch_size=7)
    read = given.with_examples("examples")
    assert (read.x, read.batch_size, read.validation_batch_size) == (
        "examples",
        None,
        7,
    )
    read = given.replace(validation_batch_size=5).with_examples("examples")
    assert read.validation_batch_size == 5
    assert given.with_examples("dataset") == given


def test_an_argument_that_keras_has_not_is_named_and_sampling_sent_to_compile(model):
    with pytest.raises(TypeError, match="Received: sampling. Pass .* to `compile`"):
        small.fit(model, sampling="rais")
    with pytest.raises(TypeError, match="Received: epoch. Leave it out"):
        small.fit(model, epoch=3)


def test_several_wrong_numbers_are_told_at_once(model):
    with pytest.raises(ValueError, match="2 things.*\n.*batch_size.*\n.*epochs"):
        small.fit(model, batch_size=2.5, epochs="2")


@pytest.mark.auto
def test_by_default_keras_own_fit_decides(capsys):
    trained = small.model(sampling="auto")
    with pytest.raises(TypeError):
        small.fit(trained, batch_size="8", verbose=1)
    assert "`batch_size` must be" in capsys.readouterr().out


BAD = np.where(np.arange(60) == 57, 9, small.Y)  # in the last tenth
TENSORS = tf.constant(small.X), tf.constant(BAD)


@pytest.mark.parametrize(
    ("given", "index"),
    [
        ({"validation_split": 0.1}, 3),
        ({"validation_data": (small.X, BAD)}, 57),
        ({"validation_data": [*TENSORS, np.ones(60)]}, 57),
    ],
    ids=["split", "arrays", "tensors"],
)
def test_validation_labels_outside_the_classes_are_refused(model, given, index):
    before, y = small.flat(model), BAD if "validation_split" in given else small.Y
    message = f"y of the validation data has label 9 at index {index} .* 3 outputs"
    with pytest.raises(ValueError, match=message):
        small.fit(model, small.X, y, **given)
    np.testing.assert_array_equal(small.flat(model), before)


def test_validation_labels_of_several_outputs_are_told_apart():
    inputs = keras.Input((4,))
    outputs = {"a": keras.layers.Dense(3)(inputs), "b": keras.layers.Dense(10)(inputs)}
    model = keras_osgd.Model(inputs, outputs)
    losses = {"a": small.crossentropy(), "b": small.crossentropy()}
    model.compile("sgd", losses, sampling=RAIS(seed=0))
    y = {"a": small.Y, "b": small.Y}
    too_high = np.where(BAD == 9, 12, BAD)
    small.fit(model, small.X, y, validation_data=(small.X, {"a": small.Y, "b": BAD}))
    for held_out, words in (
        ({"a": BAD, "b": BAD}, "label 9 at index 57 .* 3 outputs"),
        ({"a": small.Y, "b": too_high}, "label 12 at index 57 .* 10 outputs"),
    ):
        with pytest.raises(ValueError, match=f"of the validation data has {words}"):
            small.fit(model, small.X, y, validation_data=(small.X, held_out))


def test_no_dataset_to_validate_on_is_read_beforehand():
    read, begun = [], []

    def rows():
        read.append(bool(begun))
        yield small.X, small.Y

    specs = tf.TensorSpec((60, 4)), tf.TensorSpec((60,), tf.int64)
    dataset = tf.data.Dataset.from_generator(rows, output_signature=specs)

    def noted(batch, logs):
        begun.append(batch)

    note = keras.callbacks.LambdaCallback(on_train_batch_end=noted)
    small.fit(small.model(), validation_data=dataset, callbacks=[note])
    assert read and all(read)

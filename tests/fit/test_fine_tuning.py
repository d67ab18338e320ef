"""Frozen layers, `keras.applications` and models from files, trained on further."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.sampling import RAIS
from tests.helpers import small

L = keras.layers
_rng = np.random.default_rng(0)
X = _rng.uniform(size=(60, 8, 8, 3)).astype("float32")
Y = _rng.integers(0, 3, 60)


def base():
    """Returns an untrained network with BatchNormalization, up to its features."""
    images = keras.Input((8, 8, 3))
    hidden = L.BatchNormalization()(L.Conv2D(4, 3)(images))
    return keras.Model(images, L.GlobalAveragePooling2D()(L.ReLU()(hidden)))


def headed(frozen, classes=3, rate=0.1, **options):
    """Returns a model of ours with a new head on it."""
    images = keras.Input((8, 8, 3))
    made = keras_osgd.Model(images, L.Dense(classes)(frozen(images)))
    compiled(made, rate, **options)
    return made


def compiled(model, rate=0.1, **options):
    options = {"sampling": RAIS(seed=0), **options}
    model.compile(keras.optimizers.SGD(rate), small.crossentropy(), **options)


def fit(model, x=X, y=Y, **options):
    model.fit(x, y, **{"batch_size": 6, "epochs": 2, "verbose": 0, **options})


@pytest.fixture(scope="module")
def tuned():
    """A frozen base with a new head, trained, then all of it, trained on."""
    keras.utils.set_random_seed(0)
    frozen = base()
    frozen.trainable = False
    model, seen = headed(frozen), {"before": frozen.get_weights()}
    seen["head before"] = model.layers[-1].get_weights()
    seen["findings"] = keras_osgd.check(model, X, Y, batch_size=6, print_fn=None)
    seen["warned"] = small.warned(fit, model)
    seen["frozen"], seen["head"] = frozen.get_weights(), model.layers[-1].get_weights()
    seen["table"] = table = model.sampling_state.table
    seen["norms"] = table.last_norms().copy()
    frozen.trainable = True
    compiled(model, 0.01)
    seen["findings unfrozen"] = keras_osgd.check(
        model, X, Y, batch_size=6, print_fn=None
    )
    fit(model)
    seen["after"], seen["table after"] = (
        frozen.get_weights(),
        model.sampling_state.table,
    )
    return seen


def test_frozen_layers_stay_bit_for_bit_and_the_head_trains(tuned):
    for before, after in zip(tuned["before"], tuned["frozen"], strict=True):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(tuned["head before"], tuned["head"], strict=True):
        assert (before != after).any()


def test_frozen_statistics_need_no_warning_and_those_set_free_do(tuned):
    assert not tuned["findings"] and not tuned["warned"]
    (finding,) = [f for f in tuned["findings unfrozen"] if f.kind != "note"]
    assert "recalibrate_batch_normalization" in finding.text


def test_unfrozen_and_compiled_again_all_trains_and_the_scores_go_on(tuned):
    assert tuned["table after"] is tuned["table"]
    assert np.count_nonzero(tuned["norms"]) > 50
    changed = zip(tuned["frozen"], tuned["after"], strict=True)
    assert all((before != after).any() for before, after in changed)


def test_norms_of_a_new_head_are_those_of_single_examples():
    frozen = base()
    frozen.trainable = False
    model = headed(frozen, rate=0.0)  # the weights stay while the norms are observed
    fit(model, batch_size=4)
    found = model.sampling_state.table.last_norms()
    drawn = np.flatnonzero(np.isfinite(found))
    assert len(drawn) > 50
    for row in drawn[::7]:
        with tf.GradientTape() as tape:
            loss = small.crossentropy()(Y[row : row + 1], model(X[row : row + 1]))
        gradients = tape.gradient(loss, model.trainable_weights)
        expected = np.sqrt(sum(np.square(g).sum() for g in gradients))
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)
    exact = keras_osgd.gradient_norms(model, X, Y)
    np.testing.assert_allclose(found[drawn], exact[drawn], rtol=1e-5)


def test_an_inner_model_called_with_training_false_moves_as_in_keras():
    # Keras passes its own `training` on to all layers of a functional model.
    moved = []
    for kind, options in (
        (keras_osgd.Model, {"sampling": "uniform"}),
        (keras.Model, {}),
    ):
        keras.utils.set_random_seed(0)
        inner, images = base(), keras.Input((8, 8, 3))
        model = kind(images, L.Dense(3)(inner(images, training=False)))
        model.compile("sgd", small.crossentropy(), **options)
        fit(model, epochs=1)
        moved.append(inner.get_weights())
    for own, theirs in zip(*moved, strict=True):
        np.testing.assert_array_equal(own, theirs)
    findings = keras_osgd.check(model, X, Y, sampling="rais", print_fn=None)
    assert any("moving statistics" in finding.text for finding in findings)


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    """`keras.applications`, frozen but for the head, trained, saved and released."""
    folder = tmp_path_factory.mktemp("application")
    whole = keras.applications.MobileNet((32, 32, 3), 0.25, weights=None, pooling="avg")
    # Its first two blocks, to save time.
    features = L.GlobalAveragePooling2D()(whole.get_layer("conv_pw_2_relu").output)
    model = keras.Model(whole.input, L.Dense(3)(features))
    images = np.random.default_rng(0).uniform(size=(24, 32, 32, 3)).astype("float32")
    for layer in model.layers[:-1]:
        layer.trainable = False
    compiled_as = model.__class__
    model.compile(keras.optimizers.SGD(0.1), small.crossentropy())
    keras_osgd.accelerate(model, RAIS(seed=0))
    before = model.get_weights()
    findings = keras_osgd.check(model, images, Y[:24], batch_size=6, print_fn=None)
    fit(model, images, Y[:24])
    model.save(folder / "tuned.keras")
    after = model.get_weights()
    expected = np.asarray(model(images, training=False))
    keras_osgd.release(model)
    saved = folder / "tuned.keras", images, expected
    return saved, model, compiled_as, before, after, findings


def test_of_an_application_only_the_head_trains(application):
    _, _, _, before, after, findings = application
    differ = [
        i for i, (a, b) in enumerate(zip(before, after, strict=True)) if (a != b).any()
    ]
    assert differ == [len(before) - 2, len(before) - 1]
    assert not [f for f in findings if f.kind == "error"]


def test_a_released_application_is_what_it_was(application):
    _, model, compiled_as, _, after, _ = application
    assert type(model) is compiled_as is not keras_osgd.Model
    for own, theirs in zip(model.get_weights(), after, strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_the_file_of_an_application_tuned_by_us_is_keras_own(application):
    path, images, expected = application[0]
    with zipfile.ZipFile(path) as file:
        assert b"keras_osgd" not in file.read("config.json")
    loaded = keras.models.load_model(path)
    found = loaded(images, training=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(loaded.trainable_weights) == 2


def test_a_file_of_keras_lends_its_features_to_a_new_head(tmp_path):
    images = keras.Input((8, 8, 3))
    plain = keras.Model(images, L.Dense(7)(base()(images)))
    plain.compile("sgd", small.crossentropy())
    plain.save(tmp_path / "plain.keras")
    for way in ("our class", "accelerate"):
        loaded = keras.models.load_model(tmp_path / "plain.keras")
        loaded.trainable = False
        features = loaded.layers[-1].input
        kind = keras_osgd.Model if way == "our class" else keras.Model
        model = kind(loaded.inputs, L.Dense(3)(features))
        if way == "accelerate":
            model.compile(keras.optimizers.SGD(0.1), small.crossentropy())
            keras_osgd.accelerate(model, RAIS(seed=0))
        else:
            compiled(model)
        assert not keras_osgd.check(model, X, Y, batch_size=6, print_fn=None)
        before = model.get_weights()
        fit(model)
        after = model.get_weights()
        changed = [(a != b).any() for a, b in zip(before, after, strict=True)]
        assert changed == [False] * (len(before) - 2) + [True, True]


def test_a_file_of_ours_trains_on_other_data_with_fresh_scores(tmp_path, capsys):
    frozen = base()
    frozen.trainable = False
    model = headed(frozen)
    fit(model, epochs=1)
    model.save(tmp_path / "ours.keras")
    loaded = keras.models.load_model(tmp_path / "ours.keras")
    np.testing.assert_array_equal(
        loaded.sampling_state.table.last_norms(),
        model.sampling_state.table.last_norms(),
    )
    capsys.readouterr()
    fit(loaded, X[:40], Y[:40], verbose=2)
    text = capsys.readouterr().out
    assert "(60 examples then, 40 now, or other rows): they start afresh." in text
    assert len(loaded.sampling_state.table.last_norms()) == 40
    assert len(loaded.trainable_weights) == 2

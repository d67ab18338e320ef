"""The experiments' networks: seeded, trainable both ways, augmented inside."""

import types

import keras
import numpy as np
import pytest

import keras_osgd
from examples.common import models
from examples.experiments import networks
from examples.experiments.augmentation import (
    ShiftAndFlip,
    shifted_and_flipped,
)
from tests.helpers.small import warned

pytestmark = pytest.mark.examples

KINDS = {
    "mlp": "image",
    "cnn": "image",
    "resnet": "image",
    "resnet_bn": "image",
    "transformer": "image",
    "table": "table",
    "text": "text",
    "text_transformer": "text",
    "word": "word",
    "decoder": "sequence",
    "regression": "regression",
}
BLOCKS = 2 * (4 * (32 * 32 + 32) + 2 * 64 + (32 * 64 + 64) + (64 * 32 + 32))
# By hand, for the data below: weights of all layers, 5 classes.
PARAMETERS = {
    "mlp": 784 * 256 + 256 + 256 * 5 + 5,
    "cnn": (25 * 8 + 8) + (72 * 16 + 16) + (784 * 64 + 64) + (64 * 5 + 5),
    "resnet": (72 + 8)
    + (2 * (576 + 8) + (64 + 8))
    + ((1152 + 16) + (2304 + 16) + (128 + 16))
    + ((4608 + 32) + (9216 + 32) + (512 + 32))
    + (32 * 5 + 5),
    "resnet_bn": (72 + 8 + 16)
    + (2 * (576 + 16) + (64 + 8))
    + ((1152 + 32) + (2304 + 32) + (128 + 16))
    + ((4608 + 64) + (9216 + 64) + (512 + 32))
    + (32 * 5 + 5),
    "transformer": (49 * 32 + 16 * 32) + BLOCKS + (64 + 32 * 5 + 5),
    "table": (7 * 128 + 128) + (128 * 128 + 128) + (128 * 5 + 5),
    "text": 50 * 32 + (32 * 64 + 64) + (64 * 5 + 5),
    "text_transformer": (50 * 32 + 32 * 32 + 9 * 32) + BLOCKS + (64 + 32 * 5 + 5),
    "word": 20 * 16 + (48 * 64 + 64) + (64 * 64 + 64) + (64 * 5 + 5),
    "decoder": (5 * 32 + 32 * 32 + 6 * 32) + BLOCKS + (64 + 32 * 5 + 5),
    "regression": (7 * 128 + 128) + (128 * 128 + 128) + (128 + 1),
}


def data(kind: str, **options) -> types.SimpleNamespace:
    rng = np.random.default_rng(0)
    x = {
        "image": lambda: rng.uniform(size=(120, 28, 28, 1)).astype("float32"),
        "table": lambda: rng.normal(size=(120, 7)).astype("float32"),
        "text": lambda: rng.integers(0, 50, (120, 9)).astype("int32"),
        "word": lambda: rng.integers(0, 20, (120, 8)).astype("int32"),
        "sequence": lambda: rng.integers(0, 5, (120, 6)).astype("int32"),
        "regression": lambda: rng.normal(size=(120, 7)).astype("float32"),
    }[kind]()
    y = {
        "sequence": lambda: rng.integers(0, 5, (120, 6)).astype("int32"),
        "regression": lambda: rng.normal(size=(120, 1)).astype("float32"),
    }.get(kind, lambda: rng.integers(0, 5, 120).astype("int32"))()
    made = types.SimpleNamespace(
        kind=kind,
        train=(x, y),
        classes=1 if kind == "regression" else 5,
        shift=0,
        flip=False,
        vocabulary={"text": 50, "word": 20, "sequence": 5}.get(kind),
    )
    vars(made).update(options)
    return made


def compiled(name: str, given, **options) -> keras.Model:
    model = networks.build(name, keras_osgd.Sequential, given, seed=0)
    is_regression = given.kind == "regression"
    loss = keras.losses.MeanSquaredError() if is_regression else models.loss()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, **options)
    return model


def weights(name: str, base, seed: int) -> list[np.ndarray]:
    built = networks.build(name, base, data(KINDS[name], shift=2), seed)
    return built.get_weights()


def test_every_network_is_tested():
    assert set(networks.NAMES) == set(KINDS)


@pytest.mark.parametrize("name", networks.NAMES)
def test_the_seed_alone_decides_the_weights_whatever_the_base(name):
    keras.utils.set_random_seed(1)
    expected = weights(name, keras.Sequential, 3)
    keras.utils.set_random_seed(2)
    for base in (keras.Model, keras_osgd.Sequential, keras_osgd.Model):
        for one, other in zip(expected, weights(name, base, 3), strict=True):
            np.testing.assert_array_equal(one, other)
    others = weights(name, keras.Sequential, 4)
    random = [i for i, w in enumerate(expected) if w.ndim > 1 and w.any()]
    random = [i for i in random if expected[i].shape[0] > 1]  # not the mean image
    assert len(random) >= 3 - (name == "mlp")
    assert all((expected[i] != others[i]).any() for i in random)


@pytest.mark.parametrize("name", networks.NAMES)
def test_no_two_kernels_of_a_network_start_equal(name):
    kernels = [w.ravel() for w in weights(name, keras.Sequential, 0) if w.any()]
    drawn = [w for w in kernels if len(np.unique(w)) > 10]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert not np.isin(one[:5], other).any()


@pytest.mark.parametrize("name", networks.NAMES)
def test_outputs_are_logits_and_parameters_as_many_as_counted_by_hand(name):
    given = data(KINDS[name])
    model = networks.build(name, keras.Sequential, given, seed=0)
    logits = model.predict(given.train[0][:6], verbose=0)
    outputs = {"decoder": (6, 6, 5), "regression": (6, 1)}.get(name, (6, 5))
    assert logits.shape == outputs and not np.allclose(logits.sum(1), 1)
    count = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert count == PARAMETERS[name]


@pytest.mark.parametrize("name", networks.NAMES)
def test_every_network_trains_by_importance_with_no_warning_but_of_normalisation(name):
    given = data(KINDS[name], shift=1, flip=True)
    model = compiled(name, given)
    before = [w.numpy().copy() for w in model.trainable_weights]

    def fit():
        model.fit(*given.train, batch_size=8, epochs=5, verbose=0)

    found = warned(fit)
    assert len(found) == (name == "resnet_bn"), found
    assert all("recalibrate_batch_normalization" in line for line in found)
    gain = float(model.sampling_run.gain.current(8.0))
    assert np.isfinite(gain) and gain > 0
    assert (model.sampling_run.probabilities() > 0).all()
    for old, weight in zip(before, model.trainable_weights, strict=True):
        assert (old != weight.numpy()).any(), weight.path


@pytest.mark.parametrize(
    "name", ["mlp", "resnet", "transformer", "text", "text_transformer"]
)
def test_norms_are_known_to_all_layers_also_while_images_are_augmented(name):
    given = data(KINDS[name], shift=1, flip=True)
    model = compiled(name, given, sampling=keras_osgd.sampling.RAIS(norm="exact"))
    model.fit(*given.train, batch_size=8, epochs=1, verbose=0)
    assert model.sampling_run.step_state.scorer.worked_out == []


def test_the_networks_of_the_benchmarks_are_the_same_here():
    given = data("image")
    given.classes = 10
    for name, builder in models.BUILDERS.items():
        here = networks.build(name, keras.Sequential, given, seed=2).get_weights()
        there = builder(keras.Sequential, given.train[0], 2000).get_weights()
        for one, other in zip(here, there, strict=True):
            np.testing.assert_array_equal(one, other)


def test_padding_leaves_the_mean_of_a_text_as_it_is_and_empty_texts_are_finite():
    model = networks.build("text", keras.Sequential, data("text"), seed=0)
    texts = np.array([[3, 4, 5, 0, 0, 0, 0, 0, 0], [3, 4, 5] * 3, [0] * 9])
    logits = model.predict(texts, verbose=0)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-6)
    assert np.isfinite(logits).all()
    assert getattr(model(texts), "_keras_mask", None) is None


def test_images_are_moved_and_mirrored_as_a_loop_over_pixels_does():
    rng = np.random.default_rng(0)
    images = rng.uniform(1, 2, (40, 6, 5, 2)).astype("float32")
    layer = ShiftAndFlip(2, True, seed=5)
    down, right, mirrored = (np.array(d) for d in layer.draws(40))
    expected = np.zeros_like(images)
    for i, r, c in np.ndindex(40, 6, 5):
        source = r - down[i], (4 - c if mirrored[i] else c) - right[i]
        if 0 <= source[0] < 6 and 0 <= source[1] < 5:
            expected[i, r, c] = images[(i, *source)]
    found = np.array(shifted_and_flipped(images, down, right, mirrored, 2))
    np.testing.assert_array_equal(found, expected)
    again = ShiftAndFlip(2, True, seed=5)
    np.testing.assert_array_equal(again(images, training=True), expected)
    np.testing.assert_array_equal(again(images, training=False), images)
    assert (np.array(again(images, training=True)) != expected).any()


def test_shifts_and_flips_are_all_equally_likely_and_flips_can_be_left_out():
    down, right, mirrored = (np.array(d) for d in ShiftAndFlip(1, True, 0).draws(18000))
    cells = np.bincount(6 * (down + 1) + 2 * (right + 1) + mirrored, minlength=18)
    assert len(cells) == 18
    np.testing.assert_allclose(cells, 1000, atol=5 * np.sqrt(1000))
    assert not np.array(ShiftAndFlip(1, False, 0).draws(1000)[2]).any()


def test_a_decoder_knows_of_no_byte_after_its_position():
    given = data("sequence")
    model = networks.build("decoder", keras.Model, given, seed=0)
    x = given.train[0][:4].copy()
    before = model.predict(x, verbose=0)
    x[:, 3:] = 4 - x[:, 3:]
    after = model.predict(x, verbose=0)
    np.testing.assert_allclose(before[:, :3], after[:, :3], rtol=1e-5, atol=1e-6)
    assert np.abs(before[:, 3:] - after[:, 3:]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [("lenet", "image", "must be one of mlp"), ("text", "table", "there are: table")],
)
def test_a_network_that_does_not_exist_or_fit_is_refused(name, kind, message):
    with pytest.raises(ValueError, match=message):
        networks.build(name, keras.Sequential, data(kind), seed=0)

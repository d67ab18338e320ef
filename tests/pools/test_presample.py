"""Sampling within pools of a stream: unbiased, measured, on while it pays."""

import itertools
import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.base.refusals import Refusals
from keras_osgd.fit import check
from keras_osgd.fit.arguments import FitArguments
from keras_osgd.pools import pool as pools
from keras_osgd.pools.pool_gain import (
    PoolGain,
    pool_moments,
    pool_probability,
    pool_ratio,
)
from keras_osgd.pools.stream_run import StreamRun
from keras_osgd.sampling import Presample, get
from keras_osgd.step import sampled_step
from tests.helpers import small

M = 4
NEVER = Presample(cost=1e9, seed=0)
EAGER = Presample(cost=1.0, seed=0)  # on as soon as it gains anything

# Most rows are easy: all zeros, of the same class. So the gain is large.
_rng = np.random.default_rng(0)
X = _rng.normal(size=(62, 4)).astype("float32") * (_rng.uniform(size=(62, 1)) < 0.2)
Y = np.where(X.any(axis=1), _rng.integers(0, 3, 62), 0)
ENDLESS = tf.data.Dataset.from_tensor_slices((X, Y)).repeat().batch(M)


def model(sampling=EAGER, **options):
    return small.model(
        **{"optimizer": keras.optimizers.SGD(0.3), **options}, sampling=sampling
    )


class Primed(keras.callbacks.Callback):
    """Lets a run believe in a gain of 1.66, so that it draws from its first step on."""

    def on_train_begin(self, logs=None):
        self.model.sampling_run.gain.averages.assign([4.0, 1.0, 0.5])
        self.model.sampling_run.gain.observed.assign(50)


def learned(sampling=EAGER, **options):
    """Returns a model that draws from pools."""
    made = model(sampling, **options)
    made.fit(ENDLESS, steps_per_epoch=30, verbose=0, callbacks=[Primed()])
    assert made.sampling_run.pooling
    return made


@pytest.fixture(scope="module")
def once_learned():
    """What `learned` returns, and its weights: tests go on training it as they like."""
    made = learned()
    return made, small.flat(made)


@pytest.fixture
def pooling(once_learned):
    return once_learned[0]


def stream_run(trained, data, sampling=EAGER, adapt=False):
    """Returns a run, not started, as `fit` makes it."""
    refusals = Refusals()
    x, y, sample_weight = data
    arguments = FitArguments(
        x,
        y,
        batch_size=len(x),
        sample_weight=sample_weight,
        steps_per_epoch=1,
        shuffle=False,
    )
    described = check.examine_stream(refusals, trained, sampling, arguments).losses
    refusals.end()
    state = trained.sampling_state
    state.start_clock()
    return StreamRun(trained, sampling, state, described, (), adapt, seed=0)


# The estimator


@pytest.mark.parametrize(
    ("floor", "weighted"), [(0.0, True), (0.05, False), (0.05, True), (1.0, False)]
)
def test_steps_drawn_from_a_pool_have_its_gradient_for_mean(floor, weighted):
    """Every outcome of the offset, by steps of training from scores to weights."""
    rng, size, drawn = np.random.default_rng(1), 6, 2
    x, y = rng.normal(size=(size, 4)).astype("float32"), np.arange(size) % 3
    own = rng.uniform(0.2, 3, size).astype("float32") if weighted else None
    trained = model(optimizer=keras.optimizers.SGD(1.0))
    run = stream_run(trained, (x, y, own))
    trained.optimizer.build(trained.trainable_variables)
    scores = pools.pool_scores(trained, run.step_state.losses, (x, y, own))
    p = np.array(pool_probability(scores, floor), np.float64)
    assert floor == 1 or p.max() > 2 * p.min()
    step = tf.function(
        sampled_step.make_core(trained, run.step_state, False), autograph=False
    )
    ends = np.unique(np.concatenate([[0, 1], drawn * np.cumsum(p / p.sum()) % 1]))
    before, mean = trained.get_weights(), 0.0
    for left, right in itertools.pairwise(ends):
        offset = tf.constant((left + right) / 2, tf.float64)
        pool = tuple(None if a is None else tf.constant(a) for a in (x, y, own))
        found = pools.drawn_at(pool, scores, floor, tf.constant(drawn), offset)
        trained.set_weights(before)
        step(found.batch)
        change = np.concatenate([w.ravel() for w in before]) - small.flat(trained)
        mean = mean + (right - left) * change.astype(np.float64)
    kernel, bias = before
    exponent = np.exp(x @ kernel + bias)
    delta = exponent / exponent.sum(axis=1, keepdims=True) - np.eye(3)[y]
    delta *= (1 if own is None else own[:, None]) / size
    full = np.concatenate([(x.T @ delta).ravel(), delta.sum(axis=0)])
    np.testing.assert_allclose(mean, full, rtol=0, atol=2e-6)


def test_scores_are_gradient_norms_with_dropout_off_and_change_nothing():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(5, "relu")]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    trained = keras_osgd.Sequential([*layers, keras.layers.Dense(3, "softmax")])
    trained.compile("sgd", "sparse_categorical_crossentropy", sampling=EAGER)
    own = np.linspace(0, 2, 8).astype("float32")
    run = stream_run(trained, (X[:8], Y[:8], own))
    before = [v.numpy() for v in trained.variables]
    scores = pools.pool_scores(trained, run.step_state.losses, (X[:8], Y[:8], own))
    last, expected = trained.layers[-1], []
    for x, y, weight in zip(X[:8], Y[:8], own, strict=True):
        with tf.GradientTape() as tape:
            y_pred = trained(x[None], training=False)
            loss = weight * keras.losses.sparse_categorical_crossentropy(y, y_pred[0])
        parts = tape.gradient(loss, last.trainable_weights)
        expected.append(math.sqrt(sum(float(tf.reduce_sum(g**2)) for g in parts)))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    for variable, value in zip(trained.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_scores_of_several_outputs_are_of_all_their_last_layers():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(units)(inputs) for units in (3, 1)]
    trained = keras_osgd.Model(inputs, outputs)
    losses = [small.crossentropy(), keras.losses.MeanSquaredError("sum")]
    trained.compile("sgd", losses, loss_weights=[1.0, 0.5], sampling=EAGER)
    y = (Y[:8], np.linspace(0, 1, 8).astype("float32"))
    run, expected = stream_run(trained, (X[:8], y, None)), []
    scores = pools.pool_scores(trained, run.step_state.losses, (X[:8], y, None))
    for row in range(8):
        x, (label, value) = X[row : row + 1], (part[row : row + 1] for part in y)
        with tf.GradientTape() as tape:
            logits, number = trained(x)
            loss = losses[0](label, logits) + 0.5 * losses[1](value[:, None], number)
        parts = tape.gradient(loss, trained.trainable_weights)
        expected.append(math.sqrt(sum(float(tf.reduce_sum(g**2)) for g in parts)))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_a_pool_s_p_is_proportional_to_the_scores_with_a_floor():
    tiny, large = np.float32(2e-38), np.float32(3e38)
    cases = {
        (1.0, 3.0): (0.25 * 0.9 + 0.05, 0.75 * 0.9 + 0.05),
        (0.0, 0.0): (0.5, 0.5),
        (np.nan, np.inf): (0.5, 0.5),
        (1.0, 3.0, np.inf): (0.25 * 0.9 + 0.05, 0.75 * 0.9 + 0.05, 0.0),
        (large, large): (0.5, 0.5),
        (tiny, 3 * tiny): (0.275, 0.725),
    }
    for scores, expected in cases.items():
        p = pool_probability(tf.constant(scores, tf.float32), 0.1)
        np.testing.assert_allclose(p, expected, rtol=1e-5, err_msg=str(scores))


def test_what_is_drawn_is_each_example_s_share_rounded_down_or_up():
    scores, five = tf.constant([0.0, 0.55, 0.05, 0.4, 0.0]), tf.range(5)
    p = pool_probability(scores, 0.0)
    for offset in np.linspace(0, np.nextafter(1, 0), 41):
        size = tf.constant(4)
        drawn = pools.drawn_at((five, five, None), scores, 0.0, size, offset)
        count = np.bincount(drawn.batch[0], minlength=5)
        assert (np.floor(4 * p - 1e-6) <= count).all()
        assert (count <= np.ceil(4 * p + 1e-6)).all() and count[[0, 4]].sum() == 0


# The gain


def test_r_is_the_ratio_of_the_second_moments_over_all_pools_and_draws():
    """A stream of two kinds of examples, all pools of four, all pairs drawn of them."""
    gradients, m, ratio, floor = np.array([[1.0, 0.5], [-3.0, 1.0]]), 2, 2.0, 0.1
    norms = np.linalg.norm(gradients, axis=1)
    pooled = uniform = 0.0
    averages, off = np.zeros(3), np.zeros(3)
    for pool in itertools.product(range(2), repeat=4):
        kinds = list(pool)
        p = np.array(pool_probability(tf.constant(norms[kinds]), floor))
        for draw in map(list, itertools.product(range(4), repeat=m)):
            chance, weights = p[draw].prod() / 16, 1 / (4 * p[draw])
            g = (weights[:, None] * gradients[kinds][draw]).mean(axis=0)
            pooled += chance * g @ g
            squares = norms[kinds][draw] ** 2
            given = map(tf.constant, (weights, squares, g @ g))
            found = pool_moments(*given, ratio, floor, tf.constant(True))
            averages += chance * np.array(found)
    for draw in map(list, itertools.product(range(2), repeat=m)):
        g = gradients[draw].mean(axis=0)
        uniform += g @ g / 4
        given = map(tf.constant, (np.ones(m), norms[draw] ** 2, g @ g))
        off += np.array(pool_moments(*given, ratio, 0.0, tf.constant(False))) / 4
    r = float(pool_ratio(tf.constant(averages), tf.constant(2.0, tf.float64), 2.0))
    assert r == pytest.approx(uniform / pooled, rel=1e-12)
    assert off[[0, 2]] == pytest.approx(averages[[0, 2]], rel=1e-12)
    # Without a floor, and by batches of 2 for pools of 4.
    expected = norms.mean() ** 2 + norms.var() / 2
    assert off[1] == pytest.approx(expected, rel=1e-12)


def test_no_r_exceeds_the_pool_s_ratio():
    # All of a pool's gradient is one example's: A_P = (v/B)^2, where A_U = v^2/B.
    averages = tf.constant([100.0, 100.0 / 256, 0.0])
    assert float(pool_ratio(averages, 64.0, 4.0)) == pytest.approx(4)
    one = tf.constant([9.0, 4.0, 0.0])  # m = 1: the pool's variance is not seen
    assert float(pool_ratio(one, 1.0, 4.0)) == pytest.approx(9 / 4)


def test_steps_that_do_not_count_are_not_observed():
    gain, ones = PoolGain(4, 0.05), tf.ones(2)
    given = (ones, ones * np.nan, ones, tf.constant(2.0))
    gain.update(gain.moments(*given), tf.constant(False))
    spoilt = gain.moments(ones, ones, ones * np.inf, tf.constant(2.0))
    gain.update(spoilt, tf.constant(True))
    assert int(gain.observed) == 0 and float(gain.current(2.0)) == 1
    gain.update(gain.moments(*given), tf.constant(True))
    assert int(gain.observed) == 1 and np.isfinite(gain.averages).all()


@pytest.mark.parametrize(
    ("cost", "on", "stays"),
    # r = (4/2 + 1/2) / (1/2 + 2/8 + 7/16) = 2.105; with A_P = 3/2 it is 1.739
    [(2.004, True, False), (2.006, False, False), (1.7, True, True)],
)
def test_drawing_begins_above_the_cost_and_ends_below_it(cost, on, stays):
    run = stream_run(model(), (X[:2], Y[:2], None), Presample(ratio=4, cost=cost))
    run.start(10, 2)
    run.gain.averages.assign([4.0, 1.0, 0.5])
    run.gain.observed.assign(49)
    run.decide()
    assert not run.pooling  # too little observed
    run.gain.observed.assign(50)
    run.decide()
    assert run.pooling is on
    run.gain.averages.assign([4.0, 1.5, 0.5])
    run.decide()
    assert run.pooling is stays


def test_the_cost_is_that_of_a_forward_pass_a_third_of_a_step():
    assert Presample(ratio=4).cost_of_a_step == 1 + 4 / 3
    assert Presample(ratio=4, cost=1.5).cost_of_a_step == 1.5


# Off


def test_steps_without_a_pool_are_keras_own():
    finite = tf.data.Dataset.from_tensor_slices((X, Y)).batch(M)  # the last has 2 rows
    classes = {0: 0.5, 1: 2.0, 2: 1.0}
    ours = model(NEVER, metrics=["accuracy"])
    keras_own = model("uniform", metrics=["accuracy"])
    options = {"epochs": 2, "verbose": 0, "class_weight": classes}
    history = [m.fit(finite, **options).history for m in (ours, keras_own)]
    np.testing.assert_allclose(small.flat(ours), small.flat(keras_own), atol=1e-6)
    assert int(ours.optimizer.iterations) == 2 * 16
    np.testing.assert_allclose(history[0]["accuracy"], history[1]["accuracy"])


def test_the_norms_of_a_smaller_batch_are_those_of_its_examples():
    trained = model()
    run = stream_run(trained, (X[:M], Y[:M], None))
    batch = tuple(map(tf.constant, (X[:3], Y[:3])))
    scores = pools.pool_scores(trained, run.step_state.losses, (*batch, None))
    trained.optimizer.build(trained.trainable_variables)
    core = sampled_step.make_core(trained, run.step_state, False)
    _, observed = core(pools.plain((*batch, None)))
    np.testing.assert_allclose(observed[:3], scores, rtol=1e-5)
    assert float(run.gain.averages[0]) == pytest.approx(0.02 * np.mean(scores**2))


def test_batches_that_make_no_gain_are_trained_on_one_by_one():
    """All examples alike: r is 1 or less, and each batch is a step."""
    trained = model(Presample(cost=1.0, seed=0))
    alike = tf.data.Dataset.from_tensors((np.ones([M, 4]), np.zeros(M))).repeat()
    trained.fit(alike, steps_per_epoch=90, verbose=0)
    assert trained.sampling_run.clock.pooled == 0


# Streams


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A stream without an end, from a file of records on the disk."""
    path = str(tmp_path_factory.mktemp("records") / "train.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for x, y in zip(X, Y, strict=True):
            features = {
                "x": tf.train.Feature(float_list=tf.train.FloatList(value=x)),
                "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[y])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    spec = {"x": tf.io.FixedLenFeature([4], tf.float32)}
    spec["y"] = tf.io.FixedLenFeature([], tf.int64)

    def parse(record):
        parsed = tf.io.parse_single_example(record, spec)
        return parsed["x"], parsed["y"]

    def stream():
        read = tf.data.TFRecordDataset(path).map(parse, tf.data.AUTOTUNE)
        return read.shuffle(50, seed=1).repeat().batch(M).prefetch(2)

    return stream


def test_a_stream_from_disk_is_drawn_from_and_two_runs_are_equal(records):
    trained = [model(steps_per_execution=k) for k in (1, 7)]
    monitor = keras_osgd.callbacks.SamplingMonitor()
    logs = [
        m.fit(
            records(), steps_per_epoch=40, epochs=3, verbose=0, callbacks=[monitor]
        ).history
        for m in trained
    ]
    assert logs[0] == logs[1]  # to the bit, whatever `steps_per_execution`
    np.testing.assert_array_equal(*map(small.flat, trained))
    assert logs[0]["share_pooled"][-1] == 1 and logs[0]["gain_ratio"][-1] > 1.2
    assert 1.5 < logs[0]["largest_weight"][-1] <= 20
    assert monitor.probabilities() is None


@pytest.mark.long
@pytest.mark.parametrize("mode", ["run_eagerly", "jit_compile"])
def test_eager_graph_and_compiled_steps_agree(mode, once_learned):
    other = learned(**{mode: True})
    np.testing.assert_allclose(small.flat(other), once_learned[1], atol=1e-5)


def test_an_epoch_is_its_effective_iterations(pooling):
    counts, optimizer = [], pooling.optimizer
    counter = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: counts.append(int(optimizer.iterations))
    )
    monitor = keras_osgd.callbacks.SamplingMonitor()
    callbacks = [Primed(), monitor, counter]
    history = pooling.fit(
        ENDLESS, steps_per_epoch=40, epochs=3, verbose=0, callbacks=callbacks
    )
    gains = history.history["gain_ratio"]
    assert min(gains) > 1.2
    steps = np.diff(counts)
    np.testing.assert_allclose(steps, 40 / np.array(gains[1:]), rtol=0.1)
    effective = np.array(history.history["effective_epochs"])
    assert (effective >= [1, 2, 3]).all() and (effective < np.add([1, 2, 3], 0.1)).all()
    rate = history.history["learning_rate_applied"][-1]
    assert rate == pytest.approx(0.3 * gains[-1], rel=0.05)


def test_without_adaptation_an_epoch_has_its_steps():
    sampling = Presample(cost=1.0, seed=0, adapt_learning_rate=False)
    trained, options = model(sampling), {"verbose": 0, "callbacks": [Primed()]}
    trained.fit(ENDLESS, steps_per_epoch=11, epochs=2, **options)
    assert trained.sampling_run.pooling
    assert int(trained.optimizer.iterations) == 22


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_generator_ends_the_epoch_as_in_keras_and_its_last_pool_is_smaller(pooling):
    sizes = []

    def batches():
        for number in range(10):
            sizes.append(number)
            yield X[number * M :][:M], Y[number * M :][:M]

    before = int(pooling.optimizer.iterations)
    pooling.fit(batches(), steps_per_epoch=1000, verbose=0)
    assert len(sizes) == 10
    assert int(pooling.optimizer.iterations) - before == 3  # of 4, 4 and 2 batches


class Batches(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()
        self.ended, self.asked = 0, []

    def __len__(self):
        return 16  # the last of 2 rows

    def __getitem__(self, number):
        self.asked.append(number)
        return {"x": X[number * M :][:M]}, Y[number * M :][:M]

    def on_epoch_end(self):
        self.ended += 1


def test_a_finite_dataset_starts_over_also_amid_a_pool_and_with_a_last_smaller_batch():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="x")
    trained = keras_osgd.Model({"x": inputs}, keras.layers.Dense(3)(inputs))
    trained.compile("sgd", small.crossentropy(), sampling=EAGER)
    data = Batches()
    trained.fit(data, epochs=3, verbose=0, callbacks=[Primed()])
    run = trained.sampling_run
    assert run.pooling and 48 <= run.clock.effective_iterations() < 56
    read = 4 * run.clock.step // 16  # whole passes
    assert data.ended >= read >= 4
    passes = np.reshape(data.asked[1:][: 16 * read], (-1, 16))  # one was looked at
    for order in passes:
        assert sorted(order) == list(range(16)) and list(order) != sorted(order)


def test_in_float64_pools_are_drawn_and_trained_on_as_in_float32():
    found = []
    for name in ("float32", "float64"):
        with small.precision(name):
            made = model()
            made.set_weights([np.ones([4, 3]), np.zeros(3)])
            options = {"steps_per_epoch": 30, "verbose": 0, "callbacks": [Primed()]}
            made.fit(ENDLESS, **options)
            assert made.sampling_run.pooling
            found.append(small.flat(made))
    assert found[1].dtype == np.float64
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)


def test_arrays_are_streams_too():
    trained = model()
    options = {"sample_weight": np.ones(62), "class_weight": {0: 0.5}}
    options |= {"validation_split": 0.1, "epochs": 2, "verbose": 0, "batch_size": M}
    with pytest.warns(UserWarning, match="no entry for"):
        history = trained.fit(X, Y, **options, callbacks=[Primed()]).history
    assert len(history["val_loss"]) == 2 and trained.sampling_run.steps == 14
    fewer = int(trained.optimizer.iterations)
    assert fewer < 2 * 14 and trained.sampling_run.pooling
    examples = keras_osgd.data.indexed(
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(M), verbose=False
    )
    trained.fit(examples, verbose=0)
    assert int(trained.optimizer.iterations) < fewer + 16


# What is not finite


def spoiled(every: int):
    """Yields batches, one in `every` with a row of NaN."""
    for number in itertools.count():
        x, y = X[:M].copy(), Y[:M]
        x[number % M] = np.nan if number % every == 0 else x[number % M]
        yield x, y


def test_what_is_not_finite_is_never_drawn_from_a_pool_and_skipped_without_one(pooling):
    before = int(pooling.optimizer.iterations)
    pooling.fit(spoiled(4), steps_per_epoch=5, verbose=0)
    assert int(pooling.optimizer.iterations) > before
    assert np.isfinite(small.flat(pooling)).all()
    trained = model(NEVER)
    with pytest.warns(UserWarning, match="3 of 13 steps were skipped"):
        trained.fit(spoiled(5), steps_per_epoch=10, verbose=0)
    assert np.isfinite(small.flat(trained)).all()
    assert int(trained.optimizer.iterations) == 10


@pytest.mark.filterwarnings("ignore:.*steps were skipped")
def test_ten_steps_in_a_row_end_training_with_the_last_good_weights():
    trained = model(NEVER)
    before = small.flat(trained)
    with pytest.raises(
        RuntimeError, match="10 steps in a row.*has the last weights that were"
    ):
        trained.fit(spoiled(1), steps_per_epoch=100, verbose=0)
    np.testing.assert_array_equal(small.flat(trained), before)


# Saving, going on


def test_files_bring_the_method_back_and_the_effective_iterations(pooling, tmp_path):
    trained = pooling
    trained.fit(ENDLESS, steps_per_epoch=30, verbose=0, callbacks=[Primed()])
    lead = float(trained.sampling_state.lead)
    trained.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert lead > 0 and float(loaded.sampling_state.lead) == lead
    assert loaded.sampling.get_config() == EAGER.get_config()
    loaded.fit(ENDLESS, steps_per_epoch=3, verbose=0)
    trained.export(tmp_path / "export", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "export"))
    np.testing.assert_allclose(served.serve(X), trained(X), atol=1e-6)
    assert isinstance(get("presample"), Presample)
    assert get(keras.saving.serialize_keras_object(EAGER)).cost == 1


def test_a_checkpoint_goes_on_at_the_interrupted_epoch(tmp_path):
    class Killed(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.sampling_run.clock.step == 40:
                raise InterruptedError

    def fit(trained, *others):
        callbacks = [keras_osgd.callbacks.Checkpoint(tmp_path), *others]
        options = {"steps_per_epoch": 40, "epochs": 4, "verbose": 0}
        return trained.fit(ENDLESS, callbacks=callbacks, **options)

    first = model()
    with pytest.raises(InterruptedError):
        fit(first, Primed(), Killed())  # with a lead at the first epoch's end
    second = model()
    history = fit(second)
    assert history.epoch == [1, 2, 3]
    lead = float(second.sampling_state.lead)
    iterations = int(second.optimizer.iterations)
    assert lead > 0 and iterations + lead == pytest.approx(160, abs=3)


def test_the_method_can_be_changed_between_fits_and_keras_own_steps_made(pooling):
    trained = pooling
    trained.train_on_batch(X[:M], Y[:M])
    keras_osgd.accelerate(trained, "rais")
    small.fit(trained, X, Y)
    keras_osgd.accelerate(trained, EAGER)
    trained.fit(ENDLESS, steps_per_epoch=5, verbose=0)
    assert not trained.sampling_run.pooling  # begins anew
    function = trained.train_function
    trained.fit(ENDLESS, steps_per_epoch=5, verbose=0)
    assert trained.train_function is function  # nothing is traced anew


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1}, "`ratio` must be a whole number and at least 2. Received"),
        ({"ratio": 2.5}, "`ratio` must be a whole number"),
        ({"floor": 1.5}, r"`floor` must be in \[0, 1\]"),
        ({"cost": 0.5}, "`cost` must be a number and at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Presample(**arguments)


ROWS = tf.data.Dataset.from_tensor_slices((X, Y))
UNEVEN = tf.data.Dataset.from_generator(
    lambda: iter([(X[:2], Y[:2])]),
    output_signature=(tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int64)),
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: ENDLESS, "length of an epoch.*infinite.*`steps_per_epoch`"),
        (lambda: ROWS.batch(M).filter(lambda x, y: True), "length of an epoch"),
        (lambda: spoiled(1), "length of an epoch.*a generator"),
        (lambda: ROWS, "must consist of batches"),
        (lambda: ROWS.take(0).batch(M), "0 examples"),
        (lambda: ROWS.map(lambda x, y: x).batch(M), "Targets must be given"),
        (lambda: UNEVEN.repeat(9).take(3).cache(), "length of an epoch"),
        (lambda: ROWS.map(lambda x, y: (x, 14)).batch(M), "label 14"),
        (lambda: iter([(X, Y)]), "must be arrays.*Presample"),
    ],
)
def test_data_that_cannot_be_sampled_are_refused_before_a_step(data, message):
    trained = model()
    with pytest.raises(ValueError, match=message):
        trained.fit(data(), verbose=0)
    assert not trained.optimizer.built


def test_batches_of_several_lengths_name_padding():
    with pytest.raises(ValueError, match=r"put together.*padded_shapes"):
        model().fit(UNEVEN, steps_per_epoch=2, verbose=0)


def test_all_reasons_are_collected_and_what_check_finds():
    data = ROWS.map(lambda x, y: (x, 14)).batch(M)
    with pytest.raises(ValueError, match="(?s)2 things.*must be of arrays.*label 14"):
        model().fit(data, validation_split=0.1, verbose=0)
    found = keras_osgd.check(model(), data, print_fn=None)
    assert [finding.kind for finding in found] == ["error"]
    assert keras_osgd.check(model(), ENDLESS, print_fn=None) == []


def test_several_replicas_are_refused():
    trained = model()
    alone = tf.distribute.get_strategy().experimental_local_results
    two = types.SimpleNamespace(
        num_replicas_in_sync=2, experimental_local_results=alone
    )
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ValueError, match="takes one replica. Received: 2"),
    ):
        patch.setattr(type(trained), "distribute_strategy", two)
        trained.fit(ENDLESS, steps_per_epoch=2, verbose=0)


def test_y_beside_a_dataset_and_a_split_of_one_are_refused():
    with pytest.raises(ValueError, match="`y` should not be passed"):
        model().fit(ENDLESS, Y, steps_per_epoch=2, verbose=0)
    with pytest.raises(ValueError, match="must be of arrays.*take"):
        model().fit(ENDLESS, steps_per_epoch=2, validation_split=0.1, verbose=0)

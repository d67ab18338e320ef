"""Rows 9 to 11 and 14: what is not finite is skipped, named and set aside."""

import functools
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.callbacks import Checkpoint
from keras_osgd.data.identity import Identity
from keras_osgd.draws.blocks import Blocks
from keras_osgd.draws.pipeline import PlanBuffers
from keras_osgd.draws.watch import Watch
from keras_osgd.sampling import RAIS, Oracle
from keras_osgd.scores.bad_examples import BadExamples, culprits
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable
from keras_osgd.step import skipping
from keras_osgd.step.skipping import Skips
from tests.helpers import small
from tests.helpers.selection import long_but

INF, NAN = np.inf, np.nan
BAD = 17
X = small.X.copy()
X[BAD, 2] = NAN


class _Steps(keras.callbacks.Callback):
    """Keeps all variables before and after each step, its logs, and the plans."""

    def on_train_begin(self, logs=None):
        self.values, self.logs, self.plans = [], [], []

    def _now(self):
        seeds = {id(v) for v in self.model.variables if "seed" in v.path}
        kept = [*self.model.variables, *self.model.optimizer.variables]
        kept += [*self.model.metrics_variables, self.model.sampling_run.gain.averages]
        return [v.numpy() for v in kept if id(v) not in seeds]

    def on_train_batch_begin(self, batch, logs=None):
        self.before = self._now()

    def on_train_batch_end(self, batch, logs=None):
        self.values.append((self.before, self._now()))
        self.logs.append(logs)
        plan = self.model.sampling_run.planner.last_plan
        if not self.plans or self.plans[-1] is not plan:
            self.plans.append(plan)


def _model(optimizer=None, normalized=True, loss=None, **options):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(5, "tanh")]
    layers += [keras.layers.BatchNormalization()] * normalized
    model = keras_osgd.Sequential([*layers, keras.layers.Dense(3)])
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    options = {"sampling": RAIS(seed=0), "metrics": ["accuracy"], **options}
    model.compile(optimizer, loss or small.crossentropy(), **options)
    return model


def _quiet(model, x=X, y=small.Y, **options):
    """Trains; returns the texts of all warnings of skipped steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small.fit(model, x, y, **{"epochs": 9, **options})
    return [str(w.message) for w in caught if "skipped" in str(w.message).lower()]


def _same(a, b):
    return all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))


def _odd_model():
    """Returns a model with moving statistics and kernels of every kind, run eagerly."""
    keras.utils.set_random_seed(0)
    thawed = keras.layers.BatchNormalization(name="thawed")
    base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), thawed])
    base.trainable, thawed.trainable = False, True
    spectral = keras.layers.SpectralNormalization(keras.layers.Dense(5))
    frozen = keras.layers.SpectralNormalization(keras.layers.Dense(5))
    frozen.trainable = False
    layers = [keras.Input((4,)), base, spectral, frozen, keras.layers.Dense(3)]
    model = keras_osgd.Sequential(layers)
    options = {"sampling": RAIS(seed=0), "run_eagerly": True}
    model.compile("sgd", small.crossentropy(), **options)
    return model


WAYS = {
    "graph": {},
    "eager, frozen models and assigned kernels": None,
    "jit": {"jit_compile": True, "metrics": [], "optimizer": "sgd"},
    "exact, scaled": {
        "sampling": RAIS(seed=0, norm="exact"),
        "normalized": False,
        "optimizer": "scaled",
    },
    "oracle": {"sampling": Oracle(2, seed=0), "normalized": False},
}
PLANNED = ("graph", "oracle")  # trained for long enough to be drawn by later plans
EPOCHS = 7  # into the third block, whose plan is awaited and leaves out the row
FEW = {"epochs": 3, "batch_size": 20}  # each row is drawn three times, uniformly


@functools.cache
def _trained(way):
    """Returns a model trained on a row with NaN as well, what it said, its steps."""
    options, steps = dict(WAYS[way] or {}), _Steps()
    if options.get("optimizer") == "scaled":
        inner = keras.optimizers.SGD(0.1, momentum=0.9)
        options["optimizer"] = keras.optimizers.LossScaleOptimizer(inner, 2.0)
    model = _odd_model() if WAYS[way] is None else _model(**options)
    length = {"epochs": EPOCHS} if way in PLANNED else FEW
    told = _quiet(model, callbacks=[steps], **length)
    return model, told, steps


@pytest.mark.parametrize("way", long_but(["graph", "exact, scaled", "oracle"], WAYS))
def test_a_row_with_nan_spoils_three_steps_that_change_nothing_and_is_set_aside(way):
    model, told, steps = _trained(way)
    bad = model.sampling_state.bad_examples
    assert bad.strikes == {BAD: 3}  # though BatchNormalization spoils whole batches
    assert bad.set_aside.tolist() == [BAD]
    unchanged = [k for k, (a, b) in enumerate(steps.values) if _same(a, b)]
    skipped = [int(line.split()[2].strip(":")) for line in told if "Skipped" in line]
    assert skipped == unchanged[:3] and len(skipped) == 3
    assert told[2].endswith(
        "] or its gradient is not finite. 1 of 60 set aside. See "
        "`model.sampling_state.bad_examples`."
    )
    assert all(f"the loss of example(s) [{BAD}] or" in line for line in told[:3])
    assert all(np.isfinite(list(logs.values())).all() for logs in steps.logs)
    assert all(np.isfinite(value).all() for value in steps.values[-1][1])
    clock = model.sampling_run.clock
    assert model.optimizer.iterations.numpy() == clock.step - len(unchanged)
    assert clock.effective_iterations() >= (EPOCHS * 15 if way in PLANNED else 8)


@pytest.mark.parametrize("way", PLANNED)
def test_a_row_set_aside_is_drawn_no_more(way):
    model, _, steps = _trained(way)
    drawn = [BAD in plan.index for plan in steps.plans]
    assert any(drawn) and not drawn[-1]
    p = model.sampling_run.probabilities()
    assert p[BAD] == 0 and p.sum() == pytest.approx(1) and (np.delete(p, BAD) > 0).all()
    assert np.isnan(model.sampling_state.table.last_norms()[BAD])


def test_the_steps_between_move_the_statistics_of_a_layer_thawed_in_a_frozen_model():
    model = _trained("eager, frozen models and assigned kernels")[0]
    assert (model.layers[0].get_layer("thawed").moving_mean.numpy() != 0).all()


def test_an_infinite_target_is_skipped_and_set_aside():
    y = small.X[:, :3].copy()
    y[BAD, 1] = INF
    # The loss's gradient at inf is finite.
    model = _model(loss="mae", metrics=[], normalized=False, run_eagerly=True)
    steps = _Steps()
    _quiet(model, small.X, y, callbacks=[steps], **FEW)
    assert model.sampling_state.bad_examples.strikes == {BAD: 3}
    assert np.isfinite(small.flat(model)).all()
    unchanged = sum(_same(before, after) for before, after in steps.values)
    skipped = model.sampling_run.clock.step - model.optimizer.iterations.numpy()
    assert unchanged == skipped >= 3


class _Length(keras.layers.Layer):
    """Its gradient at 0 is NaN, its value there is not."""

    def call(self, x):
        return keras.ops.sqrt(keras.ops.sum(keras.ops.square(x), -1, keepdims=True))


@pytest.mark.parametrize(
    ("scale", "epochs", "m"), [(None, 5, 4), (2.0, 9, 4), (None, 4, 2), (None, 4, 1)]
)
def test_an_example_of_finite_loss_whose_gradient_is_nan_is_found_and_set_aside(
    scale, epochs, m
):
    keras.utils.set_random_seed(0)
    optimizer = keras.optimizers.SGD(0.1)
    if scale is not None:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, scale)
    layers = [keras.layers.Dense(4, use_bias=False), _Length(), keras.layers.Dense(3)]
    model = keras_osgd.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer, small.crossentropy(), sampling=RAIS(seed=0))
    x = small.X.copy()
    x[BAD] = 0.0
    told = _quiet(model, x, epochs=epochs, batch_size=m)
    assert told and model.sampling_state.bad_examples.set_aside.tolist() == [BAD]
    assert np.isfinite(small.flat(model)).all()
    if scale is not None:  # not halved at every visit for ever
        assert 2.0**-8 <= float(optimizer.dynamic_scale) <= 1.0


def test_what_float16_skips_is_no_fault_of_the_examples():
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 2.0**127)
    model = small.model(optimizer=scaled)
    assert _quiet(model, 1000 * small.X, epochs=1) == []
    assert model.sampling_run.clock.step > scaled.iterations.numpy()
    assert not model.sampling_state.bad_examples


def test_more_than_one_in_a_hundred_ends_training_with_the_last_good_weights():
    x = X.copy()
    x[40] = INF
    model = _model(normalized=False, steps_per_execution=5)
    with pytest.raises(
        RuntimeError, match=r"At most 1 %.*: 2 of 60, .*\[17, 40\]\. Lo"
    ):
        _quiet(model, x)
    assert np.isfinite(small.flat(model)).all()
    assert model.sampling_run.clock.step < 50  # before the second block
    assert not model.sampling_state.in_use


def test_ten_steps_in_a_row_end_training_soon_and_name_the_checkpoint(tmp_path):
    # Inside a block of 25 steps, whose observations are taken in at its end.
    model = _model(normalized=False, sampling=Oracle(25, seed=0))
    small.fit(model, small.X, callbacks=[Checkpoint(tmp_path)])
    before = small.flat(model)
    message = (
        r"in 10 steps in a row before step 16, .*\[0, 1, .* more .*"
        r"The last good checkpoint is .*checkpoint-0000000\d\.npz\.$"
    )
    goes_on = Checkpoint(tmp_path, scores="reset")
    with pytest.raises(RuntimeError, match=message):
        _quiet(model, np.full_like(X, NAN), callbacks=[goes_on])
    goes_on.restore(model)
    np.testing.assert_array_equal(small.flat(model), before)


def test_ten_in_a_row_are_an_error_also_where_fit_ends_with_them():
    model = _model(normalized=False, loss_weights=[INF])
    train = functools.partial(_quiet, model, small.X, epochs=1)
    train(steps_per_epoch=9)
    assert model.sampling_run.clock.step == 9
    message = "in 10 steps in a row before step 15, .* no example is blamed"
    with pytest.raises(RuntimeError, match=message):
        train(steps_per_epoch=15)
    assert model.sampling_run.clock.step == 15
    assert not model.sampling_state.bad_examples
    assert not model.sampling_state.in_use


def test_a_diverged_model_is_told_from_bad_data():
    model = small.model("mse", optimizer=keras.optimizers.SGD(1e30))
    message = "no example is blamed.*most likely diverged. Lower the learning"
    with pytest.raises(RuntimeError, match=message):
        _quiet(model, small.X, small.X[:, :3])
    assert np.isfinite(small.flat(model)).all()
    assert not model.sampling_state.bad_examples


def test_after_ten_in_a_row_no_step_counts_until_the_next_fit():
    skips = Skips()
    given = [False, True] + 10 * [False] + [True, True]
    found = [bool(skips.admit(tf.constant(finite))) for finite in given]
    assert found == [False, True] + 12 * [False]
    assert not skips.too_many(7) and skips.too_many(8)
    skips.restart()
    assert bool(skips.admit(tf.constant(True))) and not skips.too_many(8)


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_one_entry_anywhere_that_is_not_finite_is_found(bad):
    fine, spoiled = tf.ones((2, 3)), tf.constant([[1.0, bad], [0.0, -bad]])
    rows = tf.IndexedSlices(spoiled, tf.constant([3, 3]))
    half = tf.constant([65504.0, 65504.0], tf.float16)  # whose sum overflows
    assert bool(skipping.all_finite(tf.ones([]), [fine, None, half]))
    for loss, gradients in ((1.0, [fine, spoiled]), (1.0, [rows, None]), (bad, [])):
        assert not bool(skipping.all_finite(tf.constant(loss), gradients))


@pytest.mark.parametrize(
    ("norms", "rows", "found", "sure"),
    [
        ([1.0, NAN, 2.0, INF], [1, 1, 1, 1], [5, 8], True),
        ([NAN] * 4, [1, 0, 1, 1], [5], True),  # as with BatchNormalization
        ([1.0] * 4, [1, 1, 0, 1], [4], True),  # as an infinite target's, by mae
        ([NAN] * 4, [0, 0, 0, 0], [4, 5, 8], True),
        ([NAN] * 4, [1, 1, 1, 1], [4, 5, 8], False),
        ([1.0] * 4, [1, 1, 1, 1], [4, 5, 8], False),
        ([NAN, 1.0, NAN, NAN], [1, 1, 1, 1], [4, 5, 8], False),  # most of them
    ],
)
def test_culprits_are_found_by_their_data_then_by_their_norms(norms, rows, found, sure):
    index = np.array([4, 5, 4, 8])
    given = culprits(index, np.array(norms), np.array(rows, bool))
    assert given[0].tolist() == found and given[1] is sure


def _watch(n=200, m=2, **options):
    state = SamplingState()
    state.allocate(ScoreTable(n, None), Identity(), 0, "last_layer")
    return Watch(state, 0.05, m, **options), state.bad_examples


def _look(watch, index, norms, gains, first=0):
    index, norms = np.ravel(index), np.ravel(norms)
    p = np.full(200, 1 / 200)
    drawn = (index, p[index], np.ones((len(index), 1)), True)
    watch.look(first, drawn, norms, np.array(gains), p)
    watch.publish()


def test_suspects_are_acquitted_by_a_step_that_went_well_and_culprits_are_not():
    watch, bad = _watch()
    _look(watch, [[1, 2], [3, 4]], [[NAN, NAN], [NAN, 1.0]], [NAN, NAN])
    assert not bad  # as long as no step goes well, the model may have diverged
    _look(watch, [[8, 9]], [[1.0, 1.0]], [1.0], first=2)
    assert bad.strikes == {1: 1, 2: 1, 3: 1} and bad.affected == [3]
    index, norms = [[1, 3], [2, 5], [8, 9]], [[1.0, 1.0], [NAN, NAN], [1.0, 1.0]]
    _look(watch, index, norms, [1.0, NAN, 1.0], first=3)
    assert bad.strikes == {2: 2, 3: 1, 5: 1}
    assert "the loss of one or more of example(s) [1, 2] or" in watch.warnings[0]
    assert "the loss of example(s) [3] or its" in watch.warnings[1]
    assert watch.error == ""


def test_steps_that_are_no_fault_of_their_examples_are_neither_blamed_nor_acquit():
    watch, bad = _watch()
    index = [[1, 2], [8, 9], [1, 3], [4, 5], [6, 7]]
    norms = [[NAN, NAN], [1.0, 1.0], [NAN, NAN], [NAN, NAN], [1.0, 1.0]]
    _look(watch, index, norms, [NAN, 1.0, INF, INF, 1.0])
    assert bad.strikes == {1: 1, 2: 1}


def test_suspicions_that_no_good_step_confirms_are_dropped_at_the_end():
    watch, bad = _watch()
    _look(watch, [[1, 2], [3, 4]], [[NAN, NAN], [NAN, 1.0]], [NAN, NAN])
    watch.finish(2)
    assert not bad and watch.error == ""
    [told] = watch.warnings
    assert (
        "2 of 2 steps were skipped" in told and "No example is blamed for the" in told
    )


_ADVICE = {True: "Data and weights of.*Lower the learning", False: "Look for NaN"}


@pytest.mark.parametrize("finite", _ADVICE)
def test_the_limit_is_one_in_a_hundred_examples(finite):
    watch, bad = _watch(row_is_finite=lambda rows: finite | (rows == 9))
    last = [9, 9], [1.0, 1.0], 1.0  # a step that goes well
    index, norms = [[1, 9], [2, 9], last[0]], [[NAN, 1.0], [NAN, 1.0], last[1]]
    _look(watch, index, norms, [NAN, NAN, last[2]])
    assert (bad.affected, watch.error) == ([1, 2], "")
    _look(watch, [[3, 9], last[0]], [[NAN, 1.0], last[1]], [NAN, last[2]], first=3)
    assert watch.error.startswith("At most 1 % of the examples may have a loss or")
    named = r"Received: 3 of 200, example\(s\) \[1, 2, 3\]. "
    assert re.search(named + _ADVICE[finite], watch.error)


@pytest.mark.parametrize("may_overflow", [False, True])
def test_norms_that_are_not_finite_in_steps_that_count_are_named_and_counted(
    may_overflow,
):
    watch, bad = _watch(may_overflow=may_overflow)
    _look(watch, [[1, 2], [3, 4]], [[INF, 2.0], [1.0, 1.0]], [1.0, 1.0])
    skipped, counted = [NAN, NAN], [NAN, 1.0]
    _look(watch, [[5, 2], [6, 1]], [skipped, counted], [NAN, 1.0], first=2)
    watch.finish(4)
    told = [text for text in watch.warnings if "norm" in text]
    assert set(bad.strikes) == {2, 5}  # those of the step that was skipped
    assert len(told) == (0 if may_overflow else 2)
    if told:
        assert "of example(s) [1] is not finite, though" in told[0]
        assert "left out, of 2 of 200, example(s) [1, 6]." in told[1]


def test_many_skipped_steps_are_summed_up():
    watch, _ = _watch()
    index, norms = [[7, k] for k in range(8, 38)], [[NAN, 1.0]] * 30
    _look(watch, [*index, [8, 9]], [*norms, [1.0, 1.0]], [*[NAN] * 30, 1.0])
    watch.finish(500)
    assert len(watch.warnings) == 4
    assert watch.warnings[3].startswith("30 of 500 steps were skipped, as their loss")
    assert "1 of 200, example(s) [7], set aside." in watch.warnings[3]
    later = Watch(watch._state, 0.05, 2)
    assert "example(s) [7] of earlier training are set aside" in later.warnings[0]


@pytest.mark.parametrize("draws", ["reshuffled", "independent"])
def test_draws_without_those_set_aside_are_weighted_by_the_number_of_the_rest(draws):
    n, rng = 12, np.random.default_rng(0)
    state, buffers = SamplingState(), PlanBuffers(50, 4)
    state.allocate(ScoreTable(n, None), Identity(), 0, "last_layer")
    for _ in range(3):
        state.bad_examples.strike([3, 8], sure=True)
    blocks = Blocks(RAIS(draws=draws), state, buffers)
    p = rng.uniform(0.5, 2.0, n)
    p /= p.sum()
    for block, importance in enumerate([True, False, True]):
        before = state.owed
        blocks.make(50 * block, p, importance)
        plan, rest = blocks.last_plan, np.delete(np.arange(n), [3, 8])
        assert set(plan.index) == set(rest)
        among = p[rest] / p[rest].sum() if importance else np.full(10, 0.1)
        weights = 1 / (n * plan.probability)
        expected = 1 / (10 * among * plan.credit)
        np.testing.assert_allclose(weights, expected[np.searchsorted(rest, plan.index)])
        assert plan.largest_weight == pytest.approx(expected.max())
        np.testing.assert_allclose(blocks.candidate[rest], p[rest] / p[rest].sum())
        # Each example's own total weight estimates what a block is worth.
        total = np.bincount(plan.index, weights, n)[rest]
        assert total.mean() == pytest.approx(200 / 10, rel=0.1)
    blocks.give_back(100)  # the whole last block
    np.testing.assert_allclose(state.owed[rest], before[rest], atol=1e-9)


def test_strikes_are_saved_with_the_weights_and_older_files_have_none(tmp_path):
    model = small.model()
    state = model.sampling_state
    state.allocate(ScoreTable(60, None), Identity(), 0, "last_layer")
    state.bad_examples.strike([5, 9], sure=False)
    for _ in range(3):
        state.bad_examples.strike([9], sure=True)
    model.save_weights(tmp_path / "w.weights.h5")
    loaded = small.model()
    loaded.load_weights(tmp_path / "w.weights.h5")
    bad = loaded.sampling_state.bad_examples
    assert repr(bad) == "BadExamples(strikes={5: 1, 9: 3}, set_aside=[9])"
    assert (bad.affected, bad.suspected) == ([9], True)
    store = {}
    state.save_own_variables(store)
    older = {k: v for k, v in store.items() if not k.startswith("bad_")}
    loaded.sampling_state.load_own_variables(older)
    assert not bad and not bad.suspected
    state.allocate(state.table, Identity(), 0, "last_layer")
    assert not state.bad_examples and isinstance(state.bad_examples, BadExamples)

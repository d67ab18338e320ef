"""What a resumed training does otherwise than the one before is named, no more."""

import keras
import numpy as np
import pytest

from keras_osgd.callbacks import Checkpoint, checkpoint_files
from keras_osgd.callbacks.method import described, differences, keep_rate, layers_of
from tests.helpers import small
from tests.helpers.checkpoints import going_on

SGD, CROSSENTROPY = keras.optimizers.SGD, keras.losses.SparseCategoricalCrossentropy


def layers(activation="relu", rate=0.1, l2=0.01, dtype=None, again=False):
    """Returns inputs and outputs of a model whose parts are named by the process."""
    inputs = keras.Input((4,))
    regularizer = keras.regularizers.L2(l2)
    first = keras.layers.Dense(4, activation, kernel_regularizer=regularizer)(inputs)
    second = keras.layers.Dropout(rate)(keras.layers.Dense(4, dtype=dtype)(first))
    added = keras.layers.Add()([second, first if again else inputs])
    inner = keras.Sequential([keras.layers.Dense(3, activation)])
    return inputs, inner(added)


def full(optimizer=None, loss=None, architecture=None, **options):
    """Returns the description of a compiled model."""
    model = keras.Model(*layers(**(architecture or {})))
    optimizer = SGD(0.1, momentum=0.9) if optimizer is None else optimizer
    loss = CROSSENTROPY(from_logits=True) if loss is None else loss
    model.compile(optimizer, loss, **options)
    return described(model) | layers_of(model)


def by_hand(y_true, y_pred):
    return keras.ops.mean((y_true - y_pred) ** 2, axis=-1)


class NoConfiguration(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return by_hand(y_true, y_pred)

    def get_config(self):
        raise NotImplementedError


def decay(steps):
    return SGD(keras.optimizers.schedules.ExponentialDecay(0.1, steps, 0.9))


CHANGES = {
    "optimizer momentum 0.9 → 0.99": dict(optimizer=SGD(0.1, momentum=0.99)),
    "optimizer nesterov False → True": dict(
        optimizer=SGD(0.1, momentum=0.9, nesterov=True)
    ),
    "optimizer weight_decay None → 0.01": dict(
        optimizer=SGD(0.1, momentum=0.9, weight_decay=0.01)
    ),
    "optimizer clipnorm None → 1.0": dict(
        optimizer=SGD(0.1, momentum=0.9, clipnorm=1.0)
    ),
    "optimizer SGD → Adam": dict(optimizer=keras.optimizers.Adam(0.1)),
    "optimizer learning_rate 0.1 → ExponentialDecay; optimizer momentum 0.9 → 0.0": (
        dict(optimizer=decay(5))
    ),
    "loss from_logits True → False": dict(loss=CROSSENTROPY()),
    "loss reduction sum_over_batch_size → sum": dict(
        loss=CROSSENTROPY(from_logits=True, reduction="sum")
    ),
    "loss sparse_categorical_crossentropy → mean_squared_error": dict(loss="mse"),
    "loss sparse_categorical_crossentropy → by_hand": dict(loss=by_hand),
    "loss sparse_categorical_crossentropy → NoConfiguration": dict(
        loss=NoConfiguration()
    ),
    "loss_weights None → 0.5": dict(loss_weights=0.5),
    "metrics [None, None] → [['accuracy'], None]": dict(metrics=["accuracy"]),
    "run_eagerly False → True": dict(run_eagerly=True),
    "jit_compile False → True": dict(jit_compile=True),
    "layer dense activation relu → tanh": dict(architecture={"activation": "tanh"}),
    "layer dropout rate 0.1 → 0.2": dict(architecture={"rate": 0.2}),
    "layer dense kernel_regularizer l2 0.01 → 0.1": dict(architecture={"l2": 0.1}),
    "layer dense_1 dtype float32 → mixed_bfloat16": dict(
        architecture={"dtype": "mixed_bfloat16"}
    ),
    "layers are connected in another way": dict(architecture={"again": True}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_named_and_nothing_else(change):
    keras.backend.clear_session()
    before = full()
    assert differences(before, full(), True) == []  # its layers have other names
    keras.backend.clear_session()
    found = differences(before, full(**CHANGES[change]), True)
    if change.startswith("layer dense activation"):  # the inner model's, too
        assert found.pop().endswith(" activation relu → tanh") and len(found) == 1
    assert "; ".join(found) == change


SAME = {
    "a string": ("mse", keras.losses.MeanSquaredError()),
    "a class": (CROSSENTROPY, "sparse_categorical_crossentropy"),
    "a function": (keras.losses.mean_squared_error, "mean_squared_error"),
    "outputs": ({"a": "mse", "b": None}, {"b": None, "a": "mean_squared_error"}),
}


@pytest.mark.parametrize("given", SAME)
def test_one_loss_in_two_ways_is_no_change(given):
    found = []
    for loss in SAME[given]:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", loss)
        found.append(described(model))
    assert differences(*found, True) == []
    assert found[0]["loss"] is not None


def test_a_wrapped_optimizer_is_described_by_both():
    def wrapped(momentum, steps):
        inner = SGD(0.1, momentum=momentum)
        return keras.optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=steps)

    found = differences(full(wrapped(0.9, 10)), full(wrapped(0.5, 20)), True)
    assert found == [
        "optimizer momentum 0.9 → 0.5",
        "loss_scale dynamic_growth_steps 10 → 20",
    ]


def test_large_configurations_are_kept_as_a_hash_and_many_changes_are_counted():
    def described_with(words, units=()):
        lookup = keras.layers.StringLookup(vocabulary=[f"{w}" for w in range(words)])
        more = [keras.layers.Dense(4, activation) for activation in units]
        return layers_of(keras.Sequential([keras.Input((4,)), lookup, *more]))

    before, now = described_with(1000), described_with(1001)
    assert len(str(before)) < 300
    (found,) = differences(before, now, True)
    assert "configuration" in found
    many = [described_with(1, [name] * 9) for name in ("relu", "tanh")]
    assert differences(*many, True)[6:] == ["3 more changes"]
    assert differences(many[0], before, True) == ["11 layers → 2"]


# In `fit`


def other(optimizer, loss=None, sampling="rais", **options):
    model = small.model(loss, optimizer=optimizer, **options)
    model.compile(optimizer, loss or small.crossentropy(), sampling=sampling, **options)
    return model


def saved(directory, sampling="rais", stop_after=20, rate=0.1):
    """Leaves checkpoints of a training that ends amid its second epoch."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) >= stop_after:
                raise InterruptedError

    model = other(SGD(rate, momentum=0.9), sampling=sampling)
    saving = Checkpoint(directory, every=1, keep=50)
    with pytest.raises(InterruptedError):
        small.fit(model, epochs=3, callbacks=[Stop(), saving])
    return checkpoint_files.newest(directory).details


@pytest.mark.parametrize("sampling", ["rais", "uniform"])
def test_another_method_goes_on_from_the_same_step_and_is_said(
    sampling, tmp_path, capsys
):
    details = saved(tmp_path, sampling)
    model = other(SGD(0.1, momentum=0.99), small.crossentropy(), sampling)
    model.loss.reduction = "sum"
    _, said = going_on(tmp_path, None, capsys, model=model, epochs=2)
    told = "optimizer momentum 0.9 → 0.99; loss reduction sum_over_batch_size → sum"
    assert told in said and "not bit-exact" in said and "learning rate" not in said
    if sampling == "rais":
        place = f"at step {details['step']}, not bit-exact: optimizer"
        assert place in said
    else:
        assert "drawn anew; optimizer momentum" in said


def test_the_rate_of_the_checkpoint_goes_on_and_is_changed_by_the_named_callback(
    tmp_path, capsys
):
    saved(tmp_path)
    rates = []
    see = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rates.append(
            float(model.optimizer.learning_rate)
        )
    )
    told = "The learning rate of the checkpoint, 0.1, goes on, not the 0.02"
    for epochs in (3, 4):  # and in the next one, from the checkpoint of this
        model = other(SGD(0.02, momentum=0.9))
        callbacks = [see, Checkpoint(tmp_path)]
        rates.clear()
        _, said = going_on(
            tmp_path, None, capsys, model=model, epochs=epochs, callbacks=callbacks
        )
        assert "bit-exact. " + told in said
        assert rates and set(rates) == {np.float32(0.1)}
    named = said[said.index("`keras.callbacks.Learning") + 1 :].split("`")[0]
    callbacks = [eval(named), see, Checkpoint(tmp_path)]
    rates.clear()
    going_on(tmp_path, None, capsys, model=model, epochs=5, callbacks=callbacks)
    assert rates and set(rates) == {np.float32(0.02)}
    # As it was compiled at first, or as the checkpoint has it: nothing to tell.
    for epochs, rate in ((6, 0.1), (7, 0.02)):
        model = other(SGD(rate, momentum=0.9))
        _, said = going_on(tmp_path, None, capsys, model=model, epochs=epochs)
        assert "bit-exact.\n" in said and "learning rate" not in said


def test_a_new_schedule_goes_on_and_is_said(tmp_path, capsys):
    model = other(decay(50))
    small.fit(model, epochs=1, callbacks=[Checkpoint(tmp_path)])
    model = other(decay(100))
    _, said = going_on(tmp_path, None, capsys, model=model, epochs=2)
    assert "bit-exact: optimizer learning_rate decay_steps 50 → 100. The sched" in said
    at = float(model.optimizer.iterations)
    rate = float(model.optimizer.learning_rate)
    np.testing.assert_allclose(rate, 0.1 * 0.9 ** (at / 100), rtol=1e-6)


def test_metrics_of_other_names_do_not_take_over_an_epochs_means(tmp_path, capsys):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) >= 12:
                raise InterruptedError

    class Zero(keras.metrics.Mean):
        """Is 0, whatever it is given, unless it takes over what another had."""

        def update_state(self, y_true, y_pred, sample_weight=None):
            return super().update_state(0.0)

    def model(metric):
        return other("sgd", metrics=[metric])

    with pytest.raises(InterruptedError):
        callbacks = [Stop(), Checkpoint(tmp_path, every=1)]
        small.fit(model("accuracy"), callbacks=callbacks)
    given = {"model": model(Zero(name="accuracy")), "epochs": 1}
    resumed, said = going_on(tmp_path, None, capsys, **given)
    assert "metrics [['accuracy'], None] → [[{'class': 'Zero'" in said
    assert resumed.history.history["accuracy"] == [0.0]


def test_checkpoints_without_a_description_tell_nothing():
    assert differences(None, full(), True) == []
    before, now = {"rate": 0.1, "loss": None}, full(SGD(0.5, momentum=0.9))
    assert differences(before, now, True) == [
        "loss None → sparse_categorical_crossentropy"
    ]


@pytest.mark.parametrize(
    ("first", "given", "kept"), [(0.1, 0.2, 0.1), (None, 0.2, 0.2), (0.1, None, None)]
)
def test_checkpoints_tell_of_the_first_rate_since_there_was_a_schedule(
    first, given, kept
):
    now = {"rate": given}
    keep_rate(now, {"method": {"rate": first}})
    assert now == {"rate": kept}

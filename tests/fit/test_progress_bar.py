import re

import keras
import numpy as np
import pytest

from keras_osgd.callbacks import SamplingMonitor
from keras_osgd.fit.progress_bar import ProgressBar
from keras_osgd.run_directory import LOGGED_ONLY
from keras_osgd.sampling import RAIS
from tests.helpers import small

SHOWN = re.compile(r"(\w+): ([-+.\de]+)")
FIGURES = {"gain_ratio", "effective_epochs"}


class Seen(keras.callbacks.Callback):
    """Keeps the names in the logs that other callbacks get."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def on_train_batch_end(self, batch, logs=None):
        self.names |= set(logs)

    on_epoch_end = on_train_batch_end


def lines(capsys) -> list[dict[str, float]]:
    """Returns what each line of the bar shows."""
    printed = capsys.readouterr().out.splitlines()
    found = [dict(SHOWN.findall(line)) for line in printed if "step - " in line]
    return [{name: float(value) for name, value in shown.items()} for shown in found]


def test_the_bar_shows_gain_and_effective_epochs_while_an_epoch_runs(capsys):
    model, seen = small.model(metrics=["accuracy"]), Seen()
    validation = {"validation_data": (small.X, small.Y)}
    history = small.fit(model, verbose=1, epochs=2, callbacks=[seen], **validation)
    shown = lines(capsys)
    ends = [line for line in shown if "val_loss" in line]
    assert len(ends) == 2 < len(shown)
    assert all(FIGURES | {"loss", "accuracy"} <= set(line) for line in shown)
    assert list(ends[0])[-4:-2] == ["gain_ratio", "effective_epochs"]
    assert [line["effective_epochs"] for line in ends] == [1.0, 2.0]  # gain is 1 yet
    assert 0 < shown[0]["effective_epochs"] < 1
    trained = {"loss", "accuracy"}
    assert seen.names == trained | {f"val_{name}" for name in trained}
    assert set(history.history) == seen.names


@pytest.mark.parametrize("norm", ["last_layer", "exact"])
def test_one_line_an_epoch_shows_them_too_and_nothing_else_of_the_monitors(
    norm, capsys
):
    model = small.model(sampling=RAIS(seed=0, norm=norm))
    small.fit(model, verbose=2)
    (line,) = lines(capsys)
    assert list(line) == ["loss", "gain_ratio", "effective_epochs"]
    history = small.fit(model, verbose=2, callbacks=[SamplingMonitor()])
    (line,) = lines(capsys)
    assert list(line) == ["loss", "gain_ratio", "effective_epochs"]
    assert "share_unseen" in history.history
    assert set(history.history) - set(line) <= LOGGED_ONLY


def test_the_number_of_steps_shown_is_what_the_epoch_will_come_to():
    left = iter([20, 7])
    bar = ProgressBar(dict, lambda: next(left))
    bar.set_params({"verbose": 1, "epochs": 1, "steps": 60})
    bar.on_epoch_begin(0)
    bar.on_train_batch_end(3, {})
    assert bar.progbar.target == 24
    bar.on_train_batch_end(4, {})  # a moment later: nothing is read anew
    assert bar.progbar.target == 24
    bar._read_at -= 1
    bar.on_train_batch_end(5, {})
    assert bar.progbar.target == 13


def test_a_notice_amid_an_epoch_has_a_line_of_its_own(capsys):
    x = np.zeros_like(small.X)
    labels = np.zeros_like(small.Y)  # all norms are alike: it does not pay
    for verbose in (1, 2):
        model = small.model(sampling=RAIS(seed=0, retreat_below=8.0))
        small.fit(model, x=x, y=labels, epochs=6, verbose=verbose)
        printed = capsys.readouterr().out
        assert "\nGain ratio" in printed and "\n\nGain" not in printed


class Left(keras.callbacks.Callback):
    """Keeps where each step expects its epoch to end, and where it did."""

    def __init__(self):
        super().__init__()
        self.expected, self.ends = [[]], []

    def on_train_batch_end(self, batch, logs=None):
        clock = self.model.sampling_run.clock
        by_gain = -(-float(clock._remaining) // float(clock.gain))
        self.expected[-1].append((clock.step + clock.steps_left(), by_gain))

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(self.model.sampling_run.clock.step)
        self.expected.append([])


def test_an_epochs_end_is_known_near_it_and_expected_by_the_gain_before():
    x, y = np.tile(small.X, (6, 1)), np.tile(small.Y, 6)
    model, left = small.model(), Left()
    small.fit(model, x=x, y=y, epochs=4, callbacks=[left])
    assert model.sampling_held.history["gain_ratio"][-1] > 1.05
    begun = 0
    for expected, end in zip(left.expected, left.ends, strict=False):
        assert end - begun > 60
        for step, (found, by_gain) in enumerate(expected[:-1], begun + 1):
            if end - step <= 20:  # decided, and so found out
                assert found == end
            elif end - step > 60:
                assert found == step + by_gain
        begun = end


def test_a_bar_of_the_users_own_is_the_only_one_and_silence_is_kept(capsys):
    own = keras.callbacks.ProgbarLogger()
    small.fit(small.model(), verbose=2, callbacks=[own])
    assert [list(line) for line in lines(capsys)] == [["loss"]]
    small.fit(small.model(), verbose=0)
    assert capsys.readouterr().out == ""


def test_the_bar_ends_at_the_true_number_of_steps_and_shows_the_gain_applied(capsys):
    model = small.model()
    small.fit(model, verbose=2, epochs=8)
    printed = [x for x in capsys.readouterr().out.splitlines() if "step - " in x]
    counts = [int(line.split("/")[0]) for line in printed]
    steps = model.sampling_held.history["steps"]
    assert counts == [b - a for a, b in zip([0, *steps], steps, strict=False)]
    gains = [float(dict(SHOWN.findall(line))["gain_ratio"]) for line in printed]
    assert gains == [round(g, 4) for g in model.sampling_held.history["gain_ratio"]]
    assert max(gains) > 1


def test_a_second_fit_shows_the_gain_that_it_applies_before_its_first_plan(capsys):
    model, monitor = small.model(), SamplingMonitor()
    small.fit(model, epochs=10)
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: seen.append(float(model.sampling_run.clock.gain))
    )
    callbacks = [monitor, note]
    history = small.fit(model, batch_size=5, verbose=2, callbacks=callbacks).history
    (line,) = lines(capsys)
    assert model.sampling_run.clock.step < 15  # far from a plan by what it observes
    assert line["gain_ratio"] == pytest.approx(seen[0], abs=1e-4) and seen[0] > 1.02
    assert history["gain_ratio"] == seen

import re

import keras
import small

from keras_osgd.callbacks import SamplingMonitor

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


def test_one_line_an_epoch_shows_them_too_and_what_the_monitor_logs(capsys):
    small.fit(small.model(), verbose=2)
    (line,) = lines(capsys)
    assert list(line) == ["loss", "gain_ratio", "effective_epochs"]
    small.fit(small.model(), verbose=2, callbacks=[SamplingMonitor()])
    (line,) = lines(capsys)
    assert {"share_unseen", "learning_rate_applied", *FIGURES} < set(line)


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

"""The tables of the page about runs."""

import keras
import numpy as np

from keras_osgd import report
from keras_osgd.report import tables
from keras_osgd.run_directory import RunRecord, load
from tests.helpers.pages import Page, write_run


def loaded(directory, *args, **settings) -> RunRecord:
    """Returns a run without what the figures of its draws and norms are made of."""
    record = load(write_run(directory, *args, **settings))
    return record._replace(examples={}, arrays={})


def test_what_it_took_is_looked_up_at_the_first_epoch_that_is_good_enough():
    def record(name, seconds, **metrics):
        history = {"epoch": [1, 2, 3], "steps": [10, 20, 30], "seconds": seconds}
        columns = {k: np.array(v, float) for k, v in {**history, **metrics}.items()}
        return RunRecord(name, columns, {}, {}, {})

    one = record("a", [1, 2, 3], val_loss=[3, 2, 1], val_auc=[0.1, 0.9, 0.2])
    two = record("b", [5, 6, 7], val_loss=[2, np.nan, 3], val_auc=[0.3, 0.2, 0.5])
    page = Page(tables.reached({"a": [one], "both": [one, two]}))
    loss, auc = page.tables
    # The least good run's best: 2 of "b" by the loss, 0.5 of "b" by the AUC.
    assert loss == [
        ["until validation loss is 2", "epochs", "steps", "time (s)"],
        ["a", "2.000", "20", "2.000"],
        ["both", "1.500", "15", "3.500"],
    ]
    assert auc[0][0] == "until validation auc is 0.5"
    assert auc[2] == ["both", "2.500", "25", "4.500"]


def test_metrics_are_those_of_validation_or_else_of_training():
    def named(*names):
        return RunRecord("", {name: np.ones(1) for name in names}, {}, {}, {})

    figures = ("epoch", "steps", "gain_ratio", "n_p_50", "share_unseen")
    one = named("accuracy", "loss", "val_accuracy", "val_loss", *figures)
    assert tables.metrics([one]) == ["val_loss", "val_accuracy"]
    assert tables.metrics([one, named("accuracy", "loss")]) == ["loss", "accuracy"]
    assert tables.metrics([named(*figures)]) == []


def test_runs_of_a_history_alone_and_without_common_metrics_have_a_page():
    bare = RunRecord("a<b>", {"epoch": np.ones(1), "x": np.ones(1)}, {}, {}, {})
    other = RunRecord("c", {"epoch": np.ones(2), "y": np.ones(2)}, {}, {}, {})
    page = Page(report.page([bare, other]))
    assert page.images == [] and "a<b>" in page.text and "None." in page.text


def test_runs_that_did_not_end_or_are_of_other_models_are_marked(tmp_path):
    begun = {"status": "training", "updated": "2026-01-02T03:04:05+00:00"}
    records = [
        loaded(tmp_path / "a", 0, "RAIS()", parameters=1234),
        loaded(tmp_path / "b", 1, "uniform", parameters=5678, **begun),
        loaded(tmp_path / "c", 2, "Oracle()", epochs=30),
        loaded(tmp_path / "d", 3, "x", status="ended by OSError: full"),
    ]
    page = Page(report.page(records))
    assert [[line[1], line[5]] for line in page.tables[0][1:]] == [
        ["complete", "4 / 4"],
        ["not ended; last written 2026-01-02 03:04:05 UTC", "4 / 4"],
        ["ended before the planned epochs", "4 / 30"],
        ["ended by OSError: full", "4 / 4"],
    ]
    assert "Not all of these runs ended: b, d may" in page.text
    assert "number of parameters (a 1,234, c" in page.text and "b 5,678)" in page.text
    alone = Page(report.page([records[0], records[2]])).text
    assert "Not all of" not in alone and "number of parameters" not in alone


def settings_of(record) -> list[list[str]]:
    """Returns the settings on the page of a run that has no figures."""
    bare = record._replace(history={"epoch": record.history["epoch"]})
    return Page(report.page([bare])).tables[-1]


def test_settings_write_seeds_as_names_and_sizes_as_counts(tmp_path):
    given = {"parameters": 87322, "optimizer_options": {"learning_rate": 0.05000001}}
    record = loaded(tmp_path / "a", 1806341205, "uniform", **given)
    settings = settings_of(record)
    assert ["seed", "1806341205"] in settings
    assert ["parameters", "87,322"] in settings
    assert ["optimizer options", "learning_rate 0.05"] in settings


def test_a_schedule_is_written_as_a_name_with_its_numbers(tmp_path):
    schedule = keras.optimizers.schedules.CosineDecay(0.25, 1200)
    options = {"learning_rate": keras.saving.serialize_keras_object(schedule)}
    record = loaded(tmp_path / "a", 0, "uniform", optimizer_options=options)
    (line,) = [row for row in settings_of(record) if row[0] == "optimizer options"]
    assert line[1].startswith("learning_rate CosineDecay (initial_learning_rate 0.25, ")
    assert "decay_steps 1,200" in line[1] and "module" not in line[1]


def test_runs_without_importance_come_last_so_that_colours_stay(tmp_path):
    records = [
        loaded(tmp_path / "a", 0, "uniform"),
        loaded(tmp_path / "b", 1, "RAIS()"),
    ]
    assert "Training runs: b, a" in Page(report.page(records)).text

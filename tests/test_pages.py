"""The pages: their links lead somewhere, and their code runs as it stands."""

import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.fit.trainer import ImportanceSampled
from tests.helpers import documents
from tests.helpers.documents import PAGES
from tests.helpers.paths import ROOT

REPORT = "examples/experiments/results/report.md"
MOST_LINES = 230  # of README: a newcomer reads it in a few minutes

_rng = np.random.default_rng(0)
IMAGES = _rng.uniform(size=(192, 28, 28, 1)).astype("float32")
LABELS = _rng.integers(0, 10, 192)


def test_readme_is_short():
    assert len(documents.text("README.md").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in documents.links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = documents.sections(target)
            assert anchor in map(documents.anchor, headings), link


def test_every_figure_of_the_evidence_stands_in_the_report():
    evidence = documents.text("README.md").split("<!-- the evidence begins")[1]
    lines = evidence.split("<!-- the evidence ends -->")[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    rows = [row for row in rows if row[1] != "T"]
    assert 5 <= len(rows) <= 10
    report = documents.text(REPORT).splitlines()
    for _, epochs, error, steps, seconds, points in rows:
        seconds = "-" if seconds == "not timed" else seconds.replace("**", "")
        ratios = f"| RAIS | {epochs} | {steps} | {seconds} |"
        told = [line for line in report if line.startswith(ratios)]
        assert any(line.endswith(f"| {points} |") for line in told), ratios
        begin = rf"\| RAIS \| {epochs} \|.* {error.split(',')[0]} \("
        assert any(re.match(begin, line) for line in report), begin


def _classifier():
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    layers += [keras.layers.BatchNormalization(), keras.layers.Softmax()]
    model = keras_osgd.Sequential(layers)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def _base(shape, **options):  # in the place of a large network
    layers = [keras.Input(shape), keras.layers.Conv2D(2, 3)]
    return keras.Sequential([*layers, keras.layers.BatchNormalization()])


class _Hub(list):  # as a data set of Hugging Face's
    def with_format(self, kind):
        assert kind == "numpy"
        return self

    def __getitem__(self, key):
        if isinstance(key, str):
            return [record[key] for record in self]
        return super().__getitem__(key)


def _sources(folder) -> dict:
    """Returns what the code on records names, and 192 files."""
    paths = [folder / f"{i}.npy" for i in range(len(IMAGES))]
    for path, image in zip(paths, IMAGES, strict=True):
        np.save(path, image)
    hub = _Hub({"image": x, "label": y} for x, y in zip(IMAGES, LABELS, strict=True))
    packed = [x.tobytes() + bytes([y]) for x, y in zip(IMAGES, LABELS, strict=True)]
    sources = types.SimpleNamespace(ArrayRecordDataSource=lambda path: packed)
    return {
        "paths": paths,
        "datasets": types.SimpleNamespace(load_dataset=lambda name: {"train": hub}),
        "grain": types.SimpleNamespace(sources=sources),
        "decode": lambda r: (
            np.frombuffer(r[:-1], "float32").reshape(28, 28, 1),
            np.int64(r[-1]),
        ),
    }


def _names(section: str, folder) -> dict:
    """Returns what the code of a section may name."""
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(64)
    given = {"__name__": "__main__", "keras": keras, "keras_osgd": keras_osgd}
    given |= {"tf": tf, "np": np, "x": IMAGES, "y": LABELS}
    given |= {"dataset": dataset, "stream": dataset.repeat()}
    if section == "Fine-tuning":
        given["x"] = _rng.uniform(size=(192, 32, 32, 3)).astype("float32")
    if section == "Records larger than memory":
        given |= _sources(folder)
    return {**given, "model": _classifier()}


# Sections whose code other tests run, and look at what comes of it.
ELSEWHERE = {
    ("keras_osgd/callbacks/README.md", "Watching and reporting"): "report/test_page.py",
    ("keras_osgd/fit/README.md", "Several devices"): "fit/test_replicas.py",
    (
        "keras_osgd/fit/README.md",
        "Your own `train_step`",
    ): "step/test_own_train_step.py",
    ("keras_osgd/tools/README.md", "Wrong labels"): "tools/test_label_errors.py",
}
CODE = [(p, h) for p in PAGES for h in documents.sections(p) if documents.code(p, h)]


@pytest.mark.long
@pytest.mark.parametrize("page, section", [c for c in CODE if c not in ELSEWHERE])
def test_the_code_of_a_section_runs_as_it_stands(page, section, tmp_path, monkeypatch):
    code = documents.code(page, section)
    fit = ImportanceSampled.fit

    def quiet(model, *args, **kwargs):  # the same calls, in less time
        kwargs |= {"verbose": 0, "epochs": min(2, kwargs.get("epochs", 1))}
        if kwargs.get("steps_per_epoch"):
            kwargs["steps_per_epoch"] = 5
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(ImportanceSampled, "fit", quiet)
    monkeypatch.setattr(keras.applications, "MobileNetV2", _base)
    monkeypatch.chdir(tmp_path)
    names = _names(section, tmp_path)
    exec(code, names)
    trained = names["model"]
    if ".fit(" in code:
        assert trained.sampling_run.clock.step > 0
    assert all(np.isfinite(w).all() for w in trained.get_weights())


def test_code_that_is_run_elsewhere_is_read_there():
    assert len(CODE) >= 15
    assert set(ELSEWHERE) <= set(CODE)
    for (page, section), file in ELSEWHERE.items():
        test = documents.text(f"tests/{file}")
        assert f'"{page}"' in test and f'"{section}"' in test

"""The guides: each runs, and reads as a page."""

import ast
import pathlib
import re
import runpy

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.examples

GUIDES = ROOT / "examples" / "guides"
PAGES = sorted(p for p in GUIDES.glob("*.py") if p.name != "guide_data.py")
NAMES = [page.stem for page in PAGES]

SLOW = ("fine_tuning_keras_hub", "language_model", "several_workers")
RUN = [
    pytest.param(
        page,
        id=page.stem,
        marks=[pytest.mark.slow] if page.stem in SLOW else [],
    )
    for page in PAGES
]

# What a guide must print, even of next to no data.
CLAIMS = {
    "augmented_images": ["in layers, RAIS", "in the dataset, RAIS"],
    "class_weight": ["uniform, rows repeated", "RAIS, class_weight: rare classes are"],
    "fine_tuning_keras_hub": ["\nLoRA: ", "'import tarfile': "],
    "first_run": [
        "0 findings, 0 errors",
        "ms a step",
        "uniform, 2 epochs",
        "as Sequential; same predictions: True",
    ],
    "label_errors": ["mislabelled; of all 5%", "least probable label"],
    "language_model": ["rais, 2 epochs", "least   b'", "def __init__(self, "],
    "million_rows": ["rais, 2 epochs", "Positive: "],
    "own_layer_norms": [
        "With the rule: ",
        "Refused: Exact gradient norms must equal",
    ],
    "rare_classes": ["balanced error", "uniform, 2 epochs", "RAIS, 2 epochs"],
    "reading_plots": ["Wrote report.html"],
    "resuming": [", 2 of them again", "Equal bit for bit: weights True, draws True"],
    "several_workers": [
        "Left alone, the workers return [0, 0]",
        "With a crash they return [-9, 1]",
        "All 2 workers must stay alive",
        "Started again they return [0, 0]",
        "bit-exact",
        "Equal bit for bit: weights of both workers True",
    ],
    "tuning_keras_tuner": ["Best: {", "Test accuracy of the best, trained again: "],
    "tuning_optuna": ["Best: {'rate'"],
}
TAKES = {
    "fine_tuning_keras_hub": ["keras_hub"],
    "label_errors": ["matplotlib"],
    "rare_classes": ["matplotlib"],
    "reading_plots": ["matplotlib"],
    "tuning_keras_tuner": ["keras_tuner", "tensorboard"],
    "tuning_optuna": ["optuna"],
}


def blocks(page: pathlib.Path) -> list[str]:
    """Returns the page's texts, and "" for each run of statements between them."""
    found = []
    for node in ast.parse(page.read_text()).body:
        value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
        text = value.value if isinstance(value, ast.Constant) else ""
        if text or found[-1]:
            found.append(text)
    return found


@pytest.fixture
def pictures(monkeypatch, tmp_path):
    """Lets a guide run here, on next to no data; returns where its files go."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_OSGD_SMOKE", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.syspath_prepend(GUIDES)  # as Python has a script's folder
    return tmp_path


@pytest.mark.filterwarnings("ignore:No rule is known:UserWarning")
@pytest.mark.parametrize("page", RUN)
def test_a_guide_runs_and_makes_the_pictures_it_shows(page, pictures, capsys):
    for name in TAKES.get(page.stem, []):
        pytest.importorskip(name)
    runpy.run_path(str(page), run_name="__main__")
    printed = capsys.readouterr().out
    for claim in CLAIMS[page.stem]:
        assert claim in printed
    for name in re.findall(r"!\[.+\]\((.+)\)", page.read_text()):
        assert (pictures / name).stat().st_size > 5000, name


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_guide_begins_with_a_header_an_introduction_and_its_imports(page):
    header, introduction, setup, code = blocks(page)[:4]
    names = [line.split(": ")[0] for line in header.strip().splitlines()]
    assert names == ["Title", "Description", "Accelerator", "Needs"]
    assert introduction.startswith("\n## Introduction\n\n")
    assert setup == "\n## Setup\n"
    assert code == ""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_guide_has_a_text_before_every_block_of_code_and_few_lines_in_it(page):
    texts = blocks(page)
    assert len([text for text in texts if text]) >= 6
    for text in filter(None, texts):
        assert text.startswith("\n") and text.endswith("\n")
    longest = max(len(re.findall("\n", code)) for code in codes(page))
    assert longest <= 60


def codes(page: pathlib.Path) -> list[str]:
    """Returns the code between the page's texts."""
    return re.split(r'^"""\n.*?^"""$', page.read_text(), flags=re.S | re.M)


def test_readme_lists_every_guide_by_its_title():
    readme = (ROOT / "README.md").read_text()
    for page in PAGES:
        title = re.search("Title: (.+)", page.read_text())[1]
        assert f"[{title}](examples/guides/{page.name})" in readme

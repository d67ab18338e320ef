"""The page about runs, and the command line."""

import json
import re
import runpy
import shutil
import subprocess
import sys

import pytest

from keras_osgd import report
from keras_osgd.__main__ import main
from keras_osgd.run_directory import load
from tests.helpers import documents, small
from tests.helpers.figures import rows
from tests.helpers.pages import Page, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    told = {"alarms": ["The <mean> weight & more"]}
    return [
        write_run(home / "rais-0", 0, "RAIS(seed=0, floor=0.05)", **told),
        write_run(home / "rais-1", 1, "RAIS(seed=1, floor=0.05)"),
        write_run(home / "uniform", 2, "uniform", scale=2.0),
    ]


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    report.write(runs, path)
    return path


def test_the_page_is_well_formed_and_needs_no_other_file(written):
    page = Page(written.read_text("utf-8"))
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    text = re.sub(r"data:[^\"]*", "", written.read_text("utf-8"))
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    assert page.images == [
        "validation loss against its cost",
        "Gain ratio",
        "Share of draws",
        "n p of rais-0, the first of 2",
        "Norms of rais-0, the first of 2",
    ]


def test_the_page_has_the_numbers_of_the_runs(written):
    page = Page(written.read_text("utf-8"))
    assert "Training runs: rais (all), uniform" in page.text
    of_runs, reached, hardest, settings = page.tables
    best = min(row["val_loss"] for row in rows(0) if "val_loss" in row)
    known = ["rais-0", "complete", "RAIS", "1,000", "8", "4 / 4", "4.010", "400"]
    assert of_runs[1] == [*known, "6", "1.400", f"{best:.3f}"]
    assert of_runs[0][-1] == "best validation loss"
    assert of_runs[3][7] == "802"
    assert "rais (all) is rais-0, rais-1" in page.text
    assert "each epoch, means over seeds:" in page.text
    assert page.text.count("rais-0, the first of 2") == 3
    assert [line[0] for line in of_runs[1:]] == ["rais-0", "rais-1", "uniform"]
    assert reached[0][1:] == ["epochs", "steps", "time (s)"]
    assert hardest[1:] == [
        ["7", "1", "25.00", "1,234", "2.500", "20"],
        ["3", "0", "12.50", "617", "–", "10"],
    ]
    assert ["batch size", "8", "8", "8"] in settings
    assert "rais-0: The <mean> weight & more" in page.text  # escaped, and read back


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_all_images_and_loads_nothing(written, tmp_path):
    looks = (
        "<pre id=seen></pre><script>onload = () => seen.textContent = JSON.stringify(["
        "[...document.images].map(x => x.naturalWidth), performance.getEntriesByType("
        "'resource').map(x => x.name).filter(x => !x.startsWith('data:')), "
        "[...document.images].map(x => [x.width, x.getBoundingClientRect().left]), "
        "document.documentElement.scrollWidth])</script></body>"
    )
    path = tmp_path / "page.html"
    path.write_text(written.read_text("utf-8").replace("</body>", looks), "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,800"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)[1]
    widths, loaded, places, across = json.loads(found)
    assert len(widths) == 5 and min(widths) > 400
    assert loaded == [] and across <= 1000
    assert len({tuple(place) for place in places}) == 1  # of one width, below another


def test_the_command_writes_a_page_and_says_what_is_wrong(runs, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["report", str(runs[2]), "--output", str(target)]) == 0
    assert capsys.readouterr().out == f"Wrote {target}\n"
    assert Page(target.read_text("utf-8")).images
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 1
    assert "must have a history.csv" in capsys.readouterr().err
    for output, words in (("no/page.html", "Make the directory"), ("", "a directory")):
        given = ["report", str(runs[0]), "--output", str(tmp_path / output)]
        assert main(given) == 1
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])


def test_the_command_takes_directories_of_runs_once_and_leaves_out_others(
    runs, tmp_path, capsys
):
    stray, target = tmp_path / "notes.txt", tmp_path / "page.html"
    stray.write_text("")
    given = [stray, runs[1].parent, runs[0], tmp_path]
    assert main(["report", *map(str, given), "--output", str(target)]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in told] == [
        f"Left out {stray}",
        f"Left out {tmp_path}",
    ]
    of_runs = Page(target.read_text("utf-8")).tables[0]
    assert [line[0] for line in of_runs[1:]] == ["rais-0", "rais-1", "uniform"]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_check_says_what_is_installed_and_how_to_get_what_is_not(
    monkeypatch, capsys, tmp_path
):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"")
    monkeypatch.setenv("KERAS_OSGD_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(sys, "argv", ["keras_osgd", "check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("keras_osgd", run_name="__main__")
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines}
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["backend"] == "tensorflow"
    assert "pip install 'keras_osgd[tensorboard]'" in told["tensorboard"]
    assert told["data"] == f"Fashion-MNIST in {tmp_path}"
    assert {"keras", "tensorflow", "GPU", "matplotlib"} <= set(told)


@pytest.mark.long
def test_what_the_page_says_of_watching_runs_and_can_be_reported(tmp_path, monkeypatch):
    code = documents.code("keras_osgd/callbacks/README.md", "Watching and reporting")
    monkeypatch.chdir(tmp_path)
    exec(code, {"model": small.model(), "x": small.X, "y": small.Y})
    assert {"loss.png", "most_sampled.csv"} <= {x.name for x in tmp_path.iterdir()}
    page = Page(report.page([load("runs/rais-0")]))
    assert len(page.images) == 5 and len(page.tables) == 3
    assert len(page.tables[1]) == 21

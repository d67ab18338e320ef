"""The newcomer's page says where things are: they are there."""

import ast
import re

from tests.helpers.paths import ROOT
from tests.test_imports import LAYERS

PACKAGE = ROOT / "keras_osgd"
PAGE = (PACKAGE / "README.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def rows(section: str) -> list[list[str]]:
    """Returns the cells of the rows of a section's table, without its head."""
    lines = [line for line in SECTIONS[section].split("\n") if line.startswith("|")]
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:]]


def defined(path) -> set[str]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_the_folders_stand_in_the_order_of_the_layers():
    names = [
        re.findall(r"`([\w_]+)(?:/|\.py)`", cells[0]) for cells in rows("The folders")
    ]
    assert tuple(name for row in names for name in row) == LAYERS


def test_every_file_that_the_page_names_exists():
    named = re.findall(r"`((?:tests/)?[\w/]+\.py|[\w/]+/)`", PAGE)
    for cells in rows("The folders"):
        folder = re.match(r"`(\w+)/`", cells[0])
        if folder:
            files = re.findall(r"`(\w+\.py)`", cells[1] + cells[2])
            assert all((PACKAGE / folder[1] / file).exists() for file in files), cells
            named = [n for n in named if n not in files]
    for name in set(named):
        root = ROOT if name.startswith("tests/") else PACKAGE
        beside = list(PACKAGE.rglob(name))  # named after its folder in the same cell
        assert (root / name).exists() or beside, name


def test_every_function_that_the_page_names_stands_in_its_file():
    pairs = re.findall(r"`([\w/]+\.py)`[:,] `(\w+)`(?:, `(\w+)`)?", PAGE)
    pairs += re.findall(r"`([\w/]+\.py)` \(`(\w+)`(?:[:,] `?(\w+)`)?", PAGE)
    assert len(pairs) >= 12
    for file, *names in pairs:
        assert {n for n in names if n} <= defined(PACKAGE / file), (file, names)


def test_eleven_changes_are_told_where_to_begin():
    assert len(rows("To change X, open Y")) == 11

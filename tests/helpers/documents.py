"""The project's pages: their headings, the text below each, and the code in it."""

import re
from pathlib import Path

from tests.helpers.paths import ROOT

_FOLDERS = ("keras_osgd", "examples", "tests")
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [
        ROOT / "README.md",
        *(p for f in _FOLDERS for p in ROOT.glob(f"{f}/**/*.md")),
    ]
)


def text(page: str | Path) -> str:
    """Returns a page, named by its path from the root."""
    return (ROOT / page).read_text("utf-8")


def sections(page: str | Path) -> dict[str, str]:
    """Returns the text below each heading of a page, up to the next of any level."""
    found, heading, fenced = {"": ""}, "", False
    for line in text(page).splitlines(keepends=True):
        fenced ^= line.lstrip().startswith("```")
        title = None if fenced else re.fullmatch(r"#+ (.+)\n", line)
        if title:
            heading = title[1]
        found[heading] = found.get(heading, "") + ("" if title else line)
    return found


def code(page: str | Path, heading: str) -> str:
    """Returns all Python code of a section, without its indentation."""
    below = sections(page)[heading]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", below, re.M | re.S))


def anchor(heading: str) -> str:
    """Returns the anchor that GitHub gives a heading.

    Example:
        >>> anchor("The method's `fit`: 5,000 images")
        'the-methods-fit-5000-images'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(page: str | Path) -> list[str]:
    """Returns the targets of a page's links and pictures, outside of code."""
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.M | re.S)
    return re.findall(r"\]\(\s*([^)\s]+)\s*\)", re.sub(r"`[^`\n]*`", "", prose))

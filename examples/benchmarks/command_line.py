"""The command line that the benchmarks have in common."""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence


def parser(
    description: str | None,
    parts: Sequence[str],
    smoke: str,
    default: str | None = None,
) -> argparse.ArgumentParser:
    """Returns the options of a benchmark: a part or all, a folder, a smoke run.

    Args:
        description: the script's docstring.
        parts: names of its parts.
        smoke: what `--smoke` does.
        default: the part that is run where none is named; `None`: one must be.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    optional = {"nargs": "?", "default": default} if default else {}
    made.add_argument("part", choices=(*parts, "all"), **optional)
    made.add_argument(
        "--results",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parents[1] / "results",
        help="folder of the measurements and of what is made from them",
    )
    made.add_argument("--smoke", action="store_true", help=smoke)
    return made


def parsed(made: argparse.ArgumentParser, name: str) -> argparse.Namespace:
    """Returns what was given; a smoke run's results go to a folder of their own."""
    options = made.parse_args()
    if options.smoke:
        folder = f"keras_osgd_{name}_smoke"
        options.results = pathlib.Path(tempfile.gettempdir()) / folder
    return options

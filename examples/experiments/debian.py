"""Files of Debian packages, fetched without root and without installing.

`python -m examples.experiments.debian` brings all that the data sets need.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

FETCH = "python -m examples.experiments.debian"
TABLES = "r-cran-mlbench"
PRICES = "r-cran-ggplot2"
WORD_LISTS = (
    "wamerican-insane",
    "wcatalan",
    "wdanish",
    "wdutch",
    "wfrench",
    "witalian",
    "wngerman",
    "wnorwegian",
    "wpolish",
    "wportuguese",
    "wspanish",
    "wswedish",
)
PACKAGES = (TABLES, PRICES, *WORD_LISTS)

_SYSTEM = pathlib.Path("/")


class Missing(RuntimeError):
    """A data set that is not on this machine."""


def cache_folder() -> pathlib.Path:
    """Returns the folder of all that is fetched or prepared; it may not exist yet.

    It is named by the environment variable `KERAS_OSGD_CACHE`.
    """
    folder = os.environ.get("KERAS_OSGD_CACHE") or "~/.cache/keras_osgd"
    return pathlib.Path(folder).expanduser()


def find(package: str, path: str) -> pathlib.Path:
    """Returns where a package's file is: installed, or fetched.

    Args:
        package: name of the Debian package.
        path: of the file when the package is installed, without the leading slash.

    Raises:
        Missing: if it is in neither place.
    """
    tried = [_SYSTEM / path, _folder(package) / path]
    for place in tried:
        if place.exists():
            return place
    places = " nor ".join(str(place) for place in tried)
    raise Missing(
        f"The Debian package {package} must be installed or fetched: there is neither "
        f"{places}. Run `{FETCH}` (no root needed), or `apt-get install {package}`."
    )


def fetch(package: str) -> pathlib.Path:
    """Returns the folder into which a package has been unpacked, now or before.

    Raises:
        Missing: if `apt-get download` or `dpkg-deb` fails or is not there.
    """
    target = _folder(package)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        place = pathlib.Path(folder)
        _run(["apt-get", "download", package], place)
        archive = next(place.glob("*.deb"))
        _run(["dpkg-deb", "-x", str(archive), "files"], place)
        try:
            (place / "files").rename(target)
        except OSError:  # another process was first
            if not target.exists():
                raise
    return target


def available() -> list[str]:
    """Returns the lines of `apt-cache dumpavail`: a paragraph for each package.

    Raises:
        Missing: if apt is not there or its lists are empty.
    """
    text = _run(["apt-cache", "dumpavail"], pathlib.Path("/"))
    if not text.strip():
        raise Missing(
            "The descriptions of packages are read from apt's lists, which must have "
            "been brought once: `apt-cache dumpavail` says nothing. Run "
            "`apt-get update` (as root)."
        )
    return text.split("\n")


def _folder(package: str) -> pathlib.Path:
    return cache_folder() / "debian" / package


def _run(command: list[str], folder: pathlib.Path) -> str:
    if shutil.which(command[0]) is None:
        raise Missing(
            f"The program {command[0]} must be on this machine, and is not. Run on "
            "Debian or a system derived from it."
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        raise Missing(
            f"`{' '.join(command)}` must succeed. Received: "
            f"{done.stderr.decode(errors='replace').strip()}. Check the network, and "
            "run `apt-get update` (as root) if the package is not known."
        )
    return done.stdout.decode("utf-8", errors="replace")


def main() -> None:
    """Fetches every package."""
    for package in PACKAGES:
        print(f"{package}: {fetch(package)}")


if __name__ == "__main__":
    try:
        main()
    except Missing as error:
        sys.exit(str(error))

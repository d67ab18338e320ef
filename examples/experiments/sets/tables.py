"""Two tables of the Debian package r-cran-mlbench, read without R."""

import pathlib
import warnings

import numpy as np

from examples.experiments import debian
from examples.experiments.sets.data import Arrays, Data, cached, split_indices

_FILES = {
    "shuttle": ("Shuttle", "Class"),
    "letter": ("LetterRecognition", "lettr"),
}
NAMES = tuple(_FILES)
# Of 58,000 rows of "shuttle", 79 % are of one class and 10 of the rarest.
UNBALANCED = ("shuttle",)

_FOLDER = "usr/lib/R/site-library/mlbench/data"
_SHARES = (0.2, 0.2)
_SEED = 4


def load(name: str) -> Data:
    """Returns one of `NAMES`, every class in each of its parts.

    Raises:
        Missing: if the table, or the package `rdata` that reads it, is not there.
    """
    arrays = cached(f"{name}-1", lambda: _read(name))
    x, y = arrays["x"], arrays["y"]
    parts = split_indices(y, _SHARES, _SEED)
    x = standardised(x, parts[0])
    splits = ((x[rows], y[rows]) for rows in parts)
    metric = "balanced_error" if name in UNBALANCED else "error"
    return Data(name, "table", *splits, classes=int(y.max()) + 1, metric=metric)


def standardised(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Returns columns of mean 0 and standard deviation 1 over the training rows.

    Args:
        x: `[n, d]`.
        train: indices of the training rows; the others are moved and scaled alike.

    Returns:
        `[n, d]` float32; 0 where a column is constant over the training rows.
    """
    x = x.astype("float64")
    deviation = x[train].std(axis=0)
    scale = np.where(deviation > 0, deviation, np.inf)
    return ((x - x[train].mean(axis=0)) / scale).astype("float32")


def _read(name: str) -> Arrays:
    """Returns "x" `[n, d]` float32, as in the file, and "y" `[n]` int32."""
    stem, label = _FILES[name]
    frame = _frame(debian.find(debian.TABLES, f"{_FOLDER}/{stem}.rda"), stem)
    categories = frame[label].cat
    y = np.asarray(categories.codes, "int32")
    return {"x": frame.drop(columns=label).to_numpy("float32"), "y": y}


def _frame(path: pathlib.Path, name: str):
    """Returns the pandas table of that name in a file of R."""
    with warnings.catch_warnings():
        # The file does not state its encoding; its names are ASCII.
        warnings.filterwarnings("ignore", message="Unknown encoding")
        return reader().read_rda(path)[name]


def reader():
    """Returns the package `rdata`, which reads files of R.

    Raises:
        Missing: if it is not installed.
    """
    try:
        import rdata
    except ImportError as error:
        raise debian.Missing(
            "Reading tables of R takes the Python package rdata, which must be "
            f"installed. Received: {error}. Run `pip install rdata`."
        ) from error
    return rdata

"""Prices of 53,940 diamonds, of the Debian package r-cran-ggplot2, read without R."""

import struct
import warnings
import zlib

import numpy as np

from examples.experiments import debian
from examples.experiments.sets.data import Arrays, Data, cached
from examples.experiments.sets.tables import reader, standardised

NAMES = ("diamonds",)

_FOLDER = "usr/lib/R/site-library/ggplot2/data"
_ORDERED = ("cut", "color", "clarity")
_SHARE = 0.2
_SEED = 8


def load(name: str) -> Data:
    """Returns the table; y is the logarithm of the price, standardised.

    Raises:
        Missing: if the table, or the package `rdata` that reads it, is not there.
    """
    arrays = cached(f"{name}-1", _read)
    x, y = arrays["x"], np.log(arrays["y"])[:, None]
    order = np.random.default_rng(_SEED).permutation(len(y))
    held = round(_SHARE * len(y))
    parts = order[2 * held :], order[:held], order[held : 2 * held]
    x, y = standardised(x, parts[0]), standardised(y, parts[0])
    splits = ((x[rows], y[rows]) for rows in parts)
    return Data(name, "regression", *splits, classes=1, metric="deviation")


def _read() -> Arrays:
    """Returns "x" `[n, 9]` float32, grades as their ranks, and "y" `[n]` float32."""
    frame = _frame("diamonds")
    for column in _ORDERED:
        frame[column] = frame[column].cat.codes
    x = frame.drop(columns="price").to_numpy("float32")
    return {"x": x, "y": frame["price"].to_numpy("float32")}


def _frame(name: str):
    """Returns a table of the package's lazy-load database.

    The index says where in the database a table begins, and how many bytes it has. The
    first four bytes are its size once unpacked, the others zlib's.
    """
    rdata = reader()
    place, content = (
        debian.find(debian.PRICES, f"{_FOLDER}/Rdata.{ending}").read_bytes()
        for ending in ("rdx", "rdb")
    )
    index = rdata.conversion.convert(rdata.parser.parse_data(place, extension=".rds"))
    begin, length = (int(number) for number in index["variables"][name])
    (size,) = struct.unpack(">i", content[begin : begin + 4])
    unpacked = zlib.decompress(content[begin + 4 : begin + length])
    if len(unpacked) != size:
        raise ValueError(
            f"{name} must have {size} bytes in Rdata.rdb. Received: {len(unpacked)}. "
            f"Delete {debian.cache_folder()} and run `{debian.FETCH}`."
        )
    with warnings.catch_warnings():
        # A tibble is read as a plain table, which is what is wanted.
        warnings.filterwarnings("ignore", message="Missing constructor for R class")
        return rdata.conversion.convert(
            rdata.parser.parse_data(unpacked, extension=".rds")
        )

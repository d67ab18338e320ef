"""Fashion-MNIST, found on this machine before it is downloaded, or digits."""

import gzip
import os
import pathlib

import keras
import numpy as np

Split = tuple[np.ndarray, np.ndarray]
Splits = tuple[Split, Split, Split]

_DEBIAN_FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")
_VALIDATION_SIZE = 10_000
_IDX_UNSIGNED_BYTE = 0x08


def load() -> tuple[str, Splits]:
    """Returns the first dataset that can be had, and prints which one it is.

    Fashion-MNIST is looked for as `fashion_mnist` says; scikit-learn's digits are
    the last resort.

    Returns:
        `(name, (train, validation, test))`, each split a pair `(x, y)`: `x`
        `[n, height, width, 1]` float32 in [0, 1], `y` `[n]` int32.

    Raises:
        RuntimeError: if nothing was found; the message names every place tried.
    """
    failures: list[str] = []
    found = _find_fashion_mnist(failures)
    if found is not None:
        place, splits = found
        named = str(pathlib.Path(os.environ.get("KERAS_OSGD_DATA", place)))
        note = "" if named == place else f" (nothing usable in KERAS_OSGD_DATA={named})"
        print(f"Data: Fashion-MNIST from {place}{note}.")
        return "Fashion-MNIST", splits
    try:
        splits = digits()
    except ImportError as error:
        failures.append(f"scikit-learn's digits: {error}")
        raise RuntimeError(_not_found_message(failures)) from error
    print("Data: scikit-learn's digits; Fashion-MNIST was not found:")
    print("".join(f"  - {failure}\n" for failure in failures), end="")
    return "digits", splits


def fashion_mnist() -> Splits:
    """Returns Fashion-MNIST as 50k training, 10k validation and 10k test examples.

    Tried in this order: the folder in the environment variable `KERAS_OSGD_DATA`,
    the Debian package `dataset-fashion-mnist`, Keras' cache, a download by
    `keras.datasets`. Validation is the last 10k of the original training set.

    Returns:
        `(train, validation, test)`, each a pair `(x, y)`: `x` `[n, 28, 28, 1]`
        float32 in [0, 1], `y` `[n]` int32 in 0..9.

    Raises:
        RuntimeError: if it was found nowhere; the message names every place tried.
    """
    failures: list[str] = []
    found = _find_fashion_mnist(failures)
    if found is None:
        raise RuntimeError(_not_found_message(failures))
    return found[1]


def digits() -> Splits:
    """Returns scikit-learn's 1797 8x8 digits: 1197 to train, 300 and 300 to test.

    Returns:
        `(train, validation, test)`, each a pair `(x, y)`: `x` `[n, 8, 8, 1]`
        float32 in [0, 1], `y` `[n]` int32 in 0..9.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = (x[order] / 16).astype("float32").reshape(-1, 8, 8, 1)
    y = y[order].astype("int32")
    return (x[:-600], y[:-600]), (x[-600:-300], y[-600:-300]), (x[-300:], y[-300:])


def _find_fashion_mnist(failures: list[str]) -> tuple[str, Splits] | None:
    """Returns (place, splits), or None with one line a place added to `failures`."""
    folders = []
    if "KERAS_OSGD_DATA" in os.environ:
        folders.append(pathlib.Path(os.environ["KERAS_OSGD_DATA"]))
    else:
        failures.append("KERAS_OSGD_DATA: this environment variable is not set")
    keras_home = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras"))
    folders += [_DEBIAN_FOLDER, keras_home / "datasets" / "fashion-mnist"]
    for folder in folders:
        try:
            return str(folder), _read_folder(folder.expanduser())
        except (OSError, EOFError, ValueError) as error:
            failures.append(f"{folder}: {error}")
    try:
        train, test = keras.datasets.fashion_mnist.load_data()
    # Keras wraps every failure of a download in a bare Exception.
    except Exception as error:
        failures.append(f"download by keras.datasets: {error}")
        return None
    return "a download by keras.datasets", _split(train, test)


def _read_folder(folder: pathlib.Path) -> Splits:
    train, test = (
        (
            _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz"),
            _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"),
        )
        for prefix in ("train", "t10k")
    )
    return _split(train, test)


def _read_idx(path: pathlib.Path) -> np.ndarray:
    """Returns the unsigned bytes of a gzipped IDX file in the shape it states.

    An IDX file starts with 0, 0, the type of its entries and the number of its
    dimensions, a byte each; the dimensions follow as big-endian 32-bit integers.
    """
    with gzip.open(path, "rb") as file:
        content = file.read()
    if len(content) < 4 or content[:3] != bytes((0, 0, _IDX_UNSIGNED_BYTE)):
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">u4").astype(int)
    if len(content) - start != shape.prod():
        raise ValueError(
            f"{path.name} should hold {shape.prod()} entries but holds "
            f"{len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _split(train: Split, test: Split) -> Splits:
    (x, y), (x_test, y_test) = (
        ((images / np.float32(255))[..., np.newaxis], labels.astype("int32"))
        for images, labels in (train, test)
    )
    cut = len(x) - _VALIDATION_SIZE
    return (x[:cut], y[:cut]), (x[cut:], y[cut:]), (x_test, y_test)


def _not_found_message(failures: list[str]) -> str:
    places = "".join(f"\n  - {failure}" for failure in failures)
    return (
        f"No data to train on. Tried, in this order:{places}\nPut the four "
        "`*-ubyte.gz` files of Fashion-MNIST into a folder and name it in the "
        "environment variable KERAS_OSGD_DATA, or `pip install scikit-learn`."
    )

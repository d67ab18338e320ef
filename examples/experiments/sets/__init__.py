"""The data sets of the experiments, by name."""

from collections.abc import Callable

from examples.experiments.debian import Missing
from examples.experiments.sets import diamonds, images, source, tables, texts, words
from examples.experiments.sets.data import Data, Split, smaller

__all__ = ["NAMES", "Data", "Missing", "Split", "load", "metric"]

_LOADERS: dict[str, Callable[[str], Data]] = {
    **dict.fromkeys(images.NAMES, images.load),
    **dict.fromkeys(tables.NAMES, tables.load),
    **dict.fromkeys(texts.NAMES, texts.load),
    **dict.fromkeys(words.NAMES, words.load),
    **dict.fromkeys(source.NAMES, source.load),
    **dict.fromkeys(diamonds.NAMES, diamonds.load),
}
NAMES: tuple[str, ...] = tuple(_LOADERS)
_METRICS = {
    **dict.fromkeys(tables.UNBALANCED, "balanced_error"),
    **dict.fromkeys(source.NAMES, "bits"),
    **dict.fromkeys(diamonds.NAMES, "deviation"),
}


def load(name: str, smoke: bool = False) -> Data:
    """Returns a data set; the same name gives the same arrays in every process.

    What is slow to prepare is kept in the cache folder (see `debian.cache_folder`).

    Args:
        name: one of `NAMES`.
        smoke: whether to return a small part: 2000 training, 500 validation and 500
            test examples.

    Raises:
        Missing: if it is not on this machine; the message says what brings it.
        ValueError: for an unknown name.
    """
    _check(name)
    data = _LOADERS[name](name)
    return smaller(data) if smoke else data


def metric(name: str) -> str:
    """Returns `Data.metric` of a set, without loading it."""
    _check(name)
    return _METRICS.get(name, "error")


def _check(name: str) -> None:
    if name not in _LOADERS:
        raise ValueError(
            f"A data set must be one of: {', '.join(NAMES)}. Received: {name!r}. "
            "Correct the name."
        )

"""Versions of the package and its libraries."""

from __future__ import annotations

import platform

import keras
import numpy as np
import scipy
import tensorflow as tf

__all__ = ["__version__", "versions"]

__version__ = "0.1.0"  # the only place: pyproject.toml takes it from here


def versions() -> dict[str, str]:
    """Returns the versions of this package, Python and the libraries.

    Example:
        >>> sorted(versions())
        ['keras', 'keras_osgd', 'numpy', 'python', 'scipy', 'tensorflow']
    """
    return {
        "keras_osgd": __version__,
        "keras": keras.__version__,
        "tensorflow": tf.version.VERSION,  # whatever its package is called
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
    }

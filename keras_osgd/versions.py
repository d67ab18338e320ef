"""What is installed."""

from __future__ import annotations

import platform
from importlib import metadata

import keras
import numpy as np
import scipy
import tensorflow as tf

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Returns the versions of Python and of what training depends on.

    Example:
        >>> sorted(versions())
        ['keras', 'keras_osgd', 'numpy', 'python', 'scipy', 'tensorflow']
    """
    try:
        own = metadata.version("keras-osgd")
    except metadata.PackageNotFoundError:
        own = "not installed, from its source"
    return {
        "keras_osgd": own,
        "keras": keras.__version__,
        "tensorflow": tf.version.VERSION,  # whatever its package is called
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
    }

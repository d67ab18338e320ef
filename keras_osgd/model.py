"""Keras models whose `fit` draws the training examples that matter most."""

from __future__ import annotations

from typing import Any

import keras

from keras_osgd.base import keras_compat
from keras_osgd.fit.trainer import ImportanceSampled
from keras_osgd.sampling import get as get_sampling

__all__ = ["Functional", "Model", "Sequential", "accelerate", "release"]

_PACKAGE = "keras_osgd"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Model(ImportanceSampled, keras.Model):
    """`keras.Model` with importance sampling: to subclass, or with inputs and outputs.

    Example:
        >>> inputs = keras.Input((4,))
        >>> model = Model(inputs, keras.layers.Dense(1)(inputs))
        >>> model.compile("sgd", "mse")  # sampling="rais" is the default
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Returns a functional model if called with inputs and outputs."""
        functional = cls is Model and _is_functional(args, kwargs)
        return super().__new__(Functional if functional else cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Builds the model as Keras does."""
        if _is_functional(args, kwargs):
            # Keras would change the bases of `Model` for good; only those of users may.
            _rebase(type(self))
            Functional.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Functional(Model, keras_compat.Functional):
    """Functional model with importance sampling, made by `Model(inputs, outputs)`."""

    __init__ = keras_compat.Functional.__init__


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Sequential(Model, keras.Sequential):
    """`keras.Sequential` with importance sampling.

    Example:
        >>> model = Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse", sampling="rais")
    """

    __init__ = keras.Sequential.__init__


def _is_functional(args: tuple, kwargs: dict) -> bool:
    named = "outputs" in kwargs and (len(args) == 1 or "inputs" in kwargs)
    return len(args) == 2 or named


def _rebase(cls: type) -> None:
    """Replaces `Model` by `Functional` in the bases of a user's class and parents."""
    if cls in (Model, Functional, Sequential) or not issubclass(cls, Model):
        return
    for base in cls.__bases__:
        _rebase(base)
    cls.__bases__ = tuple(Functional if b is Model else b for b in cls.__bases__)


def accelerate(model: keras.Model, sampling: Any = "rais") -> keras.Model:
    """Lets any model, new, compiled or loaded, train with importance sampling.

    The model itself is changed and returned; weights, optimizer and its state stay.
    Files saved from it load without keras_osgd. A second call changes the sampling
    method. Methods of the model's own class run before ours: its `fit` may prepare the
    data, and a `compile` that takes no `sampling` is called before `accelerate`.

    Args:
        model: any Keras model.
        sampling: as in `Model.compile`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> accelerate(model) is model
        True
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`accelerate` takes a Keras model. Received: "
            f"{type(model).__name__}. Pass a `keras.Model`."
        )
    method = get_sampling(sampling)
    if not isinstance(model, ImportanceSampled):
        stop = vars(model).pop("stop_training", False)
        model.__class__ = _accelerated(type(model))
        model.stop_training = stop
        model.train_function = None
    model.sampling_held.configure(method)
    return model


class _Accelerated(ImportanceSampled):
    """What `accelerate` adds to a model's class."""

    get_compile_config = keras.Model.get_compile_config


def _accelerated(cls: type) -> type:
    """Returns a class with our methods between all of `cls` and those of `keras.Model`.

    So a `fit` of `cls` prepares the data before ours sees them, as if its author had
    written `keras_osgd.Model` for `keras.Model`.
    """
    # A base of its own for each: Keras may change the bases of a class for good.
    ours = type("Accelerated", (_Accelerated, keras.Model), {})
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls, ours), names)


def release(model: keras.Model) -> keras.Model:
    """Gives an accelerated model its own class back; weights and optimizer stay.

    Raises:
        ValueError: if `model` was not made by `accelerate`.
    """
    if not isinstance(model, _Accelerated):
        raise ValueError(
            "`release` undoes `accelerate`. Received: a model of class "
            f"{type(model).__name__} that was not accelerated. Use "
            'compile(sampling="uniform") to switch sampling off.'
        )
    stop = model.stop_training
    model.__class__ = type(model).__bases__[0]
    for name in [name for name in vars(model) if name.startswith("_keras_osgd")]:
        del vars(model)[name]
    model.stop_training = stop
    model.train_function = None
    return model

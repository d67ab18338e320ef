"""Keras models whose `fit` draws the training examples that matter most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_osgd.base import keras_compat
from keras_osgd.fit.trainer import ImportanceSampled
from keras_osgd.sampling import get as get_sampling

__all__ = ["Functional", "Model", "Sequential", "accelerate", "release"]

_PACKAGE = "keras_osgd"
_METHOD = "keras_osgd_sampling"


class _Compiled(ImportanceSampled):
    """Base of our own classes, whose files and copies bring the method back."""

    def get_compile_config(self) -> dict[str, Any]:
        """Returns Keras' compile configuration with the sampling method, if chosen.

        It is part of the optimizer's, where plain Keras models overlook it:
        `keras.models.clone_model` makes one of any `Sequential`, and compiles it so.
        """
        config = super().get_compile_config()
        if isinstance(config.get("optimizer"), dict):
            method = self.sampling_held.sampling
            if repr(method) != repr(get_sampling("auto")):
                named = keras.saving.serialize_keras_object(method)
                config["optimizer"][_METHOD] = named
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model as it was when it was saved.

        As in Keras, it warns and does nothing if the class has a `compile` of its own.
        """
        if type(self).compile is not ImportanceSampled.compile:
            super().compile_from_config(config)
            return
        arguments = keras.saving.deserialize_keras_object(config)
        optimizer = config.get("optimizer")
        if isinstance(optimizer, dict) and _METHOD in optimizer:
            # Files of version 0.1.0 have it beside the optimizer, as an argument.
            arguments["sampling"] = optimizer[_METHOD]
        self.compile(**arguments)
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Model(_Compiled, keras.Model):
    """`keras.Model` with importance sampling: to subclass, or with inputs and outputs.

    `keras.models.clone_model` makes Keras' own functional model of a subclass that is
    given inputs and outputs by its constructor: pass the clone to `accelerate`.

    Example:
        >>> inputs = keras.Input((4,))
        >>> model = Model(inputs, keras.layers.Dense(1)(inputs))
        >>> model.compile("sgd", "mse")  # sampling="auto" is the default
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

    `keras.models.clone_model` makes a `keras.Sequential` of it, as of any subclass:
    pass the clone to `accelerate`.

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


def accelerate(model: keras.Model, sampling: Any = "auto") -> keras.Model:
    """Lets any model, new, compiled or loaded, train with importance sampling.

    The model itself is changed and returned; weights, optimizer and its state stay. A
    second call changes the sampling method. Methods of the model's own class run before
    ours: its `fit` may prepare the data, and a `compile` that takes no `sampling` is
    called before `accelerate`.

    Copies and pickles of it are accelerated too. Clones are not, nor are models loaded
    from its files, which load without keras_osgd: `accelerate` them again. The scores
    in such a file come back by `load_weights`.

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
        model.__class__ = _accelerated_class(type(model))
        model.stop_training = stop
        model.train_function = None
    model.sampling_held.configure(method)
    return model


class _Accelerated(ImportanceSampled):
    """What `accelerate` adds to a model's class."""

    @property
    def __class__(self) -> type:
        """The model's own class, by whose name Keras saves and clones it."""
        return type(self).__bases__[0]

    def __dir__(self) -> set[str]:
        """Returns all names: by them Keras finds the state that it saves."""
        return {*super().__dir__(), *dir(type(self))}

    def __reduce__(self) -> tuple:
        """Makes copies and pickles hold the model's own, and what `accelerate` adds."""
        plain = object.__new__(self.__class__)
        vars(plain).update(vars(self))
        for name in _added(plain):
            del vars(plain)[name]
        make, arguments, *rest = plain.__reduce__()
        held = self.sampling_held
        method, state = held.sampling, held.state.known().state_dict()
        return _accelerated, (make, arguments, method, state), *rest


def _accelerated(make: Callable, arguments: tuple, method: Any, state: dict) -> Any:
    model = accelerate(make(*arguments), method)
    if state:
        model.sampling_state.load_state_dict(state)
    return model


def _added(model: keras.Model) -> list[str]:
    """Returns the names of the attributes that the package keeps on a model."""
    return [name for name in vars(model) if name.startswith("_keras_osgd")]


def _accelerated_class(cls: type) -> type:
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
    vars(object)["__class__"].__set__(model, model.__class__)
    for name in _added(model):
        del vars(model)[name]
    model.stop_training = stop
    model.train_function = None
    return model

"""How a model is trained, as JSON: to tell what a resumed training does otherwise."""

from __future__ import annotations

import dis
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_osgd.base import keras_compat
from keras_osgd.gain.learning_rate import inner_optimizer

__all__ = [
    "described",
    "differences",
    "keep_rate",
    "layers_of",
    "line_on_rates",
    "rate_of",
    "rate_setter",
]

_LONGEST = 2000  # characters of a layer's configuration, such as one with a vocabulary
_MOST = 6  # differences that are named
# What a checkpoint restores, what shapes show, and names that a process gives.
_WITHOUT = {"name", "seed", "batch_shape", "layers", "input_layers", "output_layers"}


def described(model: keras.Model) -> dict[str, Any]:
    """Returns what `compile` was given, as far as it decides the training.

    Functions and objects without a configuration are described by their names.

    Args:
        model: compiled.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.5, momentum=0.9), "mse")
        >>> found = described(model)
        >>> found["rate"], found["optimizer"]["momentum"], found["loss"]["class"]
        (0.5, 0.9, 'mean_squared_error')
    """
    given = keras_compat.compile_arguments(model)
    outer, rate = model.optimizer, rate_of(model)
    optimizer = _configuration(inner_optimizer(outer))
    if rate is not None:
        optimizer.pop("learning_rate", None)
    scale = {} if outer is inner_optimizer(outer) else _configuration(outer)
    scale.pop("inner_optimizer", None)
    found = {
        "optimizer": optimizer,
        "rate": rate,
        "loss_scale": scale,
        "loss": _nested(given.get("loss"), _loss),
        "loss_weights": _nested(given.get("loss_weights"), _plain),
        "metrics": [_plain(given.get(k)) for k in ("metrics", "weighted_metrics")],
        "jit_compile": bool(model.jit_compile),
        "run_eagerly": bool(model.run_eagerly),
    }
    return _as_loaded(found)


def rate_of(model: keras.Model) -> float | None:
    """Returns the optimizer's learning rate if it is a variable, else `None`."""
    rate = getattr(inner_optimizer(model.optimizer), "learning_rate", None)
    if not isinstance(rate, keras.Variable):
        return None
    return float(keras.ops.convert_to_numpy(rate))  # also of several replicas


def layers_of(model: keras.Model) -> dict[str, Any]:
    """Returns the configurations of all layers, and a hash of how they are connected.

    Args:
        model: built.
    """
    layers = [
        [layer.name, _short(_configuration(layer))]
        for layer in keras_compat.layers_of(model)
    ]
    return _as_loaded({"layers": layers, "connections": _connections(model)})


def differences(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], metrics: bool
) -> list[str]:
    """Returns in words what differs between two descriptions.

    Args:
        before: from `described`, with or without that of `layers_of`; `None` in early
            checkpoints, which tell nothing.
        now: likewise.
        metrics: whether metrics count.

    Example:
        >>> differences({"loss_weights": 1.0}, {"loss_weights": 0.5}, metrics=True)
        ['loss_weights 1.0 → 0.5']
    """
    before, now = _with_rates(before or {}, now)
    known = [name for name in before if name in now]
    found: list[str] = []
    for name in known:
        if name == "layers":
            found += _of_layers(before[name], now[name])
        elif name == "connections" and before[name] != now[name]:
            found.append("layers are connected in another way")
        elif name not in ("rate", "connections") and (metrics or name != "metrics"):
            found += _differences(before[name], now[name], name)
    if len(found) > _MOST:
        found[_MOST:] = [f"{len(found) - _MOST} more changes"]
    return found


def _with_rates(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Returns two descriptions, with the constant rate where the other has none."""
    both = before, now
    constant = ["optimizer" in m and m.get("rate") is not None for m in both]
    if not all("optimizer" in m for m in both) or constant[0] == constant[1]:
        return both
    found = [
        {**m, "optimizer": {**m["optimizer"], "learning_rate": f"{m['rate']:g}"}}
        if of_constant
        else m
        for m, of_constant in zip(both, constant, strict=True)
    ]
    return found[0], found[1]


def keep_rate(now: dict[str, Any], details: Mapping[str, Any]) -> None:
    """Makes later checkpoints tell of the rate that the first of them began with."""
    first = (details.get("method") or now)["rate"]
    if None not in (first, now["rate"]):  # no schedule, then or now
        now["rate"] = first


def rate_setter(callbacks: Iterable[keras.callbacks.Callback]) -> str:
    """Returns the class of a callback that assigns the learning rate, or ""."""
    return next((type(c).__name__ for c in callbacks if _sets_rate(c)), "")


def _sets_rate(callback: keras.callbacks.Callback) -> bool:
    members = [vars(callback), *map(vars, type(callback).__mro__)]
    for function in (member for of in members for member in list(of.values())):
        code = getattr(function, "__code__", None)
        if code is None or "learning_rate" not in code.co_names:
            continue
        stores = {i.argval for i in dis.get_instructions(code) if "STORE" in i.opname}
        if "assign" in code.co_names or "learning_rate" in stores:
            return True
    return False


def line_on_rates(
    details: Mapping[str, Any], now: Mapping[str, Any], setter: str
) -> str:
    """Returns which learning rate goes on, where the model was given another; else "".

    Args:
        details: of a checkpoint.
        now: from `described`, before the checkpoint is loaded.
        setter: class of a callback that sets the rate, or "".
    """
    before, given = details.get("method") or {}, now["rate"]
    old, new = (m.get("optimizer", {}).get("learning_rate") for m in (before, now))
    if old != new and before and new is not None:
        return " The schedule given to `compile` goes on, at the checkpoint's step."
    if old is not None and given is not None:
        return f" The learning rate given to `compile`, {given:g}, goes on."
    compiled, saved = before.get("rate"), details.get("learning_rate")
    if None in (compiled, saved, given) or given in (compiled, saved):
        return ""
    line = (
        f" The learning rate of the checkpoint, {saved:g}, goes on, not the {given:g} "
        "that the model has"
    )
    if setter:
        return f"{line}, until `{setter}` sets another."
    return (
        f"{line}. To change it from the next epoch on, pass the callback "
        f"`keras.callbacks.LearningRateScheduler(lambda epoch, rate: {given:g})`."
    )


def _of_layers(before: list, now: list) -> Iterator[str]:
    if len(before) != len(now):
        yield f"{len(before)} layers → {len(now)}"
        return
    for (_, old), (name, new) in zip(before, now, strict=True):
        yield from _differences(old, new, f"layer {name}")


def _differences(before: Any, now: Any, path: str) -> Iterator[str]:
    both = isinstance(before, dict) and isinstance(now, dict)
    if both and before.get("class") == now.get("class"):
        for name in sorted({*before, *now}):
            yield from _differences(before.get(name), now.get(name), f"{path} {name}")
    elif before != now:
        old, new = (
            v.get("class", v) if isinstance(v, dict) else v for v in (before, now)
        )
        yield f"{path} {old} → {new}"


def _configuration(thing: Any) -> dict[str, Any]:
    """Returns class and configuration; the class alone where there is no other."""
    try:
        found = _plain(thing.get_config())
    except Exception:  # whatever the user's class raises
        found = {}
    found = found if isinstance(found, dict) else {}
    return {"class": type(thing).__name__, **found}


def _plain(value: Any) -> Any:
    """Returns a value as JSON can keep it, without what does not decide training."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return _plain_of_mapping(value)
    if hasattr(value, "get_config") and not isinstance(value, type):
        return _configuration(value)
    return getattr(value, "__name__", type(value).__name__)


def _plain_of_mapping(value: Mapping) -> Any:
    name, config = value.get("class_name"), value.get("config")
    if name is None:
        return {
            str(key): _plain(part)
            for key, part in value.items()
            if key not in _WITHOUT and not str(key).endswith("initializer")
        }
    if name == "function":
        return config
    if not isinstance(config, Mapping):
        return name
    if name.endswith("DTypePolicy"):
        return config.get("name") or _plain(config)
    return {"class": name, **_plain_of_mapping({"config": None} | dict(config))}


def _short(config: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(config, sort_keys=True)
    if len(text) <= _LONGEST:
        return config
    return {"class": config["class"], "configuration": _hash(text)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _as_loaded(found: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(found))


def _nested(given: Any, described_leaf: Callable[[Any], Any]) -> Any:
    """Returns what `compile` was given for each output, by the outputs' names."""
    if isinstance(given, Mapping):
        return {str(k): _nested(v, described_leaf) for k, v in given.items()}
    if isinstance(given, list | tuple):
        return {str(i): _nested(v, described_leaf) for i, v in enumerate(given)}
    return described_leaf(given)


def _loss(given: Any) -> Any:
    """Returns a loss by its function and all options, however it was given."""
    if isinstance(given, str):
        given = keras.losses.get(given)
    if isinstance(given, type):
        given = given()
    function = getattr(given, "fn", given)
    if given is None or not inspect.isroutine(function):
        return _plain(given)
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    loss = isinstance(given, keras.losses.Loss)
    return {
        "class": function.__name__,
        "reduction": given.reduction if loss else "sum_over_batch_size",
        **_plain({**options, **(keras_compat.loss_options(given) if loss else {})}),
    }


def _connections(model: keras.Model) -> str:
    """Returns a hash of a functional model's graph, whatever its layers are called."""
    try:
        config = model.get_config()
        layers = config["layers"] if "input_layers" in config else []
        places = {layer["name"]: place for place, layer in enumerate(layers)}
        nodes = [list(_tensors(layer["inbound_nodes"])) for layer in layers]
        ends = [config["input_layers"], config["output_layers"]] if layers else []
    except Exception:  # no functional model, or layers without a configuration
        return ""
    named = [keras.tree.flatten(part) for part in (nodes, ends)]
    return _hash(json.dumps([[places.get(n, n) for n in part] for part in named]))


def _tensors(value: Any) -> Iterator[list]:
    """Yields layer, node and output of each tensor in a layer's calls."""
    if isinstance(value, Mapping) and "keras_history" in value:
        yield value["keras_history"]
    elif isinstance(value, Mapping | list | tuple):
        parts = value.values() if isinstance(value, Mapping) else value
        for part in parts:
            yield from _tensors(part)

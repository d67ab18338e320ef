"""Every private name of Keras and TensorFlow that the package cannot do without.

`tests/base/test_keras_compat.py` fails, and says what broke, when one changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from tensorflow.python.eager import context

from keras_osgd.base.replacing import replaced

__all__ = [
    "AVERAGES_SWAPPED",
    "Functional",
    "MetricUpdate",
    "UnderStrategy",
    "batch_size_of",
    "build_under_strategy",
    "call_model",
    "calling",
    "compile_arguments",
    "compiled_losses",
    "compile_metrics",
    "compiled_metrics",
    "compute_loss",
    "copied",
    "draws_at_random",
    "draws_random_numbers",
    "forget_initial_epoch",
    "global_seeds_kept",
    "layers_of",
    "logits",
    "loss_options",
    "loss_weights",
    "mask_of",
    "reading_rate",
    "rows_of",
    "steps_taken",
    "tensor_of",
    "track_loss",
    "unsummed",
    "untracked_loss",
    "without_mask",
]

AVERAGES_SWAPPED = "_ema_weights_in_model"  # attribute of `SwapEMAWeights`
# Operations that give something else at every visit, by the beginnings of their names;
# random layers assign their generators' states.
_RANDOM = (
    "Assign",
    "Multinomial",
    "Random",
    "Rng",
    "StatefulRandom",
    "StatefulStandardNormal",
    "StatefulTruncatedNormal",
    "StatefulUniform",
)


def call_model(model: keras.Model, x: Any, training: bool) -> Any:
    """Returns `model(x)`, with `training` where the model's `call` takes it."""
    if model._call_has_training_arg:
        return model(x, training=training)
    return model(x)


def compute_loss(model: keras.Model, x, y, y_pred, sample_weight) -> tf.Tensor:
    """Returns the training loss, whether or not `compute_loss` takes `training`."""
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
    )


def untracked_loss(model: keras.Model, x, y, y_pred, sample_weight) -> tf.Tensor:
    """Returns `compute_loss`, kept out of the means that Keras shows.

    With several outputs, Keras counts every call in their `OUTPUT_loss`.
    """
    compiled = model._compile_loss
    known = compiled is not None and compiled.built
    trackers = compiled._metrics if compiled is not None else []
    if known:
        # Not an empty list: Keras goes through as many losses as trackers.
        compiled._metrics = [None] * len(trackers)
    try:
        return compute_loss(model, x, y, y_pred, sample_weight)
    finally:
        if known:
            compiled._metrics = trackers
        for tracker in () if known else trackers:  # made by this call
            tracker.reset_state()


def track_loss(model: keras.Model, loss: tf.Tensor, batch_size: tf.Tensor) -> None:
    """Adds a batch's loss to the mean that Keras shows as `loss`."""
    model._loss_tracker.update_state(loss, sample_weight=batch_size)


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """Returns all layers of the model, nested ones included."""
    return list(model._flatten_layers(include_self=False))


@contextlib.contextmanager
def calling(layer: keras.Layer, training: bool) -> Iterator[None]:
    """Sets the mode of a layer's calls, and of inner calls, that pass no `training`."""
    context = layer._get_call_context()
    before = context.get_value("training")
    context.set_value("training", training)
    try:
        yield
    finally:
        context.set_value("training", before)
        layer._maybe_reset_call_context()


def tensor_of(variable: keras.Variable) -> tf.Variable:
    """Returns the TensorFlow variable that tapes watch, in any scope of Keras."""
    return variable._value


def draws_random_numbers(layer: keras.Layer) -> bool:
    """Returns whether the layer, or one inside it, has a random generator.

    Recurrent cells always have one; with both rates 0 it does not count.
    """

    def draws(inner: keras.Layer) -> bool:
        names = "dropout", "recurrent_dropout"
        rates = [getattr(inner, name, 1) for name in names]
        return bool(inner._seed_generators) and rates != [0, 0]

    return any(draws(inner) for inner in layer._flatten_layers())


def logits(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the logits of a softmax or sigmoid output, or the tensor itself."""
    return getattr(tensor, "_keras_logits", tensor)


def compiled_losses(model: keras.Model) -> list[tuple[tuple, keras.losses.Loss]]:
    """Returns (path in the outputs, loss) of each loss; empty before a first call."""
    if model._compile_loss is None or model._compile_loss._flat_losses is None:
        return []
    found = [(item.path, item.loss) for item in model._compile_loss._flat_losses]
    # Of several losses for a single output, Keras uses only the first.
    return found if found and found[0][0] else found[:1]


def copied(tensor: tf.Tensor, with_logits: bool = True) -> tf.Tensor:
    """Returns a copy of a tensor, with the same mask, and the same logits if wanted."""
    copy = tf.identity(tensor)
    for name in ("_keras_mask", *["_keras_logits"] * with_logits):
        if hasattr(tensor, name):
            setattr(copy, name, getattr(tensor, name))
    return copy


def mask_of(tensor: tf.Tensor) -> tf.Tensor | None:
    """Returns the mask that Keras keeps with an output, or `None`."""
    return getattr(tensor, "_keras_mask", None)


def rows_of(tensor: tf.Tensor, rows: Any) -> tf.Tensor:
    """Returns rows of an output, by their numbers `[k]`, with those of its mask."""
    taken, mask = tf.gather(tensor, rows), mask_of(tensor)
    if mask is not None:
        taken._keras_mask = tf.gather(mask, rows)
    return taken


def without_mask(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor itself or, if it has a mask, a copy with its logits alone."""
    if mask_of(tensor) is None:
        return tensor
    copy = copied(tensor)
    del copy._keras_mask
    return copy


def loss_options(loss: keras.losses.Loss) -> dict[str, Any]:
    """Returns the arguments that a loss passes on to its function."""
    return dict(getattr(loss, "_fn_kwargs", {}))


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns optimizer, loss, loss weights and metrics as `compile` was given them."""
    kept = getattr(model, "_compile_config", None)
    return {} if kept is None else dict(kept.config)


def loss_weights(model: keras.Model) -> list[float]:
    """Returns the weight of each of `compiled_losses`, 1 where none was given."""
    weights = [item.loss_weights for item in model._compile_loss._flat_losses]
    return [1.0 if weight is None else weight for weight in weights]


def compile_metrics(model: keras.Model) -> keras.Metric | None:
    """Returns the metric that holds those of `compile`, or `None` without any."""
    return model._compile_metrics


class MetricUpdate(NamedTuple):
    """A metric of `compile`, and the arguments of its update for a batch.

    Attributes:
        metric: the metric.
        name: its name in the logs, before Keras numbers those of the same name.
        target: `[m, ...]`.
        output: `[m, ...]`.
        sample_weight: `[m, ...]`, the user's for `weighted_metrics`, or `None`.
    """

    metric: keras.Metric
    name: str
    target: Any
    output: Any
    sample_weight: Any


def compiled_metrics(
    model: keras.Model, y: Any, y_pred: Any, sample_weight: Any
) -> list[MetricUpdate]:
    """Returns the updates of all metrics of `compile` that Keras makes for a batch.

    Args:
        model: a compiled model.
        y: targets, as `fit` passes them on.
        y_pred: the model's outputs.
        sample_weight: for `weighted_metrics`; one for all targets, or nested as y is.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return []
    if not compiled.built:
        compiled.build(y, y_pred)
    flat_y, flat_pred = compiled._flatten_y(y), compiled._flatten_y(y_pred)
    nothing = [None] * len(flat_pred)
    given = nothing if sample_weight is None else compiled._flatten_y(sample_weight)
    given = given if len(given) == len(flat_pred) else [given[0]] * len(flat_pred)
    groups = [
        (compiled._flat_metrics, nothing),
        (compiled._flat_weighted_metrics, given),
    ]
    return [
        MetricUpdate(metric, _name_in_logs(group, metric), *arguments)
        for metrics, weights in groups
        for group, *arguments in zip(metrics, flat_y, flat_pred, weights, strict=False)
        for metric in (group.metrics if group else ())
    ]


def _name_in_logs(group: Any, metric: keras.Metric) -> str:
    parts = group.output_name, metric.name
    return "{}_{}".format(*parts) if group.output_name else metric.name


@contextlib.contextmanager
def reading_rate(
    optimizer: keras.optimizers.Optimizer,
    multiplier: tf.Tensor,
    lead: tf.Tensor,
) -> Iterator[None]:
    """Lets `optimizer` read `multiplier` times its rate, its schedule `lead` ahead.

    This holds inside the block only; users and callbacks read and set the plain rate.

    Args:
        optimizer: the one that applies the gradients (inside a `LossScaleOptimizer`).
        multiplier: `[]`, factor of the rate.
        lead: `[]`, effective iterations beyond the optimizer's own count.
    """
    own = optimizer._get_current_learning_rate

    def adapted_rate():
        schedule = optimizer._learning_rate
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            at = tf.cast(optimizer._iterations.value, lead.dtype) + lead
            rate = schedule(tf.cast(at, keras.config.floatx()))
        else:
            rate = own()
        rate = tf.convert_to_tensor(rate)
        return rate * tf.cast(multiplier, rate.dtype)

    with replaced(optimizer, {"_get_current_learning_rate": adapted_rate}):
        yield


@contextlib.contextmanager
def global_seeds_kept() -> Iterator[None]:
    """Puts the generators of seeds of Keras and TensorFlow back after the block.

    A generator of Keras that the block makes, as the first one, is forgotten.
    """
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    state = None if generator is None else tf.identity(tensor_of(generator.state))
    eager = getattr(context.context(), "_rng", None)  # there once a seed was set
    eager_state = eager and eager.getstate()
    try:
        yield
    finally:
        if eager and eager.getstate() != eager_state:
            eager.setstate(eager_state)
            context.context().clear_kernel_cache()  # they go on with their numbers
        if generator is not None:
            generator.state.assign(state)
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)


@contextlib.contextmanager
def unsummed(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Lets `optimizer` apply gradients as they are, in the block: they are summed.

    The step sums them over all replicas before the optimizer, so that clipping and the
    search for overflows see the whole gradient. TensorFlow's sum also registers a
    gradient of its own for each graph, and so keeps the graph for ever, even where
    there is but one replica.

    Args:
        optimizer: the one that applies the gradients (inside a `LossScaleOptimizer`).
    """
    as_they_are = {"_all_reduce_sum_gradients": lambda gradients: gradients}
    with replaced(optimizer, as_they_are):
        yield


def steps_taken(optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
    """Returns `[]`, the integer number of batches whose gradients `optimizer` got.

    Its public `iterations` are this over `gradient_accumulation_steps`, rounded down.

    Args:
        optimizer: the one that applies the gradients (inside a `LossScaleOptimizer`).
    """
    return tf.convert_to_tensor(optimizer._iterations)


def forget_initial_epoch(model: keras.Model) -> None:
    """Drops the initial epoch that `BackupAndRestore` sets for `fit`."""
    model._initial_epoch = None


class UnderStrategy:
    """Repairs two of Keras' functions that fail under a strategy.

    To build a model, Keras 3.15 averages the replicas' batches. That fails for several
    workers, and for batches with `None` in them. For several workers it also averages
    scalar logs along an axis, which they lack (keras issues 20585 and 20329).
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None):
        strategy = self._distribute_strategy
        if iterator is not None and strategy is not None:
            batch = next(next(iter(iterator))[2], None)
            if batch is None:  # resumed at an epoch's end, with all built
                return
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], batch
            )
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def _make_function(self, step_function: Callable) -> Callable:
        def with_an_axis(data: Any) -> Any:
            return keras.tree.map_structure(
                lambda value: tf.reshape(value, [1]) if value.shape == () else value,
                step_function(data),
            )

        several = _several_workers(self._distribute_strategy)
        return super()._make_function(with_an_axis if several else step_function)


def _several_workers(strategy: tf.distribute.Strategy | None) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def build_under_strategy(model: keras.Model, batch: tuple) -> None:
    """Builds all variables in the strategy's scope, because replicas cannot.

    Args:
        model: compiled.
        batch: (x, y) of a few examples.
    """
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=batch)


def draws_at_random(dataset: tf.data.Dataset) -> bool:
    """Returns whether a dataset's functions are seen to differ from visit to visit.

    They do where they draw random numbers that no seed decides, or change a variable,
    as Keras' layers for augmentation do with their seeds. Nothing is read. What Python
    functions do inside a dataset is not seen, and what `cache` keeps does not differ.

    Example:
        >>> dataset = tf.data.Dataset.range(3)
        >>> draws_at_random(dataset.map(lambda i: tf.random.uniform([])))
        True
    """
    return any(
        name.startswith(_RANDOM)
        for part in _parts(dataset, "CacheDataset")
        for name in _operations(part)
    )


def batch_size_of(dataset: tf.data.Dataset) -> int | None:
    """Returns the size of the batches that a dataset was divided into, or `None`.

    Example:
        >>> batch_size_of(tf.data.Dataset.range(7).batch(3).prefetch(1))
        3
    """
    for part in _parts(dataset):
        if hasattr(part, "_batch_size"):
            return int(part._batch_size)
    return None


def _parts(dataset: tf.data.Dataset, end: str = "") -> Iterator[tf.data.Dataset]:
    """Yields a dataset and those it is made of, down to any of the class `end`."""
    yield dataset
    for inner in dataset._inputs() if type(dataset).__name__ != end else ():
        yield from _parts(inner, end)


def _operations(dataset: tf.data.Dataset) -> Iterator[str]:
    for function in dataset._functions():
        graph = function.function.graph.as_graph_def()
        for nodes in (graph.node, *(f.node_def for f in graph.library.function)):
            yield from (node.op for node in nodes)

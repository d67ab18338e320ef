"""Finds labels that are probably wrong, from the draws of training and predictions."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.csv_table import first_lines, write_table
from keras_osgd.base.refusals import refuse
from keras_osgd.data import training_data
from keras_osgd.data.training_data import TrainingData
from keras_osgd.fit.held import as_in_fit
from keras_osgd.losses.described import describe
from keras_osgd.sampling import require_count
from keras_osgd.scores.state import SamplingState

__all__ = ["LabelSuspects", "find_label_errors", "suspicion"]

# Chosen for trainings of 4 to 30 epochs, with and without Dropout, with flips to any
# class and to similar ones, on other seeds than those of the reported results.
_PRIOR = 5.0  # draws: a few visits tell less than the prediction does
_RARITY = 0.05  # more helps with flips to any class, harms with flips to similar ones
_LEAST_TRUST, _TRUST = 0.5, 8.0  # in predictions
_DRAWN_MOST = 0.02  # share of the examples whose predictions set the trust
_LEARNED = 0.03  # share learned by heart that lowers the trust by a factor of e
_CROSSENTROPIES = (
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
)


class LabelSuspects(NamedTuple):
    """Examples whose labels may be wrong, the most suspicious first.

    Attributes:
        index: `[k]` int64, rows of the data.
        score: `[k]` float64, falling; about 0 for an ordinary example.
        label: `[k]` int64, the class given by y.
        suggested: `[k]` int64, the model's most probable other class.
        times_seen: `[k]` int64, how often each was trained on.
    """

    index: np.ndarray
    score: np.ndarray
    label: np.ndarray
    suggested: np.ndarray
    times_seen: np.ndarray

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes a table with a line of names and one line for each example."""
        write_table(path, self._fields, self)

    def __str__(self) -> str:
        """Returns the first lines of the table."""
        return first_lines(self._fields, self)


def find_label_errors(
    model: keras.Model,
    x: Any,
    y: Any = None,
    k: int = 1000,
    sample_weight: Any = None,
    batch_size: int = 256,
) -> LabelSuspects:
    """Returns the k examples whose labels are the most likely to be wrong.

    An example with a wrong label has a large gradient at every visit, and is drawn
    again and again. A network that trains long enough learns wrong labels by heart, and
    its predictions then tell nothing; the count of draws remains. Hence `suspicion`
    uses the draws, and trusts the predictions less the more of the most drawn labels
    they have learned. Models without draws by importance are refused: for them a
    ranking of predictions tells as much.

    Args:
        model: one of keras_osgd, trained with importance sampling on exactly these
            rows, or loaded with the scores of such a training; one output, whose loss
            is a crossentropy.
        x: as given to `fit`; with `validation_split`, the rows left for training.
            Arrays or tensors, nested or not, n examples; or, without y, a dataset, or
            the result of `data.indexed` or `data.records`.
        y: `[n]` or `[n, 1]` class numbers, zeros and ones, or one-hot `[n, classes]`.
        k: examples returned, at least 1; all of them if there are fewer.
        sample_weight: as given to `fit`; with `class_weight`, the product.
        batch_size: examples predicted at once; changes time and memory only.

    Raises:
        ValueError: if training has learned nothing, or learned from other examples; for
            labels that are not classes, losses that are not a crossentropy, and several
            outputs.

    Example:
        >>> import keras_osgd
        >>> layers = [keras.Input((1,)), keras.layers.Dense(1, "sigmoid")]
        >>> model = keras_osgd.Sequential(layers)
        >>> model.compile("sgd", "binary_crossentropy")
        >>> x, y = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([0, 0, 1, 1])
        >>> history = model.fit(x, y, batch_size=2, epochs=3, verbose=0)
        >>> find_label_errors(model, x, y, k=2).index.shape
        (2,)
    """
    require_count("k", k, 1)
    x = as_in_fit(model, x)
    data = training_data.prepare(x, y, sample_weight, None, batch_size, None)
    state = _learned(model, data)
    labels = _labels(data)
    probabilities = class_probabilities(model, data)
    taken: list[np.ndarray] = []
    state.undivided(lambda: taken.append(state.times_drawn.astype(np.int64)))
    score, suggested = suspicion(taken[0], labels, probabilities)
    index = np.argsort(-score, kind="stable")[:k]
    columns = (a[index] for a in (score, labels, suggested, taken[0]))
    return LabelSuspects(index, *columns)


def suspicion(
    times_drawn: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the suspicion of each label, and the most probable other class.

    With t the draws, z the label, s the most probable other class and q the model's
    probability of z, the score is

        log((t + 5) / (mean of t + 5 over label z))
        - log(share of s among the examples of label z) / 20 + c (1 - q).

    The first term is the history: hard and mislabelled examples are drawn more. The
    second tells these apart: hard examples lie between classes that are often confused,
    mislabelled ones lie anywhere. The third is the prediction, which is worth much
    until labels are learned by heart: c = 1/2 + 8 e^(-L/0.03). L is a share of the 2 %
    of the examples with the largest first term: those whose label the model predicts.

    Args:
        times_drawn: `[n]`, >= 0.
        labels: `[n]`, classes from 0 on.
        probabilities: `[n, classes]`, >= 0, rows sum to 1; at least two classes.

    Returns:
        The scores, `[n]` float64, and the classes, `[n]` int64.

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
        >>> suspicion(np.array([1, 4, 1]), np.array([0, 0, 1]), probabilities)[1]
        array([1, 1, 0])
    """
    rows, classes = np.arange(len(labels)), probabilities.shape[1]
    others = np.array(probabilities, np.float64)
    own = others[rows, labels]
    others[rows, labels] = -1.0
    suggested = others.argmax(axis=1)
    seen = times_drawn + _PRIOR
    sizes = np.maximum(np.bincount(labels, minlength=classes), 1)
    usual = np.bincount(labels, seen, minlength=classes) / sizes
    pairs = np.bincount(labels * classes + suggested, minlength=classes**2)
    share = pairs.reshape(classes, classes)[labels, suggested] / sizes[labels]
    drawn = np.log(seen / usual[labels])
    most = np.argsort(-drawn, kind="stable")[: max(1, int(_DRAWN_MOST * len(rows)))]
    learned = (own[most] >= others[most].max(axis=1)).mean()
    trust = _LEAST_TRUST + _TRUST * np.exp(-learned / _LEARNED)
    return drawn - _RARITY * np.log(share) + trust * (1 - own), suggested


def _learned(model: keras.Model, data: TrainingData) -> SamplingState:
    """Returns the state that training left; refuses rows it was not trained on."""
    held = getattr(model, "sampling_held", None)
    state = getattr(held, "state", None)
    if state is None or state.table is None or not state.times_drawn.any():
        method = getattr(model, "sampling", None)
        how = "Keras' own class" if method is None else f"compiled with {method!r}"
        raise ValueError(
            "There must have been a `fit` with importance sampling, which counts the "
            f"draws. Received: a {type(model).__name__} without, {how}. Train it with "
            '`sampling="rais"`, if need be after `keras_osgd.accelerate(model)`, or '
            "load weights that were saved after such training."
        )
    if held.run is not None:
        held.run.settle()
    state = state.known()
    changed = state.identity.changed(data.identity())
    if changed is None or len(changed):
        n = state.table.size
        rows = "" if changed is None else f" in {len(changed)} rows"
        other = f", with other values, types or weights{rows}"
        kinds = [str(leaf.dtype) for leaf in keras.tree.flatten(data.arrays[:2])]
        raise ValueError(
            f"The data must be what the model was trained on, {n} examples in their "
            f"order. Received: {data.n} of type {', '.join(kinds)}"
            f"{other if data.n == n else ''}. Pass x, y and `sample_weight` as they "
            "were given to `fit`, without the rows that `validation_split` took."
        )
    return state


def _labels(data: TrainingData) -> np.ndarray:
    """Returns `[n]` int64, the class that y gives each example."""
    classes = data.classes()
    y = keras.tree.flatten(data.arrays[1])[0]
    if classes is None:
        raise ValueError(
            "`y` must be classes: their numbers, zeros and ones, or one-hot rows. "
            f"Received: y of shape {np.shape(y)} and type {y.dtype}. Labels can be "
            "wrong in classification only."
        )
    one_hot = y.ndim == 2 and y.shape[1] > 1
    return classes.astype(np.int64) + (0 if one_hot else int(y.min()))


def class_probabilities(model: keras.Model, data: TrainingData) -> np.ndarray:
    """Returns the model's probabilities in inference mode, `[n, classes]` float64.

    A single output for two classes gives both columns.

    Raises:
        ValueError: for labels outside of the classes, losses that are not a
            crossentropy, and several outputs.
    """
    describe(model, data)  # raises for labels outside of the classes
    found = keras_compat.compiled_losses(model)
    loss = found[0][1]
    name = getattr(getattr(loss, "fn", None), "__name__", type(loss).__name__)
    first = data.batch(slice(1))[0]
    outputs = keras.tree.flatten(keras_compat.call_model(model, first, False))
    shape = tuple(outputs[0].shape)
    refuse(
        [
            _problem_of_outputs(len(found), len(outputs), shape),
            None if name in _CROSSENTROPIES else _problem_of_loss(name),
        ]
    )
    from_logits = keras_compat.loss_options(loss).get("from_logits", False)
    parts = []
    for first in range(0, data.n, data.batch_size):
        inputs = data.batch(slice(first, first + data.batch_size))[0]
        made = keras.tree.flatten(model.predict_on_batch(inputs))[0]
        made = made[: data.n - first][: data.batch_size]  # every replica makes them all
        parts.append(_as_probabilities(np.asarray(made, np.float64), from_logits))
    return np.concatenate(parts)


def _problem_of_outputs(losses_: int, outputs: int, shape: tuple) -> str | None:
    if losses_ == outputs == 1 and len(shape) == 2:
        return None
    return (
        "The model must have one output with a row of classes for each example. "
        f"Received: {outputs} outputs, {losses_} losses, shape {shape}. Look at one "
        "output at a time, by a model of its own."
    )


def _problem_of_loss(name: str) -> str:
    return (
        "The loss must be one of Keras' crossentropies, by which outputs are "
        f"probabilities or logits. Received: {name}. Compile with "
        "`SparseCategoricalCrossentropy`, `CategoricalCrossentropy` or "
        "`BinaryCrossentropy`."
    )


def _as_probabilities(outputs: np.ndarray, from_logits: bool) -> np.ndarray:
    """Returns `[m, classes]`; a single output for two classes gives both columns."""
    if outputs.shape[1] == 1:
        positive = tf.sigmoid(outputs).numpy() if from_logits else outputs
        return np.concatenate([1 - positive, positive], axis=1)
    return tf.nn.softmax(outputs).numpy() if from_logits else outputs

"""All that a model learns about its training examples, saved beside its weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import texts
from keras_osgd.base.placement import step_variable
from keras_osgd.base.warn import warn
from keras_osgd.data.identity import Identity
from keras_osgd.gain.gain_ratio import GainRatio
from keras_osgd.scores.bad_examples import BadExamples
from keras_osgd.scores.table import ScoreTable
from keras_osgd.scores.trust import trusted, untrusted
from keras_osgd.scores.uncertainty_set import UncertaintySet

__all__ = ["SamplingState"]

_TABLE = "table."
_COUNTERS = ("armed", "blocks", "drawn", "observed", "seed", "fit_failures")


class SamplingState(keras.Operation):
    """Score table, visits owed, uncertainty set, gain ratio and effective iterations.

    It is a `keras.Operation`, so that Keras saves and loads it with `save_weights` and
    `.keras` files as it does an optimizer. It stays out of `model.weights`, parameter
    counts and exports, and a plain `keras.Model` can load the file. It is empty until
    the first `fit` with importance sampling.

    Attributes:
        table: the `ScoreTable`, or `None` before the first `fit`.
        owed: `[n]` float64, visits that the reshuffled draws owe each example.
        times_drawn: `[n]` int32, how often each example was trained on.
        last_losses: `[n]` float32, loss of each example when it was last trained on;
            NaN where that is unknown.
        uncertainty_set: running average of the good fits of equation (7), or `None`.
        trust: `[9]`, how far the scores were right to be followed; see `trust`.
        gain: the `GainRatio`, or `None` before the first `fit`.
        lead: `tf.Variable` float64, effective iterations minus the optimizer's own.
        armed: whether draws follow the scores (else uniform, until the gain pays).
        blocks, drawn, observed: numbers so far.
        seed: seed of all draws.
        fit_failures: number of failed fits of equation (7) and failed plans.
        identity: of the training data that the scores belong to.
        norm: norm that the scores are of, "last_layer" or "exact".
        bad_examples: strikes of examples that spoiled steps, and those set aside.
        in_use: whether a `fit` is using this state.
        own_rows: function of a `fit` of several workers: returns this worker's part of
            a state of all rows, and `None` for other states.
        loaded_without: whether weights were loaded from a file that has no scores.
    """

    def __init__(self) -> None:
        """Starts empty."""
        super().__init__(name="keras_osgd_sampling")
        self.table: ScoreTable | None = None
        self.owed: np.ndarray | None = None
        self.times_drawn: np.ndarray | None = None
        self.last_losses: np.ndarray | None = None
        self.uncertainty_set: UncertaintySet | None = None
        self.trust = untrusted()
        self.gain: GainRatio | None = None
        self.lead: tf.Variable | None = None
        self.identity, self.norm = Identity(), "last_layer"
        self.armed, self.blocks, self.drawn, self.observed = True, 0, 0, 0
        self.seed, self.fit_failures = 0, 0
        self.in_use = self.loaded_without = False
        self.bad_examples = BadExamples()
        # A function, as Keras saves every state that it finds in an attribute.
        self._of_all_rows: Callable[[], SamplingState] | None = None
        self.own_rows: Callable[[Mapping[str, Any]], Mapping | None] | None = None
        # Held for no longer than a plan takes, and never while waiting for a thread
        # that wants it. Reentrant: a signal handler may save in the midst of a save.
        self._lock = threading.RLock()

    def known(self) -> SamplingState:
        """Returns the state of all workers' rows; this one where there is one worker.

        It is that of the end of the last epoch, and it is saved in place of this one.
        """
        return self if self._of_all_rows is None else self._of_all_rows()

    def know(self, of_all_rows: SamplingState) -> None:
        """Takes the state of all workers' rows, where this one is of a worker's own."""
        self._of_all_rows = lambda: of_all_rows

    def call(self, *args: Any, **kwargs: Any) -> None:
        """Raises an error: the state computes nothing."""
        raise NotImplementedError("`SamplingState` holds state and is never called.")

    def undivided(self, function: Callable[..., None], *args: Any) -> None:
        """Calls `function`; saving and loading see all of its changes or none."""
        with self._lock:
            function(*args)

    def start_clock(self) -> None:
        """Makes the variables that the training step updates."""
        if self.gain is None:
            self.gain = GainRatio()
            self.lead = step_variable(0.0, tf.float64)

    def load_lead(self, lead: Any) -> None:
        """Loads the lead in effective iterations, `[]`, and nothing else."""
        self.start_clock()
        self.lead.assign(np.array(lead))

    def allocate(
        self, table: ScoreTable, identity: Identity, seed: int, norm: str
    ) -> None:
        """Starts afresh with an empty table; effective iterations go on."""
        self.start_clock()
        self.gain.averages.assign(tf.zeros(4))
        self.table, self.identity, self.seed = table, identity, seed
        self.norm, self._of_all_rows = norm, None
        self.owed = np.zeros(table.size)
        self.times_drawn = np.zeros(table.size, np.int32)
        self.last_losses = np.full(table.size, np.nan, np.float32)
        self.uncertainty_set, self.trust = None, untrusted()
        self.armed, self.blocks, self.drawn, self.observed = True, 0, 0, 0
        self.fit_failures = 0
        self.bad_examples.clear()

    def forget(
        self, rows: np.ndarray, classes: np.ndarray | None, identity: Identity
    ) -> None:
        """Makes rows whose data changed as if they had never been seen.

        Args:
            rows: `[k]` distinct integers.
            classes: `[n]` of all rows as they are now, or `None`.
            identity: of the data as they are now.
        """
        self.identity = identity
        if not len(rows):
            return
        self.table.forget(rows, classes)
        self.owed = self.owed.copy()
        self.owed[rows], self.last_losses[rows] = 0.0, np.nan
        self.times_drawn[rows] = 0
        self.bad_examples.forget(rows)

    def count(self, index: np.ndarray) -> None:
        """Counts draws that were trained on.

        Args:
            index: `[k]` integers. Rows.
        """
        # With one number for all rows it would take twenty times as long.
        np.add.at(self.times_drawn, index, np.ones(len(index), np.int32))

    def observe_losses(self, index: np.ndarray, losses: np.ndarray) -> None:
        """Keeps the losses of examples in the order in which they were trained on.

        Args:
            index: `[k]` integers. Rows.
            losses: `[k]`; those that are not finite are left out.
        """
        finite = np.isfinite(losses)
        self.last_losses[index[finite]] = losses[finite]  # of repeated rows, the last

    def save_own_variables(self, store: Any) -> None:
        """Writes everything into a Keras store; nothing while empty.

        May be called in any thread; waits for a plan in the making.
        """
        known = self.known().state_dict()
        for name, value in known.items():  # unlocked: disks are slow
            store[name] = value

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns everything as separate arrays; waits for a plan in the making."""
        arrays: dict[str, np.ndarray] = {}
        if self.table is not None:
            self.undivided(self._collect, arrays)
        elif self.lead is not None:  # trained on a stream: no table
            arrays["lead"] = self.lead.numpy()
        return arrays

    def _collect(self, store: dict[str, np.ndarray]) -> None:
        for name, value in self.table.state_dict().items():
            store[_TABLE + name] = np.asarray(value)
        store["features"] = texts.as_array(" ".join(self.table.features))
        store["visits_owed"] = self.owed.copy()
        store["times_drawn"] = self.times_drawn.copy()
        store["trust"] = self.trust
        store["last_losses"] = self.last_losses.copy()
        store.update(self.bad_examples.state_dict())
        store["gain"] = self.gain.averages.numpy()
        store["lead"] = self.lead.numpy()
        store.update(self.identity.state_dict())
        store["norm"] = texts.as_array(self.norm)
        for name in _COUNTERS:
            store[name] = np.int64(getattr(self, name))
        fitted = self.uncertainty_set
        if fitted is not None:
            store["uncertainty_mean"] = fitted.mean
            store["uncertainty_spread"] = fitted.spread
            store["uncertainty_objective"] = np.float64(fitted.objective)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Loads a store that `save_own_variables` filled; Keras calls it."""
        self.load_state_dict(store)

    def load_state_dict(self, store: Mapping[str, Any]) -> None:
        """Loads the arrays of `state_dict`; keeps its own scores if they have none."""
        if "features" in store.keys():  # noqa: SIM118  (a Keras store)
            if self.own_rows is not None:
                store = self.own_rows(store) or store
            self.undivided(self._load, store)
        elif self.table is None:
            self.loaded_without = True
            if "lead" in store.keys():  # noqa: SIM118
                self.load_lead(store["lead"])

    def _load(self, store: Mapping[str, Any]) -> None:
        arrays = {
            name.removeprefix(_TABLE): np.array(store[name])
            for name in store.keys()  # noqa: SIM118
            if name.startswith(_TABLE)
        }
        owed = _owed(store)
        features = tuple(texts.as_text(store["features"]).split())
        # Older files have none: there was only one kind of norm.
        norm = texts.as_text(store["norm"]) if "norm" in store.keys() else "last_layer"  # noqa: SIM118
        classes = self.table.classes if self.in_use else None
        table = self._table_for(arrays, features, norm)
        table.load_state_dict(arrays)
        self.table = table
        if not self.in_use:
            self._of_all_rows = None
        self.start_clock()
        self.owed = owed
        # Older files have none of these.
        times, losses = np.zeros(len(owed)), np.full(len(owed), np.nan)
        self.times_drawn = _saved(store, "times_drawn", times).astype(np.int32)
        self.last_losses = _saved(store, "last_losses", losses).astype(np.float32)
        self.trust = _saved(store, "trust", trusted())
        self.bad_examples.load_state_dict(store)
        self.gain.averages.assign(np.array(store["gain"]))
        self.lead.assign(np.array(store["lead"]))
        identity, self.identity, self.norm = self.identity, Identity.of(store), norm
        for name in _COUNTERS:
            setattr(self, name, int(np.array(store[name])))
        self.uncertainty_set = _uncertainty_set(store)
        if self.in_use:
            self._forget_others(classes, identity)

    def _table_for(
        self, arrays: dict[str, np.ndarray], features: tuple[str, ...], norm: str
    ) -> ScoreTable:
        """Returns the present table if it can take saved arrays, else a new one."""
        fits = self.table is not None and self.table.holds(arrays, features)
        size = len(arrays["last"])
        if self.in_use and not (fits and norm == self.norm):
            raise ValueError(
                "Scores loaded during `fit` must belong to the data in training, "
                f"{self.table.size} examples with features {self.table.features} "
                f"and norm={self.norm!r}. Received: {size} examples with "
                f"features {features} and norm={norm!r}. "
                "Load them before `fit`, or load only the weights."
            )
        return self.table if fits else ScoreTable(size, arrays.get("classes"), features)

    def _forget_others(self, classes: np.ndarray | None, identity: Identity) -> None:
        """Forgets the rows that are not those of the data in training."""
        n, rows = self.table.size, self.identity.changed(identity)
        rows = np.arange(n) if rows is None else rows
        self.forget(rows, classes, identity)
        if len(rows):
            warn(
                "Scores loaded during `fit` must be of the data in training. Received: "
                f"scores of data of which {len(rows)} of {n} rows differ. The scores "
                "of these start afresh. Load before `fit` what belongs to the data."
            )


def _saved(store: Mapping[str, Any], name: str, missing: np.ndarray) -> np.ndarray:
    return np.array(store[name]) if name in store.keys() else missing  # noqa: SIM118


def _owed(store: Mapping[str, Any]) -> np.ndarray:
    """Returns `[n]`, visits owed; zeros of older files, which have another unit."""
    if "visits_owed" in store.keys():  # noqa: SIM118
        return np.array(store["visits_owed"], np.float64)
    return np.zeros(len(np.array(store["owed"])))


def _uncertainty_set(store: Mapping[str, Any]) -> UncertaintySet | None:
    """Returns the saved uncertainty set; `None` drops one that is of other scores."""
    if "uncertainty_mean" not in store.keys():  # noqa: SIM118
        return None
    names = ("mean", "spread", "objective")
    mean, spread, objective = (np.array(store[f"uncertainty_{x}"]) for x in names)
    return UncertaintySet(mean, spread, float(objective), 0, True)

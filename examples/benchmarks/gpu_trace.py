"""Counts of a training step: operations, copies between host and device, host reads.

Two sources tell of copies. The graphs that TensorFlow runs, divided by device, name
every tensor that is sent from one device to another. The profiler's trace has every
copy that a GPU made, those of the compiled function included, but no names.
"""

import collections
import contextlib
import pathlib
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

# The only way to the graphs as they are run. `tf.summary.trace_export` leaves them out.
from tensorflow.python.eager import context

from examples.common.records import Record

HOST = "CPU:0"
_SENDS, _RECEIVES = ("_Send", "_HostSend"), ("_Recv", "_HostRecv")
# They launch nothing.
_NO_OPERATIONS = {*_SENDS, *_RECEIVES, "_Arg", "_Retval", "Const", "Identity", "NoOp"}
_CONDITIONS = ("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile")
_COPIES = {"MemcpyH2D": "to_device", "MemcpyD2H": "to_host", "MemcpyD2D": "on_device"}


@contextlib.contextmanager
def graphs_of_steps(found: list) -> Iterator[None]:
    """Adds to `found` the graphs of the training functions first run in the block.

    Each is a list of graphs, one for each device.
    """
    context.enable_run_metadata()
    context.export_run_metadata()  # forgets those of earlier functions
    try:
        yield
        made = context.export_run_metadata()
    finally:
        context.disable_run_metadata()
    for function in made.function_graphs:
        graphs = list(function.partition_graphs)
        if {"IteratorGetNext", "OptionalFromValue"} <= _operations(graphs).keys():
            found.append(graphs)


def counts_of_graphs(graphs: list, device: str) -> Record:
    """Returns what a training function's graphs do.

    Args:
        graphs: from `graphs_of_steps`.
        device: end of the name of the device that trains.

    Returns:
        `outside`, operations in the graphs by device, the compiled functions aside;
        `compiled`, number of calls of these; `inside`, operations in them;
        `conditions`, operations in the graphs and in compiled functions that choose
        between branches; `to_device` and `to_host`, names of the tensors copied.
    """
    nodes = [node for graph in graphs for node in graph.node]
    library = {f.signature.name: f for g in graphs for f in g.library.function}
    calls = [node for node in nodes if node.attr["_XlaMustCompile"].b]
    inside = collections.Counter()
    for call in calls:
        inside += _inside(call.attr["f"].func.name, library)
    outside = collections.Counter(
        _short(node.device)
        for node in nodes
        if node.op not in _NO_OPERATIONS and not node.attr["_XlaMustCompile"].b
    )
    # TensorFlow turns a condition into switches, all by the same predicate.
    chosen = {node.input[1] for node in nodes if node.op == "Switch"}
    return {
        "outside": dict(outside),
        "compiled": len(calls),
        "inside": sum(n for op, n in inside.items() if op not in _NO_OPERATIONS),
        "conditions": {
            "outside": len(chosen) + sum(node.op in _CONDITIONS for node in nodes),
            "inside": sum(inside[op] for op in _CONDITIONS),
        },
        **_copies(nodes, device),
    }


def _operations(graphs: list) -> collections.Counter:
    return collections.Counter(node.op for graph in graphs for node in graph.node)


def _inside(name: str, library: Mapping[str, Any]) -> collections.Counter:
    """Returns the operations of a function and of all that it calls."""
    counts = collections.Counter(node.op for node in library[name].node_def)
    for node in library[name].node_def:
        for value in node.attr.values():
            for called in (value.func.name, *(f.name for f in value.list.func)):
                if called in library:
                    counts += _inside(called, library)
    return counts


def _copies(nodes: list, device: str) -> dict[str, list[str]]:
    """Returns the names of the tensors that are copied to the device, and from it.

    A batch comes from the host even where another CPU stands for a GPU, and its
    iterator lies there.
    """
    batches = {n.name for n in nodes if n.op == "IteratorGetNext"}
    stand_in = any(
        n.op == "IteratorGetNext" and n.device.endswith(device) for n in nodes
    )
    to_device, to_host = set(), set()
    for node in nodes:
        if stand_in and node.op not in _SENDS and node.device.endswith(device):
            to_device |= {i for i in node.input if i.split(":")[0] in batches}
        if node.op not in _SENDS or "/ctrl/" in node.input[0]:  # these are empty
            continue
        of = node.input[0].split(":")[0]
        ends = [node.attr[f"{end}_device"].s.decode() for end in ("send", "recv")]
        if ends[0] == ends[1]:  # between a device's own memory and the host's
            (to_device if node.op == "_HostSend" else to_host).add(node.input[0])
        elif ends[1].endswith(device):
            to_device.add(node.input[0])
        elif not (stand_in and of in batches):
            to_host.add(node.input[0])
    return {"to_device": sorted(to_device), "to_host": sorted(to_host)}


def _short(device: str) -> str:
    return ":".join(device.split(":")[-2:])


class HostReads:
    """Counts the tensors of a device whose values the training thread reads.

    Each read waits until the device has done all steps before. A patch of TensorFlow
    counts them, in the block of `counting`.

    Attributes:
        by_place: number of reads for each place in the code.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.by_place: collections.Counter = collections.Counter()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts until the block ends."""
        (owner,) = (c for c in type(tf.constant(0)).__mro__ if "_numpy" in vars(c))
        read, thread = owner._numpy, threading.current_thread()

        def counted(tensor: tf.Tensor) -> Any:
            here = threading.current_thread() is thread
            if here and tensor.backing_device.endswith(self._device):
                self.by_place[_caller()] += 1
            return read(tensor)

        owner._numpy = counted
        try:
            yield
        finally:
            owner._numpy = read


def _caller() -> str:
    for frame in reversed(traceback.extract_stack()[:-2]):
        path = pathlib.Path(frame.filename)
        if "tensorflow" not in path.parts or "keras" in path.parts:
            return f"{'/'.join(path.parts[-2:])}:{frame.lineno}"
    return "elsewhere"


class Traced(keras.callbacks.Callback):
    """Profiles some steps of a `fit`, and counts the host's reads meanwhile.

    Args:
        device: end of the name of the device that trains.
        first: the step, from 0 on, before which it begins.
        steps: number of steps.

    Attributes:
        counts: of `counts_of_trace`.
        reads: the host's reads, for each place in the code.
    """

    def __init__(self, device: str, first: int, steps: int) -> None:
        super().__init__()
        self._first, self._last, self._seen = first, first + steps, 0
        self._device, self._blocks = device, contextlib.ExitStack()
        self.counts: Record = {}
        self.reads: dict[str, int] = {}

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Begins or ends."""
        if self._seen == self._first:
            tf.test.experimental.sync_devices()
            reads = HostReads(self._device)
            self._folder = self._blocks.enter_context(tempfile.TemporaryDirectory())
            tf.profiler.experimental.start(self._folder)
            self._blocks.enter_context(reads.counting())
            self.reads = reads.by_place
        elif self._seen == self._last:
            tf.test.experimental.sync_devices()
            tf.profiler.experimental.stop()
            (path,) = pathlib.Path(self._folder).rglob("*.xplane.pb")
            self.counts = counts_of_trace(path, self._last - self._first)
            self.reads = dict(self.reads)
            self._blocks.close()
        self._seen += 1


def counts_of_trace(path: pathlib.Path, steps: int) -> Record:
    """Returns what GPUs did in a step, on average, by a trace of the profiler.

    Args:
        path: an `.xplane.pb` file.
        steps: number of steps in it.

    Returns:
        `to_device`, `to_host` and `on_device`, numbers of copies; `kernels`, number of
        kernels; `busy`, the share of the time in which a kernel ran; nothing where
        there is no GPU.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2  # newer ones may move it

    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    counts: collections.Counter = collections.Counter()
    spans = []
    for plane in space.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):  # others sum the streams up
                continue
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                start = 1000 * line.timestamp_ns + event.offset_ps
                if name in _COPIES:
                    counts[_COPIES[name]] += 1
                elif not name.lower().startswith("mem"):
                    counts["kernels"] += 1
                    spans.append((start, start + event.duration_ps))
    if not counts:
        return {}
    named = {name: counts[name] / steps for name in (*_COPIES.values(), "kernels")}
    return named | {"busy": _busy(spans)}


def _busy(spans: list[tuple[int, int]]) -> float:
    """Returns the share of the time from first to last in which some span is open."""
    covered, until = 0, 0
    for start, end in sorted(spans):
        covered += max(0, end - max(start, until))
        until = max(until, end)
    begun = min((start for start, _ in spans), default=0)
    return covered / (until - begun) if until > begun else 0.0


def variables_of(model: keras.Model) -> list[Record]:
    """Returns device, type and bytes of each variable of a trained model's run."""
    groups = {
        "weights": model.weights,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    found = [
        _described(of, variable.path, variable.value)
        for of, variables in groups.items()
        for variable in variables
    ]
    run = getattr(model, "sampling_run", None)
    if run is None:
        return found
    parts = {
        "score table": model.sampling_state.table,
        "plans": run.buffers,
        "observation log": run.log,
        "clock": run.clock,
        "gain ratio": run.gain,
        "skipped steps": run.skips,
    }
    for of, holder in parts.items():
        found += [_described(of, *named) for named in _held(holder)]
    return found


def _held(holder: object) -> Iterator[tuple[str, tf.Variable]]:
    for name, value in vars(holder).items():
        entries = value.items() if isinstance(value, dict) else [(name, value)]
        for key, entry in entries:
            if isinstance(entry, tf.Variable):
                yield str(key).lstrip("_"), entry


def _described(of: str, name: str, variable: tf.Variable) -> Record:
    size = variable.shape.num_elements() * variable.dtype.size
    return {
        "of": of,
        "name": name,
        "device": _short(variable.device),
        "dtype": variable.dtype.name,
        "bytes": size,
    }

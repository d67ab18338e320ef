"""The benchmark for GPUs: its counts against what is known, and a whole tiny run."""

import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf

from examples.benchmarks import gpu, gpu_models, gpu_report, gpu_trace
from examples.common.records import Records
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.examples
DEVICE = "CPU:1"  # stands for a GPU


def _main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    gpu.main()


def test_without_a_gpu_it_says_so_and_measures_nothing(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="sees no GPU here, so nothing was measured"):
        _main(monkeypatch, "all", "--results", str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_smoke_run_fills_every_section_and_repeats_nothing(monkeypatch, tmp_path):
    results = ROOT / "examples" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _main(monkeypatch, "all", "--smoke")
    folder = tmp_path / "keras_osgd_gpu_smoke"
    page = (folder / "gpu.md").read_text()
    assert page.count("\n### ") == 9 and "nan" not in page
    written = (folder / "gpu_runs.jsonl").read_text()
    _main(monkeypatch, "all", "--smoke", "--minutes", "0")
    assert (folder / "gpu_runs.jsonl").read_text() == written
    assert before == {path: path.stat().st_mtime_ns for path in results.iterdir()}
    (record,) = Records(folder / "gpu_runs.jsonl").select(part="graph")
    plain, rais = record["plain"], record["rais"]
    # Plain Keras copies x and y and calls one function. RAIS copies its columns too,
    # takes what was observed to the log on the host, and reads every eighth step.
    assert plain["to_device"] == ["IteratorGetNext", "IteratorGetNext:1"]
    assert rais["to_device"] == [*plain["to_device"], "IteratorGetNext:2"]
    assert rais["outside"] == {DEVICE: 2, "CPU:0": 1} and len(rais["to_host"]) == 1
    assert plain["to_host"] == [] and plain["outside"] == {DEVICE: 2}
    assert plain["compiled"] == rais["compiled"] == 1
    assert plain["conditions"] == {"outside": 0, "inside": 0}
    ours = {k: v for k, v in rais["reads"].items() if not k.startswith("tensorflow/")}
    assert max(ours.values()) <= 1 / 8
    devices = {(v["of"], v["device"]) for v in rais["variables"]}
    assert {("weights", DEVICE), ("optimizer", DEVICE), ("plans", "CPU:0")} <= devices
    assert {("score table", "CPU:0"), ("observation log", "CPU:0")} <= devices


def test_no_new_measurement_begins_when_the_time_is_up(monkeypatch, tmp_path, capsys):
    _main(monkeypatch, "all", "--cpu", "--minutes=-1", "--results", str(tmp_path))
    assert capsys.readouterr().out.count("The time is up") == 5
    assert not (tmp_path / "gpu_runs.jsonl").exists()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_copies_and_operations_of_a_known_function(jit_compile):
    """Two batches go to the device, one sum and one product come back."""
    with tf.device("CPU:0"):
        kept = tf.Variable(0.0), tf.Variable(0.0)
        data = iter(tf.data.Dataset.from_tensors((tf.ones(3), tf.ones(3))).repeat())

    @tf.function(jit_compile=jit_compile, autograph=False)
    def inner(x, y):
        total, product = tf.reduce_sum(x + y), tf.reduce_prod(x * y)
        return tf.cond(total > 1, lambda: (total, -product), lambda: (product, total))

    @tf.function(autograph=False)
    def step(iterator):
        found = inner(*iterator.get_next())
        for variable, value in zip(kept, found, strict=True):
            variable.assign(value)
        return tf.experimental.Optional.from_value(found[0])

    graphs = []
    with gpu_trace.graphs_of_steps(graphs), tf.device(DEVICE):
        step(data)
    assert len(graphs) == 1
    counts = gpu_trace.counts_of_graphs(graphs[0], DEVICE)
    assert counts["to_device"] == ["IteratorGetNext", "IteratorGetNext:1"]
    assert len(counts["to_host"]) == 2 and counts["compiled"] == jit_compile
    inside = "inside" if jit_compile else "outside"
    assert counts["conditions"] == {"outside": 0, "inside": 0} | {inside: 1}
    # Two sums, two products, comparison, condition and the negation in its branch.
    assert counts["outside"]["CPU:0"] == 3  # the iterator, two assignments
    outside = counts["outside"][DEVICE]
    assert (counts["inside"], outside) == (7, 1) if jit_compile else outside > 5


def test_reads_are_counted_of_the_device_and_by_place():
    with tf.device(DEVICE):
        there = tf.constant(1.5) + 1.0
    with tf.device("CPU:0"):
        here = tf.constant(2)
    reads = gpu_trace.HostReads(DEVICE)
    with reads.counting():
        float(there), bool(there), int(here)
    float(there)
    ((place, n),) = reads.by_place.items()
    assert n == 2 and place.startswith("examples/test_gpu.py:")


def test_the_trace_of_a_gpu_gives_copies_kernels_and_the_busy_share(tmp_path):
    protos = pytest.importorskip("tensorflow.tsl.profiler.protobuf.xplane_pb2")
    space = protos.XSpace()
    for name, lines in {
        "/device:GPU:0": {
            # Kernels from 0 to 4, 2 to 6, 8 to 10: eight of ten.
            "Stream #7(Compute)": [("k", 0, 4), ("k", 2, 4), ("k", 8, 2)],
            "Stream #8(MemcpyH2D)": [("MemcpyH2D", 0, 1)] * 6,
            "Stream #9(MemcpyD2H)": [("MemcpyD2H", 50, 1), ("Memset", 0, 1)],
            "XLA Ops": [("k", 0, 100)],
        },
        "/host:CPU": {"Stream #1": [("MemcpyH2D", 0, 1)]},
    }.items():
        plane = space.planes.add(name=name)
        for line_name, events in lines.items():
            line = plane.lines.add(name=line_name, timestamp_ns=5)
            for event, start, length in events:
                number = ("k", "MemcpyH2D", "MemcpyD2H", "Memset").index(event)
                plane.event_metadata[number].name = event
                line.events.add(metadata_id=number, offset_ps=start, duration_ps=length)
    path = tmp_path / "a.xplane.pb"
    path.write_bytes(space.SerializeToString())
    expected = {"to_device": 3, "to_host": 0.5, "on_device": 0, "kernels": 1.5}
    assert gpu_trace.counts_of_trace(path, 2) == expected | {"busy": 0.8}


@pytest.mark.parametrize("name", gpu_models.NETWORKS)
def test_the_networks_map_their_examples_to_classes(name):
    model = gpu_models.compiled(name, "rais", False, tiny=True)
    x, y = gpu_models.examples(name, 6, tiny=True)
    assert model(x).shape == (6, gpu_models.CLASSES) and y.shape == (6,)
    assert model.sampling.adapt_learning_rate is False


def test_ratios_are_those_of_rounds(tmp_path):
    records = Records(tmp_path / "gpu_runs.jsonl")
    key = {"part": "steps", "network": "mlp", "jit_compile": True, "machine": "a GPU"}
    times = {"plain": [1.0, 2.0, 4.0], "rais": [2.0, 3.0, 5.0]}  # 2, 1.5, 1.25
    first = dict.fromkeys(times, 3.0)
    records.append(key, {"milliseconds": times, "first_step": first})
    gpu_report.write(records, tmp_path)
    page = (tmp_path / "gpu.md").read_text()
    row = "| mlp | yes | 2.000 | 3.000 | 1.500 | 1.250-2.000 | 3.0 and 3.0 |"
    assert row in page and "## a GPU" in page and "There was no GPU" not in page


def test_steps_beside_a_plan_are_told_from_the_others():
    times = gpu._Times()
    times.begun, times.plans = [0.0, 1.0, 2.0, 4.0, 5.0], [(2.5, 3.0)]
    times.seconds = 4.0
    found = gpu.by_plans(times)
    assert found["with_plan"] == {"steps": 1, "median": 2000, "mean": 2000}
    assert found["without_plan"] == {"steps": 2, "median": 1000, "mean": 1000}
    np.testing.assert_allclose([found["mean"], found["longest"]], [1000, 2000])
    assert found["plans"] == [0.5]

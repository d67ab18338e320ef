"""The page of `gpu.py`, from recorded measurements alone."""

import collections
import pathlib

import numpy as np

from examples.common import markdown
from examples.common.records import Record, Records

_HEAD = """# RAIS beside plain Keras on a GPU

Made by `python -m examples.benchmarks.gpu report` from `gpu_runs.jsonl`. RAIS keeps the
learning rate as it is (`adapt_learning_rate=False`), so that both make the same steps.
"""
_NAMES = {"plain": "plain Keras", "rais": "RAIS"}


def tell(key: Record, found: object) -> None:
    """Prints a measurement."""
    named = ", ".join(
        f"{k} {v}" for k, v in key.items() if k not in ("part", "machine")
    )
    print(f"{named}: {found}", flush=True)


def write(records: Records, folder: pathlib.Path) -> None:
    """Writes `gpu.md` into `folder`, with a section for each machine."""
    machines = dict.fromkeys(record["key"]["machine"] for record in records.select())
    parts = [_HEAD, *(_machine(records, machine) for machine in machines)]
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(parts)
    (folder / "gpu.md").write_text(text)
    print(text)


def _machine(records: Records, machine: str) -> str:
    def of(part: str) -> list[Record]:
        return records.select(part=part, machine=machine)

    parts = [f"## {machine}\n"]
    if machine == "CPU":
        parts.append(
            "There was no GPU. Copies, reads and operations were counted with two CPU "
            "devices of TensorFlow, one of which stands for a GPU. On a GPU the value "
            "read in Keras' `trainer.py`, whether the data have ended, is the host's.\n"
        )
    sections = (
        ("Time of a step", _STEPS, _steps(of("steps"))),
        ("Planning beside the steps", _PLANNING, _planning(of("planning"))),
        ("Operations of a step", _OPERATIONS, _operations(of("graph"))),
        ("Copies and reads of a step", _TRAFFIC, _traffic(of("graph"))),
        ("What is copied", _NAMED, _copied(of("graph"))),
        ("What the host reads", _READS, _reads(of("graph"))),
        ("Where variables live", _VARIABLES, _variables(of("graph"))),
        ("Peak memory", _MEMORY, _memory(of("memory"))),
        ("Comparison", _ONE_SEED, _comparison(of("comparison"))),
    )
    parts += [
        f"### {title}\n\n{text}\n\n{markdown.table_of(rows)}\n"
        for title, text, rows in sections
        if rows
    ]
    return "\n".join(parts)


_STEPS = (
    "Medians over rounds in which both methods train in turn. The ratio is that of the "
    "times in one round; its range is that over the rounds."
)


def _steps(records: list[Record]) -> list[Record]:
    rows = []
    for record in records:
        times = {k: np.array(v) for k, v in record["milliseconds"].items()}
        ratios = times["rais"] / times["plain"]
        first = record["first_step"]
        rows.append(
            {
                **_case(record),
                "plain Keras, ms": f"{np.median(times['plain']):.3f}",
                "RAIS, ms": f"{np.median(times['rais']):.3f}",
                "ratio": f"{np.median(ratios):.3f}",
                "range": f"{ratios.min():.3f}-{ratios.max():.3f}",
                "first step, s": f"{first['plain']:.1f} and {first['rais']:.1f}",
            }
        )
    return rows


_PLANNING = (
    "Milliseconds of a step, by whether a plan was in the making meanwhile. The mean "
    "is over all steps. Plain Keras plans nothing."
)


def _planning(records: list[Record]) -> list[Record]:
    rows = []
    for record in records:
        for method, name in _NAMES.items():
            found = record[method]
            plans = found["plans"]
            beside, other = found["with_plan"], found["without_plan"]
            rows.append(
                {
                    **_case(record),
                    "examples": f"{record['key']['examples']:,}",
                    "method": name,
                    "mean": f"{found['mean']:.3f}",
                    "median without a plan": f"{other['median']:.3f}",
                    "median with a plan": _or_none(beside["median"], ".3f"),
                    "steps with a plan": f"{beside['steps']} of {found['steps']}",
                    "longest": f"{found['longest']:.1f}",
                    "a plan": _or_none(1000 * np.median(plans) if plans else 0, ".0f"),
                }
            )
    return rows


_OPERATIONS = (
    "Operations that TensorFlow starts one by one in a step, by device, apart from the "
    "compiled function; then those inside of it, which XLA joins. A condition chooses "
    "between two branches. On a GPU each waits for all work before it, inside the "
    "compiled function too. Constants, copies and arguments are not counted."
)


def _operations(records: list[Record]) -> list[Record]:
    return [
        {
            **_case(record),
            "method": name,
            "outside, accelerator": sum(
                n for device, n in record[method]["outside"].items() if device != _HOST
            ),
            "outside, host": record[method]["outside"].get(_HOST, 0),
            "inside": record[method]["inside"],
            "conditions outside": record[method]["conditions"]["outside"],
            "conditions inside": record[method]["conditions"]["inside"],
        }
        for record in records
        for method, name in _NAMES.items()
    ]


_HOST = "CPU:0"
_TRAFFIC = (
    "Copies in a step: those between operations of the graph, and all that the "
    "profiler saw, with those inside the compiled function. Reads are values that the "
    "training thread waits for, in Keras and in the package."
)


def _traffic(records: list[Record]) -> list[Record]:
    rows = []
    for record in records:
        for method, name in _NAMES.items():
            found, trace = record[method], record[method]["trace"]
            seen = {
                "to the device, seen": trace.get("to_device"),
                "to the host, seen": trace.get("to_host"),
                "kernels": trace.get("kernels"),
                "GPU busy": trace.get("busy"),
            }
            rows.append(
                {
                    **_case(record),
                    "method": name,
                    "to the device": len(found["to_device"]),
                    "to the host": len(found["to_host"]),
                    **{k: _or_none(v, ".2f") for k, v in seen.items()},
                    "reads": f"{sum(found['reads'].values()):.2f}",
                }
            )
    return rows


_NAMED = "Tensors that the graph of a step sends between host and device."


def _copied(records: list[Record]) -> list[Record]:
    return [
        {
            **_case(record),
            "method": name,
            "direction": direction.replace("_", " the "),
            "tensors": ", ".join(f"`{tensor}`" for tensor in record[method][direction]),
        }
        for record in records
        for method, name in _NAMES.items()
        for direction in ("to_device", "to_host")
        if record[method][direction]
    ]


_READS = "Reads in a step by the training thread, on average, by place in the code."


def _reads(records: list[Record]) -> list[Record]:
    return [
        {**_case(record), "method": name, "place": f"`{place}`", "reads": f"{n:.3f}"}
        for record in records
        for method, name in _NAMES.items()
        for place, n in record[method]["reads"].items()
    ]


_VARIABLES = "Variables of a training with RAIS, by their purpose and device."


def _variables(records: list[Record]) -> list[Record]:
    rows = []
    for record in records:
        groups: dict[tuple, list] = collections.defaultdict(list)
        for variable in record["rais"]["variables"]:
            groups[variable["of"], variable["device"]].append(variable)
        for (of, device), found in groups.items():
            rows.append(
                {
                    **_case(record),
                    "variables": of,
                    "device": device,
                    "number": len(found),
                    "bytes": f"{sum(one['bytes'] for one in found):,}",
                    "types": ", ".join(sorted({one["dtype"] for one in found})),
                }
            )
    return rows


_MEMORY = (
    "Megabytes at the most, beyond those before the model was made: of the GPU, or of "
    "the process where there is none."
)


def _memory(records: list[Record]) -> list[Record]:
    return [
        _case(record)
        | {
            f"{name}, MB": f"{record[method]['peak'] / 2**20:.1f}"
            for method, name in _NAMES.items()
        }
        for record in records
    ]


_ONE_SEED = "`examples/compare.py`, one seed of each method."


def _comparison(records: list[Record]) -> list[Record]:
    return [
        {
            "training": name,
            "test error, %": f"{run['error']:.2f}",
            "seconds": f"{run['seconds']:.1f}",
            "steps": int(run["steps"]),
            "ms a step": f"{1000 * run['seconds'] / run['steps']:.2f}",
        }
        for record in records
        for name, run in record["runs"].items()
    ]


def _case(record: Record) -> Record:
    key = record["key"]
    return {"network": key["network"], "XLA": "yes" if key["jit_compile"] else "no"}


def _or_none(value: float | None, form: str) -> str:
    return f"{value:{form}}" if value else "-"

"""The benchmark's tables and figure, from its recorded runs alone."""

import json
import pathlib

from examples.benchmarks import error_plot
from examples.benchmarks.main_studies import TITLES
from examples.benchmarks.main_summary import summarize
from examples.common import markdown
from examples.common.records import Record, Records

_METHODS = {"uniform": "uniform (plain Keras)", "rais": "RAIS"}


def write(records: Records, folder: pathlib.Path) -> None:
    """Writes `benchmark.json`, `benchmark.md` and `benchmark.png` into `folder`."""
    summary = summarize(records)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(summary, indent=1) + "\n")
    sections = [
        *(_study(study) for study in summary["studies"]),
        _overhead(summary["overhead"]),
        _scale(summary["scale"]),
        _targets(summary["targets"]),
        _environments(summary["environments"]),
    ]
    text = "\n\n".join(section for section in sections if section) + "\n"
    (folder / "benchmark.md").write_text(text)
    rows = {
        study["title"]: _curves(study)
        for study in summary["studies"]
        if study["optimizer"] == "sgd"
    }
    if rows:
        error_plot.save(folder / "benchmark.png", rows)
    print(text)


def _study(study: Record) -> str:
    rows = [
        [
            _METHODS[row["method"]],
            str(row["epochs"]),
            f"{row['rate']:g}",
            markdown.with_interval(row["test_error"], row["test_error_interval"]),
            f"{row['validation_error']:.2f}",
            f"{row['steps']:.0f}",
            f"{row['epochs_processed']:.1f}",
            f"{row['seconds']:.1f}",
            f"{row['first_step_seconds']:.1f}",
            f"{row['gain']:.2f}",
        ]
        for row in study["rows"]
    ]
    columns = [
        "method",
        "T",
        "rate",
        "test error, %",
        "validation error, %",
        "steps",
        "epochs processed",
        "seconds",
        "first step, s",
        "gain",
    ]
    text = f"### {study['title']}: {len(study['seeds'])} seeds\n\n"
    text += markdown.table(columns, rows)
    if "equal_error" in study:
        text += "\n\n" + _equal_error(study["equal_error"])
    return text


def _equal_error(equal: Record) -> str:
    length = f"{equal['uniform_epochs']:.1f} epochs"
    reading = {
        "=": f"Uniform training reaches RAIS's mean test error in {length}",
        ">": f"Uniform training does not reach RAIS's mean test error in {length}",
        "<": f"Uniform training is better than RAIS already after {length}",
    }
    bound = {"=": "", ">": "at most ", "<": "at least "}[equal["uniform_epochs_sign"]]
    return (
        f"{reading[equal['uniform_epochs_sign']]} (95 % interval "
        f"{markdown.interval(equal['uniform_epochs_interval'], 1)}). Against that, "
        f"RAIS takes {bound}**{equal['steps_ratio']:.2f}** of the steps "
        f"({markdown.interval(equal['steps_ratio_interval'])}) and "
        f"{bound}**{equal['seconds_ratio']:.2f}** of the seconds "
        f"({markdown.interval(equal['seconds_ratio_interval'])}; "
        f"{equal['seconds_ratio_with_first_step']:.2f} with the first step's tracing)."
    )


def _overhead(rows: list[Record]) -> str:
    if not rows:
        return ""
    table = [
        [
            TITLES[row["model"]],
            str(row["repetitions"]),
            f"{row['plain_milliseconds']:.3f}",
            *(
                f"{row[method]['ratio']:.3f} "
                f"({markdown.interval(row[method]['quartiles'], 3)})"
                for method in ("uniform", "rais")
            ),
        ]
        for row in rows
    ]
    columns = [
        "network",
        "repetitions",
        "plain Keras, ms a step",
        'sampling="uniform"',
        "RAIS, rate not adapted",
    ]
    return (
        "### Time of a step relative to plain Keras, batch size 64: median "
        "(quartiles)\n\n" + markdown.table(columns, table)
    )


def _scale(rows: list[Record]) -> str:
    if not rows:
        return ""
    table = [
        [
            f"{row['examples']:,}",
            f"{row['steps_per_block']:,}",
            f"{row['block_milliseconds']:.1f}",
            f"{row['step_milliseconds']:.4f}",
            f"{row['held_megabytes']:.0f}",
            f"{row['peak_megabytes']:.0f}",
        ]
        for row in rows
    ]
    columns = [
        "n",
        "steps in a block",
        "planning it, ms",
        "ms a step",
        "memory held, MB",
        "memory at its peak, MB",
    ]
    return "### Planning a block, synthetic scores\n\n" + markdown.table(columns, table)


def _targets(targets: list[Record]) -> str:
    if not targets:
        return ""
    table = [
        [
            target["name"],
            f"{target['limit']:.2f}",
            f"{target['measured']:.3f}",
            "met"
            if target["met"]
            else f"**missed** by {target['measured'] - target['limit']:.3f}",
        ]
        for target in targets
    ]
    return "### Targets\n\n" + markdown.table(
        ["figure", "at most", "measured", ""], table
    )


def _environments(environments: list[Record]) -> str:
    return "\n".join(
        "Measured with Python {python}, TensorFlow {tensorflow}, Keras {keras}, "
        "{cpus} CPUs, {machine}{add_on}.".format(
            **environment,
            add_on=f", keras_osgd {environment['keras_osgd']}"
            if environment["keras_osgd"]
            else "",
        )
        for environment in environments
    )


def _curves(study: Record) -> dict[str, error_plot.Curve]:
    rows = sorted(study["rows"], key=lambda row: row["method"] != "rais")
    return {
        f"{row['method'].replace('rais', 'RAIS')}, T = {row['epochs']}": (
            error_plot.Curve(
                row["curve"]["epochs"],
                row["curve"]["seconds"],
                row["curve"]["test_error"],
            )
        )
        for row in rows
    }

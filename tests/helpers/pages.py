"""Runs on disk, and the page about them as a parser sees it."""

import html.parser

import numpy as np

from keras_osgd.run_directory import RunFiles
from tests.helpers.figures import rows

VOID = {"meta", "img"}


class Page(html.parser.HTMLParser):
    """Reads a page; fails where a tag is not closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tables, self.links, self.images, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [v for k, v in given.items() if k in ("src", "href", "srcset")]
        if tag == "img":
            self.images.append(given["alt"])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def write_run(directory, seed: int, sampling: str, scale: float = 1.0, **more):
    files = RunFiles(directory)
    files.write_history(rows(seed, scale))
    settings = {"sampling": sampling, "epochs": 4, "optimizer": "SGD", "seed": seed}
    settings["status"] = "complete"
    files.write_settings({**settings, "n": 1000, "batch_size": 8, **more})
    if sampling != "uniform":
        files.write_arrays(
            {
                "share_of_draws": np.linspace(0, 1, 101) ** 0.5,
                "predicted": np.array([1.0, 2.0]),
                "variance": np.array([0.5, 0.1]),
                "observed": np.array([1.5, 1.0]),
            }
        )
        files.write_examples(
            {
                "index": [7, 3],
                "label": [1, 0],
                "share_of_draws": [0.25, 0.125],
                "times_seen": [1234, 617],
                "last_norm": [2.5, float("nan")],
                "probability": [0.02, 0.01],
            }
        )
    return files.directory

"""Processes that train together, each a run of a module of the tests."""

import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

from tests.helpers.paths import ROOT


def free_ports(count):
    """Returns ports that nobody listens on, as texts."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for taken in sockets:
            taken.bind(("127.0.0.1", 0))
        return [str(taken.getsockname()[1]) for taken in sockets]


def started(directory: pathlib.Path, story: str, workers: int = 2, late: float = 0.0):
    """Returns the processes of `tests.helpers.checkpoint_workers`, by rank.

    Args:
        directory: of the story, and of the logs.
        story: its name.
        workers: number of processes.
        late: seconds after which each one starts that comes after another.
    """
    ports, running = ",".join(free_ports(workers)), {}
    command = [sys.executable, "-m", "tests.helpers.checkpoint_workers"]
    for rank in reversed(range(workers)):
        with (directory / f"{story}.{rank}.log").open("wb") as log:
            running[rank] = subprocess.Popen(
                [*command, str(rank), ports, directory, story],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        time.sleep(late)
    return [running[rank] for rank in range(workers)]


def ended(running: list[subprocess.Popen], timeout: float = 300.0) -> list[int]:
    """Returns how each process ended; kills those that do not."""
    try:
        return [process.wait(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()


def left(directory: pathlib.Path, story: str, workers: int = 2):
    """Returns what each worker found: (told, arrays, log), each by rank."""

    def path(rank: int, suffix: str) -> pathlib.Path:
        return directory / f"{story}.{rank}.{suffix}"

    ranks = range(workers)
    told = [json.loads(path(rank, "json").read_text()) for rank in ranks]
    arrays = [dict(np.load(path(rank, "npz"))) for rank in ranks]
    return told, arrays, [path(rank, "log").read_text() for rank in ranks]

"""Ports for processes of one test."""

import contextlib
import socket


def free_ports(count):
    """Returns ports that nobody listens on, as texts."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for taken in sockets:
            taken.bind(("127.0.0.1", 0))
        return [str(taken.getsockname()[1]) for taken in sockets]

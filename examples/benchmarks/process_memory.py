"""This process's memory, by Linux's own account."""

import pathlib

_SELF = pathlib.Path("/proc/self")


def memory_bytes(name: str) -> int:
    """Returns one figure of `/proc/self/status`.

    Args:
        name: "VmRSS" for the memory held now, "RssAnon" for that without mapped files,
            "VmHWM" for the peak.
    """
    status = _SELF / "status"
    if not status.exists():
        raise OSError("Memory is measured through /proc, which only Linux has.")
    (line,) = [
        line for line in status.read_text().splitlines() if line.startswith(name)
    ]
    return 1024 * int(line.split()[1])


def reset_peak() -> None:
    """Starts the peak afresh from what is held now."""
    (_SELF / "clear_refs").write_text("5")

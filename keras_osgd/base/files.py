"""Files written whole or not at all, and never through a link that someone planted."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import IO

__all__ = ["NEW", "created", "whole", "write_whole"]

# Flags of `os.open` for a file that must not exist yet, not even as a link.
NEW = os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_NAME = 60  # characters of a temporary file's name that are the file's own


def created(path: str | os.PathLike) -> IO[bytes]:
    """Returns a new file, open for writing; deletes a file or link of its name.

    Who reads the deleted file goes on reading it, and no link is followed.

    Raises:
        OSError: if it cannot be made.
    """
    path = pathlib.Path(path)
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | NEW, 0o666), "wb")


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file for writing that gets its name when it is whole, and on the disk.

    It is written beside its place, under a name that no other writer has, which ends in
    ".part". If the block raises, it is deleted and what was at `path` stays. A link at
    `path` is replaced, not followed. A device, such as "/dev/stdout", is written to.

    Raises:
        OSError: if it cannot be written.
    """
    path = pathlib.Path(path)
    if _is_device(path):
        with open(path, "wb") as file:
            yield file
        return
    part = path.with_name(f"{path.name[:_NAME]}.{secrets.token_hex(4)}.part")
    try:
        with created(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the name too must outlive a power failure
        finally:
            os.close(folder)


def _is_device(path: pathlib.Path) -> bool:
    known = path.exists() and not (path.is_file() or path.is_dir())
    return known or path.absolute().is_relative_to("/dev")


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file by `whole`; text as UTF-8.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> write_whole(path, "text")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('text', 1)
    """
    if isinstance(content, str):  # names of files may have what UTF-8 has not
        content = content.encode("utf-8", "backslashreplace")
    with whole(path) as file:
        file.write(content)

"""A mark in a directory that one writer at a time writes into it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from keras_osgd.base.files import NEW, created

__all__ = ["NAME", "REFRESHED", "STALE", "DirectoryLock", "locked"]

NAME = "in_use.lock"
REFRESHED = 15.0  # seconds between two refreshes by the process that holds it
STALE = 120.0  # seconds without a refresh after which the process counts as dead
_MOST = 4096  # bytes of a mark that are read
_TRIES, _PAUSE = 20, 0.05  # to take it over, and seconds between two
_HELD: set[str] = set()  # tokens of this process


class _Mark(NamedTuple):
    """What is found at the place of a mark: its bytes, and the time of the file."""

    content: bytes
    refreshed: float

    @property
    def holder(self) -> dict[str, Any]:
        """Who made it; empty where that cannot be read."""
        try:
            found = json.loads(self.content)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class DirectoryLock:
    """Lets one writer at a time, of all processes and threads, use a directory.

    It is a file, in_use.lock, that names the process. What a process of this host left
    there that lives no more, as after `kill -9`, is taken over at once. A process of
    another host, or of another container, cannot be looked for: it refreshes the time
    of the file every 15 seconds, and counts as dead after two minutes without, by the
    clock of the file system. Neither hard links nor locks of the file system are used.

    Args:
        directory: exists.

    Example:
        >>> import tempfile
        >>> lock = DirectoryLock(tempfile.mkdtemp())
        >>> lock.acquire()
        >>> [path.name for path in lock.directory.iterdir()]
        ['in_use.lock']
        >>> lock.release()
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        """Takes nothing yet."""
        self.directory = pathlib.Path(directory)
        self.path = self.directory / NAME
        self._token, self._process = secrets.token_hex(8), os.getpid()
        self._over = threading.Event()
        self._refreshing: threading.Thread | None = None

    def acquire(self) -> None:
        """Takes the directory.

        Raises:
            RuntimeError: if another writer has it.
            OSError: if no files can be written into it.
        """
        _HELD.add(self._token)  # first: else another thread could take it for stale
        try:
            self._make()
        except BaseException:
            self.release()
            raise
        name = "keras_osgd_lock"
        self._refreshing = threading.Thread(
            target=self._refresh, name=name, daemon=True
        )
        self._refreshing.start()

    def _make(self) -> None:
        own = {"host": _host(), "pid": self._process, "token": self._token}
        own["started"] = _started(self._process)
        for _ in range(_TRIES):
            try:
                file = os.open(self.path, os.O_WRONLY | NEW, 0o666)
            except FileExistsError:
                self._take_over()
                continue
            try:
                os.write(file, json.dumps(own).encode())
                os.fsync(file)
            except BaseException:
                self.path.unlink(missing_ok=True)
                raise
            finally:
                os.close(file)
            return
        raise RuntimeError(self._refusal("several processes that begin at once", ""))

    def _take_over(self) -> None:
        """Removes a mark that is stale.

        Raises:
            RuntimeError: if its writer may be alive.
        """
        found = _read(self.path)
        if found is None:  # it has just ended
            return
        self._refuse_living(found)
        # One at a time: else what the first has just made could go as stale.
        taking = self.path.with_name(f"{NAME}.taking")
        try:
            os.close(os.open(taking, os.O_WRONLY | NEW, 0o666))
        except FileExistsError:
            other = _read(taking)
            if other is not None and self._now() - other.refreshed > STALE:
                taking.unlink(missing_ok=True)
            time.sleep(_PAUSE)
            return
        try:
            if _read(self.path) == found:
                self.path.unlink()
        finally:
            taking.unlink(missing_ok=True)

    def _refuse_living(self, found: _Mark) -> None:
        holder = found.holder
        pid, host = holder.get("pid"), holder.get("host")
        if host == _host() and isinstance(pid, int) and pid > 0:
            if pid == os.getpid():
                if holder.get("token") in _HELD:
                    raise RuntimeError(
                        self._refusal("another `fit` of this process", "")
                    )
                return
            started = _started(pid)
            if started is None or (started and started != holder.get("started")):
                return
            if started:
                raise RuntimeError(self._refusal(f"process {pid} of this host", ""))
        age = self._now() - found.refreshed
        if age <= STALE:
            who = f"process {pid} of {str(host).split(' ')[0]}" if host else "a process"
            last = (
                f" It was refreshed {max(age, 0):.0f} seconds ago; if that process is "
                f"dead, wait until it is {STALE:.0f}."
            )
            raise RuntimeError(self._refusal(who, last))

    def _refusal(self, holder: str, last: str) -> str:
        return (
            "A directory must have one writer at a time. Received: "
            f"{self.directory}, which {holder} writes into, by {self.path}.{last} Wait "
            "until it ends, end it, or take another directory."
        )

    def _now(self) -> float:
        """Returns the time by the clock of the file system; hosts' own may differ."""
        path = self.path.with_name(f"{NAME}.{self._token}")
        with created(path) as file:
            now = os.fstat(file.fileno()).st_mtime
        path.unlink()
        return now

    def _refresh(self) -> None:
        while not self._over.wait(REFRESHED):
            with contextlib.suppress(OSError):  # such as a file system that is away
                if self._is_own(_read(self.path)):
                    follow = os.utime not in os.supports_follow_symlinks
                    os.utime(self.path, follow_symlinks=follow)

    def _is_own(self, found: _Mark | None) -> bool:
        return found is not None and found.holder.get("token") == self._token

    def require(self) -> None:
        """Takes the directory again if its mark was deleted.

        Raises:
            RuntimeError: if another writer has taken it, who found no life in this one.
            OSError: if that cannot be looked up.
        """
        found = _read(self.path)
        if found is None:
            self._make()
        elif not self._is_own(found):
            raise RuntimeError(
                "A directory must have one writer at a time. Received: "
                f"{self.directory}, which another one has taken over, as {self.path} "
                f"was not refreshed for {STALE:.0f} seconds. Nothing more is written "
                "there: go on in that one, or take another directory."
            )

    def release(self) -> None:
        """Gives the directory back; does nothing if it is not held."""
        if os.getpid() != self._process:  # a fork of the one that holds it
            return
        self._over.set()
        if self._refreshing is not None:
            self._refreshing.join()
        self._refreshing = None
        with contextlib.suppress(OSError):
            if self._is_own(_read(self.path)):
                self.path.unlink()
        _HELD.discard(self._token)


@contextlib.contextmanager
def locked(directory: str | os.PathLike) -> Iterator[None]:
    """Holds a directory, made if it is missing, during the block; see the class.

    Raises:
        RuntimeError: if another writer has it.
        OSError: if no files can be written into it.
    """
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    lock = DirectoryLock(directory)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read(path: pathlib.Path) -> _Mark | None:
    """Returns what is at a mark's place, or `None` if there is nothing."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    try:
        content, about = os.read(file, _MOST), os.fstat(file)
    finally:
        os.close(file)
    return _Mark(content, about.st_mtime)


def _host() -> str:
    """Returns a name of this system, within which process numbers are unique."""
    parts = [socket.gethostname() or "unnamed"]
    with contextlib.suppress(OSError):
        parts.append(
            pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        )
    with contextlib.suppress(OSError):  # containers may share a name
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """Returns when a process began; "" if that is unknown, `None` if it is dead."""
    if os.name != "posix":  # where signal 0 would be sent
        return ""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:  # another user's
        pass
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]  # a zombie writes no more

"""A directory has one writer at a time, whoever dies when."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from keras_osgd.base import directory_lock
from keras_osgd.base.directory_lock import NAME, STALE, DirectoryLock

OTHER_HOST = {"host": "elsewhere", "pid": 1, "started": "1", "token": "a"}


def files(directory: pathlib.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def mark(directory, holder, age=0.0) -> bytes:
    """Writes a mark that was refreshed `age` seconds ago."""
    content = holder if isinstance(holder, bytes) else json.dumps(holder).encode()
    path = directory / NAME
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)
    return content


def of_process(pid: int, **changes) -> dict:
    started = directory_lock._started(pid)
    host = directory_lock._host()
    return {"host": host, "pid": pid, "started": started, "token": "a", **changes}


@pytest.fixture
def child():
    """A process that lives until the test ends it."""
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_second_writer_of_the_process_is_refused_until_the_first_ends(tmp_path):
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    first.acquire()
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(RuntimeError, match="another `fit` of this process"):
        second.acquire()
    second.release()
    assert (tmp_path / NAME).read_bytes() == before and files(tmp_path) == [NAME]
    first.require()
    first.release()
    second.acquire()
    second.release()
    assert files(tmp_path) == []


def test_a_living_process_is_refused_and_a_dead_one_is_taken_over_at_once(
    tmp_path, child
):
    mark(tmp_path, of_process(child.pid))
    lock = DirectoryLock(tmp_path)
    with pytest.raises(RuntimeError, match=f"process {child.pid} of this host.*{NAME}"):
        lock.acquire()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays as a zombie
    lock.acquire()
    assert json.loads((tmp_path / NAME).read_bytes())["pid"] == os.getpid()
    lock.release()


STALE_MARKS = {
    "a number that another process has now": lambda: (of_process(1, started="7"), 0),
    "this process, which let it go": lambda: (of_process(os.getpid()), 0),
    "another host, not refreshed": lambda: (OTHER_HOST, STALE + 5),
    "nothing that can be read, and old": lambda: (b'{"host": "el', STALE + 5),
}
LIVING_MARKS = {
    "a process of this host, however old": lambda: (of_process(1), 10 * STALE),
    "another host": lambda: (OTHER_HOST, STALE - 30),
    "a container of this host": lambda: (of_process(2**22 + 5, host="h b pid:[1]"), 0),
    "one that is just being written": lambda: (b"", 0),
}


@pytest.mark.parametrize("kind", STALE_MARKS)
def test_what_a_dead_writer_left_is_taken_over(tmp_path, kind):
    mark(tmp_path, *STALE_MARKS[kind]())
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    lock.require()
    lock.release()
    assert files(tmp_path) == []


@pytest.mark.parametrize("kind", LIVING_MARKS)
def test_what_may_be_a_living_writers_is_left_alone(tmp_path, kind):
    content = mark(tmp_path, *LIVING_MARKS[kind]())
    lock = DirectoryLock(tmp_path)
    with pytest.raises(RuntimeError, match="Wait until it ends, end it, or take"):
        lock.acquire()
    lock.release()
    assert files(tmp_path) == [NAME] and (tmp_path / NAME).read_bytes() == content


def test_of_many_that_take_over_at_once_one_succeeds(tmp_path):
    for _ in range(10):
        mark(tmp_path, of_process(1, started="7"))
        begin, won, lost = threading.Barrier(8), [], []

        def contend(begin=begin, won=won, lost=lost):
            lock = DirectoryLock(tmp_path)
            begin.wait()
            try:
                lock.acquire()
                won.append(lock)
            except RuntimeError as error:
                lost.append(error)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)
        won[0].require()
        won[0].release()
        assert files(tmp_path) == []


def test_a_fresh_mark_is_not_taken_for_the_stale_one_before_it(tmp_path, monkeypatch):
    mark(tmp_path, OTHER_HOST, STALE + 5)
    real, begun = DirectoryLock._refuse_living, []

    def slow(self, found):  # the other one takes over between look and deed
        real(self, found)
        if not begun:
            begun.append(DirectoryLock(tmp_path))
            begun[0].acquire()

    monkeypatch.setattr(DirectoryLock, "_refuse_living", slow)
    with pytest.raises(RuntimeError, match="another `fit` of this process"):
        DirectoryLock(tmp_path).acquire()
    begun[0].require()
    begun[0].release()


def test_a_mark_that_was_lost_is_noticed_and_one_that_was_deleted_made_again(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    (tmp_path / NAME).unlink()
    lock.require()
    assert files(tmp_path) == [NAME]
    content = mark(tmp_path, OTHER_HOST)
    with pytest.raises(RuntimeError, match="another one has taken over.*go on in that"):
        lock.require()
    lock.release()
    assert (tmp_path / NAME).read_bytes() == content


def test_a_holder_refreshes_its_mark_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(directory_lock, "REFRESHED", 0.01)
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    locks = [DirectoryLock(own), DirectoryLock(other)]
    for lock in locks:
        lock.acquire()
        os.utime(lock.path, (1.0, 1.0))
    mark(other, OTHER_HOST, age=50)
    past = locks[1].path.stat().st_mtime
    while locks[0].path.stat().st_mtime == 1.0:  # for ever, if it is not refreshed
        time.sleep(0.01)
    time.sleep(0.05)
    assert locks[1].path.stat().st_mtime == past
    for lock in locks:
        lock.release()


def test_no_link_is_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / NAME).symlink_to(victim)
    with pytest.raises(OSError, match=NAME):
        DirectoryLock(tmp_path / "shared").acquire()
    assert victim.read_text() == "whole"

"""Forked processes that are killed, or whose disk fails, at a chosen call. What the tests of this folder share.

A fork of a process that has imported everything costs a hundredth of a second, and nothing that a kill breaks in it
reaches the next one.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

LIMIT_S = 120
"""A guard: no run of the tests here takes a tenth of it."""
CREATING = ("open", "write", "os.mkdir", "os.rename", "fsync")


class Disturbance:
    """Counts the calls that change the disk below the working folder, and does something at one of them.

    What it sees is what Python does: open for writing, os.write, os.fsync, rename, remove, mkdir, rmdir, truncate. A
    write counts twice, and is done by half between the two. It stays for the rest of the process: for forks.
    """

    def __init__(self, at: int, act: Callable[[str], None], *, is_counting: bool = True) -> None:
        """
        Args:
            at: number of the call, from 1; negative: this call and all after it; 0: none.
            act: gets what the call does.
            is_counting: from now on; else from when the attribute is set.
        """
        self.at, self.act, self.is_counting = at, act, is_counting
        self.calls, self.root = 0, os.getcwd()
        self._write, self._fsync = os.write, os.fsync
        os.write, os.fsync = self.write, self.fsync  # type: ignore[assignment]
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple) -> None:
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            is_change = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if is_change and isinstance(args[0], (str, os.PathLike)) and os.path.abspath(args[0]).startswith(self.root):
                self.tick("open")
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            self.tick(event)

    def write(self, descriptor: int, content: Any) -> int:
        self.tick("write")
        if self.calls + 1 == self.at and self.is_counting and len(content) > 1:
            self._write(descriptor, content[: len(content) // 2])
        self.tick("write")
        return self._write(descriptor, content)

    def fsync(self, descriptor: int) -> None:
        self.tick("fsync")
        self._fsync(descriptor)

    def tick(self, event: str) -> None:
        if not self.is_counting:
            return
        self.calls += 1
        if self.calls == self.at or self.at < 0 and self.calls >= -self.at:
            self.act(event)


def kill_oneself(_event: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_with(number: int) -> Callable[[str], None]:
    """An action that lets calls which create or write fail with this errno."""

    def fail(event: str) -> None:
        if event in CREATING:
            raise OSError(number, os.strerror(number))

    return fail


def fork(action: Callable[[], int | None], log: Path) -> int:
    """Starts `action` in a new process, whose output is added to `log`. Returns its number.

    It exits with what `action` returns, or 0; with 3 after an exception, whose traceback is in the log.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # not a test's capture
        code = action() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def end(pid: int, limit_s: float = LIMIT_S) -> int:
    """The exit code of a forked process, or minus the signal that ended it; one that hangs is killed.

    Raises:
        TimeoutError: it did not end by itself.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} did not end within {limit_s} s")


def descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and those that they have, the oldest first; none if it has ended."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process.pid for process in sorted(found, key=psutil.Process.create_time)]

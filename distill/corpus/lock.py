"""One run at a time on an output folder.

The lock is the kernel's (flock) on a file that holds the process number, so that a run that was killed leaves no lock
behind, whatever file it leaves. NFS passes such locks to its server; a file system without locks is used without.
"""

import importlib
import importlib.util
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from distill.errors import InputError

_WAIT_SECONDS = 0.5


@contextmanager
def exclusive(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a folder, which is made if it is not there; waits while another run has it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    is_waiting = False
    while (descriptor := _try_lock(path)) is None:
        if not is_waiting:
            report(f"{folder}: waiting for {_holder(path)}, which is working there")
            is_waiting = True
        time.sleep(_WAIT_SECONDS)
    with _held(path, descriptor):
        yield


@contextmanager
def only_run(folder: Path, report: Callable[[str], None]) -> Iterator[int | None]:
    """Holds the lock of a run's output folder; gives the lock's descriptor, or None where there are no locks.

    A process that inherits the descriptor holds the lock, too. So the lock outlives a killed run until the processes
    that it started have saved and left; that is waited for.

    Raises:
        InputError: another run is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".run.lock"
    is_waiting = False
    while (descriptor := _try_lock(path)) is None:
        holder = _holder(path)
        if not is_gone(holder):
            raise InputError(
                f"{folder}: {holder} is at work there; wait until it has finished, stop it, or choose another "
                f"output_dir"
            )
        if not is_waiting:
            report(f"{folder}: waiting for what {holder} had started to save and leave; it was killed")
            is_waiting = True
        time.sleep(_WAIT_SECONDS)
    with _held(path, descriptor):
        yield descriptor if descriptor >= 0 else None


def _try_lock(path: Path) -> int | None:
    """An open descriptor with the lock, None if somebody has it, -1 where there are no locks."""
    if importlib.util.find_spec("fcntl") is None:  # Windows: two runs at once are the user's care
        return -1
    fcntl = importlib.import_module("fcntl")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return -1
        if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
        os.close(descriptor)  # its holder removed the file between our open and our lock


@contextmanager
def _held(path: Path, descriptor: int) -> Iterator[None]:
    if descriptor < 0:
        yield
        return
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{this_process()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _holder(path: Path) -> str:
    """Who wrote the lock file: "process N on HOST"."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except FileNotFoundError:
        return "another process"


def this_process() -> str:
    """What this process is called, for others to see whether it is gone: "process N on HOST"."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def is_gone(process: str) -> bool:
    """Whether a process is known to have ended: it ran on this machine and does not run any more."""
    found = re.fullmatch(r"process (\d+) on (.*)", process)
    return found is not None and found[2] == socket.gethostname() and not psutil.pid_exists(int(found[1]))

"""One run at a time on an output folder.

The lock is the kernel's (flock) on a file that holds the process number, so that a run that was killed leaves no lock
behind, whatever file it leaves.
"""

import importlib
import importlib.util
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_WAIT_SECONDS = 0.5


@contextmanager
def exclusive(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a folder, which is made if it is not there; waits while another run has it."""
    folder.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("fcntl") is None:  # Windows: two runs at once are the user's care
        yield
        return
    fcntl = importlib.import_module("fcntl")
    path = folder / ".lock"
    is_waiting = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_waiting:
                holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "another process"
                report(f"{folder}: waiting for {holder}, which is working there")
                is_waiting = True
            os.close(descriptor)
            time.sleep(_WAIT_SECONDS)
            continue
        if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
            break
        os.close(descriptor)  # its holder removed the file between our open and our lock
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)

"""A run's own status.json: what a command does on the folder, or how the last one ended.

A stage's processes tell of themselves in the stage's folder. This file is of the command that leads them, and the one
answer to who asks from outside whether somebody is at work (`distill watch`). It is touched every BEAT_SECONDS, so that
a command that was killed, with or without its machine, is known by its silence, on other machines, too.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from distill.corpus.lock import only_run, this_process
from distill.errors import InputError, first_line
from distill.launch.interruption import Terminated
from distill.launch.processes import Interrupted, StageFailed
from distill.release.run_folder import PREPARING, STATUS_FILE
from distill.training.loop import StageStopped
from distill.training.metrics import StatusFile

BEAT_SECONDS = 20.0
"""A fraction of run_folder.SILENT_SECONDS, since a network's file system may show times late."""


class Work:
    """The one command that is at work on a run's folder."""

    def __init__(self, status: StatusFile, lock: int | None) -> None:
        """
        Args:
            lock: descriptor of the run's lock, which processes that it starts hold, too; None without locks.
        """
        self.lock, self._status = lock, status

    def begin(self, part: str) -> None:
        """Says what is done from now on: one of run_folder's PREPARING, TRAINING, FINE_TUNING, REPORTING."""
        self._status.write("running", doing=part, process=this_process())


@contextlib.contextmanager
def at_work(output: Path, show: Callable[[str], None]) -> Iterator[Work]:
    """Holds the lock of a run's folder, and keeps its status.json.

    Raises:
        InputError: another command is at work there; its status.json stays as it is.
    """
    with only_run(output, show) as lock:
        status = StatusFile(output / STATUS_FILE)
        work = Work(status, lock)
        work.begin(PREPARING)
        try:
            with _beating(status.path):
                yield work
        except BaseException as error:
            is_stop = isinstance(error, (KeyboardInterrupt, Terminated, Interrupted, StageStopped))
            status.write("stopped" if is_stop else "failed", message=_message(error))
            raise
        status.write("finished", message="")


def _message(error: BaseException) -> str:
    if isinstance(error, (InputError, StageFailed, Interrupted)):
        return str(error)
    if isinstance(error, Exception) and not isinstance(error, StageStopped):
        return f"{type(error).__name__}: {first_line(error, 300)}"
    return "stopped; the same command goes on"


@contextlib.contextmanager
def _beating(path: Path) -> Iterator[None]:
    """Touches a file now and then."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="run-status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

"""Memory of this machine: how much is left for us, and the most that a piece of work held.

A container's limit counts as well as the machine's: the kernel ends a process that goes over either.
"""

import threading
from pathlib import Path
from types import TracebackType

import psutil

_CGROUP_2 = ("memory.max", "memory.current", "inactive_file")
_CGROUP_1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")
_SAMPLE_SECONDS = 0.002


def memory_left(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be used: of the machine, or of this container if its limit is nearer."""
    left = [psutil.virtual_memory().available]
    for limit_name, used_name, cache_name in (_CGROUP_2, _CGROUP_1):
        limit, used = (_read_number(cgroup / name) for name in (limit_name, used_name))
        if limit is not None and used is not None:
            # Files in the page cache count as used, but make room when asked.
            left.append(limit - used + _read_statistic((cgroup / limit_name).with_name("memory.stat"), cache_name))
    return max(0, min(left))


def _read_number(path: Path) -> int | None:
    """The number in a file; None if there is no such file, or "max" in it."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _read_statistic(path: Path, name: str) -> int:
    """A value of a `memory.stat`; 0 if it is not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


class PeakMemory:
    """Measures, while it is entered, the most memory that this process held; `growth` is that minus the start's."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self.growth = 0

    def __enter__(self) -> "PeakMemory":
        self._start = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        self.growth = max(self.growth, self._process.memory_info().rss - self._start)

"""Facts of this machine, and the environment of processes to come: no torch, and no context on a GPU they may need."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

_SECONDS = 8.0
"""Without persistence mode the driver starts for each call."""


def list_gpus(fields: str = "name") -> list[str] | None:
    """A line for each GPU, with these fields of `nvidia-smi --query-gpu`; None if nvidia-smi does not answer.

    A machine without nvidia-smi has none: an empty list.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else [line.strip() for line in done.stdout.splitlines() if line.strip()]


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """As the kernel gives it, else as Python does."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo, '' if it is not there."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def child_environment() -> dict[str, str]:
    """This process's environment, for a Python that imports the same package wherever it is started."""
    package_root = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))}

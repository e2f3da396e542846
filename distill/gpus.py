"""GPUs as nvidia-smi lists them: no import of torch, and no context on a device, which processes to come may need."""

import shutil
import subprocess

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

"""When and on what a stage's processes ran: a line in the stage's passes.jsonl each time, for the report.

These are the facts that differ from run to run. They stand in no file that two equal runs share.
"""

import contextlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distill.downstream.latency import describe_processor
from distill.machine import list_gpus

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "textbrewer", "ltp", "datasets", "tokenizers", "accelerate", "numpy")


@contextlib.contextmanager
def record_pass(path: Path, *, students: Sequence[str], processes: int) -> Iterator[None]:
    """Appends how long the block took and how it ended ("finished", or the exception's name).

    Args:
        processes: over all machines; `seconds` times this is what the pass cost.
    """
    begun, start = datetime.now(UTC), time.monotonic()
    outcome = "finished"
    try:
        yield
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        machine = {**describe_processor(), "gpu": next(iter(list_gpus() or []), None)}
        record = {
            "students": list(students), "processes": processes, "begun": begun.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - start, 1), "outcome": outcome,
            "machine": {**machine, "system": platform.platform(terse=True)}, "versions": find_versions(),
        }  # fmt: skip
        _append(path, record)


def find_versions() -> dict[str, str]:
    """Of Python and the packages that decide results; those that are not installed are left out."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _append(path: Path, record: dict[str, Any]) -> None:
    """A disk that takes no line must not end a run that has just finished."""
    try:
        with path.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        logger.warning("%s cannot be written (%s)", path, error)

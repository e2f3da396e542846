"""What a stage tells about itself: metrics.jsonl, TensorBoard, and the status file that the parent process reads."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATUS_SECONDS = 0.5
"""Least time between two writes of the status file, in seconds."""


class MetricsLog:
    """Appends records to metrics.jsonl and TensorBoard. Only the first process has one.

    A record has `step`, `samples`, `tokens`, `split` ("train" or "dev"), `student`, then its values.
    """

    def __init__(self, folder: Path, *, students: list[str], step: int) -> None:
        """Opens the log and cuts these students' records back to `step`, from where the run goes on."""
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [
            line for line in read_metrics(self.path) if 0 < line["step"] <= step or line["student"] not in students
        ]  # fmt: skip
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, self.path)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(
        self, *, step: int, samples: int, tokens: int, split: str, student: str, values: Mapping[str, float]
    ) -> None:
        """Adds one record."""
        record = {"step": step, "samples": samples, "tokens": tokens, "split": split, "student": student, **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{student}/{split}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete records of a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class StatusFile:
    """The stage's state as one small JSON file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0.0
        self._messages: list[str] = []

    def note(self, message: str) -> None:
        """A line that the user should see; it is shown once."""
        self._messages.append(message)

    def write(self, state: str, *, force: bool = True, **facts: Any) -> None:
        """Replaces the file, at most every STATUS_SECONDS unless forced.

        Args:
            state: "running", "finished", "stopped" or "failed".
        """
        now = time.monotonic()
        if not force and now - self._written < STATUS_SECONDS:
            return
        self._written = now
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".partial{os.getpid()}")
        partial.write_text(json.dumps({"state": state, "messages": self._messages, **facts}), encoding="utf-8")
        os.replace(partial, self.path)


def read_status(path: Path) -> dict[str, Any]:
    """The stage's last status; empty if there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}

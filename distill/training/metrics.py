"""What a stage tells about itself: metrics.jsonl, TensorBoard, and the status file that the parent process reads."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from distill.durable import remove_file, write_all, write_whole

logger = logging.getLogger(__name__)

STATUS_SECONDS = 0.5
"""Least time between two writes of the status file, in seconds."""


class Board(Protocol):
    """Something that shows values over steps."""

    def add(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends records to metrics.jsonl and TensorBoard. Only the first process has one.

    A record has `step`, `samples`, `tokens`, `split` ("train" or "dev"), `student`, then its values. A full disk does
    not end a run: records wait in memory until they can be written.
    """

    def __init__(self, folder: Path, *, students: list[str], step: int, trackers: Sequence[Board] = ()) -> None:
        """Opens the log and cuts these students' records back to `step`, from where the run goes on.

        Args:
            trackers: get every value that TensorBoard gets.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [
            line for line in read_metrics(self.path) if 0 < line["step"] <= step or line["student"] not in students
        ]  # fmt: skip
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._dev = {(line["step"], line["student"]) for line in kept if line["split"] == "dev"}
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        self._size = os.fstat(self._descriptor).st_size
        self._waiting = b""
        self._is_warned = False
        self._boards: list[Board] = [_TensorBoard(folder / "tensorboard", step + 1), *trackers]

    def write(
        self, *, step: int, samples: int, tokens: int, split: str, student: str, values: Mapping[str, float]
    ) -> None:
        """Adds one record."""
        record = {"step": step, "samples": samples, "tokens": tokens, "split": split, "student": student, **values}
        self._waiting += json.dumps(record).encode() + b"\n"
        self._append_waiting()
        if split == "dev":
            self._dev.add((step, student))
        for board in self._boards:
            board.add({f"{student}/{split}/{name}": value for name, value in values.items()}, step)

    def has_dev(self, step: int, student: str) -> bool:
        """Whether the model was measured on dev after this step."""
        return (step, student) in self._dev

    def flush(self) -> None:
        """Waits until all records are on the disk: before a checkpoint, so that the log never ends before it."""
        self._append_waiting()
        if not self._waiting:
            os.fsync(self._descriptor)

    def close(self) -> None:
        self._append_waiting()
        os.close(self._descriptor)
        for board in self._boards:
            board.close()

    def _append_waiting(self) -> None:
        try:
            write_all(self._descriptor, self._waiting)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)  # no half record
            if not self._is_warned:
                self._is_warned = True
                logger.warning("%s cannot be written (%s); records wait in memory", self.path, error)
            return
        self._size += len(self._waiting)
        self._waiting, self._is_warned = b"", False


class _TensorBoard:
    """TensorBoard's files, given up with a warning when they cannot be written: metrics.jsonl has all of it."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter | None = None
        with self._giving_up():
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, values: Mapping[str, float], step: int) -> None:
        with self._giving_up():
            for name, value in values.items():
                if self._writer:
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with self._giving_up():
            if self._writer:
                self._writer.close()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            logger.warning("TensorBoard's files cannot be written (%s); metrics.jsonl goes on", error)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete records of a metrics.jsonl; a line cut short by a kill, or damaged, is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"split", "student"} <= record.keys() and isinstance(record.get("step"), int):
            records.append(record)
    return records


class StatusFile:
    """The stage's state as one small JSON file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0.0
        self._messages: list[str] = []

    def go_on(self, before: Mapping[str, Any]) -> None:
        """Takes over the lines of a process whose place this one takes, and says that it does."""
        self._messages = [*before.get("messages", [])]
        why = before.get("message") or "a process died"
        self.note(f"started again ({why})")

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
        content = json.dumps({"state": state, "messages": self._messages, **facts})
        partial = self.path.with_suffix(f".partial{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(content, encoding="utf-8")
            os.replace(partial, self.path)
        except OSError as error:
            remove_file(partial)
            if force:
                self._overwrite(content, error)

    def _overwrite(self, content: str, error: OSError) -> None:
        """Writes into the old file, for which a full disk has room: what is said must be heard."""
        try:
            with self.path.open("r+b") as file:
                file.write(content.encode())
                file.truncate()
        except OSError:
            logger.warning("%s cannot be written (%s); it should say: %s", self.path, error, content)


def read_status(path: Path) -> dict[str, Any]:
    """The stage's last status; empty if there is none, or only a part of it yet."""
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}

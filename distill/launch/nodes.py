"""Several machines on one run: each node's launcher tells the others through the shared output folder how it is.

Every launcher writes `nodes/node-<rank>.json` anew every two seconds, with a count that rises. A file that an earlier
run left stands still, so what it says is believed only once it changes while somebody looks; clocks are not compared.

 1. Node 0 leads: it prepares the data while the others wait, for as long as its count rises.
 2. For each pass of a stage node 0 hands over a turn: stage and students. All nodes start their processes.
 3. A node that fails says why, and the others end their processes with the same message. A node that falls silent
    ends them, too. Node 0 may then hand over another turn (--max-restarts), or says that it has failed.
 4. When all is trained, node 0 says so, and the others leave.
"""

import hashlib
import json
import logging
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distill.durable import write_json
from distill.errors import InputError
from distill.launch.processes import StageFailed

logger = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 600.0
"""A node that is not heard of for so long is taken for dead. NFS alone may hide a change for a minute."""
REASON_SECONDS = 30.0
"""So long a node whose connection broke waits for another one to say what happened."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Turn:
    """One pass of a stage, for all nodes to train."""

    run: str  # of node 0's launcher, another one each time that it is started
    number: int
    stage: str
    students: list[str]


class OtherNode:
    """What another node's launcher says, from the moment on at which this is made."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.rank = rank
        self._path = _note(folder, rank)
        self._last_read = self._read()
        self._heard_at = time.monotonic()
        self.said: dict[str, Any] = {}

    def listen(self) -> None:
        """Looks at its file."""
        found = self._read()
        if found and found != self._last_read:
            self._last_read = self.said = found
            self._heard_at = time.monotonic()

    def expect(self) -> None:
        """From now on it should be heard of."""
        self._heard_at = time.monotonic()

    def failure(self, turn: Turn | None, silence_seconds: float) -> Exception | None:
        """Why a turn cannot be trained with it: an error that it tells, or its silence."""
        if self.said.get("state") == "failed" and (
            turn is None or self.said["turn"] in (None, [turn.run, turn.number])
        ):
            kind = InputError if self.said["exit_code"] == 2 else StageFailed
            return kind(f"node {self.rank}: {self.said['message']}")
        silent = time.monotonic() - self._heard_at
        if self.said.get("state") != "finished" and silent > silence_seconds:
            return StageFailed(
                f"node {self.rank}: no sign of life for {silent / 60:.0f} min in {self._path.parent}; start it with "
                f"NODE_RANK={self.rank}, the same command and the same output folder, which all nodes must share"
            )
        return None

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # not there, or replaced on another machine at this moment
            return {}


class Launcher:
    """This node's launcher among those of a run: while entered, the others hear that it is alive."""

    def __init__(
        self, output: Path, rank: int, others: range, *,
        beat_seconds: float = BEAT_SECONDS, silence_seconds: float = SILENCE_SECONDS,
        reason_seconds: float = REASON_SECONDS,
    ) -> None:  # fmt: skip
        self._path = _note(output, rank)
        self.others = [OtherNode(output, other) for other in others]
        self.turn: Turn | None = None
        self._beat_seconds, self._silence_seconds, self._reason_seconds = beat_seconds, silence_seconds, reason_seconds
        self._says: dict[str, Any] = {"launcher": uuid.uuid4().hex, "beat": 0, "state": "waiting", "turn": None}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True, name="nodes")

    def __enter__(self) -> Self:
        self.say()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self.say(state="finished")
        else:
            self.say_failed(error)

    def say(self, **news: Any) -> None:
        """Writes this node's file, with new facts."""
        with self._lock:
            self._says |= {"beat": self._says["beat"] + 1, **news}
            try:
                write_json(self._path, self._says)
            except OSError as error:  # a disk that is full for a while ends no run
                logger.warning("%s cannot be written (%s); other nodes take this one for dead in a while",
                               self._path, error)  # fmt: skip

    def say_failed(self, error: BaseException) -> None:
        """Tells the others that this node's part of the turn has failed, or that it leaves."""
        message = str(error) if isinstance(error, Exception) else "stopped by a signal"
        self.say(state="failed", message=message, exit_code=2 if isinstance(error, InputError) else 1)

    def failure(self) -> Exception | None:
        """Why the turn cannot be trained to its end: what the first of the other nodes that failed says."""
        return next((failure for node in self.others if (failure := self._failure_of(node))), None)

    def explain(self, error: StageFailed) -> Exception:
        """The error itself, or what another node says if that is where it came from."""
        until = time.monotonic() + self._reason_seconds
        while error.is_lost and time.monotonic() < until:
            if failure := self.failure():
                return failure
            time.sleep(_POLL_SECONDS)
        return error

    def _failure_of(self, node: OtherNode) -> Exception | None:
        return node.failure(self.turn, self._silence_seconds)

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            self.say()
            for node in self.others:
                node.listen()


class Leader(Launcher):
    """Node 0."""

    def __init__(self, output: Path, nnodes: int, **seconds: float) -> None:
        super().__init__(output, 0, range(1, nnodes), **seconds)

    def hand_over(self, stage: str, students: list[str], recipe: str) -> None:
        """Asks all nodes to train these students of a stage now.

        Args:
            recipe: the text that all nodes should have the same of.
        """
        number = self.turn.number + 1 if self.turn else 1
        self.turn = Turn(self._says["launcher"], number, stage, students)
        for node in self.others:
            node.expect()
        self.say(state="training", turn=[self.turn.run, number], stage=stage, students=students, recipe=_hash(recipe))


class Follower(Launcher):
    """Any other node."""

    def __init__(self, output: Path, rank: int, **seconds: float) -> None:
        super().__init__(output, rank, range(1), **seconds)

    def next_turn(self, recipe: str) -> Turn | None:
        """Waits for the next pass to train; None when node 0 has finished.

        Raises:
            InputError: node 0 ended because of the user's input, or trains another recipe than this node's `recipe`.
            StageFailed: node 0 failed or was stopped, or is not heard of.
        """
        (leader,) = self.others
        last, self.turn = self.turn, None
        while True:
            said = leader.said
            if failure := self._failure_of(leader):
                raise failure
            if said.get("state") == "finished":
                return None
            if said.get("state") == "training" and (last is None or said["turn"] != [last.run, last.number]):
                break
            time.sleep(_POLL_SECONDS)
        if said["recipe"] != _hash(recipe):
            raise InputError(
                "this node was started with another recipe, or other options, than node 0; start all nodes with the "
                "same command"
            )
        run, number = said["turn"]
        self.turn = Turn(run, number, said["stage"], said["students"])
        self.say(state="training", turn=said["turn"])
        return self.turn

    def failure(self) -> Exception | None:
        """As of every launcher; node 0 may also have given the turn up for another one."""
        (leader,) = self.others
        if self.turn and leader.said.get("turn") not in (None, [self.turn.run, self.turn.number]):
            return StageFailed("node 0 has given this attempt up", is_lost=True)
        return super().failure()


def _note(output: Path, rank: int) -> Path:
    return output / "nodes" / f"node-{rank}.json"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""Starting the processes of a stage, or of a fine-tuning run, from a light parent, and passing signals on to them.

One process is started directly, several through torchrun. Their output goes to a log file; what the user needs to see
comes through the status file, so one mistake is one line whatever the number of processes.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.errors import InputError
from distill.launch.interruption import handling
from distill.machine import child_environment
from distill.training.metrics import StatusFile, read_status

CHILD = "DISTILL_CHILD"
"""Environment variable that marks a process which the parent started to train one stage: the parent's number."""
POLL_SECONDS = 0.3
SAVE_SECONDS = "120"
"""How long torchrun lets its processes finish a step and save after a signal; its own default is 30."""
OUT_OF_MEMORY = ", most likely because memory ran out"
_FAILURE = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+) \(pid: (\d+)\)")
"""An entry of torchrun's report on dead processes."""


class StageFailed(Exception):
    """The processes ended without finishing; the message is what the user should read.

    `is_final`: the same would happen again. `is_lost`: nothing of it is known but that a process is gone.
    """

    def __init__(self, message: str, *, is_final: bool = False, is_lost: bool = False) -> None:
        super().__init__(message)
        self.is_final, self.is_lost = is_final, is_lost


class Interrupted(Exception):
    """A signal ended the run in good order; a checkpoint was written if a stage was training."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass(frozen=True)
class Cluster:
    """How many processes there are and where: torchrun's numbers."""

    nproc: int = 1
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29500

    @classmethod
    def from_environment(cls) -> "Cluster":
        """NPROC, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT; NPROC defaults to the visible GPUs, or 1.

        Raises:
            InputError: one of them is not a sensible number.
        """
        values = {
            "NPROC": os.environ.get("NPROC") or str(visible_gpus() or 1),
            "NNODES": os.environ.get("NNODES") or "1",
            "NODE_RANK": os.environ.get("NODE_RANK") or "0",
            "MASTER_PORT": os.environ.get("MASTER_PORT") or "29500",
        }
        for name, value in values.items():
            least = 0 if name == "NODE_RANK" else 1
            if not value.isdecimal() or int(value) < least:
                raise InputError(f"environment variable {name}: expected a whole number from {least}, found '{value}'")
        nproc, nnodes, node_rank, port = map(int, values.values())
        if node_rank >= nnodes:
            raise InputError(f"NODE_RANK {node_rank} does not fit NNODES {nnodes}: ranks count from 0")
        return cls(nproc, nnodes, node_rank, os.environ.get("MASTER_ADDR") or "127.0.0.1", port)

    @property
    def world_size(self) -> int:
        return self.nproc * self.nnodes


@dataclass(frozen=True)
class Ended:
    """How the processes of a command ended.

    `dead`: which of them a signal ended, '' if none. `reason`: why they were given up.
    """

    code: int
    status: dict[str, Any]
    signum: int = 0
    dead: str = ""
    reason: Exception | None = None

    @property
    def is_finished(self) -> bool:
        return self.status.get("state") == "finished" and self.code == 0

    @property
    def message(self) -> str:
        """What the first process to speak said."""
        return str(self.status.get("message", ""))


def visible_gpus() -> int:
    """The GPUs that a process started now would see."""
    import torch

    return torch.cuda.device_count()


def is_worker() -> bool:
    """Whether this process is one of those that train, started by our parent or by the user's own torchrun."""
    return CHILD in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def run_to_end(
    command: list[str], name: str, cluster: Cluster, status_file: Path, log_file: Path, show: Callable[[str], None], *,
    lock: int | None = None, give_up: Callable[[], Exception | None] = lambda: None,
) -> Ended:  # fmt: skip
    """Starts a command, shows what its status file tells until it ends, and passes signals on.

    Args:
        name: what the lines that are shown begin with.
        log_file: gets its output, at the end.
        lock: descriptor of the run's lock, which the processes hold, too.
        give_up: why the processes should be ended before they have finished, asked now and then; None: they should not.
    """
    status_file.parent.mkdir(parents=True, exist_ok=True)
    status_file.unlink(missing_ok=True)
    with log_file.open("ab") as log:
        begin = log.tell()
        child = subprocess.Popen(
            command, env=_environment(cluster), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=os.name != "nt", pass_fds=() if lock is None else (lock,),
        )  # fmt: skip
        signum, reason = _watch(child, status_file, name, show, give_up)
    dead = describe_dead_process(_read_from(log_file, begin), child.pid, child.returncode)
    return Ended(child.returncode, read_status(status_file), signum, dead, reason)


def tell_failure(status: StatusFile, message: str, code: int, *, is_final: bool = False, is_lost: bool = False) -> None:
    """Writes a failure for the parent. The first process to speak is heard.

    Args:
        is_final: it would happen again.
        is_lost: the failure is another process's, which left this one without connection; any other is better known.
    """
    said = read_status(status.path)
    if said.get("state") != "failed" or said.get("is_lost") and not is_lost:
        status.write("failed", message=message, exit_code=code, is_final=is_final, is_lost=is_lost)


def _environment(cluster: Cluster) -> dict[str, str]:
    environment = {**child_environment(), CHILD: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    if cluster.world_size > 1:
        environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SAVE_SECONDS)
    if cluster.nproc > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // cluster.nproc)))
    return environment


def describe_dead_process(log: str, pid: int, code: int) -> str:
    """Which process a signal ended, by torchrun's report in the log or the child's own code; '' if none.

    Args:
        log: what the processes printed.
        pid, code: of the child: the one process, or torchrun.
    """
    failures = [(int(code), rank, pid) for rank, code, pid in _FAILURE.findall(log)]
    # The others were ended by torchrun's SIGTERM, or for want of the first.
    dead = next((failure for failure in failures if failure[0] < 0 and failure[0] != -signal.SIGTERM), None)
    if dead:
        number, who = -dead[0], f"process {dead[1]} (pid {dead[2]})"
    elif code < 0:
        number, who = -code, f"its process (pid {pid})"
    else:
        return ""
    name = signal.Signals(number).name
    return f"{who} was ended by {name}{OUT_OF_MEMORY if name == 'SIGKILL' else ''}"


def torchrun(cluster: Cluster, max_restarts: int = 0) -> list[str]:
    """The command that starts the processes of this node; what each should do follows it."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={cluster.nproc}",
               f"--max-restarts={max_restarts}"]  # fmt: skip
    if cluster.nnodes == 1:
        return [*command, "--standalone"]
    return [
        *command, f"--nnodes={cluster.nnodes}", f"--node-rank={cluster.node_rank}",
        f"--master-addr={cluster.master_addr}", f"--master-port={cluster.master_port}",
    ]  # fmt: skip


def _watch(
    child: subprocess.Popen, status_file: Path, name: str, show: Callable[[str], None],
    give_up: Callable[[], Exception | None],
) -> tuple[int, Exception | None]:  # fmt: skip
    """Draws the progress bar until the child ends; passes signals on, and ends it when `give_up` says so.

    Returns: the signal that came, or 0, and what `give_up` said.
    """
    received: list[int] = []
    reason: Exception | None = None

    def forward(signum: int, _frame: Any) -> None:
        received.append(signum)
        _signal_child(child, signum, kill=len(received) > 1)

    with handling(forward), ExitStack() as on_exit:
        bar, shown = None, 0
        while True:
            code = child.poll()
            status = read_status(status_file)
            for message in status.get("messages", [])[shown:]:
                shown += 1
                show(f"{name}: {message}")
            if status.get("steps") and (bar is None or status["step"] > bar.n):
                interval = 0.3 if sys.stderr.isatty() else 30
                bar = bar or on_exit.enter_context(
                    tqdm(total=status["steps"], initial=status["step"], desc=name, unit="step", mininterval=interval,
                         miniters=1)
                )  # fmt: skip
                if "loss" in status:
                    speed = f"{status['tokens_per_second']:,.0f} tokens/s"
                    bar.set_postfix_str(f"loss {status['loss']:.3f}, {speed}", refresh=False)
                bar.update(status["step"] - bar.n)
            if code is not None:
                return received[0] if received else 0, reason
            if reason is None and not received and (reason := give_up()):
                _signal_child(child, signal.SIGTERM, kill=False)
            time.sleep(POLL_SECONDS)


def _signal_child(child: subprocess.Popen, signum: int, *, kill: bool) -> None:
    """Passes a signal on; the second one ends the child and all its processes at once."""
    if child.poll() is not None:
        return
    if sys.platform == "win32":
        child.terminate()
    elif kill:
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.send_signal(signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)


def _read_from(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")

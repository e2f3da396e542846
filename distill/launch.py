"""Starting a stage's processes from a light parent, watching its status file, and passing signals on.

One process is started directly, several through torchrun. Their output goes to the stage's log file; what the user
needs to see comes through the status file, so one mistake is one line whatever the number of processes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.errors import InputError
from distill.training.metrics import read_status

CHILD = "DISTILL_CHILD"
"""Environment variable that marks a process which the parent started to train one stage."""
POLL_SECONDS = 0.3


class StageFailed(Exception):
    """A stage's processes ended without finishing; the message is what the user should read."""


class Interrupted(Exception):
    """A signal ended the run in good order; a checkpoint was written if a stage was training."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass(frozen=True)
class Cluster:
    """How many processes a stage has and where: torchrun's numbers."""

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
        nproc = os.environ.get("NPROC") or str(_visible_gpus() or 1)
        values = {"NPROC": nproc, "NNODES": os.environ.get("NNODES") or "1"}
        values |= {
            "NODE_RANK": os.environ.get("NODE_RANK") or "0",
            "MASTER_PORT": os.environ.get("MASTER_PORT") or "29500",
        }
        for name, value in values.items():
            least = 0 if name == "NODE_RANK" else 1
            if not value.isdecimal() or int(value) < least:
                raise InputError(f"environment variable {name}: expected a whole number from {least}, found '{value}'")
        nproc_n, nnodes, node_rank, port = (int(value) for value in values.values())
        if node_rank >= nnodes:
            raise InputError(f"NODE_RANK {node_rank} does not fit NNODES {nnodes}: ranks count from 0")
        return cls(nproc_n, nnodes, node_rank, os.environ.get("MASTER_ADDR") or "127.0.0.1", port)

    @property
    def world_size(self) -> int:
        return self.nproc * self.nnodes


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def is_worker() -> bool:
    """Whether this process was started to train one stage, by our parent or by the user's own torchrun."""
    return CHILD in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def run_stage_processes(
    recipe_file: Path, stage: str, *, cluster: Cluster, status_file: Path, log_file: Path, show: Callable[[str], None]
) -> None:
    """Runs `distill train RECIPE --stage NAME` in all processes of this node until it has finished.

    Raises:
        InputError: the user's input was wrong.
        Interrupted: after SIGINT or SIGTERM.
        StageFailed: anything else.
    """
    status_file.parent.mkdir(parents=True, exist_ok=True)
    status_file.unlink(missing_ok=True)
    own = [sys.executable, "-m", "distill", "train", str(recipe_file), "--stage", stage]
    command = own if cluster.world_size == 1 else [*_torchrun(cluster), *own[1:]]
    environment = {**os.environ, CHILD: "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    if cluster.nproc > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // cluster.nproc)))
    with log_file.open("ab") as log:
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                 start_new_session=os.name != "nt")  # fmt: skip
        signum = _watch(child, status_file, stage, show)
    status = read_status(status_file)
    if status.get("state") == "finished" and child.returncode == 0:
        return
    message = str(status.get("message", ""))
    if signum:
        raise Interrupted(signum, message or f"stage '{stage}' was stopped; the same command goes on with it")
    if status.get("exit_code") == 2:
        raise InputError(message)
    if message:
        raise StageFailed(f"{message} (details: {log_file})")
    hint = ""
    if child.returncode in (-9, 137) or "Signal 9" in _tail(log_file):
        hint = "; it was killed, most likely because memory ran out: lower micro_batch_size"
    raise StageFailed(
        f"stage '{stage}': a process ended with code {child.returncode} without a message{hint}; see {log_file}"
    )


def _torchrun(cluster: Cluster) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={cluster.nproc}"]
    if cluster.nnodes == 1:
        return [*command, "--standalone"]
    return [
        *command, f"--nnodes={cluster.nnodes}", f"--node-rank={cluster.node_rank}",
        f"--master-addr={cluster.master_addr}", f"--master-port={cluster.master_port}",
    ]  # fmt: skip


def _watch(child: subprocess.Popen, status_file: Path, stage: str, show: Callable[[str], None]) -> int:
    """Draws the progress bar until the child ends; passes signals on. Returns the signal that came, or 0."""
    received: list[int] = []

    def forward(signum: int, _frame: Any) -> None:
        received.append(signum)
        _signal_child(child, signum, kill=len(received) > 1)

    handlers = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    bar, shown = None, 0
    try:
        while True:
            code = child.poll()
            status = read_status(status_file)
            for message in status.get("messages", [])[shown:]:
                shown += 1
                show(f"{stage}: {message}")
            if status.get("steps") and (bar is None or status["step"] > bar.n):
                interval = 0.3 if sys.stderr.isatty() else 30
                bar = bar or tqdm(total=status["steps"], initial=status["step"], desc=stage, unit="step",
                                  mininterval=interval, miniters=1)  # fmt: skip
                if "loss" in status:
                    speed = f"{status['tokens_per_second']:,.0f} tokens/s"
                    bar.set_postfix_str(f"loss {status['loss']:.3f}, {speed}", refresh=False)
                bar.update(status["step"] - bar.n)
            if code is not None:
                return received[0] if received else 0
            time.sleep(POLL_SECONDS)
    finally:
        if bar is not None:
            bar.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _signal_child(child: subprocess.Popen, signum: int, *, kill: bool) -> None:
    """Passes a signal on; the second one ends the child and all its processes at once."""
    if child.poll() is not None:
        return
    if sys.platform == "win32":
        child.terminate()
    elif kill:
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.send_signal(signum)


def _tail(path: Path, size: int = 4000) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")

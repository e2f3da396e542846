"""One fine-tuning run in several processes, which share every batch; downstream/sharing.py makes their losses add up.

1. The parent has checked everything and holds the lock of the run's folder. It starts `distill finetune` once more,
   with the same arguments, in every process.
2. Each process trains; the first one writes the results, and tells the parent every epoch through the status file.
3. A signal or a failure ends all of them at once. Only whole files are written, and metrics.json is the last, so the
   same command does the run again from its start.
"""

import contextlib
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from distill.downstream.distillation import find_matches
from distill.downstream.finetune import CHECKPOINTS
from distill.downstream.grid import Run
from distill.downstream.search import load_run_data, train_run
from distill.downstream.task_data import TaskData
from distill.errors import InputError, first_line
from distill.launch.interruption import end_signals
from distill.launch.processes import (
    CHILD,
    OUT_OF_MEMORY,
    Cluster,
    Interrupted,
    StageFailed,
    run_to_end,
    tell_failure,
    torchrun,
    visible_gpus,
)
from distill.training.metrics import StatusFile, read_status
from distill.training.processes import is_lost_connection, is_out_of_memory
from distill.training.signals import stop_without

STATUS_FILE, LOG_FILE = "status.json", "processes.log"


def check_processes(run: Run, num_processes: int) -> None:
    """InputError unless the processes can share a run: GPUs, batches, losses."""
    where = f"command line: --processes {num_processes}"
    if 0 < (gpus := visible_gpus()) < num_processes:
        raise InputError(f"{where}: each takes a GPU, and {gpus} are visible; give at most {gpus}")
    batch_size = run.hyperparameters.batch_size
    if batch_size % num_processes:
        fits = max(1, round(batch_size / num_processes)) * num_processes
        raise InputError(
            f"{where}: a batch of {batch_size} examples cannot be shared evenly; change one of them, as in "
            f"--batch-size {fits}"
        )
    matches = find_matches(run.distillation, run.model) if run.distillation else []
    if across := next((match["loss"] for match in matches if match["loss"].startswith("sample_")), None):
        raise InputError(f"{where}: '{across}' compares the examples of a batch, which must be in one process")


def train_in_processes(
    run: Run, data: TaskData, show: Callable[[str], None], *, num_processes: int, arguments: Sequence[str]
) -> None:
    """Does a run whose lock is held here.

    Args:
        data: which each process reads for itself.
        arguments: of the command line, for the processes.
    Raises:
        InputError, Interrupted, StageFailed: see launch.
    """
    cluster, task, log_file = Cluster(nproc=num_processes), run.task.name, run.folder / LOG_FILE
    log_file.unlink(missing_ok=True)
    command = [*torchrun(cluster), "-m", "distill", *arguments]
    try:
        ended = run_to_end(command, task, cluster, run.folder / STATUS_FILE, log_file, show)
    finally:
        (run.folder / STATUS_FILE).unlink(missing_ok=True)
        shutil.rmtree(run.folder / CHECKPOINTS, ignore_errors=True)
    if ended.is_finished or ended.signum or ended.status.get("exit_code") == 2:
        log_file.unlink(missing_ok=True)
    if ended.signum:
        what = "the run has finished" if ended.is_finished else "the same command does the run again from its start"
        raise Interrupted(ended.signum, f"{task}: {what}")
    if ended.is_finished:
        return
    if ended.status.get("exit_code") == 2:
        raise InputError(ended.message)
    if ended.dead and (not ended.message or ended.status.get("is_lost")):
        hint = ": more processes need less each" if ended.dead.endswith(OUT_OF_MEMORY) else ""
        raise StageFailed(f"{task}: {ended.dead}{hint} (details: {log_file})")
    said = ended.message or f"a process ended with code {ended.code} without a message"
    raise StageFailed(f"{task}: {said} (details: {log_file})")


def train_as_child(run: Run) -> int:
    """Does a run as one of the processes that its parent started; returns the exit code."""
    for number in end_signals():
        signal.signal(number, signal.SIG_DFL)  # there is nothing to save
    stop_without(int(os.environ[CHILD]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    status = StatusFile(run.folder / STATUS_FILE)

    def show(line: str) -> None:
        status.note(line.removeprefix(f"{run.task.name}: "))
        if read_status(status.path).get("state") != "failed":
            status.write("running")

    try:
        train_run(run, load_run_data(run), show)
        if os.environ["RANK"] == "0":
            status.write("finished")
        return 0
    except InputError as error:
        tell_failure(status, str(error), 2)
        return 2
    except Exception as error:
        traceback.print_exc()
        tell_failure(status, _explain(error), 1, is_lost=is_lost_connection(error))
        return 1
    finally:
        with contextlib.suppress(RuntimeError):  # another process is gone already
            if dist.is_initialized():
                dist.destroy_process_group()


def _explain(error: Exception) -> str:
    """One line for an unexpected error."""
    if is_lost_connection(error):
        return "a process was lost"
    if is_out_of_memory(error):
        return "out of memory; more processes need less each"
    return f"{type(error).__name__}: {first_line(error, 300)}"

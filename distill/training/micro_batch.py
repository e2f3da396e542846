"""`"micro_batch_size": "auto"`: the largest micro-batch that fits, tried once and written into the stage's folder.

A run that goes on from a checkpoint takes what is written there, since dropout depends on how a step is cut. 1, 2, 4,
... sequences are tried with the stage's own objective, forward and backward, on real rows of the step that masks most;
all processes try the same size at a time.

On CUDA the size before the first that does not fit is taken. What the optimiser will need is held while trying.
On the CPU there is no such error: the kernel ends a process that takes too much, or the machine swaps. There the peak
is predicted, linear in the size, from the two sizes before; it must stay below half of the memory that is left, divided
by the processes of this machine. And a size that is not 2 % faster than the one before it is not worth its memory.

Trying changes no weights, no optimiser and no random state.
"""

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from distill.corpus.batches import MicroBatch, StepBatches
from distill.durable import write_json
from distill.json_file import read_json
from distill.training.loop import Teacher, rehearse_step
from distill.training.memory import PeakMemory, memory_left
from distill.training.processes import Processes, largest_over_processes, share_from_first
from distill.training.student import StudentRun

FILE = "micro_batch_size.json"
WORTHWHILE = 1.02
"""A larger micro-batch must be at least so many times as fast, on the CPU."""
_REPEATS = 2
_OPTIMISER_BYTES = 12
"""Two moments and the buffer of the gradients' sum, float32, a parameter."""


@dataclass(frozen=True)
class Trial:
    """One size that was tried; the worst of all processes."""

    rows: int
    fits: bool
    seconds: float = 0.0
    growth: int = 0  # bytes that the process grew by at its peak; CPU only


def settle_micro_batch(
    folder: Path,
    *,
    students: list[StudentRun],
    teacher: Teacher | None,
    batches: StepBatches,
    step: int,
    goes_on: bool,
    processes: Processes,
    tell: Callable[[str], None],
) -> int:
    """The size that the stage's folder names, if the run goes on, else the one found by trying, which is written there.

    Args:
        batches: rows to try on, of the step `step`.
        goes_on: from a checkpoint. At its beginning a stage tries anew, since students or machine may be others.
        tell: shows a line about what was found.
    Raises:
        torch.OutOfMemoryError: not even one sequence fits.
    """
    path = folder / FILE
    # The first process reads for all, so that all take the same whatever a shared file system shows them.
    known = int(read_json(path)["micro_batch_size"]) if goes_on and processes.is_first and path.exists() else 0
    if rows := share_from_first(known, processes):
        return rows
    largest = -(-batches.global_batch_size // processes.world_size)
    first = step * batches.global_batch_size

    def try_rows(rows: int) -> Trial:
        batch = batches.load(range(first, first + rows))
        return _agree(_try_batch(students, teacher, batch, processes.device), processes)

    if processes.device.type == "cuda":
        trials = try_until_full(try_rows, largest)
    else:
        limit = -largest_over_processes(-memory_left() / 2 / _local_processes(), processes)
        trials = try_while_faster(try_rows, largest, limit)
    rows = trials[-1].rows
    if processes.is_first:
        write_json(path, {"micro_batch_size": rows, "tried": [vars(trial) for trial in trials]})
        speeds = ", ".join(f"{trial.rows}: {trial.rows / trial.seconds:.1f}/s" for trial in trials)
        tell(f"micro_batch_size: {rows} sequences (sequences and speed tried: {speeds})")
    return rows


def try_until_full(try_rows: Callable[[int], Trial], largest: int) -> list[Trial]:
    """The trials that fit, in doubling sizes up to `largest`.

    Raises:
        torch.OutOfMemoryError: not even one sequence fits.
    """
    trials: list[Trial] = []
    for rows in _sizes(largest):
        trial = try_rows(rows)
        if not trial.fits:
            break
        trials.append(trial)
    if not trials:
        raise torch.OutOfMemoryError("not even one sequence fits")
    return trials


def try_while_faster(try_rows: Callable[[int], Trial], largest: int, limit: float) -> list[Trial]:
    """The trials up to the last size that is worthwhile and predicted to need less than `limit` bytes."""
    trials: list[Trial] = []
    for rows in _sizes(largest):
        if len(trials) > 1 and _predict_growth(trials, rows) > limit:
            break
        trial = try_rows(rows)
        if trials and rows / trial.seconds < WORTHWHILE * trials[-1].rows / trials[-1].seconds:
            break
        trials.append(trial)
    return trials


def _sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest`."""
    return [*(2**i for i in range((largest - 1).bit_length())), largest]


def _predict_growth(trials: list[Trial], rows: int) -> float:
    """Bytes at `rows`, on the line through the last two trials; never less than the last."""
    before, last = trials[-2:]
    slope = max(0.0, (last.growth - before.growth) / (last.rows - before.rows))
    return last.growth + slope * (rows - last.rows)


def _try_batch(students: list[StudentRun], teacher: Teacher | None, batch: MicroBatch, device: torch.device) -> Trial:
    """One process's trial; the fastest of some repeats, the first of which warms up."""
    rows, seconds, growth = len(batch.lengths), [], 0
    try:
        held = _hold_optimiser_memory(students, device)
        for _ in range(1 + _REPEATS):
            start = time.perf_counter()
            with PeakMemory() as peak:
                rehearse_step(students, teacher, batch.to(device))
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
            growth = max(growth, peak.growth)
        del held
    except torch.OutOfMemoryError:
        seconds = []
    finally:
        for student in students:
            student.clear_gradients()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    return Trial(rows, bool(seconds), min(seconds[1:], default=0.0), growth)


def _hold_optimiser_memory(students: list[StudentRun], device: torch.device) -> torch.Tensor | None:
    """Memory that the optimisers will take at their first step, on CUDA."""
    if device.type != "cuda":
        return None
    new = sum(parameter.numel() for student in students if not student.optimizer.state
              for parameter in student.parameters)  # fmt: skip
    return torch.empty(_OPTIMISER_BYTES * new, dtype=torch.uint8, device=device)


def _agree(trial: Trial, processes: Processes) -> Trial:
    """The worst of all processes."""
    failed = largest_over_processes(float(not trial.fits), processes)
    seconds = largest_over_processes(trial.seconds, processes)
    return Trial(trial.rows, not failed, seconds, int(largest_over_processes(float(trial.growth), processes)))


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))

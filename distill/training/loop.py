"""The training loop: one optimiser step of all students of a pass after the other.

 1. The loader gives this process's micro-batches of step k; counts of all processes are summed on the CPU.
 2. Each micro-batch: one teacher forward, then forward and backward of each student, whose terms are weighted by
    the micro-batch's share of the step's counts.
 3. Gradients are summed over the processes once, then each student clips and updates by itself.
 4. Every so often: a log line (the only time the host waits for the device), dev evaluation, a checkpoint.

What is decided elsewhere: which samples and masks (`corpus.batches`), what a loss is (`objective`), what is saved
(`student`, `checkpoint`).
"""

import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import BertForMaskedLM

from distill.corpus.batches import MicroBatch
from distill.training.losses import MASKED, SEQUENCES, TOKEN_PAIRS, TOKENS
from distill.training.objective import Features, Needs, encode
from distill.training.precision import Autocast
from distill.training.processes import Processes, sum_gradients, sum_over_processes
from distill.training.signals import StopRequest
from distill.training.student import StudentRun

logger = logging.getLogger(__name__)

UNITS = (MASKED, TOKENS, TOKEN_PAIRS, SEQUENCES)


class StageStopped(Exception):
    """A signal asked the run to stop; `step` optimiser steps are done."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by signal {signum} after step {step}")
        self.signum, self.step = signum, step


class TrainingFailed(Exception):
    """The run cannot go on; the message says at which step and why."""


@dataclass(frozen=True)
class StepReport:
    """What the loop tells after a step. `values` is there on log steps only."""

    step: int
    tokens: int
    values: dict[str, dict[str, float]] | None


class TeacherPass:
    """The frozen teacher, run once a micro-batch for all students (twice where some need attention matrices).

    Attention matrices exist only on the eager path, whose rounding differs from the fused one. Students without
    attention matches keep the fused path, so that their weights do not depend on their siblings.
    """

    def __init__(self, model: BertForMaskedLM, needs: Iterable[Needs], autocast: Autocast):
        self.model = model.eval().requires_grad_(False)
        self.autocast = autocast
        self.needs: dict[bool, Needs] = {}
        for need in needs:
            self.needs[need.attention] = self.needs.get(need.attention, need) | need

    @torch.no_grad()
    def __call__(self, batch: MicroBatch) -> dict[bool, Features]:
        """Features by whether they came with attention matrices."""
        features = {}
        for attention, needs in self.needs.items():
            if len(self.needs) > 1 or attention:
                self.model.set_attn_implementation("eager" if attention else "sdpa")
            with self.autocast():
                features[attention] = encode(self.model, batch, needs)
        return features


@dataclass
class _Sums:
    """Logged values since the last log line, kept on the device until then."""

    device: torch.device
    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().float()
        self.values[name] = self.values[name] + value if name in self.values else value

    def read(self, processes: Processes, steps: int) -> dict[str, float]:
        """Means over the steps since the last call, summed over processes; one transfer."""
        names = sorted(self.values)
        stacked = sum_over_processes(torch.stack([self.values[name] for name in names]).cpu().double(), processes)
        self.values.clear()
        return {name: value / steps for name, value in zip(names, stacked.tolist(), strict=True)}


def run_steps(
    students: list[StudentRun],
    teacher: TeacherPass | None,
    steps: Iterable[list[MicroBatch]],
    *,
    first_step: int,
    tokens: int,
    log_every: int,
    last_step: int,
    processes: Processes,
    stop: StopRequest,
) -> Iterator[StepReport]:
    """Trains, yielding a report after each optimiser step.

    Args:
        steps: this process's micro-batches of the steps from `first_step` (0-based) on.
        first_step: optimiser steps that are done already.
        tokens: tokens seen in them by all processes.
        last_step: the log speaks at the end, too.
    Raises:
        StageStopped: a process was asked to stop; all of them leave at the same step, with its updates done.
        TrainingFailed: a loss is not finite.
    """
    sums = {student.name: _Sums(processes.device) for student in students}
    norms = {student.name: _Sums(processes.device) for student in students}
    started, logged_step, logged_tokens = time.perf_counter(), first_step, tokens
    for step, batches in enumerate(steps, start=first_step + 1):
        counts = [count_units(batch) for batch in batches]
        totals = torch.tensor([*(sum(c[unit] for c in counts) for unit in UNITS), float(stop.signum)]).double()
        *unit_totals, signum = sum_over_processes(totals, processes).tolist()
        if signum:
            raise StageStopped(stop.signum or int(signum / processes.world_size), step - 1)
        for micro_step, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            share = {unit: count[unit] / total for unit, total in zip(UNITS, unit_totals, strict=True)}
            _forward_backward(students, teacher, batch.to(processes.device), share, sums,
                              step=step, micro_step=micro_step, rank=processes.rank)  # fmt: skip
        sum_gradients(itertools.chain.from_iterable(s.parameters for s in students), processes)
        for student in students:
            norms[student.name].add("grad_norm", student.step())
        tokens += int(unit_totals[UNITS.index(TOKENS)])
        values = None
        if step % log_every == 0 or step == last_step:
            elapsed_s = time.perf_counter() - started
            values = {}
            for student in students:
                mine = sums[student.name].read(processes, step - logged_step)
                mine["grad_norm"] = norms[student.name].read(Processes(0, 1, processes.device), step - logged_step)[
                    "grad_norm"
                ]
                mine["learning_rate"] = student.scheduler.get_last_lr()[0]
                mine["tokens_per_second"] = (tokens - logged_tokens) / elapsed_s
                values[student.name] = mine
            _check_finite(values, logged_step, step)
            started, logged_step, logged_tokens = time.perf_counter(), step, tokens
        yield StepReport(step, tokens, values)


def _forward_backward(
    students: list[StudentRun], teacher: TeacherPass | None, batch: MicroBatch, share: dict[str, float],
    sums: dict[str, _Sums], *, step: int, micro_step: int, rank: int,
) -> None:  # fmt: skip
    """One micro-batch: teacher once, then each student's forward and backward."""
    features = teacher(batch) if teacher else {}
    for student in students:
        student.seed_dropout(step=step, micro_step=micro_step, rank=rank)
        objective = student.objective
        loss, terms = objective(batch, features.get(objective.teacher_needs.attention), share)
        student.scaler.scale(loss).backward()
        sums[student.name].add("loss", loss)
        for name, value in terms.items():
            sums[student.name].add(name, value)


def count_units(batch: MicroBatch) -> dict[str, float]:
    """How many of each unit that a loss may average over are in a micro-batch."""
    lengths = batch.lengths.double()
    return {
        MASKED: float(len(batch.labels)),
        TOKENS: float(lengths.sum()),
        TOKEN_PAIRS: float(lengths.square().sum()),
        SEQUENCES: float(len(lengths)),
    }


def _check_finite(values: dict[str, dict[str, float]], since: int, step: int) -> None:
    for name, mine in values.items():
        for term, value in mine.items():
            if not math.isfinite(value):
                raise TrainingFailed(
                    f"student '{name}': {term} is {value} between steps {since + 1} and {step}; lower learning_rate, "
                    f"or use precision fp32; the last checkpoint is from before"
                )

"""The training loop: one optimiser step of all students of a pass after the other.

 1. The loader gives this process's micro-batches of step k; counts of all processes are summed on the CPU.
 2. Each micro-batch: one teacher forward, then forward and backward of each student, whose terms are weighted by
    the micro-batch's share of the step's counts.
 3. Each student's gradients are summed over the processes once, in a buffer of its own; then it clips and updates.
 4. Every so often: a log line (the only time the host waits for the device), dev evaluation, a checkpoint.

What is decided elsewhere: which samples and masks (`corpus.batches`), what a loss is (`objective`), what is saved
(`student`, `checkpoint`).
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import BertForMaskedLM

from distill.corpus.batches import MicroBatch
from distill.training.accounting import Clock
from distill.training.compiling import compile_encode
from distill.training.encoder import Features, Needs, encode, needs_by_attention
from distill.training.losses import MASKED, SEQUENCES, TOKEN_PAIRS, TOKENS, UNITS
from distill.training.precision import Autocast
from distill.training.processes import Processes, sum_gradients, sum_over_processes
from distill.training.signals import StopRequest
from distill.training.step_log import StudentLog
from distill.training.student import StudentRun

Teacher = Callable[[MicroBatch], dict[bool, Features]]
"""Micro-batch -> features, by whether they came with attention matrices: a `TeacherPass`, or what stands in for it."""


class StageStopped(Exception):
    """A signal asked the run to stop; `step` optimiser steps are done."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by signal {signum} after step {step}")
        self.signum, self.step = signum, step


class TrainingFailed(Exception):
    """The run cannot go on; the message says at which step and why."""


@dataclass(frozen=True)
class StepReport:
    """What the loop tells after a step.

    `values` (means since the last time) and `losses` (of each step) are there on log steps only, by student; students
    that made no update since then are missing.
    """

    step: int
    tokens: int
    values: dict[str, dict[str, float]] | None
    losses: dict[str, dict[int, float]] = field(default_factory=dict)


class TeacherPass:
    """The frozen teacher, run once a micro-batch for all students (twice where some need attention matrices).

    Attention matrices exist only on the eager path, whose rounding differs from the fused one. Students without
    attention matches keep the fused path, so that their weights do not depend on their siblings. Layers that no match
    needs do not run where no student learns from the logits.
    """

    def __init__(
        self, model: BertForMaskedLM, needs: Iterable[Needs], autocast: Autocast, *, compiled: bool = False
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.autocast = autocast
        self.needs = needs_by_attention(needs)
        can_compile = not any(need.vectors for need in self.needs.values())
        self.is_compiled = compiled and can_compile
        self._encode = compile_encode(model) if self.is_compiled else encode
        layers = model.bert.encoder.layer
        self._layers = {key: layers if need.logits else layers[: need.layers] for key, need in self.needs.items()}

    @torch.no_grad()
    def __call__(self, batch: MicroBatch) -> dict[bool, Features]:
        """Features by whether they came with attention matrices."""
        features = {}
        for attention, needs in self.needs.items():
            if len(self.needs) > 1 or attention:
                self.model.set_attn_implementation("eager" if attention else "sdpa")
            with self.autocast(), self._only(self._layers[attention]):
                features[attention] = self._encode(self.model, batch, needs)
        return features

    @contextmanager
    def _only(self, layers: nn.ModuleList) -> Iterator[None]:
        """Lets the encoder run these layers; the model has all of them again afterwards, for its evaluation."""
        encoder = self.model.bert.encoder
        whole = encoder.layer
        encoder.layer = layers
        try:
            yield
        finally:
            encoder.layer = whole


def run_steps(
    students: list[StudentRun],
    teacher: Teacher | None,
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
    """
    logs = {student.name: StudentLog() for student in students}
    clock, logged_tokens = Clock(), tokens
    for step, batches in enumerate(clock.time_waiting(steps), start=first_step + 1):
        counts = [count_units(batch) for batch in batches]
        totals, stopping = _sum_counts(counts, stop, processes)
        if stopping:
            raise StageStopped(stop.signum or signal.SIGTERM, step - 1)
        for micro_step, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            share = {unit: count[unit] / max(totals[unit], 1) for unit in UNITS}
            seeds = {"step": step, "micro_step": micro_step, "rank": processes.rank}
            if processes.world_size == 1 and stop.interrupts():
                # A step may take minutes, and whoever asks may not wait so long. Several processes end it together.
                raise StageStopped(stop.signum, step - 1)
            _forward_backward(students, teacher, batch.to(processes.device, non_blocking=True), share, logs, seeds)
        for student in students:
            # One buffer a student: with three and more processes the order of a sum depends on the place in the buffer.
            sum_gradients(student.parameters, processes)
            logs[student.name].close_step(step, student.step(step))
        tokens += int(totals[TOKENS])
        report = StepReport(step, tokens, None)
        if step % log_every == 0 or step == last_step:
            logged = {student.name: logs[student.name].read(processes) for student in students}
            speed = clock.read(tokens - logged_tokens)
            rates = {student.name: student.scheduler.get_last_lr()[0] for student in students}
            shared = {name: {"learning_rate": rate, **speed} for name, rate in rates.items()}
            values = {name: {**mine.means, **shared[name]} for name, mine in logged.items() if mine}
            report = StepReport(step, tokens, values, {name: mine.losses for name, mine in logged.items() if mine})
            logged_tokens = tokens
        with clock.stopped():
            yield report


def _sum_counts(
    counts: list[dict[str, float]], stop: StopRequest, processes: Processes
) -> tuple[dict[str, float], bool]:
    """The step's units over all processes, and whether any process was asked to stop; one message on the CPU."""
    mine = torch.tensor([*(sum(count[unit] for count in counts) for unit in UNITS), float(stop.signum > 0)])
    *totals, stopping = sum_over_processes(mine.double(), processes).tolist()
    return dict(zip(UNITS, totals, strict=True)), stopping > 0


def _forward_backward(
    students: list[StudentRun],
    teacher: Teacher | None,
    batch: MicroBatch,
    share: dict[str, float],
    logs: dict[str, StudentLog],
    seeds: dict[str, int],
) -> None:
    """One micro-batch: teacher once, then each student's forward and backward."""
    features = teacher(batch) if teacher else {}
    for student in students:
        student.seed_dropout(**seeds)
        loss, terms = student.loss(batch, features.get(student.objective.teacher_needs.attention), share)
        student.backward(loss)
        logs[student.name].add({"loss": loss, **terms})


def rehearse_step(students: list[StudentRun], teacher: Teacher | None, batch: MicroBatch) -> None:
    """Forward and backward of a micro-batch as in training, for the time and memory that they take.

    Weights, optimisers and random state are as before, gradients are cleared.
    """
    on_gpu = batch.input_ids.device.type == "cuda"
    with torch.random.fork_rng(devices=[batch.input_ids.device] if on_gpu else []):
        _forward_backward(students, teacher, batch, dict.fromkeys(UNITS, 1.0),
                          {student.name: StudentLog() for student in students},
                          {"step": 0, "micro_step": 0, "rank": 0})  # fmt: skip
    for student in students:
        student.clear_gradients()


def count_units(batch: MicroBatch) -> dict[str, float]:
    """How many of each unit that a loss may average over are in a micro-batch."""
    lengths = batch.lengths.numpy()  # on the CPU still
    return {
        MASKED: float(len(batch.labels)),
        TOKENS: float(lengths.sum()),
        TOKEN_PAIRS: float((lengths**2).sum()),
        SEQUENCES: float(len(lengths)),
    }

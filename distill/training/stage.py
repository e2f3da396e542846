"""One stage on one process: loads what it needs, runs the loop, evaluates, saves, and leaves finished model folders."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import BertForMaskedLM

from distill.corpus.batches import DevBatches, MicroBatch, StepBatches
from distill.corpus.masking import MaskVocabulary
from distill.corpus.order import locate_samples, sample_key
from distill.corpus.rows import PackedRows
from distill.corpus.schedule import scheduled_value
from distill.modeling.models import load_config, load_masked_lm, load_tokenizer, save_model
from distill.modeling.weight_files import has_head
from distill.recipe import MaskSchedule, Stage, Student
from distill.training.accounting import Throughput, measure_peak, pass_flops
from distill.training.bookkeeping import Bookkeeper
from distill.training.checkpoint import (
    checkpoint_path,
    checkpoint_step,
    clear_leftovers,
    load_checkpoint,
    newest_checkpoint,
    set_damaged_aside,
)
from distill.training.compiling import should_compile
from distill.training.fill_cache import cache_teacher
from distill.training.loading import load_ahead
from distill.training.loop import StageStopped, StepReport, Teacher, TeacherPass, run_steps
from distill.training.metrics import StatusFile
from distill.training.micro_batch import settle_micro_batch
from distill.training.precision import choose_dtype
from distill.training.processes import Processes, share_from_first, wait_for_all
from distill.training.sharding import check_equal_forwards, shard_layers
from distill.training.signals import StopRequest
from distill.training.starting import start_student
from distill.training.student import StudentRun
from distill.training.teacher_cache import CachedSteps, CachedTeacher, RehearsedTeacher

logger = logging.getLogger(__name__)

PROBE_TOKENS = 8192
"""Most tokens to measure the terms' gradients on: plain code that keeps all activations for one term after the other
takes more memory than training does, which a micro-batch that just fits does not leave."""


@dataclass(frozen=True)
class StagePaths:
    """Everything that a stage reads and writes."""

    dataset: Path
    tokenizer: Path
    teacher: Path | None
    inits: Mapping[str, Path]
    stage: Path
    models: Path

    @property
    def checkpoints(self) -> Path:
        return self.stage / "checkpoints"

    @property
    def teacher_caches(self) -> Path:
        return self.models.parent / "teacher_cache"

    @property
    def status(self) -> Path:
        return self.stage / "status.json"


def train_stage(
    stage: Stage,
    students: list[str],
    paths: StagePaths,
    cards: Mapping[str, str],
    processes: Processes,
    stop: StopRequest,
    status: StatusFile,
) -> None:
    """Trains the named students of a stage, from the newest checkpoint if there is one, to finished model folders.

    Args:
        cards: student -> text of its README.md.
    Raises:
        InputError: see the loaders of models and data.
        StageStopped: after a signal, with a checkpoint written.
        TrainingFailed: a loss or gradient is no number, or the disk takes no checkpoint when one is needed.
        OSError: the disk takes no model.
    """
    dtype, compiled = choose_dtype(stage.precision, processes.device), should_compile(stage.compile, processes.device)
    rows = PackedRows(paths.dataset / "train")
    steps = stage.num_steps(len(rows))
    vocabulary = MaskVocabulary.from_tokenizer(load_tokenizer(paths.tokenizer))
    teacher_model = _load_teacher(stage, students, paths)
    batches = functools.partial(_make_batches, stage, rows, vocabulary, steps)
    alone = Processes(0, 1, processes.device)
    checkpoint = _choose_checkpoint(paths.checkpoints, processes, status)
    runs = [
        start_student(
            name, stage, teacher_model, init=paths.inits.get(name), steps=steps, processes=processes, dtype=dtype,
            compiled=compiled, measured_on=None if checkpoint else batches(alone),
        )
        for name in students
    ]  # fmt: skip
    teacher = _start_teacher(teacher_model, runs, stage, processes, dtype, status, compiled=compiled)
    del teacher_model  # `teacher` holds it, until a cache takes its place
    first_step, tokens = _resume(runs, checkpoint)
    arithmetic = str(dtype).removeprefix("torch.")
    if any(run.is_compiled for run in runs) or (teacher and teacher.is_compiled):
        arithmetic += ", compiled (the first step takes a while)"
    status.note(f"training on {processes.device} in {arithmetic}, from step {first_step:,}")
    if len(rows) < stage.global_batch_size:
        status.note(f"the corpus has {len(rows):,} rows, fewer than one step takes; they repeat within a step")
    if stage.micro_batch_size == "auto":
        rows_per_forward = settle_micro_batch(
            paths.stage, students=runs, batches=_make_batches(stage, rows, vocabulary, steps, processes),
            teacher=RehearsedTeacher(teacher, stage.teacher_cache.size) if stage.teacher_cache and teacher else teacher,
            step=heaviest_step(stage, steps), goes_on=first_step > 0, processes=processes, tell=status.note,
        )  # fmt: skip
        stage = stage.model_copy(update={"micro_batch_size": rows_per_forward})
        batches = functools.partial(_make_batches, stage, rows, vocabulary, steps)
    dev = _dev_batches(stage, paths, vocabulary, processes)
    keeper = Bookkeeper(
        stage, paths.stage, steps=steps, first_step=first_step, runs=runs, dev=dev, processes=processes, status=status,
        stop=stop, whole_step=lambda step: _whole_step(batches, stage, rows, step),
        throughput=Throughput(flops_per_token=_pass_flops(stage, runs, teacher), peak=measure_peak(dtype, processes)),
    )  # fmt: skip
    last = StepReport(first_step, tokens, None)
    try:
        if teacher and paths.teacher and has_head(paths.teacher):
            # All processes must run a teacher that they share equally often: each measures it on all of dev.
            whole_dev = _dev_batches(stage, paths, vocabulary, alone) if stage.shard_teacher else dev
            keeper.measure_teacher(teacher, whole_dev, alone if stage.shard_teacher else processes)
        keeper.before(last)
        source: Dataset[list[MicroBatch]] = batches(processes)
        probe = batches(alone).load(range(_probe_rows(stage)))
        teaching: Teacher | None = teacher
        if stage.teacher_cache and teacher and paths.teacher:
            files = cache_teacher(
                stage, steps, teacher, batches(processes), root=paths.teacher_caches, teacher_folder=paths.teacher,
                dataset=paths.dataset, vocabulary=vocabulary, dtype=dtype, first_step=first_step,
                probe=probe.samples, processes=processes, status=status,
            )  # fmt: skip
            cached = CachedSteps(batches(processes), files)
            source, teacher, teaching, probe = cached, None, CachedTeacher(), cached.with_teacher(probe)
        keeper.watch_gradients(teaching, probe)
        for last in run_steps(
            runs, teaching, load_ahead(source, range(first_step, steps), processes.device), first_step=first_step,
            tokens=tokens, log_every=stage.log_every, last_step=steps, processes=processes, stop=stop,
        ):  # fmt: skip
            stop.listen()
            keeper.after(last)
        keeper.summarise()
    except StageStopped:
        keeper.save(last, is_needed=True)
        raise
    finally:
        keeper.close()
    if processes.is_first:
        for run in runs:
            _finish(run, stage.students[run.name], paths, cards[run.name])
    wait_for_all(processes)


def _load_teacher(stage: Stage, students: Iterable[str], paths: StagePaths) -> BertForMaskedLM | None:
    if paths.teacher is None:
        return None
    return load_masked_lm(paths.teacher, need_head=needs_teacher_head(stage.students[name] for name in students))


def _start_teacher(
    model: BertForMaskedLM | None, runs: list[StudentRun], stage: Stage, processes: Processes, dtype: torch.dtype,
    status: StatusFile, *, compiled: bool,
) -> TeacherPass | None:  # fmt: skip
    if model is None:
        return None
    # All of it in the stage's dtype, once: autocast would cast every weight in every forward, and states in between.
    torch.nn.Module.to(model, dtype=dtype)
    if is_sharded := stage.shard_teacher and processes.world_size > 1:
        shard_layers(model, processes)
    else:
        torch.nn.Module.to(model, device=processes.device)
        if stage.shard_teacher:
            status.note("shard_teacher: there is one process, which holds the whole teacher")
    needs = [run.objective.teacher_needs for run in runs]
    if any(need.attention for need in needs):
        status.note("attention matches need eager attention: slower and with more memory than the fused kernel")
    return TeacherPass(model, needs, contextlib.nullcontext, compiled=compiled and not is_sharded)


def _pass_flops(stage: Stage, runs: list[StudentRun], teacher: TeacherPass | None) -> float:
    """Model FLOPs a token of the whole pass."""
    return pass_flops(
        teacher.model.config if teacher and not stage.teacher_cache else None,
        [(run.objective.student.config, run.objective.matches, run.settings) for run in runs],
        length=stage.max_seq_length, head_share=stage.data.mean_mask_probability(),
    )  # fmt: skip


def _choose_checkpoint(checkpoints: Path, processes: Processes, status: StatusFile) -> Path | None:
    """The newest sound checkpoint. The first process chooses, for all."""
    chosen = -1
    if processes.is_first:
        clear_leftovers(checkpoints)
        for line in set_damaged_aside(checkpoints):
            status.note(line)
        newest = newest_checkpoint(checkpoints)
        chosen = checkpoint_step(newest) if newest else -1
    step = share_from_first(chosen, processes)
    return checkpoint_path(checkpoints, step) if step >= 0 else None


def _resume(runs: list[StudentRun], checkpoint: Path | None) -> tuple[int, int]:
    """Loads a checkpoint into the students. Returns the steps done and the tokens seen."""
    if checkpoint is None:
        return 0, 0
    tensors, state = load_checkpoint(checkpoint)
    for run in runs:
        run.load(tensors, state["students"][run.name])
    logger.info("continuing from %s", checkpoint)
    return state["step"], state["tokens"]


def _make_batches(
    stage: Stage, rows: PackedRows, vocabulary: MaskVocabulary, steps: int, processes: Processes
) -> StepBatches:
    """A process's micro-batches by step, from 0."""
    if stage.shard_teacher:
        check_equal_forwards(stage.global_batch_size, stage.rows_per_forward(), processes.world_size)
    return StepBatches(
        rows, seed=stage.seed, stage=stage.name, global_batch_size=stage.global_batch_size,
        micro_batch_size=stage.rows_per_forward(), rank=processes.rank, world_size=processes.world_size,
        vocabulary=vocabulary, probability=_mask_probability(stage, steps), mask=stage.data.mask,
        static_masks=stage.data.static_masks, document_attention=stage.data.document_attention,
    )  # fmt: skip


def _whole_step(
    batches: Callable[[Processes], StepBatches], stage: Stage, rows: PackedRows, step: int
) -> tuple[list[MicroBatch], list[int]]:
    """All that a step (from 1) took, over all processes, and the rows it came from."""
    all_of_it = batches(Processes(0, 1, torch.device("cpu")))[step - 1]
    samples = np.arange(all_of_it[0].samples.start, all_of_it[-1].samples.stop)
    _, numbers = locate_samples(samples, rows=len(rows), key=sample_key(stage.seed, "stage", stage.name))
    return all_of_it, numbers.tolist()


def _probe_rows(stage: Stage) -> int:
    """How many of the stage's first sequences the terms' gradients are measured on."""
    return min(stage.rows_per_forward(), max(1, PROBE_TOKENS // stage.max_seq_length), stage.global_batch_size)


def heaviest_step(stage: Stage, steps: int) -> int:
    """The step that masks the largest share, from 0."""
    share = stage.data.mask_probability
    return steps - 1 if isinstance(share, MaskSchedule) and share.end > share.start else 0


def _mask_probability(stage: Stage, steps: int) -> float | Callable[[int], float]:
    """The share of masked tokens, or a function from the step to it."""
    share = stage.data.mask_probability
    if not isinstance(share, MaskSchedule):
        return share
    # A partial of a function travels to the loader's workers, however they are started.
    return functools.partial(scheduled_value, steps=steps, start=share.start, end=share.end, shape=share.schedule)


def _dev_batches(
    stage: Stage, paths: StagePaths, vocabulary: MaskVocabulary, processes: Processes
) -> list[MicroBatch] | None:
    """This process's dev batches, or None if the dataset has no dev part."""
    if not (paths.dataset / "dev").exists():
        return None
    batches = DevBatches(
        PackedRows(paths.dataset / "dev"),
        seed=stage.seed,
        batch_size=stage.rows_per_forward(),
        rank=processes.rank,
        world_size=processes.world_size,
        vocabulary=vocabulary,
        probability=stage.data.final_mask_probability(),
        mask=stage.data.mask,
        document_attention=stage.data.document_attention,
    )
    return [batches[i] for i in range(len(batches))]


def _finish(run: StudentRun, settings: Student, paths: StagePaths, card: str) -> None:
    """Writes the finished model folder, with the dropout that its config had before training."""
    model = run.published
    original = load_config(settings.config or paths.inits[run.name])
    model.config.hidden_dropout_prob = original.hidden_dropout_prob
    model.config.attention_probs_dropout_prob = original.attention_probs_dropout_prob
    save_model(model, paths.models / run.name, tokenizer=paths.tokenizer, card=card)


def needs_teacher_head(students: Iterable[Student]) -> bool:
    """Whether some student uses the teacher's prediction head: its logits, or its weights as a start."""
    return any(student.kd_weight > 0 or student.init_layers or student.init_width for student in students)

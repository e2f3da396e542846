"""One stage on one process: loads what it needs, runs the loop, evaluates, saves, and leaves finished model folders."""

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import BertForMaskedLM

from distill.corpus.batches import MicroBatch
from distill.corpus.masking import MaskVocabulary
from distill.corpus.rows import PackedRows
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
from distill.training.sharding import shard_layers
from distill.training.signals import StopRequest
from distill.training.stage_setting import StagePaths, StageSetting
from distill.training.starting import start_student
from distill.training.student import StudentRun
from distill.training.teacher_cache import CachedSteps, CachedTeacher, RehearsedTeacher

logger = logging.getLogger(__name__)

PROBE_TOKENS = 8192
"""Most tokens to measure the terms' gradients on: plain code that keeps all activations for one term after the other
takes more memory than training does, which a micro-batch that just fits does not leave."""


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
    rows = PackedRows(paths.dataset / "train")
    vocabulary = MaskVocabulary.from_tokenizer(load_tokenizer(paths.tokenizer))
    dtype = choose_dtype(stage.precision, processes.device)
    setting = StageSetting(stage, stage.num_steps(len(rows)), rows, vocabulary, paths, processes, status, dtype)
    runs, teacher, last = _start(setting, students)
    setting = _settle_micro_batch(setting, runs, teacher, goes_on=last.step > 0)
    stage, steps, first_step, tokens = setting.stage, setting.steps, last.step, last.tokens
    throughput = Throughput(flops_per_token=_pass_flops(stage, runs, teacher), peak=measure_peak(dtype, processes))
    keeper = Bookkeeper(setting, runs, first_step=first_step, stop=stop, throughput=throughput)
    try:
        if teacher:
            _measure_teacher(setting, teacher, keeper)
        keeper.before(last)
        teaching, source, probe = _prepare_teaching(setting, teacher, first_step)
        del teacher  # `teaching` holds it, unless a cache has taken its place
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


def _start(setting: StageSetting, students: list[str]) -> tuple[list[StudentRun], TeacherPass | None, StepReport]:
    """The students and their teacher, from the newest checkpoint if there is one, and what was done until then."""
    stage, paths, processes, status = setting.stage, setting.paths, setting.processes, setting.status
    compiled = should_compile(stage.compile, processes.device)
    teacher_model = _load_teacher(stage, students, paths)
    checkpoint = _choose_checkpoint(paths.checkpoints, processes, status)
    runs = [
        start_student(name, setting, teacher_model, compiled=compiled, goes_on=checkpoint is not None)
        for name in students
    ]
    teacher = _start_teacher(teacher_model, runs, setting, compiled=compiled)
    first_step, tokens = _resume(runs, checkpoint)
    arithmetic = str(setting.dtype).removeprefix("torch.")
    if any(run.is_compiled for run in runs) or (teacher and teacher.is_compiled):
        arithmetic += ", compiled (the first step takes a while)"
    status.note(f"training on {processes.device} in {arithmetic}, from step {first_step:,}")
    if len(setting.rows) < stage.global_batch_size:
        status.note(f"the corpus has {len(setting.rows):,} rows, fewer than one step takes; they repeat within a step")
    return runs, teacher, StepReport(first_step, tokens, None)


def _settle_micro_batch(
    setting: StageSetting, runs: list[StudentRun], teacher: TeacherPass | None, *, goes_on: bool
) -> StageSetting:
    """The setting with a number as `micro_batch_size`, where that is "auto"."""
    stage = setting.stage
    if stage.micro_batch_size != "auto":
        return setting
    rows_per_forward = settle_micro_batch(
        setting.paths.stage, students=runs, batches=setting.batches(setting.processes),
        teacher=RehearsedTeacher(teacher, stage.teacher_cache.size) if stage.teacher_cache and teacher else teacher,
        step=heaviest_step(stage, setting.steps), goes_on=goes_on, processes=setting.processes,
        tell=setting.status.note,
    )  # fmt: skip
    return replace(setting, stage=stage.model_copy(update={"micro_batch_size": rows_per_forward}))


def _measure_teacher(setting: StageSetting, teacher: TeacherPass, keeper: Bookkeeper) -> None:
    """Measures a teacher on dev that has a prediction head."""
    if setting.paths.teacher and has_head(setting.paths.teacher):
        if setting.stage.shard_teacher:
            # All processes must run a teacher that they share equally often: each measures it on all of dev.
            keeper.measure_teacher(teacher, setting.dev(setting.alone), setting.alone)
        else:
            keeper.measure_teacher(teacher, keeper.dev, setting.processes)


def _prepare_teaching(
    setting: StageSetting, teacher: TeacherPass | None, first_step: int
) -> tuple[Teacher | None, Dataset[list[MicroBatch]], MicroBatch]:
    """What teaches in the loop, the steps of the loop, and the batch that the terms' gradients are measured on."""
    batches = setting.batches(setting.processes)
    probe = setting.batches(setting.alone).load(range(_probe_rows(setting.stage)))
    if not (setting.stage.teacher_cache and teacher):
        return teacher, batches, probe
    files = cache_teacher(setting, teacher, batches, first_step=first_step, probe=probe.samples)
    cached = CachedSteps(batches, files)
    return CachedTeacher(), cached, cached.with_teacher(probe)


def _load_teacher(stage: Stage, students: Iterable[str], paths: StagePaths) -> BertForMaskedLM | None:
    if paths.teacher is None:
        return None
    return load_masked_lm(paths.teacher, need_head=needs_teacher_head(stage.students[name] for name in students))


def _start_teacher(
    model: BertForMaskedLM | None, runs: list[StudentRun], setting: StageSetting, *, compiled: bool
) -> TeacherPass | None:
    if model is None:
        return None
    stage, processes, status = setting.stage, setting.processes, setting.status
    # All of it in the stage's dtype, once: autocast would cast every weight in every forward, and states in between.
    torch.nn.Module.to(model, dtype=setting.dtype)
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


def _probe_rows(stage: Stage) -> int:
    """How many of the stage's first sequences the terms' gradients are measured on."""
    return min(stage.rows_per_forward(), max(1, PROBE_TOKENS // stage.max_seq_length), stage.global_batch_size)


def heaviest_step(stage: Stage, steps: int) -> int:
    """The step that masks the largest share, from 0."""
    share = stage.data.mask_probability
    return steps - 1 if isinstance(share, MaskSchedule) and share.end > share.start else 0


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

"""One stage on one process: loads what it needs, runs the loop, evaluates, saves, and leaves finished model folders."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import BertForMaskedLM

from distill.corpus.batches import DevBatches, MicroBatch, StepBatches
from distill.corpus.masking import MaskVocabulary
from distill.corpus.packing import PackedRows
from distill.modeling.initialise import copy_layers
from distill.modeling.models import build_model, load_config, load_masked_lm, load_tokenizer, save_model
from distill.recipe import Stage, Student
from distill.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from distill.training.evaluate import evaluate_masked_lm
from distill.training.loop import StageStopped, StepReport, TeacherPass, run_steps
from distill.training.matches import resolve_matches
from distill.training.metrics import MetricsLog, StatusFile
from distill.training.precision import autocast_for, choose_dtype
from distill.training.processes import Processes, wait_for_all
from distill.training.signals import StopRequest
from distill.training.student import StudentRun, derive_seed

logger = logging.getLogger(__name__)

TEACHER = "teacher"
"""The teacher's name in metrics.jsonl."""


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
    def status(self) -> Path:
        return self.stage / "status.json"


def train_stage(
    stage: Stage, students: list[str], paths: StagePaths, cards: Mapping[str, str], processes: Processes,
    stop: StopRequest, status: StatusFile,
) -> None:  # fmt: skip
    """Trains the named students of a stage, from the newest checkpoint if there is one, to finished model folders.

    Args:
        cards: student -> text of its README.md.
    Raises:
        InputError: see the loaders of models and data.
        StageStopped: after a signal, with a checkpoint written.
        TrainingFailed: a loss is not finite.
    """
    dtype = choose_dtype(stage.precision, processes.device)
    autocast = autocast_for(dtype, processes.device)
    rows = PackedRows(paths.dataset / "train")
    steps = stage.num_steps(len(rows))
    vocabulary = MaskVocabulary.from_tokenizer(load_tokenizer(paths.tokenizer))
    teacher_model = None
    if paths.teacher:
        teacher_model = load_masked_lm(paths.teacher, need_head=needs_teacher_head(stage.students[s] for s in students))
    runs = [
        _start_student(name, stage, paths, teacher_model, steps, processes.device, dtype) for name in students
    ]  # fmt: skip
    first_step, tokens = _resume(runs, paths.checkpoints, processes)
    teacher = None
    if teacher_model is not None:
        needs = [run.objective.teacher_needs for run in runs]
        torch.nn.Module.to(teacher_model, processes.device)
        teacher = TeacherPass(teacher_model, needs, autocast)
        if any(need.attention for need in needs):
            status.note("attention matches need eager attention: slower and with more memory than the fused kernel")
    status.note(f"training on {processes.device} in {str(dtype).removeprefix('torch.')}, from step {first_step}")
    log = MetricsLog(paths.stage, students=students, step=first_step) if processes.is_first else None
    dev = _dev_batches(stage, paths, vocabulary, processes)
    save_every, eval_every = stage.save_every or -(-steps // 10), stage.eval_every or -(-steps // 10)

    def evaluate(model: BertForMaskedLM, name: str, report: StepReport) -> None:
        if dev is None:
            return
        values = evaluate_masked_lm(model, dev, processes, autocast)
        if log:
            log.write(step=report.step, samples=report.step * stage.global_batch_size, tokens=report.tokens,
                      split="dev", student=name, values=values)  # fmt: skip

    def save(step: int, tokens: int) -> None:
        if processes.is_first:
            tensors = {stem: named for run in runs for stem, named in run.tensors().items()}
            state = {"step": step, "tokens": tokens, "students": {run.name: run.state() for run in runs}}
            save_checkpoint(paths.checkpoints, step, tensors, state)
        wait_for_all(processes)

    if teacher and first_step == 0:
        evaluate(teacher.model, TEACHER, StepReport(0, 0, None))
    batches = _load_steps(stage, rows, vocabulary, processes, first_step, steps)
    reports = run_steps(runs, teacher, batches, first_step=first_step, tokens=tokens, log_every=stage.log_every,
                        last_step=steps, processes=processes, stop=stop)  # fmt: skip
    shown: dict[str, float] = {}
    last = StepReport(first_step, tokens, None)
    try:
        for last in reports:
            if log and last.values:
                for name, values in last.values.items():
                    log.write(step=last.step, samples=last.step * stage.global_batch_size, tokens=last.tokens,
                              split="train", student=name, values=values)  # fmt: skip
                first = last.values[runs[0].name]
                shown = {"loss": first["loss"], "tokens_per_second": first["tokens_per_second"]}
            if last.step % eval_every == 0 or last.step == steps:
                for run in runs:
                    evaluate(run.objective.student, run.name, last)
            if last.step % save_every == 0 or last.step == steps:
                save(last.step, last.tokens)
            if processes.is_first:
                status.write("running", force=last.step == first_step + 1, step=last.step, steps=steps, **shown)
    except StageStopped:
        save(last.step, last.tokens)
        raise
    finally:
        if log:
            log.close()
    if processes.is_first:
        for run in runs:
            _finish(run, stage.students[run.name], paths, cards[run.name])
    wait_for_all(processes)


def _start_student(
    name: str, stage: Stage, paths: StagePaths, teacher: BertForMaskedLM | None, steps: int, device: torch.device,
    dtype: torch.dtype,
) -> StudentRun:  # fmt: skip
    """A student at step 0; a function of the recipe alone."""
    settings = stage.students[name]
    config = load_config(settings.config or paths.inits[name])
    where = f"stage '{stage.name}', student '{name}'"
    matches = resolve_matches(settings.matches, teacher.config, config, where=where) if teacher else []
    attention = "eager" if any(match["feature"] == "attention" for match in matches) else "sdpa"
    if settings.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = settings.dropout
    model = build_model(config, seed=derive_seed(stage.seed, stage.name, name, "weights"), attention=attention)
    if settings.init:
        model.load_state_dict(load_masked_lm(paths.inits[name]).state_dict())
    elif settings.init_layers and teacher is not None:
        copy_layers(teacher, model, settings.init_layers)
    return StudentRun(
        name, model, settings, matches=matches, distilled=teacher is not None, steps=steps,
        seed_parts=(stage.seed, stage.name), device=device, dtype=dtype, autocast=autocast_for(dtype, device),
    )  # fmt: skip


def _resume(runs: list[StudentRun], checkpoints: Path, processes: Processes) -> tuple[int, int]:
    """Loads the newest checkpoint into the students. Returns the steps done and the tokens seen."""
    if processes.is_first:
        newest_checkpoint(checkpoints)  # renames damaged ones before the other processes look
    wait_for_all(processes)
    newest = newest_checkpoint(checkpoints)
    if newest is None:
        return 0, 0
    tensors, state = load_checkpoint(newest)
    for run in runs:
        run.load(tensors, state["students"][run.name])
    logger.info("continuing from %s", newest)
    return state["step"], state["tokens"]


def _load_steps(
    stage: Stage, rows: PackedRows, vocabulary: MaskVocabulary, processes: Processes, first_step: int, steps: int
) -> Iterator[list[MicroBatch]]:
    """This process's micro-batches of the steps that are left, in order, prepared ahead on a GPU machine."""
    batches = StepBatches(
        rows, seed=stage.seed, stage=stage.name, global_batch_size=stage.global_batch_size,
        micro_batch_size=stage.rows_per_forward(), rank=processes.rank, world_size=processes.world_size,
        vocabulary=vocabulary, probability=stage.data.mask_probability, whole_word=stage.data.mask == "whole_word",
    )  # fmt: skip
    on_gpu = processes.device.type == "cuda"
    return iter(
        DataLoader(batches, batch_size=None, sampler=range(first_step, steps), num_workers=2 if on_gpu else 0,
                   pin_memory=on_gpu)
    )  # fmt: skip


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
        probability=stage.data.mask_probability,
        whole_word=stage.data.mask == "whole_word",
    )
    return [batches[i] for i in range(len(batches))]


def _finish(run: StudentRun, settings: Student, paths: StagePaths, card: str) -> None:
    """Writes the finished model folder, with the dropout that its config had before training."""
    model = run.objective.student
    original = load_config(settings.config or paths.inits[run.name])
    model.config.hidden_dropout_prob = original.hidden_dropout_prob
    model.config.attention_probs_dropout_prob = original.attention_probs_dropout_prob
    save_model(model, paths.models / run.name, tokenizer=paths.tokenizer, card=card)


def needs_teacher_head(students: Iterable[Student]) -> bool:
    """Whether some student uses the teacher's prediction head: its logits, or its weights as a start."""
    return any(student.kd_weight > 0 or student.init_layers for student in students)

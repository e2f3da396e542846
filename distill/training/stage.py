"""One stage on one process: loads what it needs, runs the loop, evaluates, saves, and leaves finished model folders."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import BertForMaskedLM

from distill.corpus.batches import DevBatches, MicroBatch, StepBatches
from distill.corpus.masking import MaskVocabulary
from distill.corpus.packing import PackedRows
from distill.corpus.schedule import scheduled_probability
from distill.modeling.initialise import copy_layers
from distill.modeling.models import build_model, has_head, load_config, load_masked_lm, load_tokenizer, save_model
from distill.recipe import TEACHER, MaskSchedule, Stage, Student
from distill.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from distill.training.evaluate import evaluate_masked_lm
from distill.training.loop import StageStopped, StepReport, TeacherPass, TrainingFailed, run_steps
from distill.training.matches import resolve_matches
from distill.training.metrics import MetricsLog, StatusFile
from distill.training.precision import Autocast, autocast_for, choose_dtype
from distill.training.processes import Processes, wait_for_all
from distill.training.signals import StopRequest
from distill.training.student import StudentRun, derive_seed, student_seed

logger = logging.getLogger(__name__)


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
        TrainingFailed: a loss is not finite.
    """
    dtype = choose_dtype(stage.precision, processes.device)
    rows = PackedRows(paths.dataset / "train")
    steps = stage.num_steps(len(rows))
    vocabulary = MaskVocabulary.from_tokenizer(load_tokenizer(paths.tokenizer))
    teacher_model = _load_teacher(stage, students, paths)
    runs = [_start_student(name, stage, paths, teacher_model, steps, processes.device, dtype) for name in students]
    teacher = _start_teacher(teacher_model, runs, processes.device, autocast_for(dtype, processes.device), status)
    first_step, tokens = _resume(runs, paths.checkpoints, processes)
    status.note(f"training on {processes.device} in {str(dtype).removeprefix('torch.')}, from step {first_step:,}")
    if len(rows) < stage.global_batch_size:
        status.note(f"the corpus has {len(rows):,} rows, fewer than one step takes; they repeat within a step")
    dev = _dev_batches(stage, paths, vocabulary, processes)
    keeper = _Bookkeeper(stage, steps, runs, teacher, dev, paths, processes, status, first_step)
    batches = _load_steps(stage, rows, vocabulary, processes, first_step, steps)
    reports = run_steps(
        runs, teacher, batches, first_step=first_step, tokens=tokens, log_every=stage.log_every, last_step=steps,
        processes=processes, stop=stop,
    )  # fmt: skip
    last = StepReport(first_step, tokens, None)
    try:
        keeper.before()
        for last in reports:
            keeper.after(last)
    except StageStopped:
        keeper.save(last)
        raise
    finally:
        keeper.close()
    if processes.is_first:
        for run in runs:
            _finish(run, stage.students[run.name], paths, cards[run.name])
    wait_for_all(processes)


class _Bookkeeper:
    """What happens between steps: log lines, dev evaluations, checkpoints, the status file."""

    def __init__(
        self, stage: Stage, steps: int, runs: list[StudentRun], teacher: TeacherPass | None,
        dev: list[MicroBatch] | None, paths: StagePaths, processes: Processes, status: StatusFile, first_step: int,
    ) -> None:  # fmt: skip
        self.stage, self.steps, self.runs, self.teacher, self.dev = stage, steps, runs, teacher, dev
        self.paths, self.processes, self.status, self.first_step = paths, processes, status, first_step
        self.save_every, self.eval_every = stage.save_every or -(-steps // 10), stage.eval_every or -(-steps // 10)
        names = [run.name for run in runs] + ([TEACHER] if first_step == 0 else [])
        self.log = MetricsLog(paths.stage, students=names, step=first_step) if processes.is_first else None
        self.shown: dict[str, float] = {}

    def before(self) -> None:
        """Measures the teacher once, as the mark to reach, if it has a prediction head."""
        if self.teacher and self.paths.teacher and self.first_step == 0 and has_head(self.paths.teacher):
            self._evaluate(self.teacher.model, TEACHER, StepReport(0, 0, None))

    def after(self, report: StepReport) -> None:
        """Logs, evaluates and saves where the stage asks for it at this step."""
        is_last = report.step == self.steps
        for name, values in (report.values or {}).items():
            self._write("train", name, report, values)
            if name == self.runs[0].name:
                self.shown = {"loss": values["loss"], "tokens_per_second": values["tokens_per_second"]}
        if report.step % self.eval_every == 0 or is_last:
            for run in self.runs:
                self._evaluate(run.objective.student, run.name, report)
        if report.step % self.save_every == 0 or is_last:
            self.save(report)
        if self.processes.is_first:
            first = report.step == self.first_step + 1
            self.status.write("running", force=first, step=report.step, steps=self.steps, **self.shown)

    def save(self, report: StepReport) -> None:
        """Writes a checkpoint; all processes wait for it.

        Raises:
            TrainingFailed: weights that are not finite, which no run could go on from.
        """
        for run in self.runs:
            if not run.is_finite():
                raise TrainingFailed(
                    f"student '{run.name}': weights are not finite after step {report.step:,}; lower learning_rate, "
                    f"or use precision fp32; the last checkpoint is from before"
                )
        if self.processes.is_first:
            tensors = {stem: named for run in self.runs for stem, named in run.tensors().items()}
            students = {run.name: run.state() for run in self.runs}
            state = {"step": report.step, "tokens": report.tokens, "students": students}
            save_checkpoint(self.paths.checkpoints, report.step, tensors, state)
        wait_for_all(self.processes)

    def close(self) -> None:
        if self.log:
            self.log.close()

    def _evaluate(self, model: BertForMaskedLM, name: str, report: StepReport) -> None:
        if self.dev is not None:
            autocast = self.runs[0].objective.autocast
            self._write("dev", name, report, evaluate_masked_lm(model, self.dev, self.processes, autocast))

    def _write(self, split: str, student: str, report: StepReport, values: Mapping[str, float]) -> None:
        if self.log:
            samples = report.step * self.stage.global_batch_size
            self.log.write(
                step=report.step, samples=samples, tokens=report.tokens, split=split, student=student, values=values
            )
            if split == "train":
                logger.info("step %d, %s: loss %.4f", report.step, student, values["loss"])


def _load_teacher(stage: Stage, students: Iterable[str], paths: StagePaths) -> BertForMaskedLM | None:
    if paths.teacher is None:
        return None
    return load_masked_lm(paths.teacher, need_head=needs_teacher_head(stage.students[name] for name in students))


def _start_teacher(
    model: BertForMaskedLM | None, runs: list[StudentRun], device: torch.device, autocast: Autocast, status: StatusFile
) -> TeacherPass | None:
    if model is None:
        return None
    torch.nn.Module.to(model, device)
    needs = [run.objective.teacher_needs for run in runs]
    if any(need.attention for need in needs):
        status.note("attention matches need eager attention: slower and with more memory than the fused kernel")
    return TeacherPass(model, needs, autocast)


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
    seed = derive_seed(*student_seed(settings, stage.seed, stage.name, name), "weights")
    model = build_model(config, seed=seed, attention=attention)
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
        vocabulary=vocabulary, probability=_mask_probability(stage, steps), mask=stage.data.mask,
        static_masks=stage.data.static_masks, document_attention=stage.data.document_attention,
    )  # fmt: skip
    on_gpu = processes.device.type == "cuda"
    return iter(
        DataLoader(batches, batch_size=None, sampler=range(first_step, steps), num_workers=2 if on_gpu else 0,
                   pin_memory=on_gpu)
    )  # fmt: skip


def _mask_probability(stage: Stage, steps: int) -> float | Callable[[int], float]:
    """The share of masked tokens, or a function from the step to it."""
    share = stage.data.mask_probability
    if not isinstance(share, MaskSchedule):
        return share
    # A partial of a function travels to the loader's workers, however they are started.
    return functools.partial(scheduled_probability, steps=steps, start=share.start, end=share.end, shape=share.schedule)


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
    model = run.objective.student
    original = load_config(settings.config or paths.inits[run.name])
    model.config.hidden_dropout_prob = original.hidden_dropout_prob
    model.config.attention_probs_dropout_prob = original.attention_probs_dropout_prob
    save_model(model, paths.models / run.name, tokenizer=paths.tokenizer, card=card)


def needs_teacher_head(students: Iterable[Student]) -> bool:
    """Whether some student uses the teacher's prediction head: its logits, or its weights as a start."""
    return any(student.kd_weight > 0 or student.init_layers for student in students)

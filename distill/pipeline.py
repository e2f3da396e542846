"""A whole run: prepare the data, train stage after stage, and print what came out.

The parent (`run_recipe`) checks everything, prepares data in its own pool and starts the processes of each stage.
A worker (`run_worker`) is one of those processes. What is finished is skipped, so the same command continues a run.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.corpus.prepare import prepare_dataset
from distill.errors import InputError
from distill.json_file import read_json
from distill.launch import Cluster, run_stage_processes
from distill.modeling.counting import count_parameters, flops_per_token
from distill.planning import StagePlan, plan_recipe
from distill.recipe import OPERATIONAL_FIELDS, Recipe, Stage
from distill.recipe_file import resolve_recipe
from distill.release.results import collect_results, format_results
from distill.training.checkpoint import checkpoint_students, clear_other_checkpoints

WAIT_SECONDS = 1.0
_NESTED = ("data", "students")
"""Fields of a stage that have fields of their own."""


def run_recipe(recipe: Recipe, *, cluster: Cluster, only_stage: str | None, show: Callable[[str], None]) -> None:
    """Runs all stages that are not finished, or one of them, and prints the table of results.

    Raises:
        InputError, launch.Interrupted, launch.StageFailed.
    """
    output = Path(recipe.output_dir)
    stages = [recipe.stage(only_stage)] if only_stage else recipe.stages
    check_output_folder(recipe)
    plans = plan_recipe(recipe)
    _check_made_before(stages, plans, only_stage)
    recipe_file = output / "recipe.json"
    if cluster.node_rank == 0:
        # All text is read before the first stage trains and before the folder counts as this recipe's.
        packed = {stage.name: prepare_data(plans[stage.name], output, show) for stage in stages
                  if missing_students(plans[stage.name], output)}  # fmt: skip
        write_json(recipe_file, recipe.model_dump())
    for stage in stages:
        while students := missing_students(plans[stage.name], output):
            if cluster.node_rank == 0:
                hand_over(plans[stage.name], students, output, packed[stage.name])
            else:
                wait_for_file(dataset_note(plans[stage.name], output))
            show(describe_stage(plans[stage.name], students, cluster))
            start = time.monotonic()
            folder = output / "stages" / stage.name
            folder.mkdir(parents=True, exist_ok=True)
            run_stage_processes(recipe_file, stage.name, cluster=cluster,
                                status_file=status_path(output, stage, cluster.node_rank),
                                log_file=folder / "log.txt", show=show)  # fmt: skip
            show(f"{stage.name}: finished {', '.join(students)} in {_duration(time.monotonic() - start)}")
    if cluster.node_rank == 0:
        results = collect_results(output, recipe.model_dump())
        write_json(output / "report" / "results.json", results)
        show(format_results(results))


def status_path(output: Path, stage: Stage, node_rank: int) -> Path:
    """Where the first process of a stage on a node says how it is."""
    suffix = f"-node{node_rank}" if node_rank else ""
    return output / "stages" / stage.name / f"status{suffix}.json"


def unfinished_students(plan: StagePlan) -> list[str]:
    """The students of a stage that have no model folder yet."""
    return [name for name, model in plan.students.items() if not (model.folder / "config.json").exists()]


def missing_students(plan: StagePlan, output: Path) -> list[str]:
    """The students to train in the next pass: those of an unfinished checkpoint, else all that have no model folder."""
    missing = unfinished_students(plan)
    started = checkpoint_students(output / "stages" / plan.stage.name / "checkpoints")
    again = [name for name in missing if name in started]
    return again if again and set(started) <= set(plan.students) else missing


def dataset_note(plan: StagePlan, output: Path) -> Path:
    """The small file that says which packed dataset a stage reads; it exists when that dataset is ready."""
    return output / "stages" / plan.stage.name / "dataset.json"


def prepare_data(plan: StagePlan, output: Path, show: Callable[[str], None]) -> Path:
    """The packed dataset that a stage reads, made if it is not there."""
    return prepare_dataset(
        plan.stage.data, tokenizer=plan.tokenizer, max_seq_length=plan.stage.max_seq_length, folder=output / "data",
        processes=os.cpu_count() or 1, progress=show_progress, report=show,
    )  # fmt: skip


def hand_over(plan: StagePlan, students: list[str], output: Path, packed: Path) -> None:
    """Leaves what the stage's processes will read: where the dataset is, and no checkpoints of another pass."""
    clear_other_checkpoints(output / "stages" / plan.stage.name / "checkpoints", students)
    write_json(dataset_note(plan, output), {"path": str(packed)})


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def wait_for_file(path: Path) -> None:
    """Returns when a file that another node writes is there (the output folder is shared)."""
    while not path.exists():
        time.sleep(WAIT_SECONDS)


@contextlib.contextmanager
def show_progress(what: str, total: int, unit: str = "char") -> Iterator[Callable[[int], None]]:
    """A progress bar, in characters if nothing else is said."""
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=total, desc=what, unit=unit, unit_scale=True, mininterval=interval, delay=1) as bar:
        yield lambda done: bar.update(done) and None


def describe_stage(plan: StagePlan, students: list[str], cluster: Cluster) -> str:
    """The start line of a stage: who learns from whom, and the batch arithmetic."""
    stage = plan.stage
    per_process = -(-stage.global_batch_size // cluster.world_size)
    micro = min(stage.rows_per_forward(), per_process)
    source = f"from {stage.teacher}" if stage.teacher else "without a teacher"
    length = f"{stage.steps:,} steps" if stage.steps else f"{stage.epochs:g} epochs"
    return (
        f"{stage.name}: {', '.join(students)} {source}, {length} of {stage.global_batch_size:,} sequences = "
        f"{cluster.world_size} process(es) x {-(-per_process // micro)} micro-batch(es) x up to {micro}, "
        f"{stage.max_seq_length} tokens each"
    )


def describe_plan(recipe: Recipe, cluster: Cluster, *, only_stage: str | None = None) -> str:
    """What a run would do, stage by stage, after all checks that need no training: for --dry-run."""
    stages = [recipe.stage(only_stage)] if only_stage else recipe.stages
    check_output_folder(recipe)
    lines = []
    plans = plan_recipe(recipe)
    for plan in (plans[stage.name] for stage in stages):
        students = unfinished_students(plan)  # missing_students would set damaged checkpoints aside
        if not students:
            lines.append(f"{plan.stage.name}: finished")
            continue
        lines.append(describe_stage(plan, students, cluster))
        lines += [f"  {line}" for line in describe_cost(plan, students)]
    return "\n".join(lines)


def describe_cost(plan: StagePlan, students: list[str]) -> list[str]:
    """Parameters, tokens, FLOPs and memory of a pass, from the configs alone."""
    stage, length = plan.stage, plan.stage.max_seq_length
    share = stage.data.final_mask_probability()
    counts = {name: count_parameters(plan.students[name].config).masked_lm for name in students}
    lines = [f"{name}: {count:,} parameters, matches: {len(plan.matches[name])}" for name, count in counts.items()]
    forward = flops_per_token(plan.teacher.config, length, head_share=share) if plan.teacher else 0.0
    flops = forward + sum(
        3 * flops_per_token(plan.students[name].config, length, head_share=share) for name in students
    )
    if stage.steps:
        tokens = stage.steps * stage.global_batch_size * length
        lines.append(f"{tokens:,} tokens x {flops / 1e6:.3g} MFLOPs = {tokens * flops:.3g} FLOPs")
    # Weights, gradients and two moments in float32 for a student, weights alone for the teacher.
    memory = 16 * sum(counts.values()) + (4 * count_parameters(plan.teacher.config).masked_lm if plan.teacher else 0)
    lines.append(f"weights and optimiser: {memory / 1e6:,.1f} MB a process, activations not counted")
    return lines


def check_output_folder(recipe: Recipe) -> None:
    """Refuses an output folder whose recorded recipe would have trained other models.

    Stages and students may be added, a stage that has not begun may change or go, and so may fields that do not
    change the training.

    Raises:
        InputError: naming what differs.
    """
    output = Path(recipe.output_dir)
    check_writable(output)
    recorded_file = output / "recipe.json"
    if not recorded_file.exists():
        return
    recorded = resolve_recipe(read_json(recorded_file), where=f"{recorded_file} (what made this folder)")
    before = {stage.name: stage.model_dump() for stage in recorded.stages}
    now = {stage.name: stage.model_dump() for stage in recipe.stages}
    for name, old in before.items():
        if not _has_begun(Path(recipe.output_dir), old):
            continue
        if name not in now:
            raise InputError(
                f"{recipe.output_dir}: this folder was made by another recipe (it has a stage '{name}', this one has "
                f"not); choose another output_dir"
            )
        differing = _difference(old, now[name])
        if differing:
            raise InputError(
                f"{recipe.output_dir}: this folder was made by another recipe: stage '{name}', {differing}; choose "
                f"another output_dir, or set it back"
            )


def check_writable(folder: Path) -> None:
    """InputError unless `folder` is one, or could be made, and may be written."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{folder}: cannot be made as output folder, {there} is a file; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written, {there} belongs to somebody else; name another folder")


def _has_begun(output: Path, stage: dict[str, Any]) -> bool:
    """Whether something of a recorded stage was trained: a finished model or a checkpoint."""
    made = any((output / "models" / name / "config.json").exists() for name in stage["students"])
    return made or any((output / "stages" / stage["name"] / "checkpoints").glob("step-*"))


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first field of a stage, or of a student in both, that changes the training; '' if there is none."""
    found = [(f"{field} ", old[field], new[field]) for field in sorted(old.keys() - {*OPERATIONAL_FIELDS, *_NESTED})]
    found += [(f"data.{field} ", value, new["data"][field]) for field, value in old["data"].items()]
    for student, fields in old["students"].items():
        if student not in new["students"]:
            return f"student '{student}' is missing now"
        found += [(f"student '{student}', {field} ", value, new["students"][student][field])
                  for field, value in fields.items()]  # fmt: skip
    for place, before, now in found:
        if before != now:
            before, now = (json.dumps(value, ensure_ascii=False) for value in (before, now))
            return f"{place}was {before} and is now {now}"
    return ""


def _check_made_before(stages: list[Stage], plans: dict[str, StagePlan], only_stage: str | None) -> None:
    """A single stage needs the models of earlier stages to be there."""
    if only_stage is None:
        return
    for stage in stages:
        plan = plans[stage.name]
        for model in [plan.teacher, *plan.inits.values()]:
            if model and not (model.folder / "config.json").exists():
                raise InputError(f"stage '{stage.name}' needs the model '{model.name}', which an earlier stage makes; "
                                 f"run the whole recipe or that stage first")  # fmt: skip


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

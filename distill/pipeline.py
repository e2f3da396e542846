"""A whole run: prepare the data, train stage after stage, and print what came out.

The parent (`run_recipe`) checks everything, prepares data in its own pool and starts the processes of each stage.
A worker (`run_worker`) is one of those processes. What is finished is skipped, so the same command continues a run.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from distill.corpus.prepare import prepare_dataset
from distill.durable import write_json
from distill.errors import InputError
from distill.finetuning import Plan, plan_section, run_plan
from distill.launch.nodes import Follower, Leader
from distill.launch.processes import Cluster, StageFailed
from distill.launch.stage import run_stage_processes
from distill.places import check_places, check_writable
from distill.progress import show_progress
from distill.recipe import Recipe, Stage
from distill.release.results import collect_results, format_results
from distill.release.run_folder import (
    FINE_TUNING,
    PASSES_FILE,
    REPORTING,
    SETTINGS_FILE,
    STATUS_FILE,
    TRAINING,
    RunFolder,
)
from distill.release.stage_parts import show_duration
from distill.reporting import report_at_end
from distill.run.changes import check_unchanged, find_changes, record_changes, record_inputs
from distill.run.costs import describe_cost, describe_stage
from distill.run.passes import record_pass
from distill.run.planning import StagePlan, plan_recipe
from distill.run.status import Work, at_work
from distill.training.checkpoint import checkpoint_students, clear_other_checkpoints
from distill.training.plugins import load_plugins

FOLDERS = ("data", "nodes", "stages", "models", "report")
"""What a run makes below its output folder."""


def run_recipe(
    recipe: Recipe, *, cluster: Cluster, only_stage: str | None, show: Callable[[str], None],
    allow_changes: bool = False, max_restarts: int = 0, plugins: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Runs all stages that are not finished, or one of them, compares the models on tasks, and prints the tables.

    Args: see `train_stages`.
    Raises:
        InputError, launch.Interrupted, launch.StageFailed.
    """
    comparison = plan_section(recipe, plan_recipe(recipe)) if recipe.finetune and not only_stage else None
    train_stages(recipe, cluster=cluster, only_stage=only_stage, show=show, allow_changes=allow_changes,
                 max_restarts=max_restarts, plugins=plugins,
                 then=functools.partial(_conclude, recipe, comparison, show))  # fmt: skip


def _conclude(recipe: Recipe, comparison: Plan | None, show: Callable[[str], None], work: Work) -> None:
    """What follows the stages: results, comparison, report."""
    output = Path(recipe.output_dir)
    run = RunFolder(output, recipe.model_dump())
    results = collect_results(run)
    for problem in run.problems:
        show(f"results: {problem}")
    write_json(output / "report" / "results.json", results)
    show(format_results(results))
    failed: list[str] = []
    if comparison:
        work.begin(FINE_TUNING)
        tables, failed, _ = run_plan(comparison, show)
        show(tables)
    if recipe.report:
        work.begin(REPORTING)
        report_at_end(output, show)
    if failed:
        raise StageFailed(f"finetune: {len(failed)} run(s) failed, the first: {failed[0]}")


def train_stages(
    recipe: Recipe, *, cluster: Cluster, only_stage: str | None, show: Callable[[str], None],
    allow_changes: bool = False, max_restarts: int = 0, plugins: Sequence[Path] = (),
    then: Callable[[Work], None] = lambda work: None,
) -> None:  # fmt: skip
    """Trains what is missing of all stages, or of one of them.

    Args:
        allow_changes: go on with stages that have begun though the recipe or its files have changed.
        max_restarts: times that a stage whose processes died is started again by itself.
        plugins: files of a user's losses.
        then: done at the end on node 0, while nobody else may work on the folder.
    Raises:
        InputError, launch.Interrupted, launch.StageFailed.
    """
    load_plugins(plugins)
    output = Path(recipe.output_dir)
    stages = [recipe.stage(only_stage)] if only_stage else recipe.stages
    all_plans = plan_checked(recipe, stages, allow_changes=allow_changes)
    plans = [all_plans[stage.name] for stage in stages]
    if only_stage:
        _check_made_before(plans[0])
    run_pass = functools.partial(_run_pass, cluster=cluster, show=show, plugins=plugins)
    if cluster.node_rank == 0:
        leading = Leader(output, cluster.nnodes) if cluster.nnodes > 1 else nullcontext()
        with at_work(output, show) as work:
            with leading as leader:
                for plan in unfinished_plans(plans).values():  # how the last run ended is not how this one is
                    status_path(output, plan.stage, 0).unlink(missing_ok=True)
                packed = _prepare(recipe, plans, show, allow_changes=allow_changes)
                work.begin(TRAINING)
                run_pass = functools.partial(run_pass, lock=work.lock)
                _lead(recipe, plans, packed, leader, run_pass, show, max_restarts=max_restarts)
            then(work)
    elif unfinished_plans(plans):
        with Follower(output, cluster.node_rank) as follower:
            _follow(recipe, all_plans, follower, run_pass, show, max_restarts=max_restarts)


def plan_checked(recipe: Recipe, stages: list[Stage], *, allow_changes: bool = False) -> dict[str, StagePlan]:
    """The plan of a recipe whose output folder can take it.

    Raises:
        InputError: see `plan_recipe` and `check_unchanged`.
    """
    output = Path(recipe.output_dir)
    for folder in (output, *(output / name for name in FOLDERS)):
        check_writable(folder)
    check_places(recipe)
    if not allow_changes:
        check_unchanged(recipe)
    plans = plan_recipe(recipe)
    if not allow_changes:
        check_unchanged(recipe, unfinished_plans(plans[stage.name] for stage in stages))
    return plans


def unfinished_plans(plans: Iterable[StagePlan]) -> dict[str, StagePlan]:
    """The plans of those stages that lack a model, by name."""
    return {plan.stage.name: plan for plan in plans if unfinished_students(plan)}


def _prepare(
    recipe: Recipe, plans: list[StagePlan], show: Callable[[str], None], *, allow_changes: bool
) -> dict[str, Path]:
    """The packed dataset of every stage that is not finished; from now on the folder counts as this recipe's."""
    output, unfinished = Path(recipe.output_dir), unfinished_plans(plans)
    packed = {name: prepare_data(plan, show) for name, plan in unfinished.items()}  # all, before a stage trains
    if not allow_changes:
        check_unchanged(recipe, unfinished)  # what a segmenter trained only now has changed
    record_changes(output, find_changes(recipe, unfinished))
    write_json(output / "recipe.json", recipe.model_dump())
    return packed


def _lead(
    recipe: Recipe, plans: list[StagePlan], packed: Mapping[str, Path], leader: Leader | None,
    run_pass: Callable[..., None], show: Callable[[str], None], *, max_restarts: int,
) -> None:  # fmt: skip
    """What `train_stages` does on node 0 when all is checked and prepared and nobody else is at work."""
    restarts = 0
    for plan in plans:
        while students := missing_students(plan):
            hand_over(plan, students, packed[plan.stage.name])
            if leader is None:
                run_pass(plan, students, max_restarts=max_restarts)
                continue
            # torchrun cannot start the processes of several nodes anew; another turn does.
            leader.hand_over(plan.stage.name, students, recipe.model_dump_json())
            try:
                run_pass(plan, students, give_up=leader.failure)
            except StageFailed as error:
                reason = leader.explain(error)
                if error.is_final or isinstance(reason, InputError) or restarts >= max_restarts:
                    raise reason from None
                restarts += 1
                show(f"{reason}; starting again, {restarts} of {max_restarts}")


def _follow(
    recipe: Recipe, plans: Mapping[str, StagePlan], follower: Follower, run_pass: Callable[..., None],
    show: Callable[[str], None], *, max_restarts: int,
) -> None:  # fmt: skip
    """What `train_stages` does on the other nodes: the turns that node 0 hands over, until it says that it is done."""
    show("waiting for node 0, which prepares the data")
    restarts = 0
    while turn := follower.next_turn(recipe.model_dump_json()):
        try:
            run_pass(plans[turn.stage], turn.students, give_up=follower.failure)
        except StageFailed as error:
            follower.say_failed(error)
            if error.is_final or restarts >= max_restarts:
                raise follower.explain(error) from None
            restarts += 1
            show(f"{error}; starting again when node 0 does, {restarts} of {max_restarts}")


def _run_pass(
    plan: StagePlan, students: list[str], *, cluster: Cluster, show: Callable[[str], None], **options: Any
) -> None:
    """Runs this node's processes of one pass of a stage; `options` are `run_stage_processes`'."""
    show(describe_stage(plan, students, cluster))
    start = time.monotonic()
    plan.folder.mkdir(parents=True, exist_ok=True)
    passes = _node_file(plan.folder / PASSES_FILE, cluster.node_rank)
    with record_pass(passes, students=students, processes=cluster.world_size):
        run_stage_processes(
            plan.output / "recipe.json", plan.stage.name, cluster=cluster, show=show,
            status_file=status_path(plan.output, plan.stage, cluster.node_rank),
            log_file=_node_file(plan.folder / "log.txt", cluster.node_rank), **options,
        )  # fmt: skip
    show(f"{plan.stage.name}: finished {', '.join(students)} in {show_duration(time.monotonic() - start)}")


def status_path(output: Path, stage: Stage, node_rank: int) -> Path:
    """Where the first process of a stage on a node says how it is."""
    return _node_file(output / "stages" / stage.name / STATUS_FILE, node_rank)


def _node_file(path: Path, node_rank: int) -> Path:
    """A node's own file: log.txt on node 0, log-node1.txt on node 1."""
    return path.with_stem(f"{path.stem}-node{node_rank}") if node_rank else path


def unfinished_students(plan: StagePlan) -> list[str]:
    """The students of a stage that have no model folder yet."""
    return [name for name, model in plan.students.items() if not (model.folder / "config.json").exists()]


def missing_students(plan: StagePlan) -> list[str]:
    """The students to train in the next pass: those of an unfinished checkpoint, else all that have no model folder."""
    missing = unfinished_students(plan)
    started = checkpoint_students(plan.checkpoints)
    again = [name for name in missing if name in started]
    return again if again and set(started) <= set(plan.students) else missing


def dataset_note(plan: StagePlan) -> Path:
    """The small file that says which packed dataset a stage reads; it exists when that dataset is ready."""
    return plan.folder / "dataset.json"


def prepare_data(plan: StagePlan, show: Callable[[str], None]) -> Path:
    """The packed dataset that a stage reads, made if it is not there."""
    return prepare_dataset(
        plan.stage.data, tokenizer=plan.tokenizer, max_seq_length=plan.stage.max_seq_length,
        folder=plan.output / "data", processes=os.cpu_count() or 1, progress=show_progress, report=show,
    )  # fmt: skip


def hand_over(plan: StagePlan, students: list[str], packed: Path) -> None:
    """Leaves what the stage's processes will read: where the dataset is, and no checkpoints of another pass."""
    record_inputs(plan)
    record_settings(plan, students)
    clear_other_checkpoints(plan.checkpoints, students)
    write_json(dataset_note(plan), {"path": str(packed)})


def record_settings(plan: StagePlan, students: list[str]) -> None:
    """Writes down what `students` are trained with, for their cards: a later run's recipe may say something else."""
    path = plan.folder / SETTINGS_FILE
    before = RunFolder(plan.output, {"stages": []}).json_at(path)
    kept = before.get("students")
    models = [plan.teacher, *plan.inits.values()]
    given = {
        model.name: {"folder": str(model.folder.absolute()), "is_from_hub": not Path(model.name).is_dir()}
        for model in models
        if model and not model.folder.is_relative_to(plan.output / "models")
    }
    stage = plan.stage.model_dump()
    write_json(path, {
        "given": given,
        "students": {**(kept if isinstance(kept, dict) else {}), **dict.fromkeys(students, stage)},
    })  # fmt: skip


def describe_plan(
    recipe: Recipe, cluster: Cluster, *, only_stage: str | None = None, allow_changes: bool = False
) -> str:
    """What a run would do, stage by stage, after all checks that need no training: for --dry-run."""
    stages = [recipe.stage(only_stage)] if only_stage else recipe.stages
    lines = []
    plans = plan_checked(recipe, stages, allow_changes=allow_changes)
    for plan in (plans[stage.name] for stage in stages):
        students = missing_students(plan)
        if not students:
            lines.append(f"{plan.stage.name}: finished")
            continue
        lines.append(describe_stage(plan, students, cluster))
        lines += [f"  {line}" for line in describe_cost(plan, students)]
    if not only_stage and (comparison := plan_section(recipe, plans)):
        lines.append(comparison.describe())
    return "\n".join(lines)


def _check_made_before(plan: StagePlan) -> None:
    """InputError unless the models of earlier stages are there, which a single stage needs."""
    for model in [plan.teacher, *plan.inits.values()]:
        if model and not (model.folder / "config.json").exists():
            raise InputError(f"stage '{plan.stage.name}' needs the model '{model.name}', which an earlier stage makes; "
                             f"run the whole recipe or that stage first")  # fmt: skip

"""A comparison of models on tasks: the `finetune` section of a recipe, and `distill grid`.

1. Everything is checked before anything is trained: tasks, their train and dev data, models, lengths.
2. Every run of the grid that is not finished is done (downstream.grid).
3. The models are timed side by side, once.
4. The tables of downstream.report are printed, and written into the report folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.downstream.grid import Grid, Run, count_runs, load_grid, with_tasks
from distill.downstream.latency import Timing, check_lengths, describe_machine, make_shapes, measure_latency
from distill.downstream.report import TaskComparison, read_sizes, write_report
from distill.downstream.results import best_results, read_runs
from distill.downstream.run import TAUGHT, digest_model, model_name
from distill.downstream.search import TaskTeacher, search
from distill.downstream.task import load_task
from distill.downstream.task_data import load_task_data
from distill.downstream.task_model import check_model
from distill.durable import write_json
from distill.errors import InputError
from distill.json_file import nearest, read_json
from distill.launch.processes import visible_gpus
from distill.machine import num_cores
from distill.modeling.config import load_config
from distill.modeling.models import find_model
from distill.recipe import Recipe
from distill.recipe_tasks import Distil, FineTune, Speed
from distill.run.planning import PlannedModel, StagePlan
from distill.training.matches import resolve_matches


@dataclass(frozen=True)
class Plan:
    """A comparison of which everything was found."""

    grid: Grid
    models: Mapping[str, Path]
    data: str
    runs: Path
    report: Path
    teacher: str
    pairs: Sequence[Sequence[str]] = ()
    processes: int | None = None
    """Runs at a time; None: one for each visible GPU, else one."""
    keep_models: bool = False
    speed: Speed | None = field(default_factory=Speed)
    distil: Distil | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        if alike := next((name for name in self.models if name.endswith(TAUGHT)), None):
            raise InputError(
                f"a model is named {alike}, but '{TAUGHT}' marks those that learned a task from a teacher; rename its "
                f"folder"
            )
        for name in [self.teacher, *(model for pair in self.pairs for model in pair)]:
            known = self.rows()
            if name not in known:
                raise InputError(f"'{name}' is none of the models{nearest(name, known)}")

    def rows(self) -> dict[str, Path]:
        """What the tables have a row for -> folder: the models, and those that learn from the teacher once more."""
        taught = {f"{name}{TAUGHT}": folder for name, folder in self.models.items() if name != self.teacher}
        return {**self.models, **(taught if self.distil else {})}

    def describe(self) -> str:
        """The arithmetic of its runs, in one line."""
        return (
            f"finetune: {count_runs(self.grid, len(self.rows())):,} runs: {len(self.rows())} model(s) x "
            f"{len(self.grid.tasks)} task(s) x settings x {len(self.grid.seeds)} seed(s)"
        )


def plan_section(recipe: Recipe, stages: Mapping[str, StagePlan]) -> Plan | None:
    """The plan of a recipe's `finetune` section, whose models may not be made yet; None if it has none.

    Raises:
        InputError: the first thing that is wrong.
    """
    section = recipe.finetune
    if section is None:
        return None
    try:
        grid = grid_of(section)
        made = {name: model for plan in stages.values() for name, model in plan.students.items()}
        first = next((plan.teacher for plan in stages.values() if plan.teacher), None)
        given = section.models or [*([first.name] if first and first.name not in made else []), *made]
        models = name_models({name: made[name].folder if name in made else find_model(name) for name in given})
        output = Path(recipe.output_dir)
        plan = Plan(
            grid, models, section.data, output / "finetune", output / "report", section.teacher or next(iter(models)),
            section.compare, section.processes, section.keep_models, section.speed, section.distil,
        )  # fmt: skip
        check_plan(plan, made)
    except InputError as error:
        raise InputError(f"finetune: {error}") from None
    return plan


def grid_of(section: FineTune) -> Grid:
    """The grid that a section describes, on top of its preset if it names one."""
    base = load_grid(section.preset) if section.preset else None
    if base and section.tasks:
        base = with_tasks(base, section.tasks)
    values = {name: value for name, value in section.grid.model_dump().items() if value is not None}
    if base is None:
        return Grid.model_validate({"tasks": {task: {} for task in section.tasks or []}, "grid": values,
                                    "seeds": section.seeds or [0]})  # fmt: skip
    # What a preset says about one task gives way, too: what stands in the recipe is what is tried.
    tasks = {name: own.model_copy(update=values) for name, own in base.tasks.items()}
    return base.model_copy(update={"tasks": tasks, "seeds": section.seeds or base.seeds})


def name_models(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Name in tables and paths -> folder, for models given by folder or hub id (or by a student's name).

    Raises:
        InputError: two models with one name.
    """
    found: dict[str, Path] = {}
    for given, folder in folders.items():
        name = model_name(given, folder)
        if name in found:
            raise InputError(f"two models are named alike, {found[name]} and {folder}; rename a folder")
        found[name] = folder
    return found


def check_plan(plan: Plan, made: Mapping[str, PlannedModel] = {}) -> None:
    """Checks all that can be wrong before the first run.

    Args:
        made: models that an earlier stage makes; their folders may not be there yet.
    Raises:
        InputError: data that is not there or wrong, a model that does not fit a length, an unknown name.
    """
    tasks = [load_task(name) for name in plan.grid.tasks]
    names = [task.name for task in tasks]
    if alike := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two tasks are named {alike}, and their runs could not be told apart; change one's name")
    for task in tasks:
        load_task_data(task, plan.data, ["train", "dev"])
    lengths = [length for task, own in zip(tasks, plan.grid.tasks.values(), strict=True)
               for length in own.max_length or plan.grid.grid.max_length or [task.defaults.max_length]]  # fmt: skip
    for name, folder in plan.models.items():
        if name in made:
            positions = made[name].config.max_position_embeddings
            if max(lengths) > positions:
                raise InputError(f"{name}: texts of {max(lengths)} tokens, but it has {positions} positions; set "
                                 f"'max_length' in the grid")  # fmt: skip
            if plan.speed and plan.speed.lengths:
                check_lengths(name, positions, plan.speed.lengths)
        else:
            check_model(folder, max(lengths))
    if plan.distil:
        configs = {name: made[name].config if name in made else load_config(folder)
                   for name, folder in plan.models.items()}  # fmt: skip
        for name in configs.keys() - {plan.teacher}:
            resolve_matches(plan.distil.matches, configs[plan.teacher], configs[name], where=f"distil, {name}")
        for task in tasks:
            if plan.distil.augment and task.kind != "classification":
                raise InputError(
                    f"distil: 'augment' changes texts of classification tasks, {task.name} is another kind"
                )


def run_plan(plan: Plan, show: Callable[[str], None]) -> tuple[str, list[str], list[Run]]:
    """Does what is missing of a comparison; returns tables in Markdown, what failed, one line a run, and all runs."""
    show(plan.describe())
    runs, failed = search(
        plan.grid, plan.models, plan.data, plan.runs, processes=plan.processes or visible_gpus() or 1, show=show,
        keep_models=plan.keep_models,
        teacher=TaskTeacher(plan.teacher, _settings(plan.distil)) if plan.distil else None,
        ray=plan.ray,
    )  # fmt: skip
    results = best_results(read_runs(run.folder for run in runs))
    timings, machine = _timings(plan, show) if plan.speed else ([], describe_machine())
    comparison = TaskComparison(results, plan.teacher, read_sizes(plan.rows()), timings, plan.pairs)
    markdown = write_report(comparison, plan.report, machine, _digests(plan))
    show(f"tables: {plan.report / 'tables.md'}")
    return markdown, failed, runs


def _settings(distil: Distil) -> dict[str, Any]:
    return {**distil.model_dump(), "matches": tuple(distil.matches)}


def _digests(plan: Plan) -> dict[str, str]:
    return {name: digest_model(folder) for name, folder in plan.models.items()}


def _timings(plan: Plan, show: Callable[[str], None]) -> tuple[list[Timing], dict[str, Any]]:
    """The times of all models, from latency.json if the same models were timed in the same way on such a machine."""
    assert plan.speed is not None
    shortest = min(load_config(folder).max_position_embeddings for folder in plan.models.values())
    lengths = plan.speed.lengths or [min(128, shortest)]
    shapes = make_shapes(plan.speed.batch_sizes, lengths, [plan.speed.threads or num_cores()])
    machine = describe_machine()
    key = {
        "models": _digests(plan),
        "shapes": [list(vars(shape).values()) for shape in shapes], "machine": machine,
    }  # fmt: skip
    path = plan.report / "latency.json"
    if path.exists() and (found := read_json(path)).get("key") == key:
        return [Timing(**timing) for timing in found["timings"]], machine
    show(f"timing {len(plan.models)} models, {len(shapes)} shapes")
    timings = measure_latency(plan.models, shapes)
    write_json(path, {"key": key, "timings": [vars(timing) for timing in timings]})
    return timings, machine

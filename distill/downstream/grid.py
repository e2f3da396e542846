"""Grids: models x tasks x hyper-parameters x seeds as one list of runs.

Grids are JSON files; those in grids/ are the published searches. search.py does the runs, results.py makes tables.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from distill.downstream.run import Distillation, Hyperparameters, run_folder, with_defaults
from distill.downstream.task import Task, load_task
from distill.errors import InputError
from distill.json_file import nearest, read_json
from distill.recipe_tasks import GridValues, check_distinct
from distill.recipe_types import Section, TaskSeed, describe_problem

FOLDER = Path(__file__).with_name("grids")


class Grid(Section):
    """Which tasks, values and seeds."""

    tasks: dict[str, GridValues] = Field(
        description="task -> values that count for it instead of the grid's", min_length=1
    )
    grid: GridValues = Field(default_factory=GridValues)
    seeds: list[TaskSeed] = Field([0], min_length=1)
    start_from: dict[str, str] = Field({}, description="task -> task whose best fine-tuned model it starts from")

    @model_validator(mode="after")
    def _no_seed_twice(self) -> "Grid":
        check_distinct(self.seeds, "seeds ")
        return self

    @model_validator(mode="after")
    def _known_starts(self) -> "Grid":
        for task, source in self.start_from.items():
            if source not in self.tasks or source in self.start_from:
                raise ValueError(f"'{task}' starts from '{source}', which is no task of the grid that starts by itself")
        return self


@dataclass(frozen=True)
class Run:
    """One run of a grid."""

    name: str
    """The model's."""
    model: Path
    task: Task
    data: str
    hyperparameters: Hyperparameters
    folder: Path
    keep_model: bool = False
    distillation: Distillation | None = None


def grid_names() -> list[str]:
    """The names of the published grids that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_grid(name: str) -> Grid:
    """A published grid by its name, or a user's JSON file; its tasks may be a list of names.

    Raises:
        InputError: no such grid, or one that is wrong: file, field, what was found.
    """
    path = Path(name)
    if path.suffix.lower() != ".json":
        if name not in grid_names():
            raise InputError(
                f"grid '{name}': not known{nearest(name, grid_names())}; a grid of your own is a .json file"
            )
        path = FOLDER / f"{name}.json"
    raw = read_json(path)
    if isinstance(raw, dict) and isinstance(raw.get("tasks"), list):
        raw = {**raw, "tasks": {str(task): {} for task in raw["tasks"]}}
    try:
        return Grid.model_validate(raw)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            fields = GridValues.model_fields if len(problem["loc"]) > 1 else Grid.model_fields
            key = str(problem["loc"][-1])
            raise InputError(f"{path}: {place}: unknown key{nearest(key, fields)}; see docs/tasks.md") from None
        raise InputError(f"{path}: {describe_problem(problem, place)}") from None


def with_tasks(grid: Grid, names: Sequence[str]) -> Grid:
    """The grid with only these of its tasks; all of them if none is named."""
    for name in names:
        if name not in grid.tasks:
            raise InputError(f"task '{name}': not in this grid{nearest(name, grid.tasks)}")
    kept = {name: grid.tasks[name] for name in names or grid.tasks}
    starts = {task: source for task, source in grid.start_from.items() if task in kept}
    for task, source in starts.items():
        if source not in kept:
            raise InputError(f"task '{task}': it starts from the model of {source}; add that task")
    return grid.model_copy(update={"tasks": kept, "start_from": starts})


def count_runs(grid: Grid, num_models: int) -> int:
    """How many runs a grid has."""
    settings = sum(len(list(_settings(load_task(name), grid.grid, own, seed=0))) for name, own in grid.tasks.items())
    return num_models * len(grid.seeds) * settings


def list_runs(
    grid: Grid,
    models: Mapping[str, Path],
    data: str,
    output: Path,
    *,
    keep: Callable[[str, str], bool] = lambda model, task: False,
    starts: Mapping[tuple[str, str], Path] | None = None,
) -> list[Run]:
    """Runs of a grid, seed by seed, so that an unfinished grid has all settings with fewer seeds.

    Args:
        models: name -> folder.
        keep: (model, task) -> whether the weights of its runs stay.
        starts: (model, task) -> the folder that a task of `start_from` starts from; None lists the other tasks.
    """
    chosen = [name for name in grid.tasks if (name in grid.start_from) == (starts is not None)]
    tasks = {name: load_task(name) for name in chosen}
    runs = []
    for seed, (model, own), (name, task) in product(grid.seeds, models.items(), tasks.items()):
        folder = starts[model, name] if starts is not None else own
        for values in _settings(task, grid.grid, grid.tasks[name], seed):
            place = run_folder(output, model, folder, task, data, values)
            runs.append(Run(model, folder, task, data, values, place, keep(model, name)))
    return runs


def _settings(task: Task, common: GridValues, own: GridValues, seed: int) -> Iterator[Hyperparameters]:
    chosen = {**_given(common), **_given(own)}
    for values in product(*chosen.values()):
        yield with_defaults(task, seed, **dict(zip(chosen, values, strict=True)))


def _given(values: GridValues) -> Mapping[str, list]:
    return {name: value for name, value in values.model_dump().items() if value is not None}

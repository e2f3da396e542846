"""Grids: models x tasks x hyper-parameters x seeds as one list of runs, worked off by several processes.

Grids are JSON files; those in grids/ are the published searches. A run that is finished is not repeated, so the same
command goes on where it was stopped, and a larger grid adds to a smaller one. results.py makes the tables.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from distill.corpus.lock import exclusive
from distill.downstream.metrics import mean_score
from distill.downstream.run import Hyperparameters, finished_metrics, run_folder, with_defaults
from distill.downstream.task import Task, load_task
from distill.downstream.task_data import HUB, find_files, load_task_data
from distill.errors import InputError
from distill.json_file import nearest, read_json, short
from distill.recipe_tasks import GridValues
from distill.recipe_types import Section, Seed

FOLDER = Path(__file__).with_name("grids")


class Grid(Section):
    """Which tasks, values and seeds."""

    tasks: dict[str, GridValues] = Field(
        description="task -> values that count for it instead of the grid's", min_length=1
    )
    grid: GridValues = Field(default_factory=GridValues)
    seeds: list[Seed] = Field([0], min_length=1)
    start_from: dict[str, str] = Field({}, description="task -> task whose best fine-tuned model it starts from")

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
        message = problem["msg"].removeprefix("Value error, ")
        found = "" if problem["type"] in ("missing", "value_error") else f", found {short(problem['input'])}"
        raise InputError(f"{path}: {place + ': ' if place else ''}{message[0].lower()}{message[1:]}{found}") from None


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
    keep_models: bool = False,
    starts: Mapping[tuple[str, str], Path] | None = None,
) -> list[Run]:
    """Runs of a grid, seed by seed, so that an unfinished grid has all settings with fewer seeds.

    Args:
        models: name -> folder.
        starts: (model, task) -> the folder that a task of `start_from` starts from; None lists the other tasks.
    """
    chosen = [name for name in grid.tasks if (name in grid.start_from) == (starts is not None)]
    tasks = {name: load_task(name) for name in chosen}
    kept = {source for source in grid.start_from.values()}
    runs = []
    for seed, (model, own), (name, task) in product(grid.seeds, models.items(), tasks.items()):
        folder = starts[model, name] if starts is not None else own
        for values in _settings(task, grid.grid, grid.tasks[name], seed):
            place = run_folder(output, model, folder, task, data, values)
            runs.append(Run(model, folder, task, data, values, place, keep_models or name in kept))
    return runs


def search(
    grid: Grid, models: Mapping[str, Path], data: str, output: Path, *,
    processes: int, keep_models: bool, show: Callable[[str], None],
) -> tuple[list[Run], list[str]]:  # fmt: skip
    """Does every run of a grid that is not finished; returns all runs, and what went wrong, one line a run."""
    runs = list_runs(grid, models, data, output, keep_models=keep_models)
    failed = run_grid(runs, processes=processes, show=show)
    if grid.start_from:
        starts, without = _starts(grid, models, runs)
        there = {name: folder for name, folder in models.items() if name not in without}
        later = list_runs(grid, there, data, output, keep_models=keep_models, starts=starts)
        failed += run_grid(later, processes=processes, show=show)
        runs += later
        failed += [f"{name}: {', '.join(grid.start_from)} not run, there is no model to start from" for name in without]
    return runs, failed


def _starts(
    grid: Grid, models: Mapping[str, Path], runs: Sequence[Run]
) -> tuple[dict[tuple[str, str], Path], list[str]]:
    """(model, task) -> the best fine-tuned model of the task that it starts from; and the models without one."""
    sources = {load_task(source).name for source in grid.start_from.values()}
    best: dict[tuple[str, str], tuple[float, Path]] = {}
    for run in runs:
        found = finished_metrics(run.folder) if run.task.name in sources else None
        if found is not None:
            score = mean_score(found["dev"]["metrics"], run.task.metrics)
            key = (run.name, run.task.name)
            if key not in best or score > best[key][0]:
                best[key] = (score, run.folder / "model")
    starts: dict[tuple[str, str], Path] = {}
    without = []
    for model in models:
        keys = {task: (model, load_task(source).name) for task, source in grid.start_from.items()}
        if all(key in best for key in keys.values()):
            starts |= {(model, task): best[key][1] for task, key in keys.items()}
        else:
            without.append(model)
    return starts, without


def run_grid(runs: Sequence[Run], *, processes: int, show: Callable[[str], None]) -> list[str]:
    """Does the runs that are not finished; returns what went wrong, one line a run. The others go on.

    Args:
        processes: each takes one visible GPU in turn, or its share of the cores.
    """
    waiting = [run for run in runs if not is_finished(run)]
    show(f"{len(runs)} runs, {len(runs) - len(waiting)} finished, {len(waiting)} to do")
    failed = []
    for done, (run, problem) in enumerate(_ended_runs(waiting, processes), start=1):
        show(f"[{done}/{len(waiting)}] {_describe(run)}: {problem or _told(run)}")
        if problem:
            failed.append(f"{_describe(run)}: {problem}")
    return failed


def is_finished(run: Run) -> bool:
    """Whether a run has left all that is wanted of it."""
    has_model = (run.folder / "model" / "config.json").exists()
    return finished_metrics(run.folder) is not None and (has_model or not run.keep_model)


def _ended_runs(runs: Sequence[Run], processes: int) -> Iterator[tuple[Run, str]]:
    """(run, what went wrong or '') as they end."""
    if processes == 1 or len(runs) < 2:
        for run in runs:
            yield run, _attempt(run)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(processes):
        numbers.put(number)
    pool = ProcessPoolExecutor(processes, context, _start_worker, (numbers, processes))
    futures = {pool.submit(_attempt, run): run for run in runs}
    try:
        for future in as_completed(futures):
            killed = isinstance(future.exception(), BrokenProcessPool)
            yield futures[future], "its process was killed (out of memory?)" if killed else future.result()
    except BaseException:  # the user's signal: what is under way is done again by the next command
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(numbers: "multiprocessing.Queue[int]", processes: int) -> None:
    """Gives a worker its GPU or its share of the cores, before torch is imported."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # CUDA is not asked: that would settle the visible GPUs of this process.
    gpus = visible.split(",") if visible else [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
    if gpus and visible != "":
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[numbers.get() % len(gpus)]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))


def _attempt(run: Run) -> str:
    try:
        finetune_run(run, show=lambda line: None)
    except (InputError, RuntimeError, OSError) as error:  # the memory of a GPU or a full disk ends this run alone
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


def finetune_run(run: Run, *, show: Callable[[str], None]) -> dict[str, Any]:
    """What a run's metrics.json holds; the run is done if it is not finished."""
    if is_finished(run):
        return finished_metrics(run.folder) or {}
    splits = ["train", "dev"]
    if run.data.startswith(HUB) or ("test" in run.task.files and find_files(run.task, Path(run.data), "test")):
        splits.append("test")
    data = load_task_data(run.task, run.data, splits)
    for split in data.splits.values():
        for line in split.notes:
            show(f"{run.task.name}, {split.name}: {line}")
    from distill.downstream.finetune import finetune

    with exclusive(run.folder, show):
        if is_finished(run):
            return finished_metrics(run.folder) or {}
        return finetune(run.model, data, run.hyperparameters, run.folder, show=show, keep_model=run.keep_model)


def _settings(task: Task, common: GridValues, own: GridValues, seed: int) -> Iterator[Hyperparameters]:
    chosen = {**_given(common), **_given(own)}
    for values in product(*chosen.values()):
        yield with_defaults(task, seed, **dict(zip(chosen, values, strict=True)))


def _given(values: GridValues) -> Mapping[str, list]:
    return {name: value for name, value in values.model_dump().items() if value is not None}


def _describe(run: Run) -> str:
    h = run.hyperparameters
    return (
        f"{run.name}, {run.task.name}, lr {h.learning_rate:g}, {h.epochs:g} epochs, batch {h.batch_size}, seed {h.seed}"
    )


def _told(run: Run) -> str:
    metrics = (finished_metrics(run.folder) or {})["dev"]["metrics"]
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())

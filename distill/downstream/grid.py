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
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distill.corpus.lock import exclusive
from distill.downstream.run import Hyperparameters, finished_metrics, run_folder, with_defaults
from distill.downstream.task import Task, load_task
from distill.downstream.task_data import HUB, find_files, load_task_data
from distill.errors import InputError
from distill.json_file import nearest, read_json, short

FOLDER = Path(__file__).with_name("grids")


class Values(BaseModel):
    """The values to try of each hyper-parameter; of one that is not named, the task's default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    learning_rate: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = None
    epochs: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = None
    batch_size: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)] | None = None
    max_length: Annotated[list[Annotated[int, Field(ge=16)]], Field(min_length=1)] | None = None


class Grid(BaseModel):
    """Which tasks, values and seeds."""

    model_config = ConfigDict(extra="forbid")
    tasks: dict[str, Values] = Field(description="task -> values that count for it instead of the grid's", min_length=1)
    grid: Values = Field(default_factory=Values)
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)


@dataclass(frozen=True)
class Run:
    """One run of a grid."""

    model: Path
    task: Task
    data: str
    hyperparameters: Hyperparameters
    folder: Path


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
        raise InputError(f"{path}: {place}: {problem['msg'].lower()}, found {short(problem['input'])}") from None


def with_tasks(grid: Grid, names: Sequence[str]) -> Grid:
    """The grid with only these of its tasks; all of them if none is named."""
    for name in names:
        if name not in grid.tasks:
            raise InputError(f"--task {name}: not in this grid{nearest(name, grid.tasks)}")
    return grid.model_copy(update={"tasks": {name: grid.tasks[name] for name in names or grid.tasks}})


def list_runs(grid: Grid, models: Sequence[Path], data: str, output: Path) -> list[Run]:
    """Every run of a grid, seed by seed, so that an unfinished grid has all settings with fewer seeds."""
    tasks = {name: load_task(name) for name in grid.tasks}
    return [
        Run(model, task, data, hyperparameters, run_folder(output, model, task, data, hyperparameters))
        for seed in grid.seeds
        for model in models
        for name, task in tasks.items()
        for hyperparameters in _settings(task, grid.grid, grid.tasks[name], seed)
    ]


def run_grid(runs: Sequence[Run], *, processes: int, keep_models: bool, show: Callable[[str], None]) -> list[str]:
    """Does the runs that are not finished; returns what went wrong, one line a run. The others go on.

    Args:
        processes: each takes one visible GPU in turn, or its share of the cores.
    """
    waiting = [run for run in runs if finished_metrics(run.folder) is None]
    show(f"{len(runs)} runs, {len(runs) - len(waiting)} finished, {len(waiting)} to do")
    failed = []
    for done, (run, problem) in enumerate(_ended_runs(waiting, processes, keep_models), start=1):
        show(f"[{done}/{len(waiting)}] {_describe(run)}: {problem or _told(run)}")
        if problem:
            failed.append(f"{_describe(run)}: {problem}")
    return failed


def _ended_runs(runs: Sequence[Run], processes: int, keep_models: bool) -> Iterator[tuple[Run, str]]:
    """(run, what went wrong or '') as they end."""
    if processes == 1 or len(runs) < 2:
        for run in runs:
            yield run, _attempt(run, keep_models)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(processes):
        numbers.put(number)
    pool = ProcessPoolExecutor(processes, context, _start_worker, (numbers, processes))
    futures = {pool.submit(_attempt, run, keep_models): run for run in runs}
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


def _attempt(run: Run, keep_models: bool) -> str:
    try:
        finetune_run(run, keep_model=keep_models, show=lambda line: None)
    except (InputError, RuntimeError, OSError) as error:  # the memory of a GPU or a full disk ends this run alone
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


def finetune_run(run: Run, *, keep_model: bool, show: Callable[[str], None]) -> dict[str, Any]:
    """What a run's metrics.json holds; the run is done if it is not finished."""
    if (found := finished_metrics(run.folder)) is not None:
        return found
    splits = ["train", "dev"]
    if run.data.startswith(HUB) or ("test" in run.task.files and find_files(run.task, Path(run.data), "test")):
        splits.append("test")
    data = load_task_data(run.task, run.data, splits)
    for split in data.splits.values():
        for line in split.notes:
            show(f"{run.task.name}, {split.name}: {line}")
    from distill.downstream.finetune import finetune

    with exclusive(run.folder, show):
        if (found := finished_metrics(run.folder)) is not None:
            return found
        return finetune(run.model, data, run.hyperparameters, run.folder, show=show, keep_model=keep_model)


def _settings(task: Task, common: Values, own: Values, seed: int) -> Iterator[Hyperparameters]:
    chosen = {**_given(common), **_given(own)}
    for values in product(*chosen.values()):
        yield with_defaults(task, seed, **dict(zip(chosen, values, strict=True)))


def _given(values: Values) -> Mapping[str, list]:
    return {name: value for name, value in values.model_dump().items() if value is not None}


def _describe(run: Run) -> str:
    h = run.hyperparameters
    return (
        f"{run.model.name}, {run.task.name}, lr {h.learning_rate:g}, {h.epochs:g} epochs, batch {h.batch_size}, "
        f"seed {h.seed}"
    )


def _told(run: Run) -> str:
    metrics = (finished_metrics(run.folder) or {})["dev"]["metrics"]
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())

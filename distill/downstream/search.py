"""Working off a grid: several runs at a time, those that build on others after them. What is finished is not repeated.

1. `search` does the runs of a grid in up to three rounds: those of the models as they are, those that start from a
   fine-tuned model, those that learn from a fine-tuned teacher.
2. `run_grid` gives the runs of a round to processes; one that fails does not stop the others.
3. `finetune_run` does one run, if nobody else has or does.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.corpus.lock import exclusive
from distill.downstream.grid import Grid, Run, list_runs
from distill.downstream.metrics import mean_score
from distill.downstream.ray_runs import runs_over_ray
from distill.downstream.run import TAUGHT, Distillation, finished_metrics, run_folder
from distill.downstream.task import load_task
from distill.downstream.task_data import TaskData, has_split, load_task_data
from distill.errors import InputError, first_line


@dataclass(frozen=True)
class TaskTeacher:
    """The model of a grid that teaches every task to the others once more, and how; its own settings are searched, too.

    `settings` are the fields of Distillation besides the teacher's folder.
    """

    model: str
    settings: Mapping[str, Any]


def search(
    grid: Grid, models: Mapping[str, Path], data: str, output: Path, *,
    processes: int, show: Callable[[str], None], keep_models: bool = False, teacher: TaskTeacher | None = None,
    ray: str | None = None,
) -> tuple[list[Run], list[str]]:  # fmt: skip
    """Does every run of a grid that is not finished; returns all runs, and what went wrong, one line a run.

    Tasks that start from another task's model come after it, and what is learned from a teacher after the teacher.

    Args:
        ray: address of a Ray cluster to work on, instead of `processes` here.
    """

    def keep(model: str, task: str) -> bool:
        return keep_models or task in grid.start_from.values() or (teacher is not None and model == teacher.model)

    runs = list_runs(grid, models, data, output, keep=keep)
    failed = run_grid(runs, processes=processes, show=show, ray=ray)
    if grid.start_from:
        best = best_models(runs)
        sources = {task: load_task(source).name for task, source in grid.start_from.items()}
        there = {name: folder for name, folder in models.items()
                 if all((name, source) in best for source in sources.values())}  # fmt: skip
        failed += [f"{name}: no model to start {', '.join(sources)} from" for name in models if name not in there]
        starts = {(name, task): best[name, source] for name in there for task, source in sources.items()}
        later = list_runs(grid, there, data, output, keep=keep, starts=starts)
        failed += run_grid(later, processes=processes, show=show, ray=ray)
        runs += later
    if teacher:
        taught = _taught_runs(runs, teacher, output)
        failed += run_grid(taught, processes=processes, show=show, ray=ray)
        runs += taught
    return runs, failed


def best_models(runs: Iterable[Run]) -> dict[tuple[str, str], Path]:
    """(model, task) -> the fine-tuned model of the run with the best score on dev."""
    best: dict[tuple[str, str], tuple[float, Path]] = {}
    for run in runs:
        found = finished_metrics(run.folder)
        if found is not None:
            score, key = mean_score(found["dev"]["metrics"], run.task.metrics), (run.name, run.task.name)
            if key not in best or score > best[key][0]:
                best[key] = (score, run.folder / "model")
    return {key: folder for key, (_, folder) in best.items()}


def _taught_runs(runs: Sequence[Run], teacher: TaskTeacher, output: Path) -> list[Run]:
    """The runs of all other models again, each under the name MODEL+kd, with the best teacher of their task."""
    best = best_models(run for run in runs if run.name == teacher.model)
    taught = []
    for run in runs:
        folder = best.get((teacher.model, run.task.name))
        if run.name != teacher.model and folder is not None:
            name, distillation = f"{run.name}{TAUGHT}", Distillation(folder, **teacher.settings)
            place = run_folder(output, name, run.model, run.task, run.data, run.hyperparameters, distillation)
            taught.append(replace(run, name=name, folder=place, distillation=distillation))
    return taught


def run_grid(runs: Sequence[Run], *, processes: int, show: Callable[[str], None], ray: str | None = None) -> list[str]:
    """Does the runs that are not finished; returns what went wrong, one line a run. The others go on.

    Args:
        processes: each takes one visible GPU in turn, or its share of the cores.
    """
    waiting = [run for run in runs if not is_finished(run)]
    show(f"{len(runs)} runs, {len(runs) - len(waiting)} finished, {len(waiting)} to do")
    failed = []
    ended = runs_over_ray(waiting, ray, _attempt_in) if ray and waiting else _ended_runs(waiting, processes)
    for done, (run, problem) in enumerate(ended, start=1):
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
    lost = []
    for run, problem in _in_pool(runs, processes):
        if problem is None:
            lost.append(run)
        else:
            yield run, problem
    for run in lost:  # one of them took the others' pool with it
        for _, problem in _in_pool([run], 1):
            yield run, "its process was killed (out of memory?)" if problem is None else problem


def _in_pool(runs: Sequence[Run], processes: int) -> Iterator[tuple[Run, str | None]]:
    """(run, what went wrong or '') as they end; None for all that are left when a process of the pool is killed."""
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(processes):
        numbers.put(number)
    pool = ProcessPoolExecutor(processes, context, _start_worker, (numbers, processes))
    futures = {pool.submit(_attempt, run): run for run in runs}
    try:
        for future in as_completed(futures):
            killed = isinstance(future.exception(), BrokenProcessPool)
            yield futures[future], None if killed else future.result()
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
    except (InputError, RuntimeError, OSError, ValueError) as error:  # a GPU's memory, a full disk end this run alone
        return first_line(error, None)
    return ""


def _attempt_in(run: Run, folder: Path) -> str:
    os.chdir(folder)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return _attempt(run)


def finetune_run(
    run: Run,
    *,
    show: Callable[[str], None],
    train: Callable[[Run, TaskData, Callable[[str], None]], None] | None = None,
) -> dict[str, Any]:
    """What a run's metrics.json holds; the run is done if it is not finished.

    Args:
        train: does it, with its data and `show`, so that metrics.json is there; default: in this process.
    """
    if not is_finished(run):
        data = load_run_data(run)
        for split in data.splits.values():
            for line in split.notes:
                show(f"{run.task.name}, {split.name}: {line}")
        with exclusive(run.folder, show):
            if not is_finished(run):
                (train or train_run)(run, data, show)
    return finished_metrics(run.folder) or {}


def load_run_data(run: Run) -> TaskData:
    """Train and dev of a run's task, and test where there is one."""
    splits = ["train", "dev", *(["test"] if has_split(run.task, run.data, "test") else [])]
    return load_task_data(run.task, run.data, splits)


def train_run(run: Run, data: TaskData, show: Callable[[str], None]) -> None:
    """Does a run in this process, or as one of the processes that torchrun started."""
    from distill.downstream.finetune import finetune

    finetune(run.model, data, run.hyperparameters, run.folder, show=show, keep_model=run.keep_model,
             distillation=run.distillation)  # fmt: skip


def _describe(run: Run) -> str:
    h = run.hyperparameters
    return (
        f"{run.name}, {run.task.name}, lr {h.learning_rate:g}, {h.epochs:g} epochs, batch {h.batch_size}, seed {h.seed}"
    )


def _told(run: Run) -> str:
    metrics = (finished_metrics(run.folder) or {})["dev"]["metrics"]
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())

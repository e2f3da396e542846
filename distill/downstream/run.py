"""One fine-tuning run as data: model, task, hyper-parameters, seed; its name, its folder, what it leaves there.

A run is named by a hash of everything that decides its result, so a finished one is never repeated and never mistaken
for another: the model's weights, the task, the data, the hyper-parameters and the seed. Nothing here imports torch.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distill.downstream.task import Task
from distill.downstream.task_data import HUB, find_files, name_hub
from distill.durable import write_json
from distill.errors import InputError
from distill.json_file import read_json

METRICS_FILE = "metrics.json"
TASK_FILE = "task.json"
MODEL_FOLDER = "model"
_MODEL_FILES = (".safetensors", ".bin", ".json", ".txt")
TAUGHT = "+kd"
"""What the name of a model that learned a task from a teacher ends with."""
_SCHEMA = 1
"""Counted up when a change of this package changes what a run with the same settings gives."""


@dataclass(frozen=True)
class Hyperparameters:
    """What a run is trained with; see task.Defaults for the units."""

    learning_rate: float
    epochs: float
    batch_size: int
    max_length: int
    seed: int = 0


@dataclass(frozen=True)
class Distillation:
    """How a run learns from a fine-tuned teacher besides the labels; see distillation.py."""

    teacher: Path
    """Folder 'model' of a run on the same task."""
    temperature: float = 4.0
    kd_weight: float = 1.0
    """Of the teacher's scores; times temperature^2."""
    hard_weight: float = 1.0
    """Of the labels."""
    matches: tuple[str, ...] = ()
    """Layer matches in the words of a recipe: "uniform", "last:relation", a preset, a JSON path."""
    augment: int = 0
    """Copies of each text of train in which some tokens are replaced; see augmentation.py."""


def with_defaults(task: Task, seed: int = 0, **given: float | int | None) -> Hyperparameters:
    """The task's hyper-parameters, replaced by those given that are not None."""
    chosen = {**task.defaults.model_dump(), **{key: value for key, value in given.items() if value is not None}}
    return Hyperparameters(seed=seed, **chosen)


def run_folder(
    output: Path, name: str, model: Path, task: Task, data: str, hyperparameters: Hyperparameters,
    distillation: Distillation | None = None,
) -> Path:  # fmt: skip
    """OUTPUT/MODEL/TASK/HASH, the folder of one run.

    Args:
        name: what the model is called; its weights count by their bytes.
        model: folder with weights.
        data: as for load_task_data. A hub dataset counts by its name, files by their bytes.
    """
    data = name_hub(task, data)
    settings = {
        "schema": _SCHEMA,
        "model": digest_model(model),
        "task": task.model_dump(exclude={"title", "source", "hub", "defaults", "folders"}),
        "data": data if data.startswith(HUB) else _digest(_files(task, data)),
        "hyperparameters": asdict(hyperparameters),
    }
    if distillation:
        settings["distillation"] = describe_distillation(distillation)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return output / name / task.name / digest


def describe_distillation(distillation: Distillation) -> dict[str, Any]:
    """The settings of a distillation, its teacher by its bytes."""
    return {**asdict(distillation), "teacher": digest_model(distillation.teacher)}


def digest_model(folder: Path) -> str:
    """SHA-256 over a model's config, weights and vocabulary."""
    return _digest(tuple(path for path in sorted(folder.iterdir()) if path.suffix in _MODEL_FILES))


def model_name(given: str, folder: Path) -> str:
    """What a model that was given as folder or hub id is called in tables and paths; MODEL-TASK if a run left it."""
    place = folder.resolve()
    if place.name == MODEL_FOLDER and (place / TASK_FILE).is_file() and len(place.parents) > 2:
        return f"{place.parents[2].name}-{place.parents[1].name}"
    return place.name if Path(given).is_dir() else given.rpartition("/")[2]


def finished_metrics(folder: Path) -> dict[str, Any] | None:
    """What a finished run wrote, None if it is not finished."""
    path = folder / METRICS_FILE
    return read_json(path) if path.is_file() else None


def write_task_file(folder: Path, task: Task, labels: Sequence[str], max_length: int) -> None:
    """Writes what read_task_file reads, into a fine-tuned model's folder."""
    description = {"task": task.model_dump(), "labels": list(labels), "max_length": max_length}
    write_json(folder / TASK_FILE, description)


def read_task_file(folder: Path) -> tuple[Task, tuple[str, ...], int]:
    """The task of a fine-tuned model, its labels in the order of the model's scores, and the length it was trained for.

    Raises:
        InputError: a folder that is no fine-tuned model.
    """
    if not (folder / TASK_FILE).is_file():
        raise InputError(f"{folder}: no {TASK_FILE} there; name the folder 'model' of a run of `distill finetune`")
    raw = read_json(folder / TASK_FILE)
    try:
        return Task.model_validate(raw["task"]), tuple(map(str, raw["labels"])), int(raw["max_length"])
    except (ValidationError, KeyError, TypeError, ValueError):
        raise InputError(f"{folder / TASK_FILE}: not what `distill finetune` writes") from None


def _files(task: Task, data: str) -> tuple[Path, ...]:
    return tuple(path for split in sorted(task.files) for path in find_files(task, Path(data), split))


def _digest(paths: tuple[Path, ...]) -> str:
    """SHA-256 over names and bytes of files."""
    stats = [path.stat() for path in paths]
    return _digest_once(paths, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@functools.cache
def _digest_once(paths: tuple[Path, ...], _sizes_and_times: tuple[tuple[int, int], ...]) -> str:
    """Read again only when a file has another size or time."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as content:
            total.update(f"{path.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()

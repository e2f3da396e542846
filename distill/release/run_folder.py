"""A run's folder as the report reads it: a file that is missing or damaged costs one line, not the rest."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from distill.corpus.lock import is_gone
from distill.corpus.tokenizing import TOKENIZER_FOLDER
from distill.errors import InputError
from distill.json_file import read_object
from distill.recipe import Stage
from distill.recipe_file import load_recipe
from distill.recipe_types import is_hub_id
from distill.training.metrics import read_metrics, read_status

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.json"
SETTINGS_FILE = "settings.json"
"""In a stage's folder: what each student was last trained with, and where models from elsewhere were found."""
STATUS_FILE = "status.json"
"""What the command at work on the run does (run/status.py); in a stage's folder, what its processes do."""
PREPARING, TRAINING, FINE_TUNING, REPORTING = "preparing data", "training", "fine-tuning", "writing the report"
PASSES_FILE = "passes.jsonl"
"""In a stage's folder: a line each time that its processes ran."""
EXAMPLES_FILE = "report/examples.json"
"""What the models themselves were asked: see examining.py."""

SILENT_SECONDS = 120
"""A stage that calls itself running and has not said so for so long is doubted."""

Series = dict[str, list[tuple[int, float]]]
"""Name of a value -> (step, value)."""


@dataclass
class RunFolder:
    """The folder and its recipe. `problems` collects what could not be read, one line each."""

    path: Path
    recipe: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Of the recipe, in order."""
        stages: list[dict[str, Any]] = self.recipe["stages"]
        return stages

    def stage_folder(self, stage: Mapping[str, Any]) -> Path:
        return self.path / "stages" / stage["name"]

    def model(self, name: str) -> Path | None:
        """The folder of a finished student, or of a given teacher: one that is here, or the copy fetched from the hub.

        Nothing is fetched for a report.
        """
        made = self.path / "models" / name
        if (made / "config.json").is_file():
            return made
        if any(name in stage["students"] for stage in self.stages):
            return None
        found = self._given().get(name, {}).get("folder")
        for folder in (found, name):
            if isinstance(folder, str) and (Path(folder) / "config.json").is_file():
                return Path(folder)
        with contextlib.suppress(HFValidationError):
            cached = try_to_load_from_cache(name, "config.json") if self.is_from_hub(name) else None
            return Path(cached).parent if isinstance(cached, str) else None
        return None

    def is_from_hub(self, name: str) -> bool:
        """Whether a given model came from the Hub, by what the run found; an older run's name must tell."""
        found = self._given().get(name, {}).get("is_from_hub")
        return found if isinstance(found, bool) else is_hub_id(name)

    def _given(self) -> dict[str, dict[str, Any]]:
        """Models from elsewhere: name -> {"folder", "is_from_hub"}."""
        models: dict[str, dict[str, Any]] = {}
        for stage in self.stages:
            given = self.json_at(self.stage_folder(stage) / SETTINGS_FILE).get("given")
            models |= {k: v for k, v in given.items() if isinstance(v, dict)} if isinstance(given, dict) else {}
        return models

    def trained_stage(self, stage: Mapping[str, Any], student: str) -> dict[str, Any]:
        """The settings of a stage that a student was trained with; the recipe's, which may be newer, if not known."""
        students = self.json_at(self.stage_folder(stage) / SETTINGS_FILE).get("students")
        known = students.get(student) if isinstance(students, dict) else None
        if isinstance(known, dict):
            with self.noting():
                settings = Stage.model_validate(known).model_dump()
                if student in settings["students"]:
                    return settings
        return dict(stage)

    def dataset(self, stage: Mapping[str, Any]) -> Path | None:
        """The packed dataset of a stage, which may have moved with the run's folder."""
        note = self.stage_folder(stage) / "dataset.json"
        if not note.is_file():
            return None
        with self.noting():
            where = read_object(note, what="where a dataset is").get("path")
            if not isinstance(where, str) or not where:
                raise InputError(f"{note}: does not say where the dataset is; the same `distill train` writes it again")
            path = Path(where)
            here = self.path / "data" / path.name
            return here if here.is_dir() else path if path.is_dir() else None
        return None

    def tokenizer(self, stage: Mapping[str, Any]) -> Path | None:
        """The tokenizer that a stage's dataset was packed with."""
        dataset = self.dataset(stage)
        folder = dataset / TOKENIZER_FOLDER if dataset else None
        return folder if folder and folder.is_dir() else None

    def json(self, name: str) -> dict[str, Any]:
        """The object in a file of the folder; empty if it is missing, or damaged, which is noted."""
        return self.json_at(self.path / name)

    def json_at(self, path: Path) -> dict[str, Any]:
        """The same of any file."""
        if path.is_file():
            with self.noting():
                return read_object(path, what="a file of a run")
        return {}

    def status(self, stage: Mapping[str, Any], *, silent_after: float = SILENT_SECONDS) -> dict[str, Any]:
        """What a stage's processes said last, with the values checked that are counted with.

        Args:
            silent_after: seconds without a word after which "running" becomes "silent".
        """
        status = _read_status(self.stage_folder(stage) / STATUS_FILE, silent_after)
        for name in ("step", "steps"):
            if not isinstance(status.get(name, 0), int):
                status.pop(name)
        messages = status.get("messages")
        return {**status, "messages": [str(m) for m in messages] if isinstance(messages, list) else []}

    def run_status(self) -> dict[str, str]:
        """What the command at work does, or how the last one ended: {"state", "doing", "message"}; empty if not known.

        State is "running", "silent", "finished", "stopped" or "failed", as which one counts that was killed.
        """
        status = _read_status(self.path / STATUS_FILE, SILENT_SECONDS)
        state, doing, message = (str(status.get(name, "")) for name in ("state", "doing", "message"))
        process = str(status.get("process"))
        if state in ("running", "silent") and is_gone(process):
            state, message = "failed", f"{process} was killed while it was {doing}; the same command goes on"
        is_going_on = state in ("running", "silent")
        known = {"state": state, "doing": doing if is_going_on else "", "message": "" if is_going_on else message}
        return known if state in ("running", "silent", "finished", "stopped", "failed") else {}

    def passes(self, stage: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every time that a stage's processes ran: see `record_pass`."""
        path = self.stage_folder(stage) / PASSES_FILE
        if not path.is_file():
            return []
        found = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        sound = [one for one in found if isinstance(one, dict) and number_or_none(one.get("seconds")) is not None]
        if len(sound) < len(found):
            self.problems.append(f"{path}: {len(found) - len(sound)} line(s) are damaged and left out")
        return sound

    def curves(self, stage: Mapping[str, Any]) -> dict[str, dict[str, Series]]:
        """split ("train", "dev", "gradients") -> student -> values of metrics.jsonl."""
        found: dict[str, dict[str, Series]] = {"train": {}, "dev": {}, "gradients": {}}
        with self.noting():
            for record in read_metrics(self.stage_folder(stage) / "metrics.jsonl"):
                if record["split"] in found and isinstance(record["step"], int):
                    series = found[record["split"]].setdefault(str(record["student"]), {})
                    for name, value in record.items():
                        if name not in ("step", "samples", "tokens") and number_or_none(value) is not None:
                            series.setdefault(name, []).append((record["step"], float(value)))
        return found

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """What cannot be read becomes a line of `problems`."""
        try:
            yield
        except (InputError, OSError) as error:
            self.problems.append(str(error))
        except Exception as error:  # what damaged files make of the code that reads them
            logger.debug("while %s was read", self.path, exc_info=True)
            self.problems.append(f"{self.path}: a part could not be read ({type(error).__name__}: {error})")

    @contextlib.contextmanager
    def damage_noted(self, name: str) -> Iterator[None]:
        """A JSON file of another shape than it was written in becomes a line of `problems`."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            self.problems.append(f"{self.path / name}: damaged; remove it, and it is made again")


def _read_status(path: Path, silent_after: float) -> dict[str, Any]:
    """A status.json whose "running" is "silent" if it has not been touched for so many seconds."""
    status = read_status(path)
    if status.get("state") == "running":
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > silent_after:
                status["state"] = "silent"
    return status


def number_or_none(value: Any) -> float | None:
    """A number that can be counted with; None for anything else, NaN and true among it."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def open_run(path: Path) -> RunFolder:
    """The folder of a run that has at least begun.

    Raises:
        InputError: it holds no recipe.json, or one that cannot be read: nothing can be told without it.
    """
    if not (path / RECIPE_FILE).is_file():
        raise InputError(f"{path}: no folder of a run (it has no {RECIPE_FILE}); name the output_dir of a recipe that "
                         f"`distill train` has begun")  # fmt: skip
    return RunFolder(path, load_recipe(path / RECIPE_FILE).model_dump())

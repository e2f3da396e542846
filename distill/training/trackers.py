"""Experiment trackers (wandb, swanlab, mlflow, ...) through Accelerate, beside metrics.jsonl and TensorBoard.

A tracker never decides over a run: one that fails is given up with a line, and metrics.jsonl has all of it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.errors import InputError, first_line
from distill.json_file import nearest
from distill.recipe import Stage

TENSORBOARD = "tensorboard"
"""Is written anyway (metrics.py)."""
_RUN_NAME = {"wandb": "name", "swanlab": "experiment_name", "mlflow": "run_name"}
"""What a tracker calls the name of one run."""


def check_trackers(names: Sequence[str], *, where: str) -> None:
    """InputError if Accelerate knows no such tracker, or its package is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    missing = {str(name) for name in LoggerType} - {str(name) for name in get_available_trackers()} - {TENSORBOARD}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(f"{where}: no tracker '{name}'{nearest(name, LOGGER_TYPE_TO_CLASS)}")
        if name in missing:
            raise InputError(
                f"{where}: the package of tracker '{name}' is not installed; `pip install {name.replace('_', '-')}`, "
                f"or leave it out of report_to"
            )


class Tracker:
    """One tracker of one stage's run, on the first process alone."""

    def __init__(self, name: str, stage: Stage, folder: Path, tell: Callable[[str], None]) -> None:
        """
        Args:
            folder: the stage's, in the run's: its names become those of the run and the project.
            tell: takes the line that says that it is given up.
        """
        self.name, self._tell = name, tell
        self._tracker: Any = None
        self._guarded(lambda: self._start(stage, folder))

    def _start(self, stage: Stage, folder: Path) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS
        from accelerate.utils import patch_environment

        # The trackers' own log lines ask it which process they are on: the only one that has any. What torchrun's
        # environment and a GPU would make it do (a process group, peer-to-peer checks) is none of a tracker's business.
        with patch_environment(LOCAL_RANK=-1, WORLD_SIZE=1, ACCELERATE_TORCH_DEVICE="cpu"):
            PartialState()
        made = LOGGER_TYPE_TO_CLASS[self.name]
        folders = [str(folder)] if made.requires_logging_directory else []
        options = {_RUN_NAME[self.name]: stage.name} if self.name in _RUN_NAME else {}
        tracker = made(folder.resolve().parent.parent.name, *folders, **options)
        tracker.start()
        tracker.store_init_configuration(_settings(stage))
        self._tracker = tracker

    def add(self, values: Mapping[str, float], step: int) -> None:
        self._guarded(lambda: self._tracker and self._tracker.log(dict(values), step=step))

    def close(self) -> None:
        self._guarded(lambda: self._tracker and self._tracker.finish())

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # whatever a service's client lets through must not end a run
            self._tracker = None
            reason = f"{type(error).__name__}: {first_line(error, 200)}"
            self._tell(f"tracker {self.name} is given up ({reason}); metrics.jsonl goes on")


def open_trackers(stage: Stage, folder: Path, tell: Callable[[str], None]) -> list[Tracker]:
    """The trackers that a stage reports to, besides TensorBoard."""
    return [Tracker(name, stage, folder, tell) for name in stage.report_to if name != TENSORBOARD]


def _settings(stage: Stage) -> dict[str, Any]:
    """What decides the run, flat: `students.small.learning_rate`."""
    found: dict[str, Any] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                walk(part, f"{place}.{key}" if place else str(key))
        elif value is not None:
            found[place] = value if isinstance(value, (bool, int, float, str)) else str(value)[:200]

    walk(stage.model_dump(), "")
    return found

"""A run seen from outside: its state from metrics.jsonl and its status files alone, as a terminal view or as JSON.

Nothing here talks to the run's processes, so that it works for any run on a file system that can be read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distill.errors import InputError
from distill.markdown import show_value
from distill.recipe import TEACHER
from distill.recipe_file import load_recipe
from distill.release.run_folder import FINE_TUNING, PREPARING, SILENT_SECONDS, STATUS_FILE, RunFolder, number_or_none
from distill.release.task_tables import is_compared

SILENT_STEPS = 5
"""A run says how it is once a step: where that takes long, it is doubted after the time of so many."""
LAST_MESSAGES = 6
RUNNING, WAITING, FINISHED, SILENT = "running", "waiting", "finished", "silent"
_COLOURS = {FINISHED: "green", RUNNING: "cyan", "failed": "red", "stopped": "yellow", "silent": "yellow"}
_SHOWN = {"loss": ".4g", "mlm_loss": ".4g", "accuracy": ".2%", "grad_norm": ".3g", "learning_rate": ".3g"}


class MetricsTail:
    """The newest records of a growing metrics.jsonl, of which only what is new is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self.newest: dict[tuple[str, str], dict[str, Any]] = {}
        """(split, student) -> record."""

    def read(self) -> None:
        """Takes in what was added; a file that was cut back, as a run does that goes on, is read from its start."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            if self.path.stat().st_size < self._offset:
                self._offset, self.newest = 0, {}
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                self.newest[record["split"], record["student"]] = record
            except (ValueError, KeyError, TypeError):
                continue


@dataclass
class Watch:
    """A run's folder under observation."""

    path: Path
    _tails: dict[str, MetricsTail] = field(default_factory=dict)
    _recipe: Any = None

    def look(self) -> dict[str, Any]:
        """The state now.

        Returns: {"state", "doing", "message", "stages": [see `_look_at`], "tasks": None or {"runs": finished
            fine-tuning runs, "state"}}; the last command on the run decides its state: "preparing", "running",
            "silent", "stopped", "failed" or "finished". What it was not asked for is "waiting" among its parts.
        Raises:
            InputError: no folder of a run.
        """
        command = RunFolder(self.path, {}).run_status()
        stages: list[dict[str, Any]] = []
        tasks = None
        if (self.path / "recipe.json").is_file():
            self._recipe = self._recipe or load_recipe(self.path / "recipe.json")
            stages = [self._look_at(stage) for stage in self._recipe.stages]
            tasks = self._look_at_tasks(command.get("doing")) if self._recipe.finetune else None
        elif not command:
            raise InputError(f"{self.path}: no folder of a run (it has neither recipe.json nor {STATUS_FILE}); name "
                             f"the output_dir of a recipe that `distill train` has begun")  # fmt: skip
        return {
            "state": _state_of(command, [stage["state"] for stage in stages]), "doing": command.get("doing") or None,
            "message": command.get("message", ""), "stages": stages, "tasks": tasks,
        }  # fmt: skip

    def _look_at(self, stage: Any) -> dict[str, Any]:
        """{"name", "state", "step", "steps", "eta_s", "tokens_per_second", "mfu", "data_wait", "students": {name: last
        loss, mlm_loss and accuracy on dev, grad_norm, learning_rate}, "message", "messages"}; None = not known."""
        folder = self.path / "stages" / stage.name
        tail = self._tails.setdefault(stage.name, MetricsTail(folder / "metrics.jsonl"))
        tail.read()
        train = next((tail.newest["train", name] for name in stage.students if ("train", name) in tail.newest), {})
        patience = max(SILENT_SECONDS, SILENT_STEPS * (_seconds_a_step(train) or 0))
        status = RunFolder(self.path, {}).status({"name": stage.name}, silent_after=patience)
        step = status.get("step") or _whole(train.get("step"))
        steps = status.get("steps") or stage.steps
        if all((self.path / "models" / name / "config.json").is_file() for name in stage.students):
            state = FINISHED
        else:
            state = str(status.get("state", WAITING))
            if state == FINISHED:  # without its models: a pass of some of the students
                state = WAITING
        students = {}
        for name in [*([TEACHER] if stage.teacher else []), *stage.students]:
            values = {**tail.newest.get(("dev", name), {}), **tail.newest.get(("train", name), {})}
            students[name] = {key: number_or_none(values.get(key)) for key in _SHOWN}
        return {
            "name": stage.name, "state": state, "step": step, "steps": steps,
            "eta_s": _time_left(step, steps, train) if state == RUNNING else None,
            **{key: number_or_none(train.get(key)) for key in ("tokens_per_second", "mfu", "data_wait")},
            "students": students, "message": str(status.get("message", "")), "messages": status["messages"],
        }  # fmt: skip

    def _look_at_tasks(self, doing: str | None) -> dict[str, Any]:
        """Fine-tuning is finished when its tables tell of the models that are there."""
        runs = len(list((self.path / "finetune").glob("*/*/*/metrics.json")))
        if doing == FINE_TUNING:
            return {"runs": runs, "state": RUNNING}
        run, is_done = RunFolder(self.path, self._recipe.model_dump()), False
        with run.noting():
            is_done = is_compared(run)
        return {"runs": runs, "state": FINISHED if is_done else WAITING}


def _state_of(command: Mapping[str, str], stages: Sequence[str]) -> str:
    """A run's state from what its last command said, and from its stages where an older version said nothing."""
    unfinished = [state for state in stages if state != FINISHED]
    if not command:
        state = unfinished[0] if unfinished else FINISHED
        return SILENT if state == WAITING else state
    if command["state"] != RUNNING or RUNNING in unfinished:
        return command["state"]
    if command["doing"] == PREPARING:
        return "preparing"
    return SILENT if SILENT in unfinished else RUNNING


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _seconds_a_step(train: Mapping[str, Any]) -> float | None:
    """From the tokens that a step has had and the tokens/s of the last log line."""
    step, tokens, speed = (number_or_none(train.get(key)) for key in ("step", "tokens", "tokens_per_second"))
    return tokens / step / speed if step and tokens and speed else None


def _time_left(step: int | None, steps: int | None, train: Mapping[str, Any]) -> float | None:
    """Seconds."""
    seconds = _seconds_a_step(train)
    return None if seconds is None or not step or not steps else round((steps - step) * seconds, 1)


def draw(view: Mapping[str, Any], path: Path) -> RenderableType:
    """The state for a terminal."""
    heads = ("stage", "", "", "steps", "left", "tokens/s", "of peak")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head, justify="right" if head in heads[3:] else "left", no_wrap=True)
    for stage in view["stages"]:
        step, steps = stage["step"] or 0, stage["steps"] or 0
        bar = ProgressBar(total=steps or 1, completed=step, width=18)
        table.add_row(
            Text(stage["name"]), Text(stage["state"], _COLOURS.get(stage["state"], "dim")), bar,
            f"{step:,}/{steps:,}" if steps else "-", _clock(stage["eta_s"]),
            show_value(stage["tokens_per_second"], ",.0f"), show_value(stage["mfu"], ".0%"),
        )  # fmt: skip
    doing = f", {view['doing']}" if view["doing"] else ""
    title = Text.assemble((str(path), "bold"), "  ", _state(view["state"]), doing)
    parts: list[RenderableType] = [title, Text(), table]
    messages: list[str] = []
    said = ""
    if active := _active_stage(view):
        parts += [Text(), _students_table(active)]
        messages, said = active["messages"][-LAST_MESSAGES:], active["message"]
    # The command repeats what the stage said last, and adds where to look.
    messages += [view["message"]] if said in view["message"] else [said, view["message"]]
    shown = ["".join(c if c.isprintable() else " " for c in message) for message in messages if message]
    parts += [Text(), *(Text(message, "dim") for message in shown)] if shown else []
    if view["tasks"]:
        runs = f"fine-tuning: {view['tasks']['runs']} run(s) finished  "
        parts += [Text(), Text.assemble(runs, _state(view["tasks"]["state"]))]
    return Group(*parts)


def _state(state: str) -> tuple[str, str]:
    hint = " (no word for minutes: a long step or evaluation, or it is not there any more)" if state == SILENT else ""
    return state + hint, _COLOURS.get(state, "dim")


def _active_stage(view: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stage that is going on or has ended badly, else the last one that has begun."""
    begun: list[dict[str, Any]] = [stage for stage in view["stages"] if stage["state"] != WAITING]
    return next((stage for stage in begun if stage["state"] != FINISHED), begun[-1] if begun else None)


def _students_table(stage: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("student", overflow="fold")
    for head in ("loss", "dev MLM loss", "dev accuracy", "grad norm", "learning rate"):
        table.add_column(head, justify="right")
    for name, values in stage["students"].items():
        table.add_row(Text(name), *(show_value(values[key], spec) for key, spec in _SHOWN.items()))
    return table


def _clock(seconds: float | None) -> str:
    """`1:02:03` or `2:03`."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""What the report shows of one stage: its state, its curves, and how long its processes ran."""

from collections.abc import Mapping
from typing import Any

from distill.recipe import TEACHER
from distill.release.charts import line_chart
from distill.release.run_folder import RunFolder, Series

SPEEDS = ("tokens_per_second", "mfu", "data_wait")
OTHERS = {"loss", "grad_norm", "learning_rate", *SPEEDS}
"""Values of a train record that are no terms of the loss."""


def collect_stage(run: RunFolder, stage: Mapping[str, Any]) -> dict[str, Any]:
    """State, messages and charts of a stage."""
    status, curves = run.status(stage), run.curves(stage)
    train, dev = curves["train"], curves["dev"]
    teacher = TEACHER if stage["teacher"] else ""
    first = next(iter(train), "")
    charts = {
        "loss": line_chart(_each(train, "loss")),
        "dev_loss": line_chart(_each(dev, "mlm_loss"), mark=teacher),
        "dev_accuracy": line_chart(_each(dev, "accuracy"), percent=True, mark=teacher),
        "grad_norm": line_chart(_each(train, "grad_norm")),
        "learning_rate": line_chart(_each(train, "learning_rate"), from_zero=True),
        # All students of a pass have the same speed.
        "speed": line_chart(_each({first: train.get(first, {})}, "tokens_per_second"), from_zero=True),
        "shares": line_chart({name: train.get(first, {}).get(name, []) for name in ("mfu", "data_wait")},
                             percent=True, from_zero=True),
    }  # fmt: skip
    terms = []
    for name in train:
        values = {term: points for term, points in train[name].items() if term not in OTHERS}
        losses = line_chart(values) if len(values) > 1 else None  # a single term is the loss itself
        norms = line_chart(_terms_gradients(curves["gradients"].get(name, {})))
        terms.append({"student": name, "charts": {"terms": losses, "norms": norms}})
    step, steps = status.get("step", 0), status.get("steps", 0)
    is_done = all(run.model(name) for name in stage["students"])
    return {
        "name": stage["name"], "teacher": stage["teacher"], "students": list(stage["students"]), "seed": stage["seed"],
        "state": "finished" if is_done else str(status.get("state", "waiting")),
        "progress": step / steps if steps else None, "step": step, "steps": steps,
        "messages": status["messages"], "message": str(status.get("message", "")),
        "charts": {name: chart for name, chart in charts.items() if chart}, "terms": terms,
    }  # fmt: skip


def _each(split: Mapping[str, Series], name: str) -> Series:
    """One value of every student; the teacher's single measurement becomes a level line."""
    found = {student: list(series.get(name, [])) for student, series in split.items()}
    last = max((points[-1][0] for points in found.values() if points), default=0)
    if len(found.get(TEACHER, [])) == 1 and last and len(found) > 1:
        found[TEACHER].append((last, found[TEACHER][0][1]))
    return {student: points for student, points in found.items() if points}


def _terms_gradients(series: Series) -> Series:
    """Gradient norms of the terms as they count, weights included."""
    prefix = "weighted_grad_norm_"
    return {name.removeprefix(prefix): points for name, points in series.items() if name.startswith(prefix)}


def collect_times(run: RunFolder, stage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How long a stage's processes ran in all, on what; a run of an older version has no such record."""
    passes = run.passes(stage)
    if not passes:
        return []
    seconds = sum(one["seconds"] for one in passes)
    cost = sum(one["seconds"] * one["processes"] for one in passes if isinstance(one.get("processes"), int))
    return [{
        "stage": stage["name"], "passes": len(passes), "seconds": seconds, "process_hours": cost / 3600,
        "processes": passes[-1].get("processes"), "begun": str(passes[0].get("begun", "")),
        "machine": _strings(passes[-1].get("machine")), "versions": _strings(passes[-1].get("versions")),
    }]  # fmt: skip


def _strings(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else {}


def show_duration(seconds: float) -> str:
    """`1 h 5 min`, `3 min 20 s`, `4 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

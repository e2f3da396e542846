"""Finished runs as results: the mean over seeds of each setting, and the best setting of each model and task.

The rule is MiniRBT's: every setting is run with several seeds, and the setting whose mean is highest is reported. With
one seed that is UER's rule, the best of a grid. Both choose on dev, which flatters dev; the standard deviation and the
number of seeds say how far to trust it, and where test has labels its mean stands beside it, unchosen.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from distill.downstream.metrics import DIGITS, mean_score
from distill.downstream.run import finished_metrics
from distill.downstream.scores import MISSING, Cell, Table, to_cell


@dataclass(frozen=True)
class Result:
    """The best setting of a model on a task; metrics are percents, means over its seeds."""

    model: str
    task: str
    texts: str
    metric_names: tuple[str, ...]
    hyperparameters: dict[str, Any]
    dev: dict[str, float]
    std: dict[str, float]
    """Sample standard deviation over the seeds; 0 for one."""
    best_run: dict[str, float]
    """Dev metrics of the single best run of all settings and seeds: luck included."""
    test: dict[str, float] | None
    dev_unseen: dict[str, float] | None
    """On the rows of dev that do not stand in train; None if all are such."""
    test_unseen: dict[str, float] | None
    seeds: tuple[int, ...]
    num_settings: int

    def cell(self) -> Cell:
        """Dev metrics as a cell of scores.py."""
        return to_cell([self.dev[name] for name in self.metric_names])


def read_runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """What the finished ones of these run folders (MODEL/TASK/HASH) hold, with the model's name."""
    found = [(folder, finished_metrics(folder)) for folder in folders]
    return [{**metrics, "model_name": folder.parts[-3]} for folder, metrics in found if metrics is not None]


def best_results(runs: Iterable[Mapping[str, Any]]) -> list[Result]:
    """The best setting of every model and task, models and tasks in the order in which they first occur."""
    groups: dict[tuple[str, str], dict[tuple, list[Mapping[str, Any]]]] = {}
    for run in runs:
        setting = tuple(sorted((k, v) for k, v in run["hyperparameters"].items() if k != "seed"))
        groups.setdefault((run["model_name"], run["task"]), {}).setdefault(setting, []).append(run)
    return [_best(model, task, settings) for (model, task), settings in groups.items()]


def _best(model: str, task: str, settings: Mapping[tuple, Sequence[Mapping[str, Any]]]) -> Result:
    names = tuple(next(iter(settings.values()))[0]["metric_names"])
    means = {setting: _means([run["dev"] for run in runs], names) for setting, runs in settings.items()}
    # A setting with fewer seeds than another has more luck; only those with the most take part.
    most = max(map(len, settings.values()))
    # Sorted, so that of equals the same one wins in whatever order the runs ended.
    complete = sorted(setting for setting in settings if len(settings[setting]) == most)
    best = max(complete, key=lambda setting: mean_score(means[setting], names))
    runs = settings[best]
    luckiest = max((run["dev"]["metrics"] for tried in settings.values() for run in tried),
                   key=lambda metrics: mean_score(metrics, names))  # fmt: skip
    values = {name: [run["dev"]["metrics"][name] for run in runs] for name in names}
    return Result(
        model, task, runs[0]["texts"], names, dict(best), means[best],
        {name: round(stdev(found), DIGITS) if len(found) > 1 else 0.0 for name, found in values.items()},
        {name: luckiest[name] for name in names},
        _means_if_measured([run.get("test") for run in runs], names),
        _means_if_measured([run["dev"].get("unseen") for run in runs], names),
        _means_if_measured([(run.get("test") or {}).get("unseen") for run in runs], names),
        tuple(sorted(run["hyperparameters"]["seed"] for run in runs)), len(settings),
    )  # fmt: skip


def _means(measured: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    return {name: round(fmean(found["metrics"][name] for found in measured), DIGITS) for name in names}


def _means_if_measured(measured: Sequence[Mapping[str, Any] | None], names: Sequence[str]) -> dict[str, float] | None:
    found = [split for split in measured if split and split["metrics"]]
    return _means(found, names) if len(found) == len(measured) else None


def as_cells(results: Iterable[Result]) -> dict[str, dict[str, Cell]]:
    """model -> task -> dev cell, for the tables of scores.py."""
    cells: dict[str, dict[str, Cell]] = {}
    for result in results:
        cells.setdefault(result.model, {})[result.task] = result.cell()
    return cells


def details_table(results: Iterable[Result]) -> Table:
    """A row a model and task: mean on dev, its deviation over several seeds, test, setting, seeds, and text columns.

    Where there are several seeds, "Best run" is the single best one beside the mean. "Unseen" are the rows whose texts
    do not stand in train; columns that nobody has are left out.
    """
    rows = []
    for r in results:
        setting = ", ".join(f"{name} {value:g}" for name, value in r.hyperparameters.items())
        deviation = {name: f"±{r.std[name]:.2f}" if len(r.seeds) > 1 else "" for name in r.metric_names}
        dev = "/".join(f"{r.dev[name]:.2f}{deviation[name]}" for name in r.metric_names)
        best_run = r.best_run if len(r.seeds) > 1 else None
        others = [_shown(metrics, r.metric_names) for metrics in (best_run, r.dev_unseen, r.test, r.test_unseen)]
        counts = (str(len(r.seeds)), str(r.num_settings))
        rows.append((r.model, r.task, "/".join(r.metric_names), dev, *others, *counts, setting, r.texts))
    head = (
        "Model",
        "Task",
        "Metrics",
        "Dev",
        "Best run",
        "Dev unseen",
        "Test",
        "Test unseen",
        "Seeds",
        "Settings",
        "Best",
        "Texts",
    )
    empty = {i for i in (4, 5, 6, 7) if all(row[i] == MISSING for row in rows)}
    kept = [i for i in range(len(head)) if i not in empty]
    return Table(tuple(head[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows))


def _shown(metrics: Mapping[str, float] | None, names: Sequence[str]) -> str:
    return "/".join(f"{metrics[name]:.2f}" for name in names) if metrics else MISSING

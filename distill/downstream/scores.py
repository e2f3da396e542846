"""Results of models on tasks as tables: absolute, relative to a teacher, two recipes side by side; and the one score
that UER, CLUE and GLUE make of a row.

All sums are decimal and round halves up: 75.85 is 75.9, as published tables have it, where floats would say 75.8.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from distill.errors import InputError
from distill.json_file import nearest
from distill.markdown import markdown_table

Cell = tuple[Decimal, ...]
"""A model's metrics on a task in percent: one, or two (F1 and exact match)."""
Results = Mapping[str, Mapping[str, Cell]]
"""model -> task -> cell; a task that was not run is left out."""
MISSING = "-"


@dataclass(frozen=True)
class Table:
    """A table: its head, and rows of as many cells."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ScoreRule:
    """A mean over groups of tasks: metrics of a task are averaged first, then the tasks of a group, then the groups."""

    groups: tuple[tuple[str, ...], ...]
    digits: int


SCORE_RULES = {
    "uer": ScoreRule(
        (("book_review",), ("chnsenticorp",), ("lcqmc",), ("tnews-keywords",), ("iflytek",), ("ocnli",)), 1
    ),
    "clue": ScoreRule((("afqmc",), ("tnews",), ("iflytek",), ("cmnli",)), 2),
    "glue": ScoreRule(
        (("cola",), ("sst-2",), ("mrpc",), ("sts-b",), ("qqp",), ("mnli-m", "mnli-mm"), ("qnli",), ("rte",), ("wnli",)),
        1,
    ),
}
"""The rules by which the published scores come out of the published cells."""


def to_cell(values: Sequence[float], digits: int = 2) -> Cell:
    """Measured metrics rounded to `digits` decimals."""
    return tuple(round_half_up(Decimal(repr(float(value))), digits) for value in values)


def round_half_up(value: Decimal, digits: int) -> Decimal:
    """`value` with `digits` decimals; halves go away from zero."""
    return value.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)


def score(row: Mapping[str, Cell], rule: str) -> Decimal | None:
    """The one number of a row under a rule of SCORE_RULES, rounded as published; None if a task is missing."""
    if rule not in SCORE_RULES:
        raise InputError(f"no score rule '{rule}'{nearest(rule, SCORE_RULES)}")
    groups = SCORE_RULES[rule].groups
    if any(task not in row for group in groups for task in group):
        return None
    total = sum((_mean([_mean(row[task]) for task in group]) for group in groups), Decimal())
    return round_half_up(total / len(groups), SCORE_RULES[rule].digits)


def rule_for(results: Results) -> str | None:
    """The rule with the most tasks of which some model has all; None if there is none."""
    complete = [name for name in SCORE_RULES if any(score(row, name) is not None for row in results.values())]
    return max(complete, key=lambda name: len(SCORE_RULES[name].groups), default=None)


def absolute_table(results: Results, *, rule: str | None = None) -> Table:
    """Every cell as it is, with a column `Score` if a rule is given."""
    tasks = _tasks(results)
    columns = ("Model", *(["Score"] if rule else []), *tasks)
    rows = []
    for model, row in results.items():
        scores = [_shown(score(row, rule))] if rule else []
        rows.append((model, *scores, *(_cell(row.get(task), str) for task in tasks)))
    return Table(columns, tuple(rows))


def relative_table(results: Results, teacher: str) -> Table:
    """Every cell as percent of the teacher's, with one decimal, without a trailing zero: `92%`, `96.7%/94.6%`.

    Raises:
        InputError: the teacher is not among the models.
    """
    if teacher not in results:
        raise InputError(f"no results of the teacher '{teacher}'{nearest(teacher, results)}")
    tasks = _tasks(results)
    rows = []
    for model, row in results.items():
        cells = []
        for task in tasks:
            ours, theirs = row.get(task), results[teacher].get(task)
            both = (
                tuple(100 * a / b for a, b in zip(ours, theirs, strict=True))
                if ours and theirs and all(theirs)
                else None
            )
            cells.append(_cell(both, lambda value: f"{_plain(round_half_up(value, 1))}%"))
        rows.append((model, *cells))
    return Table(("Model", *tasks), tuple(rows))


def comparison_table(results: Results, first: str, second: str) -> Table:
    """Two models (two-stage and one-stage) and a row with the first minus the second, signed."""
    for model in (first, second):
        if model not in results:
            raise InputError(f"no results of '{model}'{nearest(model, results)}")
    tasks = [task for task in _tasks(results) if task in results[first] and task in results[second]]
    rows = [(model, *(_cell(results[model][task], str) for task in tasks)) for model in (first, second)]
    gains = []
    for task in tasks:
        gain = tuple(a - b for a, b in zip(results[first][task], results[second][task], strict=True))
        gains.append(_cell(gain, lambda value: f"{value:+f}"))
    return Table(("Model", *tasks), (*rows, ("difference", *gains)))


def to_markdown(table: Table) -> str:
    """The table in Markdown, columns aligned."""
    return markdown_table(table.columns, table.rows) + "\n"


def to_csv(table: Table) -> str:
    """The table as CSV, with a header."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.columns, *table.rows])
    return out.getvalue()


def to_json(table: Table) -> str:
    """The table as a JSON list of objects, one a row, keys as in the head."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def _tasks(results: Results) -> list[str]:
    """The tasks of all models in the order in which they first occur."""
    return list(dict.fromkeys(task for row in results.values() for task in row))


def _cell(values: Cell | None, show: Callable[[Decimal], str]) -> str:
    return "/".join(map(show, values)) if values else MISSING


def _shown(value: Decimal | None) -> str:
    return MISSING if value is None else str(value)


def _mean(values: Sequence[Decimal]) -> Decimal:
    return sum(values, Decimal()) / len(values)


def _plain(value: Decimal) -> str:
    """Without trailing zeros: 92.0 as 92."""
    return f"{value.normalize():f}"

"""Files of a task as rows: tables with tabs or commas, JSON lines, SQuAD's JSON, C3's JSON.

A row is a mapping from column names to values, with the place it stands at, whatever the file looked like; what the
values mean is examples.py's business. Tab-separated files know no quotes (GLUE's rule); .csv files do.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.corpus.formats import replace_surrogates
from distill.downstream.task import Task
from distill.errors import InputError
from distill.json_file import short

Notes = dict[str, list[str]]
"""What was left out or mended -> the places where."""


@dataclass(frozen=True)
class Record:
    """One row and where it stands."""

    place: str
    values: dict[str, Any]


def read_records(path: Path, task: Task, notes: Notes, *, content: bytes | None = None) -> Iterator[Record]:
    """The rows of a file in order, columns named as in the task.

    Args:
        content: what the file holds, if it was read already.
    Raises:
        InputError: not UTF-8, not JSON, a row with too few or too many cells, no such columns: file, line, finding.
    """
    lines = _text_lines(path, path.read_bytes() if content is None else content)
    if path.suffix.lower() in (".json", ".jsonl"):
        found = _json_records(path, lines, task, notes)
    else:
        found = _table_records(path, lines, task, notes)
    for record in found:
        yield Record(record.place, rename(record.values, task))


def rename(values: dict[str, Any], task: Task) -> dict[str, Any]:
    """The row with the columns of other editions under the task's names."""
    return {task.aliases.get(key, key) if task.aliases.get(key) not in values else key: value
            for key, value in values.items()}  # fmt: skip


def note(notes: Notes, what: str, place: str) -> None:
    """Counts something that was left out or mended, at a line or a question; the file's name is known."""
    notes.setdefault(what, []).append(place.rpartition(", ")[2])


def _text_lines(path: Path, raw: bytes) -> list[str]:
    """The lines of a file, without a byte order mark and line ends."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save it as UTF-8") from None
    # Not splitlines(): U+2028 and its like stand inside texts.
    return [line.removesuffix("\r") for line in text.split("\n")]


def _table_records(path: Path, lines: Sequence[str], task: Task, notes: Notes) -> Iterator[Record]:
    rows: Iterator[tuple[int, list[str]]]
    if path.suffix.lower() == ".csv":
        rows = _csv_rows(path, lines)
    else:
        rows = ((number, line.split("\t")) for number, line in enumerate(lines, start=1) if line.strip())
    first = next(rows, None)
    if first is None:
        return
    columns, has_header = _columns(path, first[1], task)
    width = len(columns)
    for number, cells in rows if has_header else _chain(first, rows):
        place = f"{path}, line {number}"
        if len(cells) < width and task.drop_short_rows:
            note(notes, "rows with too few cells left out", place)
            continue
        if len(cells) != width:
            raise InputError(
                f"{place}: {len(cells)} cells, expected {width} ({', '.join(columns)}); a text must hold no "
                f"{'comma without quotes' if path.suffix.lower() == '.csv' else 'tab'} of its own"
            )
        yield Record(place, dict(zip(columns, cells, strict=True)))


def _csv_rows(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, cells) of every row that is not empty."""
    reader, begin = csv.reader(line + "\n" for line in lines), 1
    try:
        for cells in reader:
            if cells:
                yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {begin}: {error}; is a quote open that nothing closes?") from None


def _chain(first: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from rest


def _columns(path: Path, first: list[str], task: Task) -> tuple[list[str], bool]:
    """The column names of a table, and whether its first line is a header: it is if it names a column we know."""
    known = {*task.text_columns(), *task.aliases}
    if known & set(first) or not task.columns:
        return first, True
    columns = list(task.columns)
    if columns[-1] == task.label and len(first) == len(columns) - 1:
        return columns[:-1], False  # a test file without its last column, the labels
    if len(first) != len(columns):
        raise InputError(
            f"{path}, line 1: {len(first)} cells; expected a header that names {' and '.join(task.text_columns())}, or "
            f"{len(columns)} cells ({', '.join(columns)})"
        )
    return columns, False


def _json_records(path: Path, lines: Sequence[str], task: Task, notes: Notes) -> Iterator[Record]:
    """Rows of JSON lines, or of one JSON value that is SQuAD's, C3's or a list of rows."""
    start = next((line for line in lines if line.strip()), "")
    try:
        value = json.loads(start)
        is_lines = isinstance(value, dict) and not isinstance(value.get("data"), list)
    except (ValueError, RecursionError):
        is_lines = start.lstrip().startswith("{") and start.rstrip().endswith("}")
    if is_lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                yield Record(place, _row(_parse(line, place, notes), place))
        return
    if not start:
        return
    value = _parse("\n".join(lines), str(path), notes)
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected JSON lines, a list, or an object with a list 'data' (SQuAD's form)")
    for number, row in enumerate(rows, start=1):
        place = f"{path}, entry {number}"
        if isinstance(row, list):
            yield from _c3_rows(row, place)
        else:
            yield from _squad_rows(_row(row, place), place)


def _parse(text: str, place: str, notes: Notes) -> Any:
    """The JSON value of a text; characters keep their places where halves of some are replaced."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not valid JSON ({error.msg} at character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else "a number of thousands of digits"
        raise InputError(f"{place}: not valid JSON ({reason})") from None
    if "\\ud" in text.lower():
        mended, halves = replace_surrogates(json.dumps(value, ensure_ascii=False))
        if halves:
            value = json.loads(mended)
            note(notes, "places with halves of characters (\\ud800 to \\udfff alone), which became U+FFFD", place)
    return value


def _row(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected an object in braces, found {type(value).__name__}")
    return value


def _squad_rows(entry: dict[str, Any], place: str) -> Iterator[Record]:
    """Questions of SQuAD's articles with paragraphs, and of CMRC 2018's own form; other objects are rows already."""
    paragraphs = entry.get("paragraphs")
    if paragraphs is None and "context_text" in entry:
        paragraphs = [{
            "context": entry["context_text"],
            "qas": [{"id": qa.get("query_id"), "question": qa.get("query_text"), "answers": qa.get("answers")}
                    for qa in _rows_in(entry, "qas", place)],
        }]  # fmt: skip
    if paragraphs is None:
        yield Record(place, entry)
        return
    for paragraph in _rows_in({"paragraphs": paragraphs}, "paragraphs", place):
        for qa in _rows_in(paragraph, "qas", place):
            values = {**qa, "context": paragraph.get("context")}
            yield Record(f"{place}, question {values.get('id')}", values)


def _rows_in(value: dict[str, Any], key: str, place: str) -> list[dict[str, Any]]:
    """The objects of a list that a key names; none where it is absent or empty."""
    found = value.get(key) or []
    if not isinstance(found, list):
        raise InputError(f"{place}: '{key}' is {short(found)}, not a list")
    return [_row(row, place) for row in found]


def _c3_rows(entry: list[Any], place: str) -> Iterator[Record]:
    """C3's entries: [[lines of the text], [questions], id]."""
    if len(entry) != 3 or not isinstance(entry[0], list) or not isinstance(entry[1], list):
        raise InputError(f"{place}: expected [[lines of the text], [questions], id], as in C3")
    context = "\n".join(str(line) for line in entry[0])
    for number, question in enumerate(entry[1]):
        values = {"id": f"{entry[2]}-{number}", "context": context, **_row(question, place)}
        yield Record(f"{place}, question {number + 1}", values)

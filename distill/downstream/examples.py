"""Rows of a task as examples: texts, labels, answers, entities, each checked, with its place if it is wrong."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from distill.downstream.records import Notes, Record, note
from distill.downstream.task import Task
from distill.errors import InputError
from distill.json_file import short

ID_COLUMNS = ("id", "idx", "index")


@dataclass(frozen=True)
class TextExample:
    """One text or a pair; `label` is a label, for regression a number, None where it is not known."""

    id: str
    texts: tuple[str, ...]
    label: str | float | None


@dataclass(frozen=True)
class Answer:
    """A gold answer; `start` is its first character in the context, None if it does not stand there."""

    text: str
    start: int | None


@dataclass(frozen=True)
class Question:
    """A question about a context; `answers` is empty where they are not known."""

    id: str
    context: str
    question: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, order=True)
class Entity:
    """Characters `start` to `end` of a text, both included, as CLUENER counts."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class TaggedText:
    """A text with its entities in order; None where they are not known."""

    id: str
    text: str
    entities: tuple[Entity, ...] | None


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with choices of which `label` is right, counted from 0."""

    id: str
    context: str
    question: str
    choices: tuple[str, ...]
    label: int | None


Example = TextExample | Question | TaggedText | ChoiceQuestion


def make_examples(records: Iterable[Record], task: Task, notes: Notes) -> list[tuple[str, Example]]:
    """(place, example) of every row that the task's rules keep.

    Raises:
        InputError: a column that is not there, a value of the wrong kind, an id that stands twice.
    """
    make = _MAKERS[task.kind]
    found: list[tuple[str, Example]] = []
    places: dict[str, str] = {}
    for record in records:
        _check_columns(record, task.text_columns())
        if str(record.values.get(task.label)) in task.drop_labels:
            note(notes, f"rows labelled '{record.values[task.label]}' left out", record.place)
            continue
        given = next((record.values[name] for name in ID_COLUMNS if record.values.get(name) is not None), None)
        key = str(len(found)) if given is None else str(given)
        if key in places:
            which = "" if given is not None else " (the number of this row, which has none)"
            raise InputError(f"{record.place}: the id '{key}'{which} stands at {places[key]}, too; ids must differ")
        places[key] = record.place
        found.append((record.place, make(record, key, task, notes)))
    return found


def is_labelled(example: Example) -> bool:
    """Whether the right answer is known."""
    if isinstance(example, Question):
        return bool(example.answers)
    return (example.entities if isinstance(example, TaggedText) else example.label) is not None


def texts_of(example: Example) -> tuple[str, ...]:
    """What a model is given of an example: two with the same texts are one row twice."""
    if isinstance(example, TextExample):
        return example.texts
    if isinstance(example, TaggedText):
        return (example.text,)
    choices = example.choices if isinstance(example, ChoiceQuestion) else ()
    return (example.context, example.question, *choices)


def _check_columns(record: Record, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in record.values:
            raise InputError(f"{record.place}: no column '{column}'; there are: {', '.join(map(str, record.values))}")


def _text(record: Record, columns: str | Sequence[str]) -> str:
    """One segment: its columns, lists of strings included, joined by spaces; empty columns leave no space."""
    parts = []
    for column in [columns] if isinstance(columns, str) else columns:
        value = record.values[column]
        value = " ".join(map(str, value)) if isinstance(value, list) else value
        if not isinstance(value, str):
            raise InputError(f"{record.place}: column '{column}' is {short(value)}, not a text")
        parts.append(value)
    return " ".join(part for part in parts if part)


def _label(record: Record, task: Task) -> str | None:
    """The label as a string (true and 1 as JSON writes them), None if it is absent or empty."""
    value = record.values.get(task.label)
    if isinstance(value, (list, dict)):
        raise InputError(f"{record.place}: column '{task.label}' is {short(value)}, not a label")
    label = value if isinstance(value, str) else None if value is None else json.dumps(value)
    return label.strip() or None if label is not None else None


def _make_classified(record: Record, key: str, task: Task, notes: Notes) -> Example:
    if task.mark_spans:
        record = Record(record.place, {**record.values, task.text_columns()[0]: _marked(record, task)})
    return TextExample(key, tuple(_text(record, columns) for columns in task.texts), _label(record, task))


def _make_regression(record: Record, key: str, task: Task, notes: Notes) -> Example:
    label = _label(record, task)
    try:
        number = None if label is None else float(label)
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise InputError(f"{record.place}: column '{task.label}' is {short(label)}, not a number")
    return TextExample(key, tuple(_text(record, columns) for columns in task.texts), number)


def _marked(record: Record, task: Task) -> str:
    """CLUEWSC's text with `_` around the noun and brackets around the pronoun, as CLUE's baseline marks them."""
    text, target = _text(record, task.text_columns()[0]), record.values.get("target")
    if not isinstance(target, Mapping):
        raise InputError(f"{record.place}: no column 'target' with span1_text, span1_index, span2_text, span2_index")
    marks = []
    for span, (before, after) in (("span1", "__"), ("span2", "[]")):
        words, start = target.get(f"{span}_text"), target.get(f"{span}_index")
        if not isinstance(words, str) or not isinstance(start, int) or text[start : start + len(words)] != words:
            raise InputError(f"{record.place}: {span} ({short(words)} at {short(start)}) does not stand in the text")
        marks.append((start, words, before + words + after))
    for start, words, marked in sorted(marks, reverse=True):
        text = text[:start] + marked + text[start + len(words) :]
    return text


def _make_question(record: Record, key: str, task: Task, notes: Notes) -> Example:
    context, question = (_text(record, columns) for columns in task.texts)
    answers = []
    for text, start in _listed_answers(record, task):
        found = _find_answer(context, text, start)
        if found is None:
            note(notes, "answers that do not stand in their context", key)
        elif start is not None and found != start:
            note(notes, "answers searched again because their offset was wrong", key)
        answers.append(Answer(text, found))
    return Question(key, context, question, tuple(answers))


def _listed_answers(record: Record, task: Task) -> list[tuple[str, int | None]]:
    """(text, offset) of each gold answer, in SQuAD's form, the form of `datasets`, or CMRC 2018's (texts alone)."""
    value = record.values.get(task.label) or []
    if isinstance(value, dict) and isinstance(texts := value.get("text"), list):
        starts = value.get("answer_start")
        starts = starts[: len(texts)] if isinstance(starts, list) else []
        value = [{"text": text, "answer_start": start} for text, start in zip_longest(texts, starts)]
    answers = []
    for answer in value if isinstance(value, list) else [value]:
        answer = {"text": answer} if isinstance(answer, str) else answer
        text = answer.get("text") if isinstance(answer, dict) else None
        if not isinstance(text, str):
            raise InputError(f"{record.place}: column '{task.label}' holds {short(answer)}, not an answer with a text")
        start = answer.get("answer_start")
        answers.append((text, start if type(start) is int and start >= 0 else None))
    return answers


def _find_answer(context: str, text: str, start: int | None) -> int | None:
    """Where an answer stands: at `start` if it does, else the nearest place to it, else None."""
    if not text:
        return None
    if start is not None and context.startswith(text, start):
        return start
    places, at = [], context.find(text)
    while at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    return min(places, key=lambda place: abs(place - (start or 0)), default=None)


def _make_tagged(record: Record, key: str, task: Task, notes: Notes) -> Example:
    text = _text(record, task.texts[0])
    value = record.values.get(task.label)
    if value is None:
        return TaggedText(key, text, None)
    try:
        found = {
            Entity(start, end, kind)
            for kind, names in value.items()
            for name, spans in names.items()
            for start, end in spans
            if _check_entity(record, text, name, start, end)
        }
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f'{record.place}: column \'{task.label}\' is {short(value)}, not {{"TYPE": {{"NAME": [[first, last]]}}}}'
        ) from None
    return TaggedText(key, text, tuple(sorted(found)))


def _check_entity(record: Record, text: str, name: str, start: Any, end: Any) -> bool:
    if not type(start) is type(end) is int:
        raise TypeError("places are whole numbers")
    if not 0 <= start <= end < len(text) or text[start : end + 1] != name:
        raise InputError(
            f"{record.place}: characters {start} to {end} are {short(text[max(start, 0) : end + 1])}, not {short(name)}"
        )
    return True


def _make_choice(record: Record, key: str, task: Task, notes: Notes) -> Example:
    context, question = (_text(record, columns) for columns in task.texts)
    _check_columns(record, [task.choices])
    choices = record.values[task.choices]
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise InputError(f"{record.place}: column '{task.choices}' is {short(choices)}, not a list of texts")
    label, known = _label(record, task), [choice.strip() for choice in choices]
    if label is not None and label not in known:
        raise InputError(f"{record.place}: the answer {short(label)} is none of the choices {short(choices)}")
    return ChoiceQuestion(key, context, question, tuple(choices), None if label is None else known.index(label))


_MAKERS: dict[str, Callable[[Record, str, Task, Notes], Example]] = {
    "classification": _make_classified,
    "regression": _make_regression,
    "span": _make_question,
    "tags": _make_tagged,
    "choice": _make_choice,
}

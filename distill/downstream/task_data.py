"""The data of a task: where its files are looked for, and its splits as checked examples.

1. `--data` is a folder that has the task's folder (dataset/tasks has tnews/), or the task's folder itself, or
   `hf:OWNER/NAME[:CONFIG]` on the hub.
   (`hf:` alone: the task's own, where one is known).
2. The first file name of a split that is there is read (records.py) and made into examples (examples.py).
3. Labels are checked against the task's, or collected from train.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from distill.downstream.examples import Example, TaggedText, TextExample, is_labelled, make_examples
from distill.downstream.records import Notes, Record, note, read_records, rename
from distill.downstream.task import FROM_TRAIN, Task
from distill.errors import InputError, first_line
from distill.json_file import nearest

HUB = "hf:"
_NUM_NAMED = 5


@dataclass(frozen=True)
class Split:
    """One split as read: `files` is where from, `noted` what was left out or mended, and where.

    `columns` are those of its first row, for messages.
    """

    name: str
    files: tuple[str, ...]
    examples: tuple[Example, ...]
    noted: Notes
    columns: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """`noted` in words, a line each, with the first few places."""
        return tuple(_describe_notes(self.noted))

    @property
    def is_labelled(self) -> bool:
        """Whether all its rows are; of a split of a task, all or none."""
        return all(map(is_labelled, self.examples))


@dataclass(frozen=True)
class TaskData:
    """The splits that were asked for, and the task's labels in the order of their numbers (none for span, choice)."""

    task: Task
    labels: tuple[str, ...]
    splits: dict[str, Split]


def load_task_data(task: Task, data: str, splits: Sequence[str], *, labels: Sequence[str] = ()) -> TaskData:
    """Reads splits of a task.

    Args:
        data: folder, or `hf:OWNER/NAME[:CONFIG]`; see the top of this module.
        labels: those of a model that was trained already; default: the task's, or those that occur in train.
    Raises:
        InputError: data that is not there, an empty split, a wrong row, a label that is not the task's.
    """
    data = name_hub(task, data)
    names = list(splits)
    uses_labels = task.kind in ("classification", "tags")
    known = tuple(labels) or (() if task.labels == FROM_TRAIN else tuple(task.labels))
    if uses_labels and not known and "train" not in names:
        names.insert(0, "train")
    read = {name: _read_split(task, data, name) for name in names}
    if uses_labels and not known:
        known = _labels_of(example for _, example in read["train"].placed)
    if task.kind == "classification" and len(known) == 1:  # transformers would take it for a regression
        raise InputError(f"{task.name}: '{known[0]}' is the only label; there is nothing to learn from rows of one")
    found = {}
    for name in splits:
        files, placed, notes, columns = read[name]
        if uses_labels:
            _check_labels(placed, known)
        if name == "train":
            placed = _usable_for_training(placed, notes)
        examples = tuple(example for _, example in placed)
        if not examples:
            raise InputError(f"{', '.join(files)}: no usable rows for split '{name}' of {task.name}; {_told(notes)}")
        _check_all_labelled(task, placed)
        found[name] = Split(name, files, examples, notes, tuple(columns))
    return TaskData(task, known if uses_labels else (), found)


def load_input(task: Task, source: str, labels: Sequence[str]) -> TaskData:
    """Rows to be answered, as the one split `input`: a file of the task's form, or JSON lines on stdin for "-".

    Every row, those too whose label makes training and scoring leave them out.

    Raises:
        InputError: no such file, no rows, a wrong row.
    """
    if source != "-" and not Path(source).is_file():
        raise InputError(f"{source}: no such file; give rows in the form of {task.name}'s files, or - for JSON lines")
    notes: Notes = {}
    path, content = (Path("stdin.jsonl"), sys.stdin.buffer.read()) if source == "-" else (Path(source), None)
    records = (_without_dropped_label(record, task) for record in read_records(path, task, notes, content=content))
    placed = make_examples(records, task, notes)
    if not placed:
        raise InputError(f"{path}: no rows to answer; {_told(notes)}")
    known = tuple(labels) if task.kind in ("classification", "tags") else ()
    if known:
        _check_labels(placed, known)
    examples = tuple(example for _, example in placed)
    return TaskData(task, known, {"input": Split("input", (str(path),), examples, notes)})


def _without_dropped_label(record: Record, task: Task) -> Record:
    is_dropped = str(record.values.get(task.label)) in task.drop_labels
    return replace(record, values={**record.values, task.label: None}) if is_dropped else record


def require_labels(task: Task, split: Split) -> None:
    """InputError unless a split can be scored or learned from."""
    if problem := _why_not_scored(task, split):
        raise InputError(f"{task.name}, split '{split.name}': {problem}")


def can_score(task: Task, split: Split) -> bool:
    """Whether a split's labels are known and real."""
    return not _why_not_scored(task, split)


def _why_not_scored(task: Task, split: Split) -> str:
    if split.name in task.unlabelled:
        return (
            f"the answers of {split.files[0]} are made up, so a score would mean nothing; take dev, or write answers "
            f"with `distill predict`"
        )
    if not split.is_labelled:
        there = "" if task.label in split.columns else f"; there are: {', '.join(split.columns)}"
        return (
            f"{split.files[0]} has no labels (column '{task.label}'{there}), so there is nothing to score or learn; "
            f"`distill predict` writes answers for it"
        )
    return ""


def find_files(task: Task, folder: Path, split: str) -> list[Path]:
    """The files of a split below `folder` or in it; empty if they are not there."""
    for place in [folder / task.name, *(folder / name for name in task.folders), folder]:
        for names in task.files.get(split, []):
            paths = [place / name for name in ([names] if isinstance(names, str) else names)]
            if all(path.is_file() for path in paths):
                return paths
    return []


def _describe_notes(notes: Notes) -> Iterator[str]:
    """`50 rows labelled '-' left out (dev.json, line 3, ...)`, one line for each kind of note."""
    for what, places in notes.items():
        more = ", ..." if len(places) > _NUM_NAMED else ""
        yield f"{len(places):,} {what} ({', '.join(places[:_NUM_NAMED])}{more})"


def _told(notes: Notes) -> str:
    return "; ".join(_describe_notes(notes)) or "the file is empty"


class _Rows(NamedTuple):
    """A split's files, its examples with their places, notes, and the columns of its first row."""

    files: tuple[str, ...]
    placed: list[tuple[str, Example]]
    notes: Notes
    columns: list[str]


def _read_split(task: Task, data: str, split: str) -> _Rows:
    if split not in task.files:
        raise InputError(f"{task.name}: no split '{split}'{nearest(split, task.files)}")
    notes: Notes = {}
    columns: list[str] = []

    def noting_columns(records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if not columns:
                columns.extend(map(str, record.values))
            yield record

    if data.startswith(HUB):
        placed = make_examples(noting_columns(_hub_records(task, data, split)), task, notes)
        return _Rows((data,), placed, notes, columns)
    paths = find_files(task, Path(data), split)
    if not paths:
        raise InputError(_missing(task, Path(data), split))
    records = (record for path in paths for record in read_records(path, task, notes))
    placed = make_examples(noting_columns(records), task, notes)
    if not placed:
        raise InputError(f"{', '.join(map(str, paths))}: no usable rows for split '{split}'; {_told(notes)}")
    return _Rows(tuple(map(str, paths)), placed, notes, columns)


def _missing(task: Task, folder: Path, split: str) -> str:
    """What to say when a split's files are not there: what was looked for, where, and where it can be had."""
    names = [name if isinstance(name, str) else " + ".join(name) for name in task.files[split]]
    places = [str(folder / name) for name in (task.name, *task.folders)]
    get = f"; the data: {task.source}, and --data names its folder" if task.source else "; --data names its folder"
    hub = f", or --data {HUB}{task.hub} online" if task.hub else ""
    return (
        f"{task.name}: no data for split '{split}': looked in {', '.join(places)} and {folder} for {' or '.join(names)}"
        f"{get}{hub}"
    )


def name_hub(task: Task, data: str) -> str:
    """`data` as given, but `hf:` alone as the task's own dataset on the hub.

    Raises:
        InputError: none is known.
    """
    if data != HUB:
        return data
    if not task.hub:
        raise InputError(f"{task.name}: no dataset of the hub is known; name one, --data hf:OWNER/NAME[:CONFIG]")
    return HUB + task.hub


def has_split(task: Task, data: str, split: str) -> bool:
    """Whether a split is there; InputError if a dataset of the hub cannot be reached."""
    if split not in task.files:
        return False
    data = name_hub(task, data)
    if not data.startswith(HUB):
        return bool(find_files(task, Path(data), split))
    import datasets

    name, _, config = data.removeprefix(HUB).partition(":")
    with _told_of_the_hub(data):
        return task.hub_splits.get(split, split) in datasets.get_dataset_split_names(name, config or None)


def _hub_records(task: Task, data: str, split: str) -> Iterator[Record]:
    """Rows of a dataset of the hub (or of a local folder that `datasets` reads), class numbers as label names."""
    import datasets

    name, _, config = data.removeprefix(HUB).partition(":")
    hub_split = task.hub_splits.get(split, split)
    with _told_of_the_hub(f"{data}, split '{hub_split}'"):
        rows = datasets.load_dataset(name, config or None, split=hub_split)
    for number, values in enumerate(rows, start=1):
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.ClassLabel):
                values[column] = _class_name(values[column], feature.names, task)
        if task.kind == "choice" and split != "test":
            values.pop("id", None)  # C3's is that of the text, which has several questions
        yield Record(f"{data}, {hub_split}, row {number}", rename(values, task))


@contextmanager
def _told_of_the_hub(what: str) -> Iterator[None]:
    """The hub's errors, and those of its HTTP client, as one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what}: cannot be loaded ({first_line(error, None)[:160]}); check the name (hf:OWNER/NAME[:CONFIG]) "
            f"and the network, set HF_ENDPOINT to a mirror, or put the files into a folder"
        ) from None


def _class_name(number: int | None, names: Sequence[str], task: Task) -> str | None:
    """The label behind a class number: its name, or the number itself where the task's labels are numbers."""
    if number is None or number < 0:
        return None
    if task.labels == FROM_TRAIN or names[number] in (*task.labels, *task.drop_labels):
        return names[number]
    return str(number)


def _labels_of(examples: Iterator[Example]) -> tuple[str, ...]:
    """Every label or entity type that occurs, in the order of numbers if all are numbers."""
    found: set[str] = set()
    for example in examples:
        if isinstance(example, TextExample) and isinstance(example.label, str):
            found.add(example.label)
        elif isinstance(example, TaggedText):
            found.update(entity.type for entity in example.entities or ())
    if all(label.isdecimal() for label in found):
        # "1" and "01" are one number, and a set has another order in every process.
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def _check_labels(placed: Sequence[tuple[str, Example]], labels: Sequence[str]) -> None:
    known = set(labels)
    for place, example in placed:
        used = _labels_of(iter([example]))
        for label in used:
            if label not in known:
                what = "entity type" if isinstance(example, TaggedText) else "label"
                raise InputError(f"{place}: {what} '{label}' is not one of the task's{nearest(label, labels)}")


def _usable_for_training(placed: Sequence[tuple[str, Example]], notes: Notes) -> list[tuple[str, Example]]:
    """Without the questions of which no answer stands in the context: they point nowhere."""
    kept = []
    for place, example in placed:
        answers = getattr(example, "answers", ())
        if answers and all(answer.start is None for answer in answers):
            note(notes, "questions left out of train: no answer stands in the context", example.id)
        else:
            kept.append((place, example))
    return kept


def _check_all_labelled(task: Task, placed: Sequence[tuple[str, Example]]) -> None:
    """A split has labels in all rows or in none; dev and train need them."""
    first = is_labelled(placed[0][1])
    for place, example in placed:
        if is_labelled(example) != first:
            labelled, other = (placed[0][0], place) if first else (place, placed[0][0])
            raise InputError(
                f"{other}: no label (column '{task.label}'), but {labelled} has one; label all rows or none"
            )

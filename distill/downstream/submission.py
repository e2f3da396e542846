"""Answer files that CLUE and GLUE take: written from the answers of a split, read back, and checked.

CLUE: a JSON line for each row of test, {"id", "label"}; for CMRC 2018 one object, id -> answer. GLUE: a table `index`,
`prediction`, rows counted from 0. A wrong id or label scores 0 there without a word, so a file is checked against the
split that it answers: every row once, labels as the task writes them.
"""

import csv
import io
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.downstream.grid import Run
from distill.downstream.metrics import mean_score
from distill.downstream.run import finished_metrics
from distill.downstream.task import Task
from distill.downstream.task_data import load_task_data
from distill.durable import write_whole
from distill.errors import InputError
from distill.json_file import nearest, short

CLUE_FILES = {
    "afqmc": "afqmc_predict.json", "tnews": "tnews11_predict.json", "iflytek": "iflytek_predict.json",
    "cmnli": "cmnli_predict.json", "ocnli": "ocnli_50k_predict.json", "csl": "csl_predict.json",
    "cluewsc": "cluewsc11_predict.json", "c3": "c311_predict.json", "cmrc2018": "cmrc2018_predict.json",
    "cluener": "cluener_predict.json",
}  # fmt: skip
"""Names of version 1.1 in CLUE's rules for submissions of September 2021, with 11 where its test set is new."""
GLUE_FILES = {
    "cola": "CoLA.tsv", "sst-2": "SST-2.tsv", "mrpc": "MRPC.tsv", "sts-b": "STS-B.tsv", "qqp": "QQP.tsv",
    "mnli-m": "MNLI-m.tsv", "mnli-mm": "MNLI-mm.tsv", "qnli": "QNLI.tsv", "rte": "RTE.tsv", "wnli": "WNLI.tsv",
}  # fmt: skip
Records = Sequence[Mapping[str, Any]]
"""Answers as `distill predict` writes them, in the order of the split."""


def submission_file(folder: Path, task: Task) -> Path:
    """The file that a task's benchmark takes; InputError if it is a task of none."""
    known = {**CLUE_FILES, **GLUE_FILES}
    if task.name not in known:
        raise InputError(f"{task.name}: neither CLUE nor GLUE takes answers for it{nearest(task.name, known)}")
    return folder / known[task.name]


def write_submission(folder: Path, task: Task, records: Records, ids: Sequence[str], labels: Sequence[str]) -> Path:
    """Writes the file that a task's benchmark takes, and checks it.

    Args:
        ids: of all rows of the split, in order.
        labels: the task's; none for kinds without.
    Raises:
        InputError: a task of no benchmark, answers that are not those of the split.
    """
    path = submission_file(folder, task)
    if task.name in GLUE_FILES:
        rows = [f"{index}\t{_glue_value(record['label'])}" for index, record in enumerate(records)]
        write_whole(path, "index\tprediction\n" + "".join(row + "\n" for row in rows))
    elif task.kind == "span":
        write_whole(path, json.dumps({record["id"]: record["answer"] for record in records}, ensure_ascii=False))
    else:
        lines = [{"id": _clue_id(record["id"]), "label": record["label"]} for record in records]
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    try:
        check_submission(path, task, ids, labels)
    except InputError:
        path.unlink()
        raise
    return path


def submit_best(runs: Iterable[Run], folder: Path) -> list[str]:
    """Writes the submission of each task from the answers of its best run on dev; returns a line for each.

    All of them together are put into submission.zip, which is what the benchmarks' sites take.
    """
    told, written = [], []
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.task.name, []).append(run)
    for name, tried in by_task.items():
        answered = [run for run in tried if (run.folder / "predictions-test.jsonl").exists()]
        if not answered:
            told.append(f"{name}: no answers for test, so no submission")
            continue
        best = max(answered, key=_dev_score)
        found = load_task_data(best.task, best.data, ["test"])
        answers = _json_lines((best.folder / "predictions-test.jsonl").read_text(encoding="utf-8"))
        ids = [example.id for example in found.splits["test"].examples]
        path = write_submission(folder, best.task, answers, ids, found.labels)
        told.append(f"{path}: checked, {len(answers):,} rows")
        written.append(path)
    if written:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in written:
                archive.write(path, path.name)
        write_whole(folder / "submission.zip", buffer.getvalue())
        told.append(f"{folder / 'submission.zip'}: {len(written)} of them, to upload")
    return told


def _dev_score(run: Run) -> float:
    """-1 for a run that was not finished."""
    metrics = finished_metrics(run.folder)
    return mean_score(metrics["dev"]["metrics"], run.task.metrics) if metrics else -1.0


def check_submission(path: Path, task: Task, ids: Sequence[str], labels: Sequence[str]) -> None:
    """InputError unless a file answers every row of a split once, with labels that the task has."""
    given = _read(path, task)
    expected = [str(i) for i in range(len(ids))] if task.name in GLUE_FILES else list(ids)
    seen: set[str] = set()
    for key, _ in given:
        if key in seen:
            raise InputError(f"{path}: the id '{key}' stands twice; the benchmark would score one of them")
        seen.add(key)
    missing, extra = [key for key in expected if key not in seen], sorted(seen - set(expected))
    if missing or extra:
        what = f"no answer for the id '{missing[0]}'" if missing else f"an answer for '{extra[0]}', which is no row"
        raise InputError(f"{path}: {len(given):,} answers for {len(expected):,} rows of {task.name}: {what}")
    for key, value in given:
        for problem in _problems(value, task, labels):
            raise InputError(f"{path}, id '{key}': {problem}")


def _problems(value: Any, task: Task, labels: Sequence[str]) -> Iterator[str]:
    """What is wrong with one answer."""
    if task.kind == "classification" and value not in labels:
        yield f"{short(value)} is no label of {task.name}{nearest(str(value), labels)}"
    elif task.kind == "regression" and not math.isfinite(float(value)):
        yield f"{value} is no number; the model that answered is broken"
    elif task.kind == "choice" and not (type(value) is int and value >= 0):
        yield f"{short(value)} is not the number of a choice"
    elif task.kind == "tags":
        yield from (f"{short(name)} is no entity type of {task.name}" for name in value if name not in labels)


def _read(path: Path, task: Task) -> list[tuple[str, Any]]:
    """(id, answer) of every row of a submission file."""
    text = path.read_text(encoding="utf-8")
    if task.name in GLUE_FILES:
        return [(row["index"], row["prediction"]) for row in csv.DictReader(text.splitlines(), delimiter="\t")]
    if task.kind == "span":
        return list(json.loads(text).items())
    return [(str(line["id"]), line["label"]) for line in _json_lines(text)]


def _json_lines(text: str) -> list[dict[str, Any]]:
    """Not splitlines(): U+2028 and its like stand inside answers."""
    return [json.loads(line) for line in text.split("\n") if line]


def _clue_id(key: str) -> int | str:
    """A number as one, but "007" as it is."""
    return int(key) if key.isdecimal() and str(int(key)) == key else key


def _glue_value(label: Any) -> str:
    return f"{label:.3f}" if isinstance(label, float) else str(label)

"""A task as data: its kind, files, columns, labels, metrics, and hyper-parameters for a first run.

The tasks that ship are the JSON files in tasks/; a user's own task is one more file of the same form. Reading the data
itself is in records.py (files -> rows) and examples.py (rows -> examples); where it is looked for in task_data.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from distill.errors import InputError
from distill.json_file import nearest, read_object, short
from distill.recipe_types import describe_problem

FOLDER = Path(__file__).with_name("tasks")
FROM_TRAIN = "from train"
Kind = Literal["classification", "regression", "span", "tags", "choice"]
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "macro_f1", "matthews"),
    "regression": ("pearson", "spearman"),
    "span": ("span_f1", "exact_match"),
    "tags": ("entity_f1", "entity_precision", "entity_recall"),
    "choice": ("accuracy",),
}
"""The metrics of each kind, all in percent; see metrics.py."""
SCORED_KINDS = ("classification", "choice")
"""Kinds of which a row has one score for each of a few answers."""
NUM_TEXTS = {"classification": (1, 2), "regression": (1, 2), "span": (2, 2), "tags": (1, 1), "choice": (2, 2)}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Defaults(_Model):
    """Hyper-parameters that suit small models, for a run that names none."""

    learning_rate: float = Field(default=1e-4, gt=0, description="peak, linear warm-up and decay")
    epochs: float = Field(default=5, gt=0, description="passes over train")
    batch_size: int = Field(default=32, gt=0, description="examples (span: windows) in one optimiser step")
    max_length: int = Field(default=128, ge=8, description="tokens, [CLS] and [SEP] included")


class Task(_Model):
    """One task. Splits have any names; `train` is learned from, `dev` decides the best epoch."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]
    title: str = Field("", description="the name in tables; default: `name`")
    kind: Kind
    metrics: list[str] = Field(min_length=1, description="the first stands first in tables; their mean picks the epoch")
    texts: list[str | list[str]] = Field(
        description="columns of the text segments: one, or two (a pair; context and question); a list of columns is "
        "one segment, joined by a space"
    )
    label: str = Field("label", description="column of the label, number, answers, entities or correct choice")
    labels: list[str] | Literal["from train"] = Field("from train", description="labels (tags: entity types), in order")
    choices: str = Field("choice", description="choice: column with the list of choices")
    files: dict[str, list[str | list[str]]] = Field(
        description="split -> file names, the first that is there counts; a list of names is read as one split"
    )
    folders: list[str] = Field([], description="other names of the task's folder")
    columns: list[str] = Field([], description="column names of tables without a header")
    aliases: dict[str, str] = Field({}, description="column names of other editions -> ours")
    drop_labels: list[str] = Field([], description="rows with these labels are left out, and counted")
    drop_short_rows: bool = Field(False, description="leave out table rows with too few cells, and count them")
    mark_spans: bool = Field(False, description="CLUEWSC: _span1_ and [span2] are marked in the text")
    unlabelled: list[str] = Field([], description="splits whose labels are made up and must not be scored")
    max_answer_length: int = Field(100, gt=0, description="span: tokens of an answer")
    hub: str = Field("", description="OWNER/NAME[:CONFIG] of the same data on the hub")
    hub_splits: dict[str, str] = Field({"dev": "validation"}, description="split -> its name on the hub")
    source: str = Field("", description="where the data can be had")
    defaults: Defaults = Field(default_factory=Defaults)

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, value: list[str], info: Any) -> list[str]:
        known = METRICS.get(info.data.get("kind", ""), ())
        for metric in value:
            if known and metric not in known:
                raise ValueError(f"a {info.data['kind']} task has no metric '{metric}'{nearest(metric, known)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Task":
        fewest, most = NUM_TEXTS[self.kind]
        if not fewest <= len(self.texts) <= most:
            expected = str(fewest) if fewest == most else f"{fewest} or {most}"
            raise ValueError(f"texts: a {self.kind} task has {expected} of them, found {len(self.texts)}")
        if self.labels != FROM_TRAIN and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels: one stands twice in {short(self.labels)}")
        for split in ("train", "dev"):
            if split not in self.files:
                raise ValueError(f"files: no '{split}'; there are: {', '.join(self.files) or 'none'}")
        return self

    def text_columns(self) -> list[str]:
        """Every column that text is taken from."""
        return [name for text in self.texts for name in ([text] if isinstance(text, str) else text)]

    def describe_texts(self) -> str:
        """Which text a model is given, for results: `sentence + keywords`, `sentence1 | sentence2`."""
        return " | ".join(text if isinstance(text, str) else " + ".join(text) for text in self.texts)


def task_names() -> list[str]:
    """The names of the tasks that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_task(name: str) -> Task:
    """The task of that name, or the one that a user's JSON file describes (a name that ends in .json).

    Raises:
        InputError: no such task, or a description that is wrong: file, field, what was found.
    """
    path = Path(name)
    if path.suffix.lower() != ".json":
        path = FOLDER / f"{name}.json"
        if not name or name not in task_names():
            raise InputError(
                f"task '{name}': not known{nearest(name, task_names())}; a task of your own is a .json file"
            )
    try:
        return Task.model_validate(read_object(path, what="a task"))
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error)}") from None


def all_tasks() -> Iterator[Task]:
    """Every task that ships, in the order of their names."""
    return (load_task(name) for name in task_names())


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"] if part not in ("str", "list[str]"))
    if problem["type"] == "extra_forbidden":
        fields = Defaults.model_fields if len(problem["loc"]) > 1 else Task.model_fields
        return f"unknown key '{problem['loc'][-1]}'{nearest(str(problem['loc'][-1]), fields)}; see docs/tasks.md"
    return describe_problem(problem, place)

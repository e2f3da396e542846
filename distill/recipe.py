"""Recipes: the stages of a run as data, checked before anything slow starts.

A recipe is JSON. This module reads it, merges defaults and command-line values into every stage and student,
and checks the values. What needs a model or a corpus (layer ranges, vocabularies, files) is checked in
`distill.pipeline`; nothing here imports torch.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from distill.errors import InputError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Packing = Literal["chunks", "documents", "full_sentences", "doc_sentences", "lines"]

# Two runs that differ only in these train the same models.
OPERATIONAL_FIELDS = {"micro_batch_size", "save_every", "eval_every", "log_every"}


TEACHER = "teacher"
"""What metrics.jsonl calls the teacher of a stage."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class TrainSegmenter(_Model):
    """A segmenter that does not exist yet: an LTP perceptron trained from segmented text."""

    train: str = Field(description="text whose words are split by spaces, one sentence a line")


Share = Annotated[float, Field(gt=0, lt=1)]


class MaskSchedule(_Model):
    """A share of masked tokens that changes over the steps of a stage; dev is always masked by `end`."""

    start: Share = Field(description="share of a row's tokens at the first step")
    end: Share = Field(description="share at the last step, and for dev")
    schedule: Literal["linear", "cosine"] = Field("linear", description="how it gets there")


class Data(_Model):
    """What a stage reads."""

    text: list[str] | None = Field(None, description="text files, folders or glob patterns; one passage a line")
    files: str | None = Field(None, description="JSON in MiniRBT's format, instead of `text`")
    dev: Annotated[float, Field(ge=0, lt=1)] | list[str] = Field(
        0.005, description="dev files, or the fraction of the documents that is held out"
    )
    segmenter: str | TrainSegmenter | None = Field(
        None, description='"ltp:DIR", "jieba", "words" or {"train": SEGMENTED_FILE}'
    )
    dictionary: str | None = Field(
        None, description="file of words that the segmenter is to keep whole, one a line; for ltp and jieba"
    )
    skip_bad: bool = Field(False, description="leave out lines and records that are not UTF-8, with a warning")
    tokenizer: str | None = Field(None, description="tokenizer folder or hub id; default: the teacher's")
    packing: Packing = Field(
        "chunks",
        description="chunks: all text joined and cut; documents: each by itself, cut every max_seq_length (UER); "
        "full_sentences: as many whole lines as fit (RoBERTa); doc_sentences: the same within a document; "
        "lines: a line a row",
    )
    document_attention: bool = Field(
        False, description="true: documents packed into one row do not see each other, and positions restart"
    )
    mask: Literal["whole_word", "token", "span"] = Field(
        "whole_word",
        description="what is masked together; span: 1 to 10 tokens (SpanBERT); token and span need no segmenter",
    )
    mask_probability: Annotated[
        Annotated[Share, Tag("(number)")] | Annotated[MaskSchedule, Tag("(schedule)")],
        Discriminator(lambda value: "(schedule)" if isinstance(value, (dict, MaskSchedule)) else "(number)"),
    ] = Field(0.15, description='share of a row\'s tokens to predict, or {"start": 0.3, "end": 0.15} over the steps')
    static_masks: Positive | None = Field(
        None, description="this many fixed masks a row, one an epoch in turn, as UER and BERT did; default: always new"
    )

    def final_mask_probability(self) -> float:
        """The share of masked tokens at the last step."""
        return self.mask_probability.end if isinstance(self.mask_probability, MaskSchedule) else self.mask_probability

    @field_validator("segmenter", mode="before")
    @classmethod
    def _one_segmenter(cls, value: Any) -> Any:
        if isinstance(value, dict) and (list(value) != ["train"] or not isinstance(value["train"], str)):
            raise ValueError(f'an object here is {{"train": SEGMENTED_FILE}} and nothing else, found {_short(value)}')
        return value

    @field_validator("dev", mode="before")
    @classmethod
    def _fraction_or_files(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1:
            return float(value)
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return value
        raise ValueError(f"give dev files, or the fraction of the documents from 0 to below 1, found {_short(value)}")

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if (self.text is None) == (self.files is None):
            raise ValueError("give either 'text' (raw text) or 'files' (a JSON in MiniRBT's format)")
        if self.text is not None and self.mask == "whole_word" and self.segmenter is None:
            raise ValueError('whole_word masking of raw text needs a \'segmenter\' (or "mask": "token")')
        if self.dictionary is not None and self.segmenter in (None, "words"):
            raise ValueError("'dictionary' needs a 'segmenter' of ltp or jieba")
        if self.files is not None and "dev" in self.model_fields_set and self.dev != 0.005:
            raise ValueError("'dev' stands in the data JSON itself when 'files' is given")
        if self.static_masks and isinstance(self.mask_probability, MaskSchedule):
            raise ValueError("'static_masks' are fixed, so 'mask_probability' cannot change; give a number")
        return self


class Student(_Model):
    """One model to train: what it is, where its weights start, and what it learns from."""

    config: str | None = Field(None, description="BertConfig JSON; default: the config of `init`")
    init: str | None = Field(None, description="model folder, hub id or earlier name whose weights it starts from")
    init_layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="teacher layers to copy, with embeddings and prediction head"
    )
    matches: list[str | dict[str, Any]] = Field([], description="layer matches: names, TextBrewer dicts or JSON paths")
    temperature: Annotated[float, Field(gt=0)] = Field(8.0, description="softens both logits of the KD term")
    kd_loss: str = Field("ce", description="TextBrewer's KD loss: ce or mse")
    kd_weight: NonNegative = Field(1.0, description="weight of the KD term")
    kd_scale: Literal["none", "tau_squared"] = Field("none", description="tau_squared multiplies KD by temperature^2")
    mlm_weight: NonNegative = Field(0.0, description="weight of the cross-entropy to the true tokens")
    learning_rate: Annotated[float, Field(gt=0)] = Field(4e-4, description="peak learning rate of AdamW")
    scheduler: str = Field("linear", description="any name of transformers.get_scheduler that needs no extra argument")
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="share of the steps to warm up")
    weight_decay: NonNegative = Field(0.01, description="AdamW's decay of matrices; biases and LayerNorm have none")
    max_grad_norm: NonNegative = Field(1.0, description="clip the norm of all gradients of the student; 0 = never")
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="overrides both dropouts of the config while training"
    )

    @model_validator(mode="after")
    def _has_shape(self) -> "Student":
        if self.config is None and self.init is None:
            raise ValueError("give 'config' (a BertConfig JSON) or 'init' (a model to start from)")
        if self.init is not None and self.init_layers is not None:
            raise ValueError("'init' and 'init_layers' both set the starting weights; give one")
        return self


class Stage(_Model):
    """One or more students trained in one pass from one teacher, or without a teacher by masked-language modelling."""

    name: Name
    teacher: str | None = Field(None, description="model folder, hub id or earlier student; none = plain MLM")
    students: dict[Name, Student] = Field(min_length=1)
    data: Data
    max_seq_length: Annotated[int, Field(ge=8)] = Field(512, description="tokens a row, [CLS] and [SEP] included")
    steps: Positive | None = Field(None, description="optimiser steps")
    epochs: Annotated[float, Field(gt=0)] | None = Field(None, description="passes over the rows, instead of steps")
    global_batch_size: Positive = Field(256, description="sequences in one optimiser step over all processes")
    micro_batch_size: Positive | None = Field(
        None, description="sequences in one forward of one process; default: 8192 tokens' worth"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto = bf16 where hardware has it")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="decides order, masks, initial weights and dropout")
    save_every: Positive | None = Field(None, description="steps between checkpoints; default: a tenth of the run")
    eval_every: Positive | None = Field(None, description="steps between dev evaluations; default: a tenth of the run")
    log_every: Positive = Field(10, description="steps between lines of the log")

    @model_validator(mode="after")
    def _length_of_run(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either 'steps' or 'epochs'")
        for name, student in self.students.items():
            if name == TEACHER and self.teacher is not None:
                raise ValueError(f"student '{name}': the log calls the stage's own teacher so; take another name")
            if self.teacher is None and (student.matches or student.init_layers):
                what = "matches" if student.matches else "init_layers"
                raise ValueError(f"student '{name}' has '{what}', but the stage has no 'teacher'")
        return self

    def num_steps(self, num_rows: int) -> int:
        """Optimiser steps of this stage over a packed dataset of `num_rows` rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, -(-int(self.epochs * num_rows) // self.global_batch_size))

    def rows_per_forward(self) -> int:
        """`micro_batch_size`, or as many sequences as make 8192 tokens, which fits common machines."""
        return self.micro_batch_size or max(1, 8192 // self.max_seq_length)


class Recipe(_Model):
    """A chain of stages and the folder it writes to."""

    output_dir: str = Field(min_length=1)
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique_names(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        students = [student for stage in self.stages for student in stage.students]
        for kind, found in (("stage", names), ("student", students)):
            twice = sorted({name for name in found if found.count(name) > 1})
            if twice:
                raise ValueError(f"{kind} name '{twice[0]}' is used twice")
        return self

    def stage(self, name: str) -> Stage:
        """The stage called `name`; InputError with the names there are if it does not exist."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise InputError(f"{self.output_dir}: no stage '{name}'; there are: {', '.join(s.name for s in self.stages)}")


STAGE_FIELDS = set(Stage.model_fields) - {"name", "students"}
STUDENT_FIELDS = set(Student.model_fields)


def load_recipe(path: str | Path, overrides: Mapping[str, Any] = {}, settings: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file, merges defaults and command line into every stage and student, and checks all values.

    Args:
        path: JSON file.
        overrides: field -> value, for every stage (or every student, if it is a student's field).
        settings: "stages.NAME.students.NAME.field=value", one place each.
    Raises:
        InputError: naming file, place and the nearest known key.
    """
    path = Path(path)
    return resolve_recipe(read_json(path), where=str(path), overrides=overrides, settings=settings)


def resolve_recipe(raw: Any, *, where: str, overrides: Mapping[str, Any] = {}, settings: Sequence[str] = ()) -> Recipe:
    """A recipe's JSON value as a checked `Recipe`: field default < defaults < stage < student < command line."""
    if not isinstance(raw, dict):
        raise InputError(f"{where}: a recipe is a JSON object, found {type(raw).__name__}")
    raw = json.loads(json.dumps(raw))
    _check_keys(raw, {"output_dir", "defaults", "stages"}, where)
    defaults = _expect_object(raw.pop("defaults", {}), f"{where}: defaults")
    _check_keys(defaults, STAGE_FIELDS | STUDENT_FIELDS, f"{where}: defaults")
    if not isinstance(raw.get("stages"), list):
        raise InputError(f"{where}: 'stages' must be a list of stages, found {_short(raw.get('stages'))}")
    overrides = dict(overrides)
    if "output_dir" in overrides:
        raw["output_dir"] = str(overrides.pop("output_dir"))  # a folder may be called 2024
    _check_keys(overrides, STAGE_FIELDS | STUDENT_FIELDS, "command line", prefix="--")
    raw["stages"] = [_merge_stage(stage, i, defaults, overrides, where) for i, stage in enumerate(raw["stages"])]
    for setting in settings:
        _apply_setting(raw, setting)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{where}: {_first_problem(error, raw)}") from None


def check_data_fields(where: str, **fields: Any) -> Data:
    """A `Data` from plain values; InputError if they do not fit."""
    try:
        return Data.model_validate({key: value for key, value in fields.items() if value is not None})
    except ValidationError as error:
        raise InputError(f"{where}: {_first_problem(error, {})}") from None


def _merge_stage(stage: Any, index: int, defaults: dict, overrides: dict, where: str) -> dict:
    """One stage with its defaults written out and student fields moved into its students."""
    stage = _expect_object(stage, f"{where}: stages[{index}]")
    name = stage.get("name", f"[{index}]")
    where = f"{where}: stage '{name}'"
    _check_keys(stage, STAGE_FIELDS | STUDENT_FIELDS | {"name", "students"}, where)
    students = _expect_object(stage.get("students", {}), f"{where}: students")
    layers = [defaults, stage]
    merged: dict[str, Any] = {"name": stage.get("name"), "students": {}}
    for field in STAGE_FIELDS:
        values = [layer[field] for layer in [*layers, overrides] if field in layer]
        if values:
            merged[field] = _merge_data(values) if field == "data" else values[-1]
    lengths = [layer for layer in [*layers, overrides] if layer.keys() & {"steps", "epochs"}]
    for field in {"steps", "epochs"} & merged.keys():
        if field not in lengths[-1]:
            del merged[field]
    for student_name, student in students.items():
        place = f"{where}, student '{student_name}'"
        student = _expect_object(student, place)
        _check_keys(student, STUDENT_FIELDS, place)
        given = [*layers, student, overrides]
        fields = {f: layer[f] for layer in given for f in STUDENT_FIELDS if f in layer}
        if merged.get("teacher") is None and not student.get("matches") and not stage.get("matches"):
            fields.pop("matches", None)
        merged["students"][student_name] = {field: _listed(field, value) for field, value in fields.items()}
    return merged


def _merge_data(values: Iterable[Any]) -> Any:
    """Later `data` objects add to earlier ones; a string is a data JSON's path; text and files exclude each other."""
    merged: dict[str, Any] = {}
    for value in values:
        value = {"files": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            return value
        for source, other in (("files", "text"), ("text", "files")):
            if source in value:
                merged.pop(other, None)
        if "files" in value:
            merged.pop("dev", None)
        merged.update(value)
    for field in ("text", "dev"):
        if isinstance(merged.get(field), str):
            merged[field] = [merged[field]]
    return merged


def _apply_setting(raw: dict, setting: str) -> None:
    """Writes one `--set path=value` into the merged recipe."""
    path, equals, text = setting.partition("=")
    if not equals:
        raise InputError(f"--set {setting}: expected PATH=VALUE, e.g. stages.NAME.students.NAME.temperature=4")
    target: Any = raw
    *parents, last = path.split(".")
    for part in parents:
        if isinstance(target, list):
            found = {str(stage["name"]): stage for stage in target}
        else:
            found = target if isinstance(target, dict) else {}
        if part not in found:
            raise InputError(f"--set {path}: no '{part}'; there are: {', '.join(map(str, found)) or 'no keys'}")
        target = found[part]
    depth = len(parents)  # stages.NAME = 2, stages.NAME.data = 3, stages.NAME.students.NAME = 4
    places = {2: STAGE_FIELDS | STUDENT_FIELDS, 3: set(Data.model_fields), 4: STUDENT_FIELDS}
    if depth not in places or parents[0] != "stages" or (depth == 3) != (parents[-1] == "data"):
        raise InputError(f"--set {path}: name a field of one stage or student, e.g. stages.NAME.steps=100")
    _check_keys({last: None}, places[depth], f"--set {path}")
    _write_field(target, last, parse_value(text))


def _write_field(target: dict, field: str, value: Any) -> None:
    """Sets a field of a merged stage, of its `data`, or of a student; a stage's student field reaches its students."""
    if field in Data.model_fields:
        merged = _merge_data([target, {field: value}])
        target.clear()
        target.update(merged)
    elif field in STUDENT_FIELDS:
        for student in target["students"].values() if "students" in target else [target]:
            student[field] = _listed(field, value)
    else:
        target[field] = _merge_data([target.get("data", {}), value]) if field == "data" else value
    if field in ("steps", "epochs"):
        target.pop("epochs" if field == "steps" else "steps", None)


def _listed(field: str, value: Any) -> Any:
    """`matches` may be written as one entry instead of a list."""
    return [value] if field == "matches" and isinstance(value, (str, dict)) else value


def parse_value(text: str) -> Any:
    """A command-line value: JSON where it is JSON, otherwise the string itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def read_json(path: Path) -> Any:
    """The JSON value in `path`; InputError (file, line, what) if it cannot be read as such."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object_without_repeats)
    except _NotStrict as error:
        raise InputError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        place = (
            f", line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ": nested too deep"
        )
        raise InputError(f"{path}{place}; not valid JSON") from None


class _NotStrict(Exception):
    """Something that Python's JSON reader would pass over."""


def _refuse_constant(name: str) -> Any:
    raise _NotStrict(f"{name} is no number; not valid JSON")


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _NotStrict(f"'{twice}' stands twice in one object; the second would silently replace the first")
    return found


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?` for the closest known word, or the list of all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def _check_keys(found: Mapping[str, Any], known: set[str], where: str, prefix: str = "") -> None:
    for key in found:
        if key not in known:
            raise InputError(f"{where}: unknown key '{prefix}{key}'{nearest(key, known)}")


def _expect_object(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object in braces, found {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _first_problem(error: ValidationError, raw: dict) -> str:
    """The first of pydantic's complaints as one line, with stage names instead of list positions."""
    problem = error.errors(include_url=False)[0]
    loc = list(problem["loc"])
    if len(loc) > 1 and loc[0] == "stages" and isinstance(loc[1], int):
        loc[:2] = [f"stage '{raw['stages'][loc[1]].get('name')}'"]
    if "students" in loc[:-1]:
        at = loc.index("students")
        loc[at : at + 2] = [f"student '{loc[at + 1]}'"]
    known = {"data": Data}.get(str(loc[-2]) if len(loc) > 1 else "", None)
    place = ", ".join(str(part) for part in loc if part not in ("list[str]", "str", "(number)", "(schedule)"))
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key{nearest(str(loc[-1]), known.model_fields) if known else ''}"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] in ("missing", "value_error") else f", found {_short(problem['input'])}"
    return f"{place + ': ' if place else ''}{message[0].lower() + message[1:]}{found}"

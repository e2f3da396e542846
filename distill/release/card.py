"""The README.md of a model folder: what the model is, where it comes from, what was measured, how to load it.

A card is written with its model, and again when results are there (`refresh_cards`), as long as MARK stands in it: who
takes that line out keeps what they wrote. Its metadata are the Hub's.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from distill.corpus.statistics import script_of
from distill.corpus.tokenizing import listed_tokens
from distill.downstream.run import TAUGHT
from distill.durable import write_whole
from distill.json_file import short
from distill.recipe import Student
from distill.release.chain import Model, read_chain
from distill.release.results import collect_results
from distill.release.run_folder import RunFolder
from distill.release.task_tables import read_task_tables, table_name

MARK = "<!-- Written by MiniDistill, and again when there are new results; remove this line to keep your changes. -->"
LEAST_HAN = 0.2
"""Share of Han tokens in a Chinese vocabulary; English and multilingual ones have some, too, among many others."""
_TOLD = {"config", "init", "init_layers", "method", "seed", "matches", "temperature", "learning_rate", "scheduler",
         "warmup_ratio"}  # fmt: skip
"""Student fields that have a place of their own on the card; the others stand there if they are not the default."""


def refresh_cards(run: RunFolder) -> None:
    """Writes the cards of all finished students again that still are as they were written."""
    chain, results = read_chain(run), collect_results(run)
    for model in chain:
        folder = run.model(model.name) if model.stage else None
        card = folder / "README.md" if folder else None
        with run.noting():
            if card and card.is_file() and MARK in (before := card.read_text(encoding="utf-8", errors="replace")):
                text = model_card(model.name, run, chain, results)
                if text != before:
                    write_whole(card, text)


def first_cards(names: Sequence[str], run: RunFolder) -> dict[str, str]:
    """The cards of students that are about to be trained: student -> Markdown.

    The same whether this is the stage's first start: measurements of a stage that is going on are left out.
    """
    chain, results = read_chain(run), collect_results(run)
    made = {model.name for model in chain if model.stage and model.is_finished}
    results["models"] = [row for row in results["models"] if row["name"] in made]
    return {name: model_card(name, run, chain, results) for name in names}


def minimal_card(name: str) -> str:
    """A card that takes nothing to write; the next report replaces it."""
    return f"---\nlibrary_name: transformers\n---\n{MARK}\n# {name}\n\nMade by MiniDistill.\n"


def model_card(name: str, run: RunFolder, chain: Sequence[Model], results: Mapping[str, Any]) -> str:
    """Markdown with Hub metadata for the student `name` of a run, which may not be finished yet.

    Args:
        chain, results: of the run, as `read_chain` and `collect_results` give them.
    """
    model = next(model for model in chain if model.name == name)
    stage = next(stage for stage in run.stages if name in stage["students"])
    if model.is_finished:
        stage = run.trained_stage(stage, name)
    measured = {row["name"]: row for row in results["models"]}
    is_chinese = _knows_chinese(name, run, stage)
    parts = [
        f"---\n{_metadata(model, measured.get(name), run, is_chinese=is_chinese)}\n---\n{MARK}\n# {name}",
        _what_it_is(model, is_chinese=is_chinese),
        "## Where it comes from\n\n" + _origin(model, measured),
        "## Training data\n\n" + _data(stage, run),
        "## Training\n\n" + _training(name, stage),
        _results(model, stage, measured, results["most_common_share"], run),
        _use(name, is_chinese=is_chinese),
        "## Limits\n\n" + _limits(model, stage),
        "## Licence\n\n" + _licence(model, stage, run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _knows_chinese(name: str, run: RunFolder, stage: Mapping[str, Any]) -> bool:
    """Whether the vocabulary is a Chinese one, as it is taken to be where it is not at hand."""
    folder = run.model(name) or run.tokenizer(stage)
    if folder is None:
        return True
    with run.noting():
        scripts = [script_of(token.removeprefix("##")) for token in listed_tokens(folder)]
        return scripts.count("Han") > LEAST_HAN * len(scripts)
    return True


def _start_from_elsewhere(model: Model, run: RunFolder) -> str | None:
    """The given model whose weights it starts from."""
    made = {name for stage in run.stages for name in stage["students"]}
    return model.init if model.init and model.init not in made else None


def _metadata(model: Model, row: Mapping[str, Any] | None, run: RunFolder, *, is_chinese: bool) -> str:
    """YAML as the Hub reads it."""
    given = [model.origin()[-1].name] if model.teacher else []
    if (start := _start_from_elsewhere(model, run)) and start not in given:
        given.append(start)
    bases = [name for name in given if run.is_from_hub(name)]
    results = [EvalResult(
        task_type="fill-mask", dataset_type="text", dataset_name="held-out documents",
        dataset_split="validation", metric_type="accuracy", metric_value=round(row["dev_accuracy"], 4),
    )] if row and row["dev_accuracy"] is not None else None  # fmt: skip
    data = ModelCardData(
        language="zh" if is_chinese else None, library_name="transformers", pipeline_tag="fill-mask",
        tags=["bert", "minidistill", *(["knowledge-distillation"] if model.teacher else [])],
        base_model=(bases[0] if len(bases) == 1 else bases) or None,
        model_name=model.name if results else None, eval_results=results,
    )  # fmt: skip
    return data.to_yaml()


def _what_it_is(model: Model, *, is_chinese: bool) -> str:
    shape = ""
    if model.config and model.counts:
        shape = (
            f" with {model.config.num_hidden_layers} layers, {model.config.hidden_size} wide: "
            f"{model.counts.masked_lm:,} parameters, {model.counts.without_embeddings:,} without embeddings"
        )
    origin = (
        f"It was distilled from {_code(_shown_name(model.teacher.name))}" if model.teacher
        else "It was pre-trained by masked-language modelling, without a teacher,"
    )  # fmt: skip
    kind = "Chinese BERT" if is_chinese else "BERT"
    return f"A {kind} encoder{shape}. {origin} with MiniDistill. It opens with `transformers` alone."


def _origin(model: Model, measured: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for one in reversed(model.origin()):
        made = f"stage {one.stage}" if one.stage else "given"
        if one.init:
            made += f", starts from {_shown_name(one.init)}"
        accuracy = measured.get(one.name, {}).get("dev_accuracy")
        size = f"{one.counts.masked_lm:,}" if one.counts else "-"
        rows.append([_shown_name(one.name), one.shape() or "-", size, made,
                     "-" if accuracy is None else f"{accuracy:.2%}"])  # fmt: skip
    return _table(["model", "layers x width", "parameters", "made by", "dev MLM accuracy"], rows)


def _data(stage: Mapping[str, Any], run: RunFolder) -> str:
    data = stage["data"]
    names = ", ".join(_code(_shown_name(name)) for name in data["text"] or [data["files"]])
    dataset = run.dataset(stage)
    info = run.json_at(dataset / "info.json") if dataset else {}
    keys = ("rows", "tokens", "characters", "documents")
    splits = [(split, info[split]) for split in ("train", "dev") if isinstance(info.get(split), dict)]
    rows = [[split, *(_count(values.get(key)) for key in keys)] for split, values in splits]
    segmenter = data["segmenter"]
    words = f" Words were found by {_code(_shown_name(segmenter))}." if isinstance(segmenter, str) else ""
    if isinstance(segmenter, dict):
        words = f" Words were found by an LTP perceptron trained on {_code(_shown_name(segmenter['train']))}."
    table = "\n\n" + _table(["split", *keys], rows) if rows else ""
    return f"Text: {names}, masked {_describe_masking(data)}.{words}{table}"


def _training(name: str, stage: Mapping[str, Any]) -> str:
    student = stage["students"][name]
    length = f"{stage['steps']:,} steps" if stage["steps"] else f"{stage['epochs']:g} epochs"
    rows = [
        ["length", f"{length} of {stage['global_batch_size']:,} sequences of {stage['max_seq_length']} tokens"],
        ["learning rate", f"{student['learning_rate']:g}, {student['scheduler']}, warm-up {student['warmup_ratio']:g}"],
        ["precision", stage["precision"]],
        ["seed", str(stage["seed"] if student["seed"] is None else student["seed"])],
    ]
    if stage["teacher"]:
        matches = [
            _code(_shown_name(m)) if isinstance(m, str) else "a match given as object" for m in student["matches"]
        ]
        rows += [["method", _shown_name(student["method"])]] if student["method"] else []
        rows += [["temperature", f"{student['temperature']:g}"],
                 ["layer matches", ", ".join(matches) or "none (logits only)"]]  # fmt: skip
    if student["init_layers"]:
        rows.append(["layers taken from the teacher", ", ".join(map(str, student["init_layers"]))])
    for field, info in Student.model_fields.items():
        if field not in _TOLD and student[field] != info.default:
            value = student[field]
            rows.append([field, _code(_shown_name(value) if isinstance(value, str) else short(value))])
    return _table(["", ""], rows)


def _results(
    model: Model, stage: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]], shares: Mapping[str, Any],
    run: RunFolder,
) -> str:  # fmt: skip
    """What was measured of this model and those it comes from; empty if nothing was."""
    parts = []
    row = measured.get(model.name)
    if row and row["dev_accuracy"] is not None:
        share, seed = shares.get(stage["name"]), stage["students"][model.name]["seed"]
        base = f"; always guessing the commonest token: {share:.2%}" if share is not None else ""
        loss = "" if row["dev_loss"] is None else f", loss {row['dev_loss']:.3f} nats"
        parts.append(
            f"Masked-language modelling on held-out documents: accuracy {row['dev_accuracy']:.2%}{loss} "
            f"(one run, seed {stage['seed'] if seed is None else seed}{base})."
        )
    tables = read_task_tables(run)
    names = [table_name(run, one.name) for one in model.origin()]
    family = {*names, *(f"{name}{TAUGHT}" for name in names)}
    for title, key in (("Fine-tuned; the best epoch, and setting of several, were chosen on dev, which flatters dev",
                        "details"),
                       ("Relative to the teacher", "relative"), ("Speed", "latency")):  # fmt: skip
        own = [r for r in tables.get(key, []) if r.get("Model") in family]
        if any(r["Model"].removesuffix(TAUGHT) == model.name for r in own):
            head = list(own[0])
            parts.append(f"{title}:\n\n" + _table(head, [[r.get(cell, "-") for cell in head] for r in own]))
    return "## Results\n\n" + "\n\n".join(parts) if parts else ""


def _use(name: str, *, is_chinese: bool) -> str:
    example = "中国的首都是[MASK]京。" if is_chinese else "Paris is the [MASK] of France."
    return f"""## Use

```python
from transformers import BertForMaskedLM, BertTokenizer, pipeline

tokenizer = BertTokenizer.from_pretrained("{name}")
model = BertForMaskedLM.from_pretrained("{name}")
pipeline("fill-mask", model=model, tokenizer=tokenizer)("{example}")
```

`"{name}"` is this folder, or the id it has on the Hub. For a task, load it as `BertForSequenceClassification` or its
like and fine-tune; small encoders often want a higher learning rate than BERT-base: MiniRBT's was 1e-4."""


def _limits(model: Model, stage: Mapping[str, Any]) -> str:
    positions = f" of at most {model.config.max_position_embeddings} tokens" if model.config else ""
    teacher = " and of its teacher" if model.teacher else ""
    smaller = "A smaller model than its teacher" if model.teacher else "A small model"
    return (
        f"- It reads sequences{positions}, was trained on {stage['max_seq_length']}, and writes no text.\n"
        "- Text of another kind than its training and dev data was not tried.\n"
        f"- It has the errors and the prejudices of its training text{teacher}. Nobody has looked for them.\n"
        f"- {smaller} knows fewer facts and rare words; test it on your task first."
    )


def _licence(model: Model, stage: Mapping[str, Any], run: RunFolder) -> str:
    """What whoever publishes the model has to look at; MiniDistill gives it no licence."""
    root = model.origin()[-1]
    lines = [
        "No licence is chosen here: who publishes these weights chooses one that allows for what they were made of."
    ]
    if model.teacher and root.stage is None:
        lines.append(f"- The teacher {_code(_shown_name(root.name))} has its own terms, which may reach its students.")
    if start := _start_from_elsewhere(model, run):
        lines.append(f"- Its training began from {_code(_shown_name(start))}, whose terms may reach it.")
    lines.append("- The training text has its own terms.")
    if _uses_ltp(stage["data"]["segmenter"]):
        lines.append(
            "- Words were found by [LTP](https://github.com/HIT-SCIR/ltp), which is free for universities, institutes "
            "of the Chinese Academy of Sciences and individual researchers; companies must pay for it."
        )
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _uses_ltp(segmenter: Any) -> bool:
    return isinstance(segmenter, dict) or isinstance(segmenter, str) and segmenter.startswith("ltp")


def _shown_name(name: str) -> str:
    """A name or a relative path as it is, of an absolute path the last part: where files lie is nobody's business."""
    kind, colon, path = name.partition(":")
    is_path = colon and PurePath(path).is_absolute()
    return f"{kind}:{PurePath(path).name}" if is_path else PurePath(name).name if PurePath(name).is_absolute() else name


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose cells hold what they hold."""
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if line.startswith("`") else line.replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    """A name or path as Markdown shows it: nothing in it ends the code span, the table's cell or the line."""
    line = "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def _describe_masking(data: Mapping[str, Any]) -> str:
    share = data["mask_probability"]
    kind = {"whole_word": "word by word", "token": "token by token", "span": "in spans"}[data["mask"]]
    if isinstance(share, Mapping):
        return f"{kind}, {share['start']:g} to {share['end']:g} of the tokens ({share['schedule']})"
    copies = f", {data['static_masks']} fixed masks a row" if data["static_masks"] else ""
    return f"{kind}, {share:g} of the tokens{copies}"

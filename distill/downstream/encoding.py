"""Examples as what a model reads, and its scores as answers: one way for each kind of task.

`encode_split` gives the features of a split and a function from the model's scores back to one answer an example; an
answer is a label, a number, a text, a set of entities, or the number of a choice.
"""

# N examples, F features (rows a model reads; windows of questions may be more than examples), L tokens, C labels

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax
from transformers import BertTokenizer

from distill.downstream.examples import ChoiceQuestion, Entity, Question, TaggedText, TextExample
from distill.downstream.metrics import classification_metrics, regression_metrics
from distill.downstream.span_metrics import span_metrics
from distill.downstream.span_windows import find_candidates, make_windows
from distill.downstream.tags import decode_tags, encode_tags, entity_metrics, tag_names
from distill.downstream.task import Task

IGNORE_INDEX = -100
Prediction = str | float | set[Entity] | int
Features = list[dict[str, Any]]


@dataclass(frozen=True)
class Encoded:
    """A split as a model reads it; `answers` turns its scores for the features, in order, into N predictions."""

    features: Features
    answers: Callable[[Any], list[Prediction]]


def encode_split(
    task: Task, examples: Sequence[Any], labels: Sequence[str], tokenizer: BertTokenizer, max_length: int
) -> Encoded:
    """The features of a split's examples, without padding, with labels where they are known."""
    encode: dict[str, Callable[..., Encoded]] = {
        "classification": _encode_texts,
        "regression": _encode_texts,
        "span": _encode_questions,
        "tags": _encode_tagged,
        "choice": _encode_choices,
    }
    return encode[task.kind](task, examples, labels, tokenizer, max_length)


def measure(task: Task, examples: Sequence[Any], labels: Sequence[str], answers: Sequence[Any]) -> dict[str, float]:
    """The task's metrics of predicted answers, in percent, by the names in `task.metrics`."""
    if task.kind == "span":
        gold = {example.id: [answer.text for answer in example.answers] for example in examples}
        found = span_metrics(gold, {example.id: answer for example, answer in zip(examples, answers, strict=True)})
    elif task.kind == "tags":
        found = entity_metrics([set(example.entities) for example in examples], answers)
    elif task.kind == "regression":
        found = regression_metrics(task.metrics, [example.label for example in examples], answers)
    elif task.kind == "choice":
        found = classification_metrics(task.metrics, [example.label for example in examples], answers)
    else:
        number = {label: i for i, label in enumerate(labels)}
        gold_numbers = [number[example.label] for example in examples]
        found = classification_metrics(task.metrics, gold_numbers, [number[answer] for answer in answers])
    return {name: found[name] for name in task.metrics}


def answer_record(example: Any, answer: Prediction) -> dict[str, Any]:
    """An answer as one JSON line of a predictions file; entities in CLUENER's form."""
    if isinstance(answer, set):
        entities: dict[str, dict[str, list[list[int]]]] = {}
        for entity in sorted(answer):
            name = example.text[entity.start : entity.end + 1]
            entities.setdefault(entity.type, {}).setdefault(name, []).append([entity.start, entity.end])
        return {"id": example.id, "label": entities}
    if isinstance(example, ChoiceQuestion):
        return {"id": example.id, "label": answer, "answer": example.choices[int(answer)]}
    return {"id": example.id, "answer" if isinstance(example, Question) else "label": answer}


def score_record(example: Any, labels: Sequence[str], logits: np.ndarray) -> dict[str, Any]:
    """What a predictions file says about a row's scores: logits, and probabilities by label or by choice.

    Args:
        logits: [C]; of a question with fewer choices than others, the rest is left out.
    """
    names = [str(i) for i in range(len(example.choices))] if isinstance(example, ChoiceQuestion) else labels
    logits = logits[: len(names)].astype(np.float64)
    probabilities = {name: round(float(share), 6) for name, share in zip(names, softmax(logits), strict=True)}
    return {"probabilities": probabilities, "logits": [round(float(value), 6) for value in logits]}


def _encode_texts(
    task: Task, examples: Sequence[TextExample], labels: Sequence[str], tokenizer: BertTokenizer, max_length: int
) -> Encoded:
    segments = [list(texts) for texts in zip(*(example.texts for example in examples), strict=True)]
    encoded = tokenizer(*segments, truncation=True, max_length=max_length)
    features = _rows(encoded, len(examples))
    number = {label: i for i, label in enumerate(labels)}
    for feature, example in zip(features, examples, strict=True):
        if example.label is not None:
            feature["labels"] = float(example.label) if task.kind == "regression" else number[str(example.label)]

    def answers(scores: np.ndarray) -> list[Prediction]:
        """Scores: [N, C], for regression [N, 1] or [N]."""
        if task.kind == "regression":
            return [float(value) for value in np.reshape(scores, -1)]
        return [labels[i] for i in np.argmax(scores, axis=-1)]

    return Encoded(features, answers)


def _encode_questions(
    task: Task, examples: Sequence[Question], labels: Sequence[str], tokenizer: BertTokenizer, max_length: int
) -> Encoded:
    windows = list(make_windows(examples, tokenizer, max_length))
    features: Features = [
        {
            "input_ids": window.input_ids, "token_type_ids": window.token_type_ids,
            "attention_mask": [1] * len(window.input_ids),
            "start_positions": window.positions[0], "end_positions": window.positions[1],
        }
        for window in windows
    ]  # fmt: skip

    def answers(scores: tuple[np.ndarray, np.ndarray]) -> list[Prediction]:
        """Scores of first and last tokens: two of [F, L]."""
        found = find_candidates(examples, windows, *scores[:2], max_answer_length=task.max_answer_length, num_best=20)
        return [candidates[0].text if candidates else "" for candidates in found]

    return Encoded(features, answers)


def _encode_tagged(
    task: Task, examples: Sequence[TaggedText], labels: Sequence[str], tokenizer: BertTokenizer, max_length: int
) -> Encoded:
    texts = [example.text for example in examples]
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")
    features = _rows(encoded, len(examples))
    tags = tag_names(labels)
    number = {tag: i for i, tag in enumerate(tags)}
    for feature, example, spans in zip(features, examples, offsets, strict=True):
        if example.entities is not None:
            feature["labels"] = [
                number[tag] if start < end else IGNORE_INDEX
                for tag, (start, end) in zip(encode_tags(example.entities, spans), spans, strict=True)
            ]

    def answers(scores: np.ndarray) -> list[Prediction]:
        """Scores: [N, L, C], padded at the end."""
        best = np.argmax(scores, axis=-1)
        return [decode_tags([tags[i] for i in row[: len(spans)]], spans)
                for row, spans in zip(best, offsets, strict=True)]  # fmt: skip

    return Encoded(features, answers)


def _encode_choices(
    task: Task, examples: Sequence[ChoiceQuestion], labels: Sequence[str], tokenizer: BertTokenizer, max_length: int
) -> Encoded:
    """Context, then question and choice, once for every choice; the longer of the two segments is cut.

    Every question gets as many choices as the largest has, the missing ones empty; those never win.
    """
    width = max(len(example.choices) for example in examples)
    features: Features = []
    for example in examples:
        choices = [*example.choices, *[""] * (width - len(example.choices))]
        encoded = tokenizer(
            [example.context] * width, [f"{example.question} {choice}" for choice in choices],
            truncation=True, max_length=max_length,
        )  # fmt: skip
        # The collator wants a number; for an unknown one nothing is scored.
        features.append({**encoded, "labels": 0 if example.label is None else example.label})

    def answers(scores: np.ndarray) -> list[Prediction]:
        """Scores: [N, choices]."""
        return [int(np.argmax(row[: len(example.choices)])) for row, example in zip(scores, examples, strict=True)]

    return Encoded(features, answers)


def _rows(encoded: Any, count: int) -> Features:
    return [{key: values[i] for key, values in encoded.items()} for i in range(count)]

"""Four labelled tasks about the sample world: topic, similarity, inference, reading.

Each split has a world of its own and only its own skeletons, so neither a skeleton nor a pair of entities of dev
or test occurs in train. Facts are single-valued (a school has one head), which is what makes another value a
contradiction. Labels are balanced exactly.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distill.sample.documents import Document, Writer
from distill.sample.skeletons import SPLITS, Topic
from distill.sample.template import Entity, Sentence
from distill.sample.world import build_world, changed, other_values

NUM_ROWS = {"train": 2000, "dev": 500, "test": 500}
INFERENCE_LABELS = ("entailment", "neutral", "contradiction")
_NEGATED_SHARE = 0.25
_SAME_PHRASING_SHARE = 0.15
Row = dict[str, str]


def write_tasks(
    folder: Path, topics: Sequence[Topic], lists: Mapping[str, Sequence[str]], *, seed: int
) -> dict[str, int]:
    """Writes every task and split under `folder`; returns rows by `task_split`."""
    counts = {}
    for split in SPLITS:
        for name, make in (("topic", _topic_row), ("similarity", _similarity_row), ("inference", _inference_row)):
            author = _Author(topics, lists, f"{name}:{seed}", seed, split)
            labels = [str(i) for i in range(len(topics))] if name == "topic" else ["0", "1"]
            rows = _balanced_rows(author, make, INFERENCE_LABELS if name == "inference" else labels)
            _write_rows(folder / name, split, rows)
            counts[f"{name}_{split}"] = len(rows)
        author = _Author(topics, lists, f"reading:{seed}", seed, split)
        questions = _write_reading(folder / "reading" / f"{split}.json", author)
        counts[f"reading_{split}"] = questions
    names = "\n".join(topic.label for topic in topics)
    (folder / "topic" / "labels.txt").write_text(names + "\n", encoding="utf-8")
    return counts


class _Author(Writer):
    """Writes single sentences and statements of facts with the skeletons and the world of one split."""

    def __init__(
        self, topics: Sequence[Topic], lists: Mapping[str, Sequence[str]], purpose: str, seed: int, split: str
    ) -> None:
        rng = random.Random(f"{purpose}:{split}")
        super().__init__(rng, build_world(seed, split, lists), lists, (split,))
        self.topics, self.split = topics, split
        self.corpus = build_world(seed, "corpus", lists)

    def entity(self, topic: Topic) -> Entity:
        return self.rng.choice(self.world.focal[topic.focus])

    def fact(
        self, topic: Topic, relation: str, focus: Entity, *, avoid: str = "", section: str = "relation"
    ) -> Sentence:
        """A statement (or negation, or question) of one fact in a phrasing whose key is not `avoid`."""
        lines = [s for s in topic.lines(f"{section} {relation}", self.split) if s.key != avoid]
        return self.sentence(self.least_used(lines), self.environment(focus, self.season()))

    def with_other_value(self, topic: Topic, relation: str, focus: Entity) -> Entity:
        """The entity as it would be if the relation had another value."""
        others = self.world.focal[topic.focus]
        if isinstance(focus.attributes[relation], str):
            # A small world may hold only one parrot; words such as its food are shared with the corpus anyway.
            others = others + self.corpus.focal[topic.focus]
        return changed(focus, relation, self.rng.choice(other_values(focus, relation, others)))


def _balanced_rows(author: _Author, make: Callable[[_Author, str], Row], labels: Sequence[str]) -> list[Row]:
    rows: dict[tuple[str, ...], Row] = {}
    total = NUM_ROWS[author.split]
    attempts = 0
    for i, label in enumerate(labels):
        wanted = len(rows) + total // len(labels) + (i < total % len(labels))
        while len(rows) < wanted:
            attempts += 1
            assert attempts < 50 * total, f"{author.split} label {label}: skeletons too few for {total} distinct rows"
            row = make(author, label)
            rows.setdefault(tuple(row[key] for key in sorted(row) if key != "label"), row)
    shuffled = list(rows.values())
    author.rng.shuffle(shuffled)
    return shuffled


def _topic_row(author: _Author, label: str) -> Row:
    topic = author.topics[int(label)]
    author.aside_share = 0.0
    document = author.document(topic, num_sentences=4)
    # Not from the start: the opening sentence names the entity and would give the topic away too often.
    start = author.rng.randrange(len(document.sentences) - 1)
    sentences = document.sentences[start : start + author.rng.randint(1, 2)]
    return {"label": label, "text_a": "".join(sentence.text for sentence in sentences)}


def _similarity_row(author: _Author, label: str) -> Row:
    topic = author.rng.choice(author.topics)
    relation = author.rng.choice(topic.relations)
    focus = author.entity(topic)
    first = author.fact(topic, relation, focus)
    if label == "1":
        second = author.fact(topic, relation, focus, avoid=first.key)
        return {"label": label, "text_a": first.text, "text_b": second.text}
    avoid = "" if author.rng.random() < _SAME_PHRASING_SHARE else first.key
    kind = author.rng.random()
    if kind < 0.5:
        second = author.fact(topic, relation, author.with_other_value(topic, relation, focus), avoid=avoid)
    elif kind < 0.75:
        other = author.rng.choice([e for e in author.world.focal[topic.focus] if e.name != focus.name])
        other = changed(other, relation, focus.attributes[relation])
        second = author.fact(topic, relation, other, avoid=avoid)
    elif kind < 0.85:
        second = author.fact(topic, relation, focus, section="negation")
    else:
        second = author.fact(topic, author.rng.choice([r for r in topic.relations if r != relation]), focus)
    return {"label": label, "text_a": first.text, "text_b": second.text}


def _inference_row(author: _Author, label: str) -> Row:
    topic = author.rng.choice(author.topics)
    focus = author.entity(topic)
    stated = author.rng.sample(topic.relations, author.rng.randint(1, len(topic.relations) - 1))
    facts = [author.fact(topic, relation, focus) for relation in stated]
    relation = author.rng.choice([r for r in topic.relations if (r in stated) != (label == "neutral")])
    negated = author.rng.random() < _NEGATED_SHARE
    # A false value affirmed contradicts, and so does a true value denied; entailment is the other way round.
    true_value = (label == "entailment") != negated
    if label == "neutral":
        true_value = author.rng.random() < 0.5
    subject = focus if true_value else author.with_other_value(topic, relation, focus)
    avoid = next((fact.key for fact, name in zip(facts, stated, strict=True) if name == relation), "")
    hypothesis = author.fact(topic, relation, subject, avoid=avoid, section="negation" if negated else "relation")
    premise = "".join(fact.text for fact in facts)
    return {"sentence1": premise, "sentence2": hypothesis.text, "label": label}


def _write_rows(folder: Path, split: str, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if "sentence1" in rows[0]:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        name = f"{split}.jsonl"
    else:
        lines = ["\t".join(rows[0])] + ["\t".join(row.values()) for row in rows]
        name = f"{split}.tsv"
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_reading(path: Path, author: _Author) -> int:
    """Passages with questions in the layout of CMRC 2018; returns the number of questions."""
    author.relation_share = 0.6
    data: list[dict] = []
    total = 0
    seen: set[str] = set()
    while total < NUM_ROWS[author.split]:
        topic = author.topics[len(data) % len(author.topics)]
        context, questions = _passage(author, topic)
        if context in seen or not questions:
            continue
        seen.add(context)
        key = f"{author.split.upper()}_{len(data)}"
        qas: list[dict] = []
        for question, answer, start in questions[: NUM_ROWS[author.split] - total]:
            answers = [{"text": answer, "answer_start": start}]
            qas.append({"question": question, "id": f"{key}_QUERY_{len(qas)}", "answers": answers})
        total += len(qas)
        data.append({"paragraphs": [{"id": key, "context": context, "qas": qas}], "id": key, "title": topic.label})
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": "v1.0", "data": data}, ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return total


def _passage(author: _Author, topic: Topic) -> tuple[str, list[tuple[str, str, int]]]:
    """A passage about one or two entities of one kind, and (question, answer, answer_start) for the facts in it."""
    focuses = author.rng.sample(author.world.focal[topic.focus], author.rng.choice((1, 2, 2)))
    length = 6 if len(focuses) == 1 else 4
    documents = [author.document(topic, focus, num_sentences=length) for focus in focuses]
    context, questions = "", []
    told: set[str] = set()
    for document in documents:
        for sentence, relation in zip(document.sentences, document.relations, strict=True):
            # Two documents may have used one free skeleton; facts may share a phrasing.
            if sentence.key in told and not relation:
                continue
            told.add(sentence.key)
            if relation:
                offset, answer = sentence.offset(f"s.{relation}")
                questions.append((_question(author, document, relation), answer, len(context) + offset))
            context += sentence.text
    return context, questions


def _question(author: _Author, document: Document, relation: str) -> str:
    return author.fact(document.topic, relation, document.focus, section="question").text

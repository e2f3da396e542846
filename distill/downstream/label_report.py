"""How each label or entity type fares: precision, recall and F1, and what a label is taken for."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.downstream.examples import Entity
from distill.downstream.scores import Table
from distill.downstream.tags import entity_metrics

MOST_COLUMNS = 20
"""Labels up to which a confusion matrix can be read."""
_HEAD = ("Label", "Precision", "Recall", "F1")


def label_reports(
    kind: str, labels: Sequence[str], examples: Sequence[Any], records: Sequence[Mapping[str, Any]]
) -> list[Table]:
    """The tables that there are for a kind of task: by label and, of few labels, a confusion matrix; by entity type.

    Args:
        examples: with their labels.
        records: the answers, in the same order, as `answer_record` makes them.
    """
    if kind == "tags":
        found = [entities_of(record["label"]) for record in records]
        return [entity_table(labels, [set(example.entities) for example in examples], found)]
    if kind != "classification":
        return []
    gold, told = [example.label for example in examples], [record["label"] for record in records]
    few = len(labels) <= MOST_COLUMNS
    return [label_table(labels, gold, told), *([confusion_table(labels, gold, told)] if few else [])]


def label_table(labels: Sequence[str], gold: Sequence[str], predicted: Sequence[str]) -> Table:
    """A row a label: precision, recall and F1 in percent, and how many rows have it."""
    from sklearn.metrics import precision_recall_fscore_support

    values = precision_recall_fscore_support(gold, predicted, labels=list(labels), zero_division=0)
    rows = [(label, f"{100 * p:.2f}", f"{100 * r:.2f}", f"{100 * f1:.2f}", str(support))
            for label, p, r, f1, support in zip(labels, *values, strict=True)]  # fmt: skip
    return Table((*_HEAD, "Rows"), tuple(rows))


def confusion_table(labels: Sequence[str], gold: Sequence[str], predicted: Sequence[str]) -> Table:
    """A row a true label, a column a predicted one: how many rows."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(gold, predicted, labels=list(labels))
    rows = [(label, *map(str, row)) for label, row in zip(labels, counts.tolist(), strict=True)]
    return Table(("True \\ predicted", *labels), tuple(rows))


def entity_table(types: Sequence[str], gold: Sequence[set[Entity]], predicted: Sequence[set[Entity]]) -> Table:
    """A row an entity type: precision, recall and F1 of its exact entities in percent, and how many there are."""
    rows = []
    for kind in types:
        ours, theirs = ([{entity for entity in text if entity.type == kind} for text in texts]
                        for texts in (predicted, gold))  # fmt: skip
        found = entity_metrics(theirs, ours)
        values = (found[f"entity_{name}"] for name in ("precision", "recall", "f1"))
        rows.append((kind, *(f"{value:.2f}" for value in values), str(sum(map(len, theirs)))))
    return Table((*_HEAD, "Entities"), tuple(rows))


def entities_of(label: Mapping[str, Mapping[str, Sequence[Sequence[int]]]]) -> set[Entity]:
    """The entities of CLUENER's form, type -> name -> places."""
    return {Entity(start, end, kind) for kind, names in label.items() for spans in names.values()
            for start, end in spans}  # fmt: skip

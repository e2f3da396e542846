"""How each label fares: precision, recall and F1, and what it is taken for."""

from collections.abc import Sequence

from distill.downstream.scores import Table

MOST_COLUMNS = 20
"""Labels up to which a confusion matrix can be read."""


def label_table(labels: Sequence[str], gold: Sequence[str], predicted: Sequence[str]) -> Table:
    """A row a label: precision, recall and F1 in percent, and how many rows have it."""
    from sklearn.metrics import precision_recall_fscore_support

    values = precision_recall_fscore_support(gold, predicted, labels=list(labels), zero_division=0)
    rows = [(label, f"{100 * p:.2f}", f"{100 * r:.2f}", f"{100 * f1:.2f}", str(support))
            for label, p, r, f1, support in zip(labels, *values, strict=True)]  # fmt: skip
    return Table(("Label", "Precision", "Recall", "F1", "Rows"), tuple(rows))


def confusion_table(labels: Sequence[str], gold: Sequence[str], predicted: Sequence[str]) -> Table:
    """A row a true label, a column a predicted one: how many rows."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(gold, predicted, labels=list(labels))
    rows = [(label, *map(str, row)) for label, row in zip(labels, counts.tolist(), strict=True)]
    return Table(("True \\ predicted", *labels), tuple(rows))

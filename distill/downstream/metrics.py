"""Metrics of classification and regression by scikit-learn and scipy, in percent. Spans and entities have modules of
their own (span_metrics.py, tags.py)."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

DIGITS = 4
"""Decimals that results keep; tables round further."""


def classification_metrics(names: Sequence[str], gold: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """The named metrics of predicted against gold label numbers, in percent.

    `f1` is that of label 1 (GLUE's rule for MRPC and QQP), `macro_f1` the mean over all labels, `matthews` the
    correlation that GLUE takes for CoLA (-100 to 100, 0 if all predictions are the same).
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    known: Mapping[str, Callable[[], float]] = {
        "accuracy": lambda: accuracy_score(gold, predicted),
        "f1": lambda: f1_score(gold, predicted, labels=[1], average="macro", zero_division=0),
        "macro_f1": lambda: f1_score(gold, predicted, average="macro", zero_division=0),
        "matthews": lambda: matthews_corrcoef(gold, predicted),
    }
    return {name: percent(known[name]()) for name in names}


def regression_metrics(names: Sequence[str], gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation in percent.

    0 where predictions or gold values are all the same, or where a prediction is no finite number: a run that diverged.
    """
    from scipy.stats import pearsonr, spearmanr

    if len(set(predicted)) < 2 or len(set(gold)) < 2 or not all(map(math.isfinite, predicted)):
        return dict.fromkeys(names, 0.0)
    known = {"pearson": pearsonr, "spearman": spearmanr}
    return {name: percent(known[name](gold, predicted).statistic) for name in names}


def percent(share: float) -> float:
    """A share as percent with the decimals that results keep."""
    return round(100 * float(share), DIGITS)


def mean_score(metrics: Mapping[str, float], names: Sequence[str]) -> float:
    """The mean of a task's metrics: what picks the best epoch, and how GLUE and CMRC 2018 sum up two metrics."""
    return round(fmean(metrics[name] for name in names), DIGITS)

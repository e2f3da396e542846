"""Whether an exported model does what the model does: both run on the same rows, outputs and task metrics are compared.

Rows are those of a task's split if its data is given, else lines of text; both in batches of several lengths and sizes,
with padding, since masks and free dimensions are what an export gets wrong.
"""

# B sequences, L tokens

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.downstream.encoding import encode_split, measure
from distill.downstream.exportable import Exportable
from distill.downstream.metrics import mean_score
from distill.downstream.onnx_model import INPUTS, Inputs, Outputs, Run
from distill.downstream.task_data import Split, require_labels
from distill.downstream.task_model import collator
from distill.errors import InputError

BATCH_SIZE = 16
MAX_DIFFERENCE = 1e-4
"""Of float32 outputs, times the largest reference value if that is above 1."""
LOGITS_STEP = 8
"""Of a masked-LM model's tokens, one in so many is compared: 256 lines of logits can be 10 GB."""
_PADDING = -100.0
"""What stands beyond a row's tokens where batches of several lengths are joined; nothing reads it."""


@dataclass(frozen=True)
class Rows:
    """What a model and its export are run on."""

    origin: str
    count: int
    batches: Sequence[Inputs]
    measure: Callable[[Sequence[Outputs]], dict[str, float]] | None = None
    """The task's metrics of the outputs of all batches, in percent; None where labels are not known."""


@dataclass(frozen=True)
class Reference:
    """What the model itself gives for rows."""

    values: list[list[NDArray[np.float32]]]
    """Batch -> output -> what of it is compared, [rows or tokens, columns]."""
    metrics: dict[str, float] | None


@dataclass(frozen=True)
class Bounds:
    """What a quantised form must keep."""

    min_cosine: float
    """Between its outputs and the model's, see Difference."""
    max_loss: float
    """Points of the task's score (the mean of its metrics) that may be lost."""


class Difference:
    """How far an output is from the reference's, over all rows and tokens.

    What all rows share says nothing about a text, yet is most of a small model's hidden states. So the mean of each
    column of the reference is taken off both before the cosine.
    """

    def __init__(self, reference: Sequence[NDArray[np.float32]]) -> None:
        """Args: reference: all of it, each array [n, columns]."""
        self.means = sum(array.sum(0, dtype=np.float64) for array in reference) / sum(map(len, reference))
        self.max_abs = 0.0
        self.largest = max(float(np.abs(array).max(initial=0)) for array in reference)
        """Of the reference's values, without sign."""
        self.products = np.zeros(3)
        """Sums of reference x found, reference squared, found squared."""

    def add(self, reference: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """Counts some rows, [n, columns] each. ValueError if the shapes differ."""
        if reference.shape != found.shape:
            raise ValueError(f"shape {found.shape}, expected {reference.shape}")
        # maximum, not max(): NaN must come through
        self.max_abs = float(np.maximum(self.max_abs, np.abs(reference - found).max(initial=0)))
        a, b = ((values - self.means).ravel() for values in (reference, found))
        self.products += (a @ b, a @ a, b @ b)

    @property
    def cosine(self) -> float:
        """Of all values as one vector; 1 if there is nothing to compare (all rows alike in both)."""
        both, reference, found = self.products
        return float(both / np.sqrt(reference * found)) if reference * found else float(reference == found)


@dataclass(frozen=True)
class Parity:
    """What came out of a run: the difference of each output, and the task's metrics."""

    differences: dict[str, Difference]
    metrics: dict[str, float] | None

    @property
    def cosine(self) -> float:
        """Of the worst output."""
        return float(np.min([difference.cosine for difference in self.differences.values()]))

    @property
    def max_abs(self) -> float:
        return float(np.max([difference.max_abs for difference in self.differences.values()]))


def make_reference(exportable: Exportable, rows: Rows) -> Reference:
    """Runs the model itself on the rows."""
    values, kept = [], []
    for inputs in rows.batches:
        outputs = exportable.run(inputs)
        values.append(_values(exportable, inputs, outputs))
        kept.append(outputs if rows.measure else ())
    return Reference(values, rows.measure(kept) if rows.measure else None)


def check_parity(exportable: Exportable, run: Run, rows: Rows, reference: Reference) -> Parity:
    """Runs an export on rows and compares it with what the model itself gave."""
    differences = [Difference(arrays) for arrays in zip(*reference.values, strict=True)]
    kept = []
    for inputs, expected in zip(rows.batches, reference.values, strict=True):
        outputs = run(inputs)
        for difference, a, b in zip(differences, expected, _values(exportable, inputs, outputs), strict=True):
            difference.add(a, b)
        kept.append(outputs if rows.measure else ())
    named = dict(zip(exportable.outputs, differences, strict=True))
    return Parity(named, rows.measure(kept) if rows.measure else None)


def _values(exportable: Exportable, inputs: Inputs, outputs: Outputs) -> list[NDArray[np.float32]]:
    """What of each output is compared, [rows or tokens, columns]: no padding, and of a vocabulary's logits a share."""
    step = LOGITS_STEP if exportable.kind == "masked-lm" else 1
    tokens = tuple(places[::step] for places in np.nonzero(inputs["attention_mask"]))
    kept = [array[tokens] if exportable.is_per_token(name) else array
            for name, array in zip(exportable.outputs, outputs, strict=True)]  # fmt: skip
    return [array.reshape(len(array), -1) for array in kept]


def check_exact(where: str, parity: Parity) -> None:
    """InputError if a float32 export is not the model. NaN is always too far."""
    for output, difference in parity.differences.items():
        allowed = MAX_DIFFERENCE * max(1.0, difference.largest)
        if not difference.max_abs <= allowed:
            raise InputError(f"{where}: {output} differs from the model's by {difference.max_abs:.1e}, allowed are "
                             f"{allowed:.1e}; not exported")  # fmt: skip


def check_kept(where: str, parity: Parity, metrics: Mapping[str, float] | None, bounds: Bounds) -> None:
    """InputError if a quantised export is too far from the model, whose task metrics are given."""
    if not parity.cosine >= bounds.min_cosine:
        raise InputError(f"{where}: cosine {parity.cosine:.4f} with the model's outputs, below {bounds.min_cosine:g}; "
                         f"not exported: leave that form out, or lower --min-cosine")  # fmt: skip
    if metrics and parity.metrics:
        lost = mean_score(metrics, list(metrics)) - mean_score(parity.metrics, list(metrics))
        if not lost <= bounds.max_loss:
            raise InputError(f"{where}: loses {lost:.2f} points of the task's score, allowed are {bounds.max_loss:g}; "
                             f"not exported: leave that form out, or raise --max-loss")  # fmt: skip


def text_rows(exportable: Exportable, texts: Sequence[str], origin: str) -> Rows:
    """Rows of lines of text, paired as the model's task wants; the first is a batch of its own."""
    cuts = [0, *range(1, len(texts), BATCH_SIZE), len(texts)]
    batches = [_encode_texts(exportable, texts[a:b]) for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
    return Rows(origin, len(texts), batches)


def task_rows(exportable: Exportable, split: Split) -> Rows:
    """The rows of a split of the model's task, with its metrics. InputError if the split has no real labels."""
    task = exportable.task
    assert task is not None
    require_labels(task, split)
    encoded = encode_split(task, split.examples, exportable.labels, exportable.tokenizer, exportable.max_length)
    wanted = (*INPUTS, "labels") if task.kind == "choice" else INPUTS  # its collator insists on a label
    bare = [{name: feature[name] for name in wanted} for feature in encoded.features]
    collate = collator(task, exportable.tokenizer)

    def measured(outputs: Sequence[Outputs]) -> dict[str, float]:
        joined = join(exportable, outputs)
        return measure(task, split.examples, exportable.labels,
                       encoded.answers(joined if len(joined) > 1 else joined[0]))  # fmt: skip

    batches = [{name: batch[name].numpy() for name in INPUTS} for batch in map(collate, _slices(bare))]
    files = ", ".join(Path(file).name for file in split.files)
    return Rows(f"{split.name} of {task.name} ({files})", len(split.examples), batches, measured)


def join(exportable: Exportable, outputs: Sequence[Outputs]) -> Outputs:
    """The outputs of several batches as those of one, padded to the longest."""
    joined = []
    for name, arrays in zip(exportable.outputs, zip(*outputs, strict=True), strict=True):
        if exportable.is_per_token(name):
            length = max(array.shape[1] for array in arrays)
            arrays = tuple(np.pad(array, [(0, 0), (0, length - array.shape[1]), *[(0, 0)] * (array.ndim - 2)],
                                  constant_values=_PADDING) for array in arrays)  # fmt: skip
        joined.append(np.concatenate(arrays))
    return tuple(joined)


def _encode_texts(exportable: Exportable, texts: Sequence[str]) -> Inputs:
    """A batch of texts; where a task has two segments, a text's second one is the text after it."""
    second = [*texts[1:], texts[0]] if exportable.task and len(exportable.task.texts) > 1 else None
    encoded: Any = exportable.tokenizer(
        list(texts), second, truncation=True, max_length=exportable.max_length, padding=True, return_tensors="np"
    )
    inputs = {name: encoded[name].astype(np.int64) for name in INPUTS}
    if exportable.kind == "choice":  # each text with itself and the other way round in place of choices
        return {name: np.stack([values, values[::-1]], axis=1) for name, values in inputs.items()}
    return inputs


def _slices(features: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    return (list(features[start : start + BATCH_SIZE]) for start in range(0, len(features), BATCH_SIZE))

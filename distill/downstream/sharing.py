"""One batch over several processes: who reads which rows, and what the losses of those rows count for.

1. Every process draws the same batches in the same order, and pads them alike.
2. `deal` gives a process its rows, and of each unit that a loss averages over its share of the batch.
3. A loss times its share, as DistributedDataParallel takes the mean over the processes, has the gradient that it has
   on the whole batch in one process, however uneven rows, labels and lengths are dealt.
"""

# B rows, L tokens

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from distill.downstream.encoding import IGNORE_INDEX
from distill.training.losses import SEQUENCES, TOKEN_PAIRS, TOKENS

LABELS = "labels"
"""The unit of a loss of labels: rows, or tokens with a tag; those without a label do not count."""
Shares = Mapping[str, float]
"""Unit -> its count in a process's rows over the mean count of a process; all 1 in one process, 0 where nothing is."""


def deal(batch: Mapping[str, Tensor], rank: int, num_processes: int) -> dict[str, Any]:
    """The rows of a process, and under `shares` what they count for.

    A batch with fewer rows than processes leaves some without: they read one row, which counts for nothing, as all
    processes must take part in every step.

    Args:
        batch: padded, [B, ...] each; `attention_mask` has 1 for every real token.
    """
    num_rows = len(batch["input_ids"])
    begin, end = (num_rows * number // num_processes for number in (rank, rank + 1))
    own = {name: values[begin:end] for name, values in batch.items()}
    total, mine = _count_units(batch), _count_units(own)
    shares = {unit: num_processes * mine[unit] / max(1, total[unit]) for unit in total}
    return {**(own if begin < end else {name: values[:1] for name, values in batch.items()}), "shares": shares}


def _count_units(batch: Mapping[str, Tensor]) -> dict[str, int]:
    lengths = batch["attention_mask"].sum(dim=-1).flatten()
    labels = batch.get("labels")
    num_labels = len(batch["input_ids"])  # a row of a span or a regression always has its label
    if labels is not None and not labels.is_floating_point():
        num_labels = int(labels.ne(IGNORE_INDEX).sum())
    return {
        LABELS: num_labels,
        TOKENS: int(lengths.sum()),
        TOKEN_PAIRS: int(lengths.square().sum()),
        SEQUENCES: len(lengths),
    }


class LabelObjective(nn.Module):
    """A model of a task. With shares it gives its loss of the labels alone, else all that it has to say of a batch."""

    accepts_loss_kwargs = False
    """Trainer would count labels and multiply the loss by the processes, for models that divide it by that count."""

    def __init__(self, student: PreTrainedModel) -> None:
        super().__init__()
        self.student = student

    def forward(self, shares: Shares | None = None, **inputs: Tensor) -> ModelOutput:
        outputs = self.student(**inputs)
        if shares is None:
            return outputs
        return ModelOutput(loss=outputs.loss * shares[LABELS] if shares[LABELS] else no_loss(outputs))


def no_loss(outputs: Mapping[str, Tensor]) -> Tensor:
    """Zero, with a gradient of zeros: where no row has a label, the mean of the losses would be NaN."""
    return 0.0 * next(values for name, values in outputs.items() if name.endswith("logits")).float().sum()

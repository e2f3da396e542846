"""Packed rows -> masked micro-batches of one process: for training by sample number, for development in fixed order.

Item k of StepBatches is optimiser step k. A torch DataLoader with batch_size=None and `sampler=range(first_step, end)`
runs it in worker processes; their number changes nothing, because order.py decides everything from the sample number.
B sequences, L tokens, N masked tokens.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from distill.corpus.masking import MaskVocabulary, mask_rows
from distill.corpus.order import locate_samples, sample_key, sample_random
from distill.corpus.rows import PackedRows
from distill.errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Input of one forward pass of one process. May have no masked token (rows of special tokens only)."""

    input_ids: Tensor  # [B, L], masked
    attention_mask: Tensor | None  # [B, L] 1 = a token, 0 = padding; None when no row is padded
    masked_positions: Tensor  # [N] ascending indices into the flattened B*L
    labels: Tensor  # [N] the tokens that stood there
    lengths: Tensor  # [B] tokens before the padding
    num_tokens: int  # sum of lengths
    samples: range  # sample numbers (for development: rows), for error messages

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "MicroBatch":
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "MicroBatch":
        """The same batch in page-locked memory; DataLoader(pin_memory=True) calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> "MicroBatch":
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(t) for name, t in tensors.items() if isinstance(t, Tensor)})


class StepBatches(Dataset[list[MicroBatch]]):
    """Item k: this process' micro-batches of optimiser step k (from 0), for any k; the corpus repeats, reordered.

    Step k takes samples k*G .. (k+1)*G-1 of the stage. Each process gets a contiguous part, sizes differing by at most
    one, and cuts it into micro-batches of equal size give or take one: all full if micro_batch_size * world_size
    divides G. Every process makes the same number of micro-batches, unless it has fewer samples than that.
    """

    def __init__(
        self,
        rows: PackedRows,
        *,
        seed: int,
        stage: str,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        vocabulary: MaskVocabulary,
        probability: float,
        whole_word: bool,
    ) -> None:
        if global_batch_size < world_size:
            raise InputError(
                f"global_batch_size: {global_batch_size} sequences cannot be dealt to {world_size} processes; raise it"
            )
        if not len(rows):
            raise InputError(f"{rows.path}: empty, no rows to train on")
        self._rows, self._key = rows, sample_key(seed, "stage", stage)
        self._masking = {"vocabulary": vocabulary, "probability": probability, "whole_word": whole_word}
        self._global_batch_size = global_batch_size
        first, last = (global_batch_size * r // world_size for r in (rank, rank + 1))
        largest_part = -(-global_batch_size // world_size)
        num_micro_batches = min(-(-largest_part // micro_batch_size), last - first)
        self._bounds = [first + (last - first) * i // num_micro_batches for i in range(num_micro_batches + 1)]

    def __getitem__(self, step: int) -> list[MicroBatch]:
        first = step * self._global_batch_size
        return [self._load(range(first + a, first + b)) for a, b in zip(self._bounds, self._bounds[1:], strict=False)]

    def _load(self, samples: range) -> MicroBatch:
        numbers = np.arange(samples.start, samples.stop)
        _, row_numbers = locate_samples(numbers, rows=len(self._rows), key=self._key)
        return _make_batch(self._rows, row_numbers, samples, key=self._key, **self._masking)


class DevBatches(Dataset[MicroBatch]):
    """This process' batches of the development rows, in order, masked alike at every evaluation and in every stage.

    Batch i of the whole goes to process i modulo world_size, so the batches are the same for any number of processes.
    """

    def __init__(
        self,
        rows: PackedRows,
        *,
        seed: int,
        batch_size: int,
        rank: int,
        world_size: int,
        vocabulary: MaskVocabulary,
        probability: float,
        whole_word: bool,
    ) -> None:
        self._rows, self._key = rows, sample_key(seed, "dev")
        self._masking = {"vocabulary": vocabulary, "probability": probability, "whole_word": whole_word}
        starts = range(0, len(rows), batch_size)[rank::world_size]
        self._samples = [range(start, min(start + batch_size, len(rows))) for start in starts]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> MicroBatch:
        samples = self._samples[index]
        row_numbers = np.arange(samples.start, samples.stop)
        return _make_batch(self._rows, row_numbers, samples, key=self._key, **self._masking)


def _make_batch(rows: PackedRows, row_numbers: Ints, samples: range, *, key: int, **masking: Any) -> MicroBatch:
    """Rows with the masks of the given sample numbers."""
    input_ids, continuation, length = rows.rows(row_numbers)
    random = sample_random(key, np.arange(samples.start, samples.stop), input_ids.shape[1])
    masked_ids, masked_positions, labels = mask_rows(input_ids, continuation, length, random=random, **masking)
    lengths = torch.from_numpy(length)
    is_full = bool((length == input_ids.shape[1]).all())
    return MicroBatch(
        input_ids=torch.from_numpy(masked_ids),
        attention_mask=None if is_full else (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
        masked_positions=torch.from_numpy(masked_positions),
        labels=torch.from_numpy(labels),
        lengths=lengths,
        num_tokens=int(length.sum()),
        samples=samples,
    )

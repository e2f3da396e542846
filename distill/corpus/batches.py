"""Packed rows -> masked micro-batches of one process: for training by sample number, for development in fixed order.

Item k of StepBatches is optimiser step k. A torch DataLoader with batch_size=None and `sampler=range(first_step, end)`
runs it in worker processes; their number changes nothing, because order.py decides everything from the sample number.

With `document_attention` the batch says which document of its row each token belongs to, so that the encoder can keep
them apart (training/encoder.py), and positions restart at each document.
B sequences, L tokens, N masked tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
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

# Locating samples costs 0.1 to 0.5 ms however few they are, so it is done for this many in a row.
_LOCATE_AHEAD = 4096


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
    document_ids: Tensor | None = None  # [B, L] attend within equal numbers only; None = within the whole row
    position_ids: Tensor | None = None  # [B, L] from 0 in each document; None = from 0 in the row
    teacher_ids: Tensor | None = None  # [N, K] tokens of a cached teacher (training/teacher_cache.py)
    teacher_weights: Tensor | None = None  # [N, K] and their weights

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
        probability: float | Callable[[int], float],
        mask: str,
        static_masks: int | None = None,
        document_attention: bool = False,
    ) -> None:
        """
        Args:
            probability: share of the tokens to mask, or a function from the optimiser step (from 0) to it.
            mask: kind of masking.py.
            static_masks: so many masks a row, taken in turn epoch by epoch; None = another for every sample.
        """
        if global_batch_size < world_size:
            raise InputError(
                f"global_batch_size: {global_batch_size} sequences cannot be dealt to {world_size} processes; raise it"
            )
        if not len(rows):
            raise InputError(f"{rows.path}: empty, no rows to train on")
        self._rows, self._key = rows, sample_key(seed, "stage", stage)
        self._mask_key = self._key if static_masks is None else sample_key(seed, "stage", stage, "static masks")
        self._make = partial(_make_batch, rows, vocabulary=vocabulary, mask=mask, document_attention=document_attention)
        self._probability, self._static_masks = probability, static_masks
        self._located: tuple[range, Ints, Ints] = range(0), np.empty(0, np.int64), np.empty(0, np.int64)
        self.global_batch_size = global_batch_size
        first, last = (global_batch_size * r // world_size for r in (rank, rank + 1))
        largest_part = -(-global_batch_size // world_size)
        num_micro_batches = min(-(-largest_part // micro_batch_size), last - first)
        self._bounds = [first + (last - first) * i // num_micro_batches for i in range(num_micro_batches + 1)]

    def __getitem__(self, step: int) -> list[MicroBatch]:
        first = step * self.global_batch_size
        bounds = zip(self._bounds, self._bounds[1:], strict=False)
        return [self.load(range(first + a, first + b)) for a, b in bounds]

    def load(self, samples: range) -> MicroBatch:
        """Any samples of one optimiser step as a micro-batch."""
        step = samples.start // self.global_batch_size
        probability = self._probability(step) if callable(self._probability) else self._probability
        epochs, row_numbers = self._locate(samples)
        draws = np.arange(samples.start, samples.stop)
        if self._static_masks is not None:
            draws = row_numbers * self._static_masks + epochs % self._static_masks
        random = sample_random(self._mask_key, draws, self._rows.max_seq_length)
        return self._make(row_numbers, samples, random=random, probability=probability)

    def _locate(self, samples: range) -> tuple[Ints, Ints]:
        """Epoch and row of each sample."""
        known, epochs, row_numbers = self._located
        if not (known.start <= samples.start and samples.stop <= known.stop):
            known = range(samples.start, max(samples.stop, samples.start + _LOCATE_AHEAD))
            epochs, row_numbers = locate_samples(
                np.arange(known.start, known.stop), rows=len(self._rows), key=self._key
            )
            self._located = known, epochs, row_numbers
        part = slice(samples.start - known.start, samples.stop - known.start)
        return epochs[part], row_numbers[part]


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
        mask: str,
        document_attention: bool = False,
    ) -> None:
        self._rows, self._key = rows, sample_key(seed, "dev")
        self._make = partial(
            _make_batch, rows, probability=probability, vocabulary=vocabulary, mask=mask,
            document_attention=document_attention,
        )  # fmt: skip
        starts = range(0, len(rows), batch_size)[rank::world_size]
        self._samples = [range(start, min(start + batch_size, len(rows))) for start in starts]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> MicroBatch:
        samples = self._samples[index]
        row_numbers = np.arange(samples.start, samples.stop)
        random = sample_random(self._key, row_numbers, self._rows.max_seq_length)
        return self._make(row_numbers, samples, random=random)


def _make_batch(
    rows: PackedRows,
    row_numbers: Ints,
    samples: range,
    *,
    random: NDArray[np.uint64],
    probability: float,
    vocabulary: MaskVocabulary,
    mask: str,
    document_attention: bool,
) -> MicroBatch:
    """Rows, masked as their random bits [B, L] say."""
    input_ids, continuation, length = rows.rows(row_numbers)
    masked_ids, masked_positions, labels = mask_rows(
        input_ids, continuation, length, random=random, probability=probability, kind=mask, vocabulary=vocabulary
    )
    lengths = torch.from_numpy(length)
    is_full = bool((length == input_ids.shape[1]).all())
    document_ids = position_ids = None
    if document_attention:
        documents = rows.document_ids(row_numbers)
        document_ids, position_ids = torch.from_numpy(documents), torch.from_numpy(_restart_positions(documents))
    return MicroBatch(
        input_ids=torch.from_numpy(masked_ids),
        attention_mask=None if is_full else (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
        masked_positions=torch.from_numpy(masked_positions),
        labels=torch.from_numpy(labels),
        lengths=lengths,
        num_tokens=int(length.sum()),
        samples=samples,
        document_ids=document_ids,
        position_ids=position_ids,
    )


def _restart_positions(document_ids: Ints) -> Ints:
    """Position of each token in its document of the row, from 0."""
    columns = np.arange(document_ids.shape[1])
    begins = np.diff(document_ids, axis=1, prepend=document_ids[:, :1]) > 0
    return columns - np.maximum.accumulate(np.where(begins, columns, 0), axis=1)

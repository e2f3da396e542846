"""The batch of a step whose loss or gradient was no number, left on disk for whoever wants to know why."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from distill.corpus.batches import MicroBatch
from distill.durable import write_flushed, write_json

IGNORE_INDEX = -100


def write_bad_batch(
    folder: Path, *, step: int, students: Sequence[str], batches: Sequence[MicroBatch], rows: Sequence[int]
) -> Path:
    """Writes `bad-batch-step-N.safetensors`, which BertForMaskedLM takes as arguments, and a JSON that describes it.

    The tensors are input_ids, attention_mask and labels, [samples of the step, L].

    Args:
        batches: all of the step, in order.
        rows: row of the packed dataset of each sample.
    Raises:
        OSError: it could not be written.
    """
    tensors = {
        "input_ids": torch.cat([batch.input_ids for batch in batches]),
        "attention_mask": torch.cat([_attention_mask(batch) for batch in batches]),
        "labels": torch.cat([_labels(batch) for batch in batches]),
    }
    path = folder / f"bad-batch-step-{step}.safetensors"
    write_flushed(path, save(tensors))
    samples = [batches[0].samples.start, batches[-1].samples.stop - 1]
    about = {"step": step, "students": list(students), "first_and_last_sample": samples, "rows": list(rows)}
    write_json(path.with_suffix(".json"), about)
    return path


def _attention_mask(batch: MicroBatch) -> torch.Tensor:
    return torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask


def _labels(batch: MicroBatch) -> torch.Tensor:
    labels = torch.full_like(batch.input_ids, IGNORE_INDEX).flatten()
    return labels.index_copy(0, batch.masked_positions, batch.labels).view_as(batch.input_ids)

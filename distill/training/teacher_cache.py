"""The teacher of a logits-only stage on disk: what a cache holds, how it is named, and how the loader reads it.

 1. The folder is named by all that decides what it holds: the teacher's weights, rows, masks, seed, temperature, ...
    So the passes of a stage and later runs with other students share it.
 2. At the start of the stage every process checks a part of the shards, and together they make what is missing or
    damaged (fill_cache.py). A shard is there as a whole or not at all, so an interruption loses little.
 3. While training, the loader adds the sparse logits to each micro-batch. The masked positions they belong to are
    stored with them and must be the batch's own.

What is promised: the draws of sample n depend on (seed, stage, n) alone, so the number of processes changes nothing.
The probabilities are those of one forward; another micro-batch size or device may round them in another way, which
moves a draw that falls on the border between two tokens. Once made, a cache is used as it is.
"""

# B sequences, N masked tokens, V vocabulary, D draws or kept tokens, K at most D different tokens

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from distill.corpus.batches import MicroBatch, StepBatches
from distill.corpus.masking import MaskVocabulary
from distill.corpus.order import sample_key
from distill.json_file import read_json
from distill.recipe import MaskSchedule, Stage
from distill.training.encoder import Features
from distill.training.loop import TeacherPass
from distill.training.sparse_logits import SparseLogits, keep_likeliest
from distill.training.teacher_shards import DamagedShard, SparseShard, join_shards, load_shard

FORMAT_VERSION = 1
"""Part of every cache's name: raise it when the same input gives other shards."""
SHARD_SAMPLES = 256
"""Samples a shard: 2.7 MB at 512 tokens and 64 draws, and no more work than theirs is lost by an interruption."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CacheFiles:
    """Where the shards of a cache lie and how they are drawn."""

    folder: Path
    method: str  # sample or top_k
    size: int  # draws or kept tokens a masked token
    temperature: float
    key: int  # of the random draws
    num_samples: int  # samples 0 to num_samples - 1 are needed

    def shard(self, number: int) -> range:
        """The samples of a shard; the last one is full as well, so that longer and shorter runs share it."""
        return range(number * SHARD_SAMPLES, (number + 1) * SHARD_SAMPLES)

    def shards(self, samples: range | None = None) -> list[range]:
        """The samples of each shard that has one of `samples`; default: of all that are needed."""
        samples = range(self.num_samples) if samples is None else samples
        return [self.shard(i) for i in range(samples.start // SHARD_SAMPLES, -(-samples.stop // SHARD_SAMPLES))]

    def path(self, samples: range) -> Path:
        """The file of a shard."""
        return self.folder / f"samples-{samples.start:010d}-{samples.stop - 1:010d}.npz"

    def load(self, samples: range) -> SparseShard:
        """A shard; DamagedShard if its file is missing or not what was written."""
        return load_shard(self.path(samples), size=self.size)


def cache_files(root: Path, stage: Stage, steps: int, facts: Mapping[str, Any]) -> CacheFiles:
    """Where the cache of a stage lies, below `root`, and what it holds; nothing is read or written.

    Args:
        facts: from `cache_facts`.
    """
    assert stage.teacher_cache
    text = json.dumps({"format": FORMAT_VERSION, **facts}, sort_keys=True)
    return CacheFiles(
        root / hashlib.sha256(text.encode()).hexdigest()[:16], stage.teacher_cache.method, stage.teacher_cache.size,
        facts["temperature"], key=sample_key(stage.seed, "stage", stage.name, "teacher cache"),
        num_samples=steps * stage.global_batch_size,
    )  # fmt: skip


def cache_facts(
    stage: Stage, steps: int, *, teacher: Path, dataset: Path, vocabulary: MaskVocabulary, dtype: torch.dtype
) -> dict[str, Any]:
    """All that decides what a cache holds, as JSON values.

    Args:
        teacher: its model folder.
        dataset: the packed dataset.
        dtype: of the teacher's matrix products.
    """
    assert stage.teacher_cache
    data = stage.data
    # The share of a schedule depends on the step, so which samples make a step counts as well.
    scheduled = isinstance(data.mask_probability, MaskSchedule)
    return {
        "teacher": _hash_model(teacher),
        "precision": str(dtype).removeprefix("torch."),
        "rows": read_json(dataset / "train" / "state.json")["_fingerprint"],
        "vocabulary": _hash_vocabulary(vocabulary),
        "seed": stage.seed,
        "stage": stage.name,
        "masks": data.model_dump(include={"mask", "mask_probability", "static_masks", "document_attention"}),
        "steps": [steps, stage.global_batch_size] if scheduled else None,
        "temperature": next(iter(stage.students.values())).temperature,
        **stage.teacher_cache.model_dump(),
    }


class CachedTeacher:
    """Stands in for the teacher in the loop: the batch carries the sparse logits."""

    def __call__(self, batch: MicroBatch) -> dict[bool, Features]:
        """Features of sparse logits alone."""
        assert batch.teacher_ids is not None and batch.teacher_weights is not None
        return {False: Features((), (), None, sparse=SparseLogits(batch.teacher_ids, batch.teacher_weights))}


class RehearsedTeacher:
    """The teacher itself with sparse logits, for trying out sizes before there is a cache."""

    def __init__(self, teacher: TeacherPass, size: int) -> None:
        self.teacher, self.size = teacher, size

    @torch.no_grad()
    def __call__(self, batch: MicroBatch) -> dict[bool, Features]:
        """Features of sparse logits alone."""
        logits = self.teacher(batch)[False].logits
        assert logits is not None
        return {False: Features((), (), None, sparse=SparseLogits(*keep_likeliest(logits, self.size, 1.0)))}


class CachedSteps(Dataset[list[MicroBatch]]):
    """The micro-batches of `StepBatches` with the sparse logits of their masked positions."""

    def __init__(self, batches: StepBatches, files: CacheFiles) -> None:
        self._batches, self._files = batches, files
        self._loaded: dict[int, SparseShard] = {}

    def __getitem__(self, step: int) -> list[MicroBatch]:
        """
        Raises:
            DamagedShard: a shard was damaged or removed since the stage began.
            RuntimeError: a shard holds other masked positions than the batch.
        """
        return [self.with_teacher(batch) for batch in self._batches[step]]

    def with_teacher(self, batch: MicroBatch) -> MicroBatch:
        """A micro-batch of any samples with their sparse logits; raises as `__getitem__`."""
        numbers = range(batch.samples.start // SHARD_SAMPLES, (batch.samples.stop - 1) // SHARD_SAMPLES + 1)
        self._loaded = {number: self._loaded.get(number) or self._load(number) for number in numbers}
        parts = []
        for number, shard in self._loaded.items():
            samples = self._files.shard(number)
            first, last = max(samples.start, batch.samples.start), min(samples.stop, batch.samples.stop)
            parts.append(shard.part(first - samples.start, last - samples.start))
        found = join_shards(parts)
        self._check_positions(found, batch)
        ids, weights = _padded(found)
        return replace(batch, teacher_ids=torch.from_numpy(ids), teacher_weights=torch.from_numpy(weights))

    def _load(self, number: int) -> SparseShard:
        try:
            return self._files.load(self._files.shard(number))
        except DamagedShard as error:
            raise DamagedShard(f"{error}; the same command makes it again") from None

    def _check_positions(self, found: SparseShard, batch: MicroBatch) -> None:
        num_masked, positions = masked_places(batch)
        if not (np.array_equal(found.num_masked, num_masked) and np.array_equal(found.positions, positions)):
            raise RuntimeError(
                f"{self._files.folder}: was made for other masked positions than samples {batch.samples.start} to "
                f"{batch.samples.stop - 1} have; remove the folder, it is made again"
            )


def masked_places(batch: MicroBatch) -> tuple[Ints, Ints]:
    """How many tokens of each sequence are masked [B], and where in its row each of them is [N]."""
    rows, places = np.divmod(batch.masked_positions.cpu().numpy(), batch.input_ids.size(1))
    return np.bincount(rows, minlength=len(batch.samples)), places


def _padded(found: SparseShard) -> tuple[Ints, NDArray[np.float32]]:
    """Ids and weights [N, K], padded with token 0 of weight 0."""
    is_entry = np.arange(found.num_entries.max(initial=1)) < found.num_entries[:, None]
    ids, weights = np.zeros(is_entry.shape, dtype=np.int64), np.zeros(is_entry.shape, dtype=np.float32)
    ids[is_entry], weights[is_entry] = found.ids, found.weights
    return ids, weights


def _hash_model(folder: Path) -> str:
    """A hash of a model folder's config and weights."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted({*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")})]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _hash_vocabulary(vocabulary: MaskVocabulary) -> str:
    """A hash of what masking knows of the vocabulary."""
    digest = hashlib.sha256(str((vocabulary.mask_id, vocabulary.vocab_size)).encode())
    digest.update(vocabulary.ordinary_ids.tobytes())
    digest.update(vocabulary.special_ids.tobytes())
    return digest.hexdigest()

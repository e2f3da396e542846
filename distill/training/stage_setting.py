"""What a stage's run is made from: where it reads and writes, its rows as batches, its processes and arithmetic."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill.corpus.batches import DevBatches, MicroBatch, StepBatches
from distill.corpus.masking import MaskVocabulary
from distill.corpus.order import locate_samples, sample_key
from distill.corpus.rows import PackedRows
from distill.corpus.schedule import scheduled_value
from distill.recipe import MaskSchedule, Stage
from distill.training.metrics import StatusFile
from distill.training.processes import Processes
from distill.training.sharding import check_equal_forwards


@dataclass(frozen=True)
class StagePaths:
    """Everything that a stage reads and writes."""

    dataset: Path
    tokenizer: Path
    teacher: Path | None
    inits: Mapping[str, Path]
    stage: Path
    models: Path

    @property
    def checkpoints(self) -> Path:
        return self.stage / "checkpoints"

    @property
    def teacher_caches(self) -> Path:
        return self.models.parent / "teacher_cache"

    @property
    def status(self) -> Path:
        return self.stage / "status.json"


@dataclass(frozen=True)
class StageSetting:
    """What all parts of a stage's run are made from."""

    stage: Stage
    steps: int
    rows: PackedRows
    vocabulary: MaskVocabulary
    paths: StagePaths
    processes: Processes
    status: StatusFile
    dtype: torch.dtype

    @property
    def alone(self) -> Processes:
        """This process as if there were no other: for what each does by itself, on all of the samples."""
        return Processes(0, 1, self.processes.device)

    def batches(self, processes: Processes) -> StepBatches:
        """A process's micro-batches by step, from 0."""
        stage = self.stage
        if stage.shard_teacher:
            check_equal_forwards(stage.global_batch_size, stage.rows_per_forward(), processes.world_size)
        return StepBatches(
            self.rows, seed=stage.seed, stage=stage.name, global_batch_size=stage.global_batch_size,
            micro_batch_size=stage.rows_per_forward(), rank=processes.rank, world_size=processes.world_size,
            vocabulary=self.vocabulary, probability=self._mask_probability(), mask=stage.data.mask,
            static_masks=stage.data.static_masks, document_attention=stage.data.document_attention,
        )  # fmt: skip

    def _mask_probability(self) -> float | Callable[[int], float]:
        """The share of masked tokens, or a function from the step to it."""
        share = self.stage.data.mask_probability
        if not isinstance(share, MaskSchedule):
            return share
        # A partial of a function travels to the loader's workers, however they are started.
        return functools.partial(
            scheduled_value, steps=self.steps, start=share.start, end=share.end, shape=share.schedule
        )

    def dev(self, processes: Processes) -> list[MicroBatch] | None:
        """A process's dev batches, or None if the dataset has no dev part."""
        stage, folder = self.stage, self.paths.dataset / "dev"
        if not folder.exists():
            return None
        batches = DevBatches(
            PackedRows(folder), seed=stage.seed, batch_size=stage.rows_per_forward(), rank=processes.rank,
            world_size=processes.world_size, vocabulary=self.vocabulary,
            probability=stage.data.final_mask_probability(), mask=stage.data.mask,
            document_attention=stage.data.document_attention,
        )  # fmt: skip
        return [batches[i] for i in range(len(batches))]

    def whole_step(self, step: int) -> tuple[list[MicroBatch], list[int]]:
        """All that a step (from 1) took, over all processes, and the rows it came from."""
        all_of_it = self.batches(Processes(0, 1, torch.device("cpu")))[step - 1]
        samples = np.arange(all_of_it[0].samples.start, all_of_it[-1].samples.stop)
        key = sample_key(self.stage.seed, "stage", self.stage.name)
        _, numbers = locate_samples(samples, rows=len(self.rows), key=key)
        return all_of_it, numbers.tolist()

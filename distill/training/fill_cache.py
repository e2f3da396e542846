"""Making a teacher cache: all processes run the teacher over the samples whose shards are missing, and write them.

What a cache is, and what is promised of it, stands in teacher_cache.py.
"""

# B sequences, N masked tokens, V vocabulary, D draws or kept tokens

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from distill.corpus.batches import MicroBatch, StepBatches
from distill.corpus.order import sample_random
from distill.durable import write_json
from distill.errors import InputError
from distill.recipe import MaskSchedule
from distill.training.loading import load_ahead
from distill.training.loop import TeacherPass
from distill.training.processes import Processes, sum_over_processes, wait_for_all
from distill.training.sparse_logits import draw_tokens, keep_likeliest
from distill.training.stage_setting import StageSetting
from distill.training.teacher_cache import CacheFiles, cache_facts, cache_files, masked_places
from distill.training.teacher_shards import DamagedShard, save_draws, save_likeliest

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]


def cache_teacher(
    setting: StageSetting, teacher: TeacherPass, batches: StepBatches, *, first_step: int, probe: range
) -> CacheFiles:
    """The cache of a stage, complete from the samples of `first_step` on; made where it is not.

    Args:
        batches: this process's.
        probe: samples that every run reads.
    Raises:
        InputError: too little space on the disk.
    """
    stage, steps, paths, processes = setting.stage, setting.steps, setting.paths, setting.processes
    assert paths.teacher is not None
    facts = cache_facts(
        stage, steps, teacher=paths.teacher, dataset=paths.dataset, vocabulary=setting.vocabulary, dtype=setting.dtype
    )
    files = cache_files(paths.teacher_caches, stage, steps, facts)
    left = range(first_step * stage.global_batch_size, files.num_samples)
    wanted = {*files.shards(left), *files.shards(probe)}
    missing = find_missing(files, sorted(wanted, key=lambda samples: samples.start), processes)
    if missing:
        share = stage.data.mask_probability
        most = max(share.start, share.end) if isinstance(share, MaskSchedule) else share
        check_space(files, missing, masked_per_row=max(1, round(most * stage.max_seq_length)))
    if missing and processes.is_first:
        write_json(files.folder / "cache.json", facts)

    def tell(line: str) -> None:
        setting.status.note(f"teacher cache: {line}")
        if processes.is_first:
            setting.status.write("running")

    def forward(batch: MicroBatch) -> Tensor:
        logits = teacher(batch)[False].logits
        assert logits is not None
        return logits

    tell(f"{sum(map(len, missing)):,} samples are to be made in {files.folder}" if missing else str(files.folder))
    fill_cache(
        files, missing, batches, forward, rows_per_forward=stage.rows_per_forward(), processes=processes, tell=tell
    )
    return files


def find_missing(files: CacheFiles, shards: Sequence[range], processes: Processes) -> list[range]:
    """Those of the shards that are not there or damaged; every process reads its part, all get the whole answer."""
    is_missing = torch.zeros(len(shards), dtype=torch.int32)
    for number in range(processes.rank, len(shards), processes.world_size):
        path = files.path(shards[number])
        try:
            files.load(shards[number])
        except DamagedShard as error:
            is_missing[number] = 1
            if path.exists():
                logger.warning("%s; it is made again", error)
    sum_over_processes(is_missing, processes)
    return [samples for samples, missing in zip(shards, is_missing.tolist(), strict=True) if missing]


def check_space(files: CacheFiles, missing: Sequence[range], *, masked_per_row: int) -> None:
    """InputError if the missing shards might not fit on the disk; makes the folder."""
    files.folder.mkdir(parents=True, exist_ok=True)
    bytes_per_token = files.size * (4 if files.method == "top_k" else 2 + 1 / 8) + 2
    needed = sum(map(len, missing)) * (masked_per_row * bytes_per_token + 2)
    free = shutil.disk_usage(files.folder).free
    if needed > free:
        raise InputError(
            f"{files.folder}: the teacher cache takes up to {needed / 1e9:,.1f} GB and the disk has {free / 1e9:,.1f} "
            f"GB left; lower teacher_cache.size or the number of steps, or train without teacher_cache"
        )


def fill_cache(
    files: CacheFiles,
    missing: Sequence[range],
    batches: StepBatches,
    forward: Callable[[MicroBatch], Tensor],
    *,
    rows_per_forward: int,
    processes: Processes,
    tell: Callable[[str], None],
) -> None:
    """Makes the missing shards, each process a part of them, and returns when all are there.

    A signal may end it at any moment; finished shards stay.

    Every process makes the same number of forwards, since a teacher that is spread over the processes needs all of
    them; one that has fewer pieces repeats the first and drops the result. How samples are cut into forwards does not
    depend on the number of processes.

    Args:
        forward: the teacher, micro-batch -> logits [N, V] of its masked positions.
        tell: shows a line about the progress.
    """
    cut = [[(samples, piece) for piece in _cut(samples, batches.global_batch_size, rows_per_forward)]
           for samples in missing]  # fmt: skip
    dealt = [[piece for pieces in cut[rank :: processes.world_size] for piece in pieces]
             for rank in range(processes.world_size)]  # fmt: skip
    own, rounds, start = dealt[processes.rank], max(map(len, dealt)), time.perf_counter()
    pieces = [piece for _, piece in own] + [dealt[0][0][1]] * (rounds - len(own)) if rounds else []
    waiting: list[dict[str, Any]] = []
    loader = load_ahead(_Pieces(batches, pieces), range(len(pieces)), processes.device)
    for number, batch in enumerate(loader):
        wait_for_all(processes)  # so that one that is lost is noticed, and nobody waits at the end for long
        batch = batch.to(processes.device)
        targets = make_targets(files, batch, forward(batch))
        if number < len(own):
            waiting.append(targets)
            if number + 1 == len(own) or own[number + 1][0] != own[number][0]:
                _save_shard(files, own[number][0], waiting)
                waiting = []
        if 10 * (number + 1) // rounds > 10 * number // rounds:
            tell(f"{100 * (number + 1) // rounds} % in {time.perf_counter() - start:,.0f} s")
    wait_for_all(processes)


@torch.no_grad()
def make_targets(files: CacheFiles, batch: MicroBatch, logits: Tensor) -> dict[str, Any]:
    """What a shard stores of a micro-batch, from the teacher's logits [N, V]."""
    num_masked, positions = masked_places(batch)
    targets: dict[str, Any] = {"num_masked": num_masked, "positions": positions, "vocab_size": logits.size(1)}
    if files.method == "top_k":
        ids, weights = keep_likeliest(logits, files.size, files.temperature)
        return {**targets, "ids": ids.cpu().numpy(), "weights": weights.cpu().numpy()}
    uniform = draw_uniform(files.key, batch.samples, num_masked, files.size)
    draws = draw_tokens(logits, torch.from_numpy(uniform), files.temperature)
    return {**targets, "draws": draws.cpu().numpy()}


def draw_uniform(key: int, samples: range, num_masked: Ints, size: int) -> NDArray[np.float64]:
    """[N, D] numbers in [0, 1): those of a sample's masked tokens depend on (key, sample number) alone."""
    most = int(num_masked.max(initial=0))
    bits = sample_random(key, np.arange(samples.start, samples.stop), most * size).reshape(len(samples), most, size)
    return (bits[np.arange(most) < num_masked[:, None]] >> np.uint64(11)) * np.float64(2.0**-53)


def _cut(samples: range, global_batch_size: int, rows_per_forward: int) -> Iterator[range]:
    """Pieces of at most `rows_per_forward` samples, none reaching over the border of an optimiser step."""
    start = samples.start
    while start < samples.stop:
        end_of_step = (start // global_batch_size + 1) * global_batch_size
        stop = min(start + rows_per_forward, end_of_step, samples.stop)
        yield range(start, stop)
        start = stop


class _Pieces(Dataset[MicroBatch]):
    """Micro-batches of given samples."""

    def __init__(self, batches: StepBatches, pieces: Sequence[range]) -> None:
        self._batches, self._pieces = batches, pieces

    def __getitem__(self, index: int) -> MicroBatch:
        return self._batches.load(self._pieces[index])


def _save_shard(files: CacheFiles, samples: range, parts: Sequence[Mapping[str, Any]]) -> None:
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "vocab_size"}
    save = save_likeliest if files.method == "top_k" else save_draws
    save(files.path(samples), vocab_size=parts[0]["vocab_size"], **joined)

"""One shard of a teacher cache on disk: the sparse teacher of consecutive samples, written whole, checked when read.

An uncompressed .npz, whose CRC of each array is checked. For S samples with M masked tokens in all:

num_masked [S], positions [M]   how many tokens of each sample are masked, and where in its row
ids [E]                         the different tokens of each masked token, one masked token after the other
starts [M * D / 8]              sample: D bits a masked token, 1 = this draw is another token than the draw before it
weights [M, D] float16          top_k: in units of the first one's weight (E = M * D)

So D draws take 2 E + D / 8 bytes a masked token, where E is at most D and much less for a teacher that is sure.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.durable import write_whole

Ints = NDArray[np.int64]


class DamagedShard(Exception):
    """A shard's file is not what was written."""


@dataclass(frozen=True, eq=False)
class SparseShard:
    """The sparse teacher of S samples with M masked tokens and E entries (token, weight) in all."""

    num_masked: Ints  # [S]
    positions: Ints  # [M] place of each masked token in its row
    num_entries: Ints  # [M]
    ids: Ints  # [E]
    weights: NDArray[np.float32]  # [E], the entries of a masked token sum to 1

    def part(self, first: int, last: int) -> "SparseShard":
        """The samples first..last-1, counted within the shard."""
        a, b = (int(self.num_masked[:sample].sum()) for sample in (first, last))
        c, d = (int(self.num_entries[:token].sum()) for token in (a, b))
        return SparseShard(
            self.num_masked[first:last], self.positions[a:b], self.num_entries[a:b], self.ids[c:d], self.weights[c:d]
        )


def join_shards(parts: list[SparseShard]) -> SparseShard:
    """The samples of several shards, one after the other."""
    columns = (np.concatenate(column) for column in zip(*(vars(part).values() for part in parts), strict=True))
    return SparseShard(*columns)


def save_draws(path: Path, *, num_masked: Ints, positions: Ints, draws: Ints, vocab_size: int) -> None:
    """Writes draws [M, D], ascending in each row."""
    starts = np.ones(draws.shape, dtype=bool)
    starts[:, 1:] = draws[:, 1:] != draws[:, :-1]
    _save(path, vocab_size, num_masked=num_masked, positions=positions, ids=draws[starts], starts=np.packbits(starts))


def save_likeliest(
    path: Path, *, num_masked: Ints, positions: Ints, ids: Ints, weights: NDArray[np.float32], vocab_size: int
) -> None:
    """Writes tokens and weights [M, D], the heaviest first."""
    relative = (weights / weights[:, :1]).astype(np.float16)
    _save(path, vocab_size, num_masked=num_masked, positions=positions, ids=ids.reshape(-1), weights=relative)


def load_shard(path: Path, *, size: int) -> SparseShard:
    """What a shard holds.

    Args:
        size: draws or kept tokens (D).
    Raises:
        DamagedShard: not there, cut short, or other bytes than were written.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            return _decode({name: arrays[name] for name in arrays.files}, size)
    except (OSError, zipfile.BadZipFile, EOFError, KeyError, ValueError, RuntimeError) as error:
        # RuntimeError: zipfile takes a changed bit for encryption, or for a method of compression it does not know.
        raise DamagedShard(f"{path}: {type(error).__name__}: {error}") from error


def _save(path: Path, vocab_size: int, **arrays: NDArray[Any]) -> None:
    small = {name: arrays[name].astype(np.uint16) for name in ("num_masked", "positions")}
    ids = arrays["ids"].astype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **{**arrays, **small, "ids": ids})
    write_whole(path, content.getvalue())


def _decode(arrays: dict[str, NDArray[Any]], size: int) -> SparseShard:
    num_masked, positions, ids = (arrays[name].astype(np.int64) for name in ("num_masked", "positions", "ids"))
    if "weights" in arrays:
        weights = arrays["weights"].astype(np.float32)
        weights = (weights / weights.sum(axis=1, keepdims=True)).reshape(-1)
        num_entries = np.full(len(positions), size, dtype=np.int64)
    else:
        starts = np.unpackbits(arrays["starts"], count=len(positions) * size)
        counts = np.diff(np.flatnonzero(starts), append=len(starts))
        weights = (counts / size).astype(np.float32)
        num_entries = starts.reshape(-1, size).sum(axis=1, dtype=np.int64)
    if num_masked.sum() != len(positions) or num_entries.sum() != len(ids) or len(weights) != len(ids):
        raise ValueError("arrays of other lengths than were written")
    return SparseShard(num_masked, positions, num_entries, ids, weights)

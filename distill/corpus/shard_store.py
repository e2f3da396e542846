"""Finished shards on disk, so that an interrupted preparation goes on where it stopped.

A file a shard, named by the shard's number and the hash of all that went in; it appears under its name when it is
complete. A damaged one counts as missing.
"""

import os
import zipfile
from pathlib import Path

import numpy as np

from distill.corpus.shards import Shard, ShardSetup, ShardTokens


class ShardStore:
    """A folder of finished shards."""

    def __init__(self, folder: Path, setup: ShardSetup) -> None:
        self._folder, self._setup = folder, setup
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, shard: Shard) -> Path:
        """Where the shard's result goes."""
        return self._folder / f"{shard.number:06}-{shard.key(self._setup)}.npz"

    def load(self, path: Path) -> ShardTokens | None:
        """A shard's result, if it is there and whole."""
        if not path.is_file():
            return None
        try:
            with np.load(path) as arrays:  # checks the CRC of each array
                num_tokens = arrays["num_tokens"]
                total = int(num_tokens.sum())
                return ShardTokens(
                    input_ids=arrays["input_ids"].astype(np.int32),
                    continuation=np.unpackbits(arrays["continuation"], count=total).view(bool),
                    num_tokens=num_tokens,
                    references=arrays["references"].tobytes(),
                    num_words=int(arrays["num_words"]),
                )
        except (zipfile.BadZipFile, EOFError, KeyError, ValueError):
            path.unlink()
            return None

    def save(self, path: Path, tokens: ShardTokens) -> None:
        partial = path.with_name(f".{path.name}")
        small = not tokens.input_ids.size or int(tokens.input_ids.max()) < 2**16
        try:
            with partial.open("wb") as file:
                np.savez(
                    file,
                    input_ids=tokens.input_ids.astype(np.uint16 if small else np.int32),
                    continuation=np.packbits(tokens.continuation),
                    num_tokens=tokens.num_tokens,
                    references=np.frombuffer(tokens.references, dtype=np.uint8),
                    num_words=np.int64(tokens.num_words),
                )
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

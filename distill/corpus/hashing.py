"""Names of prepared data: hashes of all that goes in, so that nothing is made twice and nothing mistaken."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from distill.corpus.segment import words_fingerprint
from distill.corpus.text_names import hash_text, text_file
from distill.corpus.tokenizing import load_tokenizer
from distill.errors import InputError

# Part of every data hash: raise it when the same input gives other rows.
FORMAT_VERSION = 1

Files = Sequence[tuple[Path, Path | None]]
"""(text, its reference file or None)."""


def lacking_reference(train: Files, dev: Files | float) -> list[Path]:
    """The texts that come without a reference file, each once; dev may be a fraction of train's documents."""
    pairs = [*train, *(dev if not isinstance(dev, (int, float)) else [])]
    return list(dict.fromkeys(text for text, reference in pairs if reference is None))


def data_hash(
    *,
    train: Files,
    dev: Files | float,
    tokenizer_dir: str,
    max_seq_length: int,
    packing: str = "chunks",
    segmenter: str | None = None,
) -> str:
    """16 hex digits that name a packed dataset: the same for the same content, wherever the files lie."""
    tokenizer = load_tokenizer(tokenizer_dir)
    dev = dev or ()
    # What decides the tokens, but not how the library of the day writes a tokenizer down.
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {
        "format": FORMAT_VERSION,
        "train": [[hash_file(path) for path in pair] for pair in train],
        "dev": dev if isinstance(dev, (int, float)) else [[hash_file(path) for path in pair] for pair in dev],
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": sorted(tokenizer.all_special_ids),
        "normalizer": backend["normalizer"],
        "pre_tokenizer": backend["pre_tokenizer"],
        "max_seq_length": max_seq_length,
        "packing": packing,
    }
    if segmenter is not None and lacking_reference(train, dev):
        parts["segmenter"] = words_fingerprint(segmenter)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def hash_file(path: Path | None) -> str | None:
    """A hash of what decides a text's or reference's lines; None for None."""
    if path is None:
        return None
    file = text_file(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file")
    status = os.stat(file)
    return _hash_text(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _hash_text(name: str, size: int, mtime_ns: int) -> str:
    """Read again only if the file changed: each stage of a recipe asks for the same texts."""
    return hash_text(name)

"""Text and references -> packed rows for training and development.

1. source.py reads the text once to count lines and documents; the documents for development are chosen by number.
2. source.py reads it again in batches, tokenizing.py tokenises them in several processes and hands them back in order.
3. Here the tokens are dealt to the splits, and chunks.py joins those of a split to rows.
4. rows.py writes them to a folder beside the output, which gets its name when all is done: it is whole or absent.

The result depends on the text, the tokenizer and the settings, not on the number of processes.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill.corpus.chunks import ChunkPacker
from distill.corpus.masking import MaskVocabulary
from distill.corpus.order import permuted_row, sample_key
from distill.corpus.rows import PackedRows, RowWriter
from distill.corpus.source import Source, iter_batches, scan_sources
from distill.corpus.text_names import hash_text, text_file
from distill.corpus.tokenizing import LineBatch, TokenizedLines, load_tokenizer, tokenize_in_order
from distill.errors import InputError

if TYPE_CHECKING:
    from transformers import BertTokenizer

__all__ = ["PackedRows", "data_hash", "pack_corpus"]

logger = logging.getLogger(__name__)

PACKINGS = ("chunks",)
# Part of every data hash: raise it when the same input gives other rows.
FORMAT_VERSION = 1
_MIN_SEQ_LENGTH = 8

Files = Sequence[tuple[Path, Path | None]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def pack_corpus(
    *,
    train: Files,
    dev: Files | float,
    tokenizer_dir: str,
    max_seq_length: int,
    packing: str = "chunks",
    output: Path,
    processes: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Pack text into output/train and output/dev (see rows.py) and return what output/info.json says of them.

    The first token of a row is never a continuation, since the word's beginning is not there to be masked with it: a
    word that a row's border cuts counts as two.

    Args:
        train, dev: (text file, reference file or None); without reference only '##' pieces continue words. dev may be
            the fraction of train's documents to set apart (at least one), or 0 or empty for none.
        output: must not exist.
        processes: for tokenising; 1 works in this process.
        progress: called with the number of characters just finished.
    Raises:
        InputError: unusable settings, text or references; nothing is left under the name of the output.
    """
    output = Path(output)
    _check_settings(max_seq_length, packing, dev, output)
    tokenizer = load_tokenizer(tokenizer_dir)
    sources, is_dev = _plan_splits(train, dev)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    with ExitStack() as on_exit:
        on_exit.callback(shutil.rmtree, partial, ignore_errors=True)
        packers = _open_packers(partial, tokenizer, max_seq_length, splits=("train", "dev") if dev else ("train",))
        for packer in packers.values():
            on_exit.callback(packer.writer.abort)
        backend = tokenizer.backend_tokenizer.to_str()
        stream = tokenize_in_order(iter_batches(sources), tokenizer_json=backend, processes=processes)
        for batch, tokens in on_exit.enter_context(closing(stream)):
            _pack_batch(batch, tokens, is_dev(batch.documents), packers)
            if progress is not None:
                progress(sum(map(len, batch.lines)))
        for packer in packers.values():
            packer.finish()
        info = {"format": FORMAT_VERSION, "packing": packing, "max_seq_length": max_seq_length}
        info |= _describe(packers, tokenizer)
        (partial / "info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        partial.rename(output)
    _warn_of_uneven_split(info, dev)
    return info


def _open_packers(
    folder: Path, tokenizer: "BertTokenizer", max_seq_length: int, *, splits: Sequence[str]
) -> dict[str, ChunkPacker]:
    frame_ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    return {
        split: ChunkPacker(
            RowWriter(folder / split, max_seq_length=max_seq_length, vocab_size=vocab_size), frame_ids=frame_ids
        )
        for split in splits
    }


def data_hash(
    *, train: Files, dev: Files | float, tokenizer_dir: str, max_seq_length: int, packing: str = "chunks"
) -> str:
    """16 hex digits that name a packed dataset: the same for the same content, wherever the files lie."""
    tokenizer = load_tokenizer(tokenizer_dir)
    dev = dev or ()
    # What decides the tokens, but not how the library of the day writes a tokenizer down.
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {
        "format": FORMAT_VERSION,
        "train": [[_hash_file(path) for path in pair] for pair in train],
        "dev": dev if isinstance(dev, (int, float)) else [[_hash_file(path) for path in pair] for pair in dev],
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": sorted(tokenizer.all_special_ids),
        "normalizer": backend["normalizer"],
        "pre_tokenizer": backend["pre_tokenizer"],
        "max_seq_length": max_seq_length,
        "packing": packing,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _hash_file(path: Path | None) -> str | None:
    if path is None:
        return None
    if not text_file(path).is_file():
        raise InputError(f"{path}: no such file")
    return hash_text(path)


def _check_settings(max_seq_length: int, packing: str, dev: Files | float, output: Path) -> None:
    if max_seq_length < _MIN_SEQ_LENGTH:
        raise InputError(f"max_seq_length: {max_seq_length} is too short, at least {_MIN_SEQ_LENGTH} tokens are needed")
    if packing not in PACKINGS:
        raise InputError(f"packing: unknown kind {packing!r}; there is {', '.join(PACKINGS)}")
    if isinstance(dev, (int, float)) and not 0 <= dev < 1:
        raise InputError(f"dev: {dev} is no fraction of the documents; give a number from 0 to below 1, or dev files")
    if output.exists():
        raise InputError(f"{output}: exists already; remove it or name another output")


def _plan_splits(train: Files, dev: Files | float) -> tuple[list[Source], Callable[[Ints], Bools]]:
    """All text to read, and a function from document numbers to "belongs to dev"."""
    sources = scan_sources(train)
    num_documents = sum(source.num_documents for source in sources)
    if not num_documents:
        raise InputError(f"empty corpus: no text in {len(train)} file(s) for train{_name_first(train)}")
    if not isinstance(dev, (int, float)):
        dev_sources = scan_sources(dev)
        if dev and not any(source.num_documents for source in dev_sources):
            raise InputError(f"empty corpus: no text in {len(dev)} file(s) for dev{_name_first(dev)}")
        return sources + dev_sources, lambda documents: documents >= num_documents
    if not dev:
        return sources, lambda documents: documents < 0
    if num_documents == 1:
        raise InputError(
            f"dev: {dev} of the documents cannot be set apart, the text{_name_first(train)} has only one; name dev "
            "files, or put blank lines between documents"
        )
    num_dev = min(max(round(dev * num_documents), 1), num_documents - 1)
    key = sample_key(0, "dev documents")  # no user's seed: every seed of a recipe is judged on the same text
    return sources, lambda documents: permuted_row(documents, rows=num_documents, key=key) < num_dev


def _name_first(files: Files) -> str:
    return f" ({files[0][0]}{', ...' if len(files) > 1 else ''})" if files else ""


def _pack_batch(batch: LineBatch, tokens: TokenizedLines, is_dev: Bools, packers: dict[str, ChunkPacker]) -> None:
    characters = np.fromiter(map(len, batch.lines), dtype=np.int64, count=len(batch.lines))
    for split, packer in packers.items():
        lines = is_dev if split == "dev" else ~is_dev
        if lines.any():
            picked = np.repeat(lines, tokens.num_tokens)
            packer.add(
                tokens.input_ids[picked],
                tokens.continuation[picked],
                np.repeat(batch.documents[lines], tokens.num_tokens[lines]),
                num_characters=int(characters[lines].sum()),
            )


def _describe(packers: dict[str, ChunkPacker], tokenizer: "BertTokenizer") -> dict[str, Any]:
    """Counts of each split, and the commonest maskable token of train with its share of each split's maskable tokens.

    Its share of dev is what guessing it everywhere would score there.
    """
    vocabulary = MaskVocabulary.from_tokenizer(tokenizer)
    counts = {}
    for split, packer in packers.items():
        counts[split] = np.zeros(vocabulary.vocab_size, dtype=np.int64)
        counts[split][: len(packer.token_counts)] = packer.token_counts
        counts[split][vocabulary.special_ids] = 0
    token_id = int(counts["train"].argmax())
    shares = {f"{split}_share": round(float(c[token_id] / max(c.sum(), 1)), 6) for split, c in counts.items()}
    return {
        "vocab_size": vocabulary.vocab_size,
        **{split: packer.describe(split, tokenizer.unk_token_id) for split, packer in packers.items()},
        "most_common_token": {"id": token_id, "token": tokenizer.convert_ids_to_tokens(token_id), **shares},
    }


def _warn_of_uneven_split(info: dict[str, Any], dev: Files | float) -> None:
    if not isinstance(dev, (int, float)) or not dev:
        return
    share = info["dev"]["tokens"] / (info["dev"]["tokens"] + info["train"]["tokens"])
    if share > 3 * dev:
        logger.warning(
            "dev: %.1f %% of the tokens were set apart where %.1f %% were asked, since the text has only %d documents; "
            "blank lines between documents, or dev files, give a better split",
            100 * share, 100 * dev, info["dev"]["documents"] + info["train"]["documents"],
        )  # fmt: skip

"""Text -> packed rows for training and development, and the reference files of the texts on the way.

1. source.py reads the text once to count documents; the documents for development are chosen by number.
2. source.py reads it again in shards, workers.py has each segmented and tokenised once (shards.py), by several
   processes, and hands the tokens back in order.
3. Here the tokens are dealt to the splits, and packer.py makes rows of those of a split, as layouts.py says.
4. rows.py writes them to a work folder beside the output, which gets its name when all is done: it is whole or absent.
   The work folder also keeps finished shards, so that an interrupted run goes on after the last of them.

The result depends on the text, the tokenizer, the segmenter and the settings, not on the number of processes.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill.corpus.hashing import FORMAT_VERSION, Files, lacking_reference
from distill.corpus.layouts import LAYOUTS
from distill.corpus.masking import MaskVocabulary
from distill.corpus.order import permuted_row, sample_key
from distill.corpus.packer import Packer
from distill.corpus.reference import ReferenceFiles, warn_of_unsplit_text
from distill.corpus.rows import RowWriter
from distill.corpus.segment import resolve_segmenter
from distill.corpus.shards import Shard, ShardSetup, ShardTokens
from distill.corpus.source import Source, scan_sources
from distill.corpus.tokenizing import TOKENIZER_FOLDER, load_tokenizer, save_tokenizer
from distill.corpus.workers import tokenize_sources
from distill.errors import InputError

if TYPE_CHECKING:
    from transformers import BertTokenizer

logger = logging.getLogger(__name__)

_MIN_SEQ_LENGTH = 8

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
    segmenter: str | None = None,
    references: Mapping[Path, Path] = {},
    processes: int = 1,
    ray: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Pack text into output/train and output/dev (see rows.py) and return what output/info.json says of them.

    output/tokenizer is the tokenizer.

    The first token of a row is never a continuation, since the word's beginning is not there to be masked with it: a
    word that a row's border cuts counts as two.

    Args:
        packing: a kind of layouts.py.
        train, dev: (text file, reference file or None). dev may be the fraction of train's documents to set apart (at
            least one), or 0 or empty for none.
        output: must not exist.
        segmenter: finds the words of texts without reference file; without it only '##' pieces continue words.
        references: text -> file to write the reference to that the segmenter makes for it.
        processes: that segment and tokenise; 1 works in this process.
        ray: address of a Ray cluster that works instead of processes.
        progress: called with the number of characters just finished.
    Raises:
        InputError: unusable settings, text, references or segmenter; nothing is left behind.
        OSError: a full disk, say; finished shards are left in the work folder, nothing under the name of the output.
    """
    output = Path(output)
    _check_settings(max_seq_length, packing, dev, output)
    tokenizer = load_tokenizer(tokenizer_dir)
    # With references for all text none is needed, and LTP may be missing.
    spec = resolve_segmenter(segmenter) if segmenter and lacking_reference(train, dev) else None
    work = work_folder(output)
    try:
        sources, is_dev = _plan_splits(train, dev)
        setup = ShardSetup(tokenizer.backend_tokenizer.to_str(), spec)
        stream = tokenize_sources(sources, setup, processes=processes, keep=work / "shards", ray=ray)
        splits = ("train", "dev") if dev else ("train",)
        packing_in_work = _Packing(work / "packed", tokenizer, max_seq_length, packing=packing, splits=splits)
        with closing(stream), packing_in_work as target:
            made = [references.get(source.text) if source.reference is None else None for source in sources]
            _pack_stream(stream, is_dev, target, made, spec, progress)
            info = {"format": FORMAT_VERSION, "packing": packing, "max_seq_length": max_seq_length}
            info |= _describe(target.packers, tokenizer)
            save_tokenizer(tokenizer, target.folder / TOKENIZER_FOLDER)
            target.finish(info, output)
    except InputError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)
    _warn_of_uneven_split(info, dev)
    _warn_of_missing_borders(info, len(train))
    return info


def work_folder(output: Path) -> Path:
    """Where what is unfinished of a packed dataset lies; it is there only while, or after, a run did not finish."""
    return output.with_name(f".{output.name}.work")


def _pack_stream(
    stream: Iterable[tuple[Shard, ShardTokens]],
    is_dev: Callable[[Ints], Bools],
    target: "_Packing",
    references: Sequence[Path | None],
    segmenter: str | None,
    progress: Callable[[int], None] | None,
) -> None:
    """Everything between the tokens of the shards and finished rows and references."""
    num_words = num_characters = 0
    with ReferenceFiles(references) as reference_files:
        for shard, tokens in stream:
            reference_files.write(shard.file_number, tokens.references)
            characters = int(shard.num_characters.sum())
            _pack_shard(shard, tokens, is_dev(shard.documents), target.packers)
            if tokens.references:
                num_words, num_characters = num_words + tokens.num_words, num_characters + characters
            if progress is not None:
                progress(characters)
        for packer in target.packers.values():
            packer.finish()
        for split, packer in target.packers.items():
            packer.describe(split, 0)  # a split without tokens is an error before references get their names
        reference_files.finish()
    if segmenter == "words":
        warn_of_unsplit_text(num_characters, num_words)


class _Packing:
    """The packers of all splits over one unfinished folder, which `finish` gives its name."""

    def __init__(
        self, folder: Path, tokenizer: "BertTokenizer", max_seq_length: int, *, packing: str, splits: Sequence[str]
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        self.folder = folder
        frame_ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
        vocab_size = max(tokenizer.get_vocab().values()) + 1
        writers = {
            split: RowWriter(folder / split, max_seq_length=max_seq_length, vocab_size=vocab_size) for split in splits
        }
        self.packers = {
            split: Packer(writer, packing=packing, frame_ids=frame_ids) for split, writer in writers.items()
        }

    def __enter__(self) -> "_Packing":
        return self

    def __exit__(self, *error: object) -> None:
        with ExitStack() as on_exit:
            on_exit.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for packer in self.packers.values():
                on_exit.callback(packer.writer.abort)

    def finish(self, info: dict[str, Any], output: Path) -> None:
        (self.folder / "info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        self.folder.rename(output)


def _check_settings(max_seq_length: int, packing: str, dev: Files | float, output: Path) -> None:
    if max_seq_length < _MIN_SEQ_LENGTH:
        raise InputError(f"max_seq_length: {max_seq_length} is too short, at least {_MIN_SEQ_LENGTH} tokens are needed")
    if packing not in LAYOUTS:
        raise InputError(f"packing: unknown kind {packing!r}; there is {', '.join(LAYOUTS)}")
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


def _pack_shard(shard: Shard, tokens: ShardTokens, is_dev: Bools, packers: dict[str, Packer]) -> None:
    line_start = np.zeros(len(tokens.input_ids), dtype=bool)
    line_start[(np.cumsum(tokens.num_tokens) - tokens.num_tokens)[tokens.num_tokens > 0]] = True
    for split, packer in packers.items():
        lines = is_dev if split == "dev" else ~is_dev
        if not lines.any():
            continue
        # Most shards go to one split as a whole, of which a slice makes no copy.
        picked = slice(None) if lines.all() else np.repeat(lines, tokens.num_tokens)
        packer.add(
            tokens.input_ids[picked],
            tokens.continuation[picked],
            np.repeat(shard.documents[lines], tokens.num_tokens[lines]),
            line_start=line_start[picked],
            num_characters=int(shard.num_characters[lines].sum()),
        )


def _describe(packers: dict[str, Packer], tokenizer: "BertTokenizer") -> dict[str, Any]:
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


def _warn_of_missing_borders(info: dict[str, Any], num_files: int) -> None:
    """UER's corpora have a document a line and no blank lines; read our way, each file would be one document."""
    documents, lines = (sum(info[split][what] for split in ("train", "dev") if split in info)
                        for what in ("documents", "lines"))  # fmt: skip
    if info["packing"] in ("documents", "doc_sentences") and documents <= num_files and lines >= 100 * documents:
        logger.warning(
            "packing %s: %d lines make only %d documents, since no blank line parts them; if every line is a document, "
            "put blank lines between them, or take packing lines",
            info["packing"], lines, documents,
        )  # fmt: skip

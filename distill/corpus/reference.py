"""Reference files: which tokens of a text line continue a word, so that masking can take whole words.

A reference file has one JSON list a text line: the positions of those tokens, [CLS] being position 0 (MiniRBT's
format). A blank line has []. The lists themselves are made in shards.py, together with the tokens.
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from distill.corpus.segment import resolve_segmenter
from distill.corpus.shards import ShardSetup
from distill.corpus.source import Source
from distill.corpus.text import REFERENCE_ENDING
from distill.corpus.text_names import without_skip_bad
from distill.corpus.tokenizing import load_tokenizer
from distill.corpus.workers import tokenize_sources
from distill.errors import InputError

UNSPLIT_CHARS = 6  # characters a word; segmented Chinese has under 2, with its spaces under 3

logger = logging.getLogger(__name__)


def reference_paths(text_files: Sequence[Path], root: Path, output: Path) -> list[Path]:
    """Where each text's reference goes: the folders below `root` (see text_root) mirrored below `output`.

    root/a/wiki.00.txt -> output/a/wiki.00_ref.txt; a name that does not end in .txt keeps its ending before _ref.txt.

    Raises:
        InputError: if two texts would share one reference.
    """
    owners: dict[Path, Path] = {}
    for text in text_files:
        below = Path(os.path.relpath(os.path.abspath(without_skip_bad(text)), os.path.abspath(root)))
        if ".." in below.parts:
            raise InputError(f"{text}: not below {root}, whose folders the references mirror")
        reference = output / below.with_name(below.name.removesuffix(".txt") + REFERENCE_ENDING)
        if reference in owners:
            raise InputError(f"{text} and {owners[reference]} would both have the reference {reference}; rename one")
        owners[reference] = text
    return list(owners)


def write_references(
    text_files: Sequence[Path],
    reference_files: Sequence[Path],
    *,
    segmenter: str,
    tokenizer_dir: str,
    processes: int = 1,
    progress: Callable[[int], None] | None = None,
    work: Path | None = None,
    ray: str | None = None,
) -> dict[str, int]:
    """Writes one reference file a text file; each appears under its name only when it is complete.

    Memory does not grow with the text, but for single long lines. With several processes the caller's main module must
    be importable (`if __name__ == "__main__":`), as they are spawned.

    Args:
        progress: called with the number of characters done since the call before.
        work: a folder that keeps finished shards, so that an interrupted run can go on.
        ray: address of a Ray cluster that works instead of processes.
    Returns: lines, characters, words, marks (positions written).
    Raises:
        InputError: unusable segmenter or tokenizer, or a text line that is not UTF-8.
    """
    if len(text_files) != len(reference_files) or len(set(reference_files)) != len(reference_files):
        num_different = len(set(reference_files))
        raise InputError(f"{len(text_files)} texts, {num_different} different references; give one for each")
    spec = resolve_segmenter(segmenter)
    setup = ShardSetup(load_tokenizer(tokenizer_dir).backend_tokenizer.to_str(), spec)
    sources = [Source(text, None, 0) for text in text_files]
    stream = tokenize_sources(sources, setup, processes=processes, keep=work, ray=ray)
    totals = dict.fromkeys(("lines", "characters", "words", "marks"), 0)
    with closing(stream), ReferenceFiles(reference_files) as output:
        for shard, tokens in stream:
            output.write(shard.file_number, tokens.references)
            characters = sum(map(len, shard.lines))
            totals["lines"] += len(shard.lines)
            totals["characters"] += characters
            totals["words"] += tokens.num_words
            totals["marks"] += int(tokens.continuation.sum())
            if progress is not None:
                progress(characters)
        output.finish()
    if spec == "words":
        warn_of_unsplit_text(totals["characters"], totals["words"])
    return totals


def warn_of_unsplit_text(num_characters: int, num_words: int) -> None:
    """For the segmenter `words`: says so if the text does not look split."""
    if num_characters > UNSPLIT_CHARS * num_words:
        logger.warning("segmenter 'words': %d characters in %d words; is the text split?", num_characters, num_words)


class ReferenceFiles:
    """Files written one after the other as NAME.tmp and renamed when complete; an unfinished one is removed.

    None stands for a text whose reference is not wanted.
    """

    def __init__(self, files: Sequence[Path | None]) -> None:
        self.files = files
        self.number = -1
        self.open_file: BinaryIO | None = None

    def __enter__(self) -> "ReferenceFiles":
        return self

    def __exit__(self, *error: object) -> None:
        if self.open_file is not None:
            unfinished = Path(self.open_file.name)
            try:
                self.open_file.close()
            finally:
                unfinished.unlink()
                self.open_file = None

    def write(self, number: int, lines: bytes) -> None:
        """Appends to file `number`; the numbers ascend."""
        self._open_until(number)
        if self.open_file is not None:
            self.open_file.write(lines)

    def finish(self) -> None:
        """Completes what is left."""
        self._open_until(len(self.files))

    def _open_until(self, number: int) -> None:
        """Completes the files before `number` (empty texts among them) and opens that one."""
        while self.number < number:
            if self.open_file is not None:
                self.open_file.close()
                complete = Path(self.open_file.name)
                complete.replace(complete.with_name(complete.name.removesuffix(".tmp")))
                self.open_file = None
            self.number += 1
            file = self.files[self.number] if self.number < len(self.files) else None
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                self.open_file = file.with_name(file.name + ".tmp").open("wb")

"""Reference files: which tokens of a text line continue a word, so that masking can take whole words.

1. A segmenter gives the words of each line (segment.py), the tokenizer its tokens with character offsets.
2. Both are laid over the characters of the line (alignment.py).
3. A reference file has one JSON list a text line: the positions of those tokens, [CLS] being position 0 (MiniRBT's
   format). A blank line has [].
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from distill.corpus.alignment import align, continuation_of
from distill.corpus.segment import Segmenter, is_neural, load_segmenter, resolve_segmenter
from distill.corpus.text import REFERENCE_ENDING, count_lines, is_blank, iter_lines
from distill.corpus.text_names import without_skip_bad
from distill.corpus.tokenizing import load_tokenizer
from distill.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "align",
    "continuation_of",
    "read_reference",
    "reference_paths",
    "write_references",
]

CHUNK_CHARS = 100_000  # of text a task: some 0.3 s of work, 30 MB of tokens
CHUNK_LINES = 5_000
UNSPLIT_CHARS = 6  # characters a word; segmented Chinese has under 2, with its spaces under 3

logger = logging.getLogger(__name__)


# ---- writing


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
) -> dict[str, int]:
    """Writes one reference file a text file; each appears under its name only when it is complete.

    Memory does not grow with the text, but for single long lines. With several processes the caller's main module must
    be importable (`if __name__ == "__main__":`), as they are spawned. Neural LTP always runs in one: torch or the GPU
    is its parallelism.

    Args:
        progress: called with the number of characters done since the call before.
    Returns: lines, characters, words, marks (positions written).
    Raises:
        InputError: unusable segmenter or tokenizer, or a text line that is not UTF-8.
    """
    if len(text_files) != len(reference_files) or len(set(reference_files)) != len(reference_files):
        num_different = len(set(reference_files))
        raise InputError(f"{len(text_files)} texts, {num_different} different references; give one for each")
    spec = resolve_segmenter(segmenter)
    setup = _Setup(spec, load_tokenizer(tokenizer_dir).backend_tokenizer.to_str())
    if is_neural(spec):
        processes = 1
    totals = dict.fromkeys(("lines", "characters", "words", "marks"), 0)
    with _Output(reference_files) as output:
        for chunk in _in_order(_chunks(text_files), setup, processes):
            output.write(chunk.file_number, chunk.references)
            for name, count in chunk.counts.items():
                totals[name] += count
            if progress is not None:
                progress(chunk.counts["characters"])
        output.finish()
    if spec == "words" and totals["characters"] > UNSPLIT_CHARS * totals["words"]:
        logger.warning("segmenter 'words': %(characters)d characters in %(words)d words; is the text split?", totals)
    return totals


@dataclass(frozen=True)
class _Setup:
    """What a worker process needs to start."""

    segmenter: str
    tokenizer_json: str


@dataclass(frozen=True)
class _Done:
    file_number: int
    references: str
    counts: dict[str, int]


def _chunks(text_files: Sequence[Path]) -> Iterator[tuple[int, list[str]]]:
    """(number of the file, some of its lines), in order; an empty file gives none."""
    for number, file in enumerate(text_files):
        lines: list[str] = []
        size = 0
        for line in iter_lines(file):
            lines.append(line)
            size += len(line)
            if size >= CHUNK_CHARS or len(lines) >= CHUNK_LINES:
                yield number, lines
                lines, size = [], 0
        if lines:
            yield number, lines


def _reference_chunk(setup: _Setup, file_number: int, lines: list[str]) -> _Done:
    segmenter, tokenizer = _worker_models(setup)
    words = segmenter.segment(lines)
    _, continuation, num_tokens = align(lines, words, tokenizer)
    token_ends = np.cumsum(num_tokens)
    marked = np.flatnonzero(continuation)
    mark_ends = np.searchsorted(marked, token_ends)
    marks_of_line = np.diff(mark_ends, prepend=0)
    positions = (marked - np.repeat(token_ends - num_tokens, marks_of_line) + 1).tolist()
    ends = mark_ends.tolist()
    # str of a list of ints is what json.dumps gives.
    references = [f"{positions[start:end]}\n" for start, end in zip([0, *ends], ends, strict=False)]
    counts = {
        "lines": len(lines),
        "characters": sum(map(len, lines)),
        "words": sum(map(len, words)),
        "marks": len(positions),
    }
    return _Done(file_number, "".join(references), counts)


@cache
def _worker_models(setup: _Setup) -> tuple[Segmenter, "Tokenizer"]:
    """Loaded once a process: LTP's models cannot be sent to another."""
    from tokenizers import Tokenizer

    return load_segmenter(setup.segmenter), Tokenizer.from_str(setup.tokenizer_json)


def _in_order(chunks: Iterable[tuple[int, list[str]]], setup: _Setup, processes: int) -> Iterator[_Done]:
    """The chunks' references in the chunks' order, with at most three chunks a process under way."""
    if processes <= 1:
        for number, lines in chunks:
            yield _reference_chunk(setup, number, lines)
        return
    executor = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
    )
    under_way: deque[Future[_Done]] = deque()
    try:
        for number, lines in chunks:
            under_way.append(executor.submit(_reference_chunk, setup, number, lines))
            if len(under_way) >= 3 * processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int) -> None:
    """One thread a process, Ctrl-C left to the parent, and an end if the parent is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Output:
    """Files written one after the other as NAME.tmp and renamed when complete; an unfinished one is removed."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.number = -1
        self.open_file: TextIO | None = None

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *error: object) -> None:
        if self.open_file is not None:
            self.open_file.close()
            self._unfinished().unlink()
            self.open_file = None

    def write(self, number: int, text: str) -> None:
        self._open_until(number)
        assert self.open_file is not None
        self.open_file.write(text)

    def finish(self) -> None:
        self._open_until(len(self.files))

    def _open_until(self, number: int) -> None:
        """Completes the files before `number` (empty texts among them) and opens that one."""
        while self.number < number:
            if self.open_file is not None:
                self.open_file.close()
                self.open_file = None
                self._unfinished().replace(self.files[self.number])
            self.number += 1
            if self.number < len(self.files):
                self._unfinished().parent.mkdir(parents=True, exist_ok=True)
                self.open_file = self._unfinished().open("w", encoding="utf-8", newline="\n")

    def _unfinished(self) -> Path:
        file = self.files[self.number]
        return file.with_name(file.name + ".tmp")


# ---- reading


def read_reference(path: Path, text_file: Path) -> Iterator[list[int]]:
    """One list of positions a line of the text, [] for a blank one.

    A reference with as many lines as the text has lines that are not blank (MiniRBT's and transformers' scripts leave
    those out) is read that way.

    Raises:
        InputError: if the number of lines fits neither way, or a line (named by its number) is not a list of ascending
            positions from 1.
    """
    num_references = sum(1 for _ in iter_lines(path))
    num_lines, num_nonblank = count_lines(iter_lines(text_file))
    if num_references not in (num_lines, num_nonblank):
        raise InputError(
            f"{path}: {num_references} lines, but {text_file} has {num_lines} ({num_nonblank} of them not blank); "
            "make the reference of this text again with `distill ref`"
        )
    references = enumerate(iter_lines(path), start=1)
    for line in iter_lines(text_file):
        if num_references != num_lines and is_blank(line):
            yield []
        else:
            number, reference = next(references)
            yield _parse_positions(path, number, reference)


def _parse_positions(path: Path, number: int, line: str) -> list[int]:
    try:
        positions = json.loads(line)
    except ValueError:
        positions = None
    ascending = (
        isinstance(positions, list)
        and all(type(position) is int for position in positions)
        and all(map(int.__lt__, [0, *positions], positions))
    )
    if not ascending:
        raise InputError(
            f"{path}: line {number}: found {line[:60]!r}, not a JSON list of ascending positions from 1 such as [2, 3]"
        )
    return positions

"""Text files as a stream of shards with document numbers and reference lines.

A document is a run of lines that are not blank; a blank line or the end of a file closes it. Documents are numbered
from 0 over all files of a text. What tokens the lines give is in shards.py.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.corpus.shards import Shard
from distill.corpus.text import is_blank, iter_lines
from distill.corpus.text_names import text_file
from distill.errors import InputError

logger = logging.getLogger(__name__)

# Some 0.5 s of work: worth sending to another process and keeping on disk, little enough to hold some dozens of.
SHARD_CHARS, SHARD_LINES = 250_000, 20_000
NEURAL_SHARD_CHARS = 50_000  # a neural segmenter takes some 20 s for these on a CPU


@dataclass(frozen=True)
class Source:
    """A text file, its reference file if it has one, and what a first reading counted."""

    text: Path
    reference: Path | None
    num_documents: int
    has_blank_references: bool = True  # MiniRBT's and transformers' scripts write no line for a blank text line


def scan_sources(files: Sequence[tuple[Path, Path | None]]) -> list[Source]:
    """The documents of each file, from reading all text once.

    Raises:
        InputError: a missing or badly encoded file, or a reference that does not fit its text's lines.
    """
    for text, reference in files:
        for path in (text, reference):
            if path is not None and not text_file(path).is_file():
                raise InputError(f"{path}: no such {'text' if path is text else 'reference'} file")
    return [scan_source(Path(text), reference and Path(reference)) for text, reference in files]


def scan_source(text: Path, reference: Path | None) -> Source:
    """One file and its reference; raises as scan_sources."""
    num_lines = num_blank = num_documents = 0
    inside = False
    for line in iter_lines(text):
        blank = is_blank(line)
        num_documents += not (inside or blank)
        num_blank += blank
        num_lines += 1
        inside = not blank
    if not num_documents:
        logger.warning("%s: no text in this file", text)
    if reference is None:
        return Source(text, None, num_documents)
    num_references = sum(1 for _ in iter_lines(reference))
    if num_references not in (num_lines, num_lines - num_blank):
        raise InputError(
            f"{reference}: {num_references} lines, but {text} has {num_lines} ({num_lines - num_blank} of them not "
            "blank); make the reference of this text again with `distill ref`"
        )
    return Source(text, reference, num_documents, has_blank_references=num_references == num_lines)


def iter_references(source: Source) -> Iterator[tuple[int, str]]:
    """(number of the reference line, the line) for each line of the text; (0, "[]") for one that has none."""
    assert source.reference is not None
    references = enumerate(iter_lines(source.reference), start=1)
    if source.has_blank_references:
        return references
    return ((0, "[]") if is_blank(line) else next(references) for line in iter_lines(source.text))


def iter_shards(sources: Sequence[Source], *, shard_chars: int | None = None) -> Iterator[Shard]:
    """All lines of the sources, in order; a shard never reaches over a file's end."""
    numbers = itertools.count()
    first_document = 0
    for file_number, source in enumerate(sources):
        for first_line, rows in _cut_file(source, first_document, shard_chars or SHARD_CHARS):
            lines, documents, characters, references = zip(*rows, strict=True)
            yield Shard(
                number=next(numbers),
                file_number=file_number,
                text=source.text,
                lines=list(lines),
                first_line=first_line,
                documents=np.maximum(np.array(documents, dtype=np.int64), 0),  # blank lines may come first
                num_characters=np.array(characters, dtype=np.int64),
                reference=source.reference,
                references=None if source.reference is None else [line for _, line in references],
                reference_numbers=[] if source.reference is None else [number for number, _ in references],
            )
        first_document += source.num_documents


Row = tuple[str, int, int, tuple[int, str]]


def _cut_file(source: Source, first_document: int, shard_chars: int) -> Iterator[tuple[int, list[Row]]]:
    """(number of the first line, for each line: itself, its document, its characters, its reference)."""
    references = itertools.repeat((0, "")) if source.reference is None else iter_references(source)
    document, inside, size = first_document - 1, False, 0
    first_line, rows = 1, list[Row]()
    for line, reference in zip(iter_lines(source.text), references, strict=False):
        blank = is_blank(line)
        document += not (inside or blank)
        inside = not blank
        characters = 0 if blank else len(line)
        rows.append((line, document, characters, reference))
        size += characters
        if size >= shard_chars or len(rows) >= SHARD_LINES:
            yield first_line, rows
            first_line, rows, size = first_line + len(rows), [], 0
    if rows:
        yield first_line, rows

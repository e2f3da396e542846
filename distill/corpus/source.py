"""Text files as a stream of line batches with document numbers and reference positions.

A document is a run of lines that are not blank; a blank line or the end of a file closes it. Documents are numbered
from 0 over all files of a text. What tokens the lines give is in tokenizing.py.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.corpus.reference import read_reference
from distill.corpus.text import is_blank, iter_lines
from distill.corpus.text_names import text_file
from distill.corpus.tokenizing import LineBatch
from distill.errors import InputError

logger = logging.getLogger(__name__)

# Enough work to be worth sending to another process, little enough to hold some dozens of.
_BATCH_LINES, _BATCH_CHARACTERS = 2048, 200_000


@dataclass(frozen=True)
class Source:
    """A text file, its reference file if it has one, and how many documents a first reading counted."""

    text: Path
    reference: Path | None
    num_documents: int


def scan_sources(files: Sequence[tuple[Path, Path | None]]) -> list[Source]:
    """The documents of each file, from reading all text once.

    Raises:
        InputError: a missing or badly encoded file, or a reference that does not fit its text's lines.
    """
    for text, reference in files:
        for path in (text, reference):
            if path is not None and not text_file(path).is_file():
                raise InputError(f"{path}: no such {'text' if path is text else 'reference'} file")
    return [_scan(Path(text), reference and Path(reference)) for text, reference in files]


def _scan(text: Path, reference: Path | None) -> Source:
    num_documents, inside = 0, False
    for line in iter_lines(text):
        num_documents += not (inside or is_blank(line))
        inside = not is_blank(line)
    if not num_documents:
        logger.warning("%s: no text in this file", text)
    if reference is not None:
        next(read_reference(reference, text), None)  # its line numbers are checked before the first list comes
    return Source(text, reference, num_documents)


def iter_batches(sources: Sequence[Source]) -> Iterator[LineBatch]:
    """All lines of the sources that are not blank, in order; a batch never reaches over a file's end."""
    first_document = 0
    for source in sources:
        yield from _iter_file(source, first_document)
        first_document += source.num_documents


def _iter_file(source: Source, first_document: int) -> Iterator[LineBatch]:
    references: Iterator[list[int] | None] = iter(lambda: None, 0)  # None for ever
    if source.reference is not None:
        references = iter(read_reference(source.reference, source.text))
    document, inside, num_characters = first_document - 1, False, 0
    lines: list[tuple[str, int, int, list[int] | None]] = []
    for number, (line, positions) in enumerate(zip(iter_lines(source.text), references, strict=False), start=1):
        if is_blank(line):
            inside = False
            if positions:
                raise InputError(
                    f"{source.reference}: line {number} has positions, but line {number} of {source.text} is blank"
                )
            continue
        document += not inside
        inside = True
        lines.append((line, number, document, positions))
        num_characters += len(line)
        if len(lines) >= _BATCH_LINES or num_characters >= _BATCH_CHARACTERS:
            yield _make_batch(source, lines)
            lines, num_characters = [], 0
    if lines:
        yield _make_batch(source, lines)


def _make_batch(source: Source, lines: list[tuple[str, int, int, list[int] | None]]) -> LineBatch:
    texts, numbers, documents, positions = zip(*lines, strict=True)
    return LineBatch(
        text=source.text,
        reference=source.reference,
        lines=list(texts),
        line_numbers=np.array(numbers, dtype=np.int64),
        documents=np.array(documents, dtype=np.int64),
        positions=None if source.reference is None else list(positions),
    )

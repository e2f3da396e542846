"""A user's word list: words that a segmenter is to keep whole, one a line, in jieba's format (`WORD [COUNT] [TAG]`).

jieba takes the file itself. On top of LTP we join words ourselves, since LTP's own hook parts good words beside a match
(研究生 next to 研究生命 becomes 研 | 究生) and finds no word that begins inside one of its own.
"""

import hashlib
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from distill.corpus.characters import runs
from distill.corpus.text import iter_lines
from distill.errors import InputError

# A word as long as this is meant even where the segmenter sees other borders. A shorter one joins whole words only:
# 研究生 must not win in 研究|生命.
SURE_CHARS = 4
_COUNT_AND_TAG = re.compile(r"\s+[0-9]+(\s+[a-z]+)?$|\s+[a-z]+$")

Cut = Callable[[list[str]], list[list[str]]]


def read_dictionary(file: Path) -> set[str]:
    """The words of a dictionary file.

    Raises:
        InputError: no such file, not UTF-8, no words, or a word with a space in it, which no segmenter can keep.
    """
    if not file.is_file():
        raise InputError(f"dictionary {file}: no such file; give a text file with one word a line")
    words = set()
    for number, line in enumerate(iter_lines(file), start=1):
        parts = runs(_COUNT_AND_TAG.sub("", line.strip()))
        if len(parts) > 1:
            raise InputError(f"dictionary {file}: line {number}: {line.strip()[:40]!r}: a word has no space inside")
        words.update(parts)
    if not words:
        raise InputError(f"dictionary {file}: no words; one a line")
    return words


def dictionary_fingerprint(file: Path) -> str:
    """A hex hash of the file: its order and counts matter to jieba."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def with_dictionary(cut: Cut, words: set[str]) -> Cut:
    """The same segmenter, with the dictionary's words joined in what it finds."""
    lengths = _lengths_by_start(words)

    def joined(pieces: list[str]) -> list[list[str]]:
        return [
            _join(piece, found, words, lengths) if len(found) > 1 else found
            for piece, found in zip(pieces, cut(pieces), strict=True)
        ]

    return joined


def _lengths_by_start(words: set[str]) -> dict[str, list[int]]:
    """First two characters -> lengths of the words that begin so, longest first. One character alone joins nothing."""
    lengths: dict[str, set[int]] = {}
    for word in words:
        if len(word) > 1:
            lengths.setdefault(word[:2], set()).add(len(word))
    return {start: sorted(found, reverse=True) for start, found in lengths.items()}


def _join(piece: str, found: list[str], words: set[str], lengths: dict[str, list[int]]) -> list[str]:
    """Matches are taken from the left, the longest first; what is left of a word they cut stays a word."""
    borders = {0, *accumulate(map(len, found))}
    matches: list[tuple[int, int]] = []
    start = 0
    while start < len(piece) - 1:
        end = start + 1
        for length in lengths.get(piece[start : start + 2], ()):
            if piece[start : start + length] in words and _may_join(start, start + length, borders):
                end = start + length
                matches.append((start, end))
                break
        start = end
    if not matches:
        return found
    for first, last in matches:
        borders.difference_update(range(first + 1, last))
        borders.update((first, last))
    ends = sorted(borders)
    return [piece[first:last] for first, last in zip(ends, ends[1:], strict=False)]


def _may_join(start: int, end: int, borders: set[int]) -> bool:
    return end - start >= SURE_CHARS or (start in borders and end in borders)

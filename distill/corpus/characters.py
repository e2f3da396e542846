"""Which characters BERT's tokenizer drops or takes as white space, and cutting text that is too long.

Segmenters get runs of text that hold neither, so no word can span a space or break at a zero-width character.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# The characters that clean_text of the Rust BertNormalizer removes, found by trying all 1,112,064 of them (tokenizers
# 0.23.3); tests/test_segment.py tries them again. Written out because Python's own Unicode tables are newer and
# differ (13 format characters). Surrogates are added: no tokenizer takes them.
DROPPED_RANGES = (
    (0x0000, 0x0008), (0x000B, 0x000C), (0x000E, 0x001F), (0x007F, 0x009F), (0x00AD, 0x00AD), (0x0600, 0x0605),
    (0x061C, 0x061C), (0x06DD, 0x06DD), (0x070F, 0x070F), (0x180E, 0x180E), (0x200B, 0x200F), (0x202A, 0x202E),
    (0x2060, 0x2064), (0x2066, 0x206F), (0xD800, 0xDFFF), (0xE000, 0xF8FF), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB),
    (0xFFFD, 0xFFFD), (0x110BD, 0x110BD), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0001, 0xE0001),
    (0xE0020, 0xE007F), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD),
)  # fmt: skip
SPACE_RANGES = (
    (0x0009, 0x000A), (0x000D, 0x000D), (0x0020, 0x0020), (0x00A0, 0x00A0), (0x1680, 0x1680), (0x2000, 0x200A),
    (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip
_DROPPED = re.compile("[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in DROPPED_RANGES) + "]+")

SENTENCE_ENDS = "。！？；…"
PHRASE_ENDS = "，、：）》」』”’"
CLOSERS = "”’）》」』"
_LATIN = re.compile(r"[A-Za-z0-9.,%_+\-]")


def _kept_table() -> np.ndarray:
    kept = np.ones(0x110000, dtype=bool)
    for first, last in DROPPED_RANGES + SPACE_RANGES:
        kept[first : last + 1] = False
    return kept


_KEPT = _kept_table()


def is_kept(lines: Sequence[str]) -> np.ndarray:
    """For every character of the lines, joined: is it part of a run (neither dropped nor white space)? [C], bool."""
    return _KEPT[code_points("".join(lines))]


def code_points(text: str) -> NDArray[np.uint32]:
    """The characters of a text as numbers. [C]"""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def runs(line: str) -> list[str]:
    """The line without dropped characters, split at white space."""
    # isprintable is a quick C check: false for every dropped character but U+FFFD.
    if not line.isprintable() or "\ufffd" in line:
        line = _DROPPED.sub("", line)
    # What is left that str.split takes as white space is exactly SPACE_RANGES.
    return line.split()


def batches(pieces: Iterable[str], *, chars: int, most: int | None = None) -> Iterator[list[str]]:
    """The pieces in lists of at most `chars` characters, or one piece that has more, and of at most `most` pieces."""
    batch: list[str] = []
    size = 0
    for piece in pieces:
        if batch and (size + len(piece) > chars or len(batch) == most):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece)
    if batch:
        yield batch


def windows(run: str, limit: int) -> Iterator[str]:
    """A run in pieces of at most `limit` characters, cut after a sentence, else a phrase, else outside Latin words."""
    start = 0
    while len(run) - start > limit:
        end = _cut_point(run, start + limit // 2, start + limit)
        yield run[start:end]
        start = end
    yield run[start:]


def _cut_point(run: str, low: int, high: int) -> int:
    for ends in (SENTENCE_ENDS, PHRASE_ENDS):
        cut = max(run.rfind(end, low, high) for end in ends) + 1
        if cut:
            while cut < high and run[cut] in CLOSERS:
                cut += 1
            return cut
    for cut in range(high, low, -1):
        if not (_LATIN.match(run[cut - 1]) and _LATIN.match(run[cut])):
            return cut
    return high

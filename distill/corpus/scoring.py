"""How well a segmenter finds words: precision, recall and F1 against gold text, overall and for words never trained on.

A word is right if it starts and ends where a gold word does. Gold text is split by spaces, or CoNLL-U (.conll, .conllu:
a word a line in the second column, a blank line after each sentence).
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from distill.corpus.characters import runs
from distill.corpus.segment import load_segmenter
from distill.corpus.text import iter_lines
from distill.corpus.text_names import text_file, unpacked_name
from distill.errors import InputError

LINES_AT_ONCE = 1_000
_LATIN = re.compile("[A-Za-z0-9]")


@dataclass(frozen=True)
class Score:
    """Counts of words; `trained` ones are left out of the out-of-vocabulary counts, which are None without them."""

    sentences: int
    characters: int
    gold_words: int
    found_words: int
    right_words: int
    unknown_words: int | None
    right_unknown_words: int | None
    seconds: float

    @property
    def precision(self) -> float:
        return self.right_words / self.found_words if self.found_words else 0.0

    @property
    def recall(self) -> float:
        return self.right_words / self.gold_words if self.gold_words else 0.0

    @property
    def f1(self) -> float:
        total = self.gold_words + self.found_words
        return 2 * self.right_words / total if total else 0.0

    @property
    def unknown_recall(self) -> float | None:
        """Share of the gold words found that are not in the training words; None without any."""
        if not self.unknown_words or self.right_unknown_words is None:
            return None
        return self.right_unknown_words / self.unknown_words


def score_segmenter(spec: str, gold: Sequence[Path], *, training_words: Path | None = None) -> Score:
    """Segments the gold text without its word borders and compares.

    The time is the segmenter's alone, after a first sentence that is not counted.

    Args:
        training_words: text whose words, split by white space, count as known; the training text itself will do.
    Raises:
        InputError: unusable segmenter, or no sentences in the gold text.
    """
    segmenter = load_segmenter(spec)
    known = None if training_words is None else read_words(training_words)
    sentences = [words for file in gold for words in read_gold(file)]
    if not sentences:
        raise InputError(f"{gold[0]}: no sentences; text split by spaces, or .conll/.conllu with a word a line")
    lines = [join_words(words) for words in sentences]
    segmenter.segment(lines[:1])
    start = time.perf_counter()
    found = [words for first in range(0, len(lines), LINES_AT_ONCE)
             for words in segmenter.segment(lines[first : first + LINES_AT_ONCE])]  # fmt: skip
    return _count(sentences, found, known, time.perf_counter() - start)


def _count(gold: list[list[str]], found: list[list[str]], known: set[str] | None, seconds: float) -> Score:
    right = num_gold = num_found = unknown = right_unknown = 0
    for gold_words, found_words in zip(gold, found, strict=True):
        spans, found_spans = word_spans(gold_words), set(word_spans(found_words))
        hits = [span in found_spans for span in spans]
        right += sum(hits)
        num_gold += len(spans)
        num_found += len(found_spans)
        if known is not None:
            new = [hit for word, hit in zip(gold_words, hits, strict=True) if word not in known]
            unknown += len(new)
            right_unknown += sum(new)
    return Score(
        sentences=len(gold),
        characters=sum(len(word) for words in gold for word in words),
        gold_words=num_gold,
        found_words=num_found,
        right_words=right,
        unknown_words=None if known is None else unknown,
        right_unknown_words=None if known is None else right_unknown,
        seconds=seconds,
    )


def read_gold(file: Path) -> Iterator[list[str]]:
    """The sentences' words, without what a segmenter never sees (spaces and characters that BERT drops)."""
    is_conll = unpacked_name(text_file(file)).endswith((".conll", ".conllu"))
    sentences = _read_conll(file) if is_conll else map(str.split, iter_lines(file))
    for words in sentences:
        visible = ["".join(runs(word)) for word in words]
        if any(visible):
            yield [word for word in visible if word]


def _read_conll(file: Path) -> Iterator[list[str]]:
    words: list[str] = []
    covered = 0  # the last token that a range of tokens (1-2) has given as one word
    for number, line in enumerate(iter_lines(file), start=1):
        if not line.strip():
            yield words
            words, covered = [], 0
            continue
        if line.startswith("#"):
            continue
        columns = line.split("\t")
        if len(columns) < 2:
            raise InputError(f"{file}: line {number}: {line[:40]!r} has no second column; tabs part CoNLL-U's columns")
        first, _, last = columns[0].partition("-")
        if last.isdigit():
            covered = int(last)
        elif "." in first or (first.isdigit() and int(first) <= covered):
            continue
        words.append(columns[1])
    yield words


def join_words(words: Sequence[str]) -> str:
    """The sentence as it was written: without spaces, but for one between two words of Latin letters or digits."""
    pieces = list(words[:1])
    for before, word in zip(words, words[1:], strict=False):
        pieces.append(f" {word}" if _LATIN.match(before[-1]) and _LATIN.match(word[0]) else word)
    return "".join(pieces)


def read_words(file: Path) -> set[str]:
    """All words of a text, split by white space."""
    return {word for line in iter_lines(file) for word in runs(line)}


def word_spans(words: Iterable[str]) -> list[tuple[int, int]]:
    """Start and end of each word, in characters of the words joined."""
    ends = list(accumulate(map(len, words)))
    return list(zip([0, *ends], ends, strict=False))


def word_f1(gold: list[list[str]], found: list[list[str]]) -> float:
    """F1 of words, a word being right if it starts and ends where the gold word does."""
    return _count(gold, found, None, 0.0).f1

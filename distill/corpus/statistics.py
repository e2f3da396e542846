"""Statistics of packed rows: fill rate, unknown tokens, scripts, words, the most frequent tokens.

V vocabulary in the suffixes.
"""

import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distill.corpus.masking import MaskVocabulary
from distill.corpus.rows import PackedRows, open_table
from distill.corpus.vocabulary import tokens_by_id
from distill.errors import InputError

if TYPE_CHECKING:
    from transformers import BertTokenizer

SCRIPTS = ("Han", "Latin", "digits", "punctuation", "other", "[UNK]")
# More rows are counted from evenly spread ones: shares are exact to a fraction of a per mille by then.
_MAX_COUNTED_ROWS = 100_000
_BLOCK_ROWS = 1024
_NUM_FREQUENT = 20

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Statistics:
    """Counts of one split."""

    rows: int
    counted_rows: int
    """Rows that all but `rows` and `documents` were counted from."""
    max_seq_length: int
    tokens: int
    """Of the text, without [CLS], [SEP] and padding; scaled up if not all rows were counted."""
    documents: int
    """Document starts in the rows."""
    fill_rate: float
    unknown_share: float
    scripts: dict[str, float]
    """Share of the text's tokens; a token belongs to the script of its first character."""
    words_per_row: float
    tokens_per_word: float
    characters_per_word: float
    frequent: list[tuple[str, float]]
    """The most frequent tokens and their shares."""


class TokenTable:
    """What must be known of each token id."""

    def __init__(self, tokenizer: "BertTokenizer") -> None:
        self.tokens = [token or "" for token in tokens_by_id(tokenizer)]
        self.masks = MaskVocabulary.from_tokenizer(tokenizer)
        self.unk_id: int = tokenizer.unk_token_id
        frame = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
        self.is_text_V = np.array([number not in frame for number in range(len(self.tokens))])

    @cached_property
    def texts(self) -> list[str]:
        """Tokens without '##'."""
        return [t[2:] if t.startswith("##") and len(t) > 2 else t for t in self.tokens]

    @cached_property
    def script_V(self) -> Ints:
        """Index into SCRIPTS of each id."""
        scripts = [SCRIPTS.index(script_of(text)) for text in self.texts]
        scripts[self.unk_id] = SCRIPTS.index("[UNK]")
        return np.array(scripts, dtype=np.int64)


def script_of(text: str) -> str:
    """One of SCRIPTS but [UNK], by the first character."""
    first = text[:1]
    if not first:
        return "other"
    category, name = unicodedata.category(first), unicodedata.name(first, "")
    if name.startswith("CJK UNIFIED") or first == "\u3007":
        return "Han"
    if category.startswith("L") and "LATIN" in name:
        return "Latin"
    if first.isdigit():
        return "digits"
    return "punctuation" if category[0] in "PS" else "other"


def _count_documents(packed: PackedRows) -> int:
    import pyarrow.compute as pc

    chunks = open_table(packed.path).column("document_start").chunks
    return sum(int(pc.sum(chunk.flatten()).as_py() or 0) for chunk in chunks)


def count_statistics(packed: PackedRows, table: TokenTable) -> Statistics:
    """The statistics of one split, from at most _MAX_COUNTED_ROWS evenly spread rows.

    Raises:
        InputError: no rows, or a token id that the tokenizer does not have.
    """
    if not len(packed):
        raise InputError(f"{packed.path}: the dataset has no rows")
    numbers = np.unique(np.linspace(0, len(packed) - 1, min(len(packed), _MAX_COUNTED_ROWS)).astype(np.int64))
    counts = np.zeros(len(table.tokens), dtype=np.int64)
    filled = num_words = 0
    for start in range(0, len(numbers), _BLOCK_ROWS):
        input_ids, continuation, length = packed.rows(numbers[start : start + _BLOCK_ROWS])
        if not 0 <= input_ids.min() <= input_ids.max() < len(counts):
            raise InputError(
                f"{packed.path}: holds token {input_ids.max()}, its tokenizer has {len(counts)}; remove the packed "
                "dataset, and it is made again"
            )
        is_filled = np.arange(input_ids.shape[1]) < length[:, None]
        counts += np.bincount(input_ids[is_filled], minlength=len(counts))
        num_words += int((is_filled & table.is_text_V[input_ids] & ~continuation).sum())
        filled += int(length.sum())
    return _summarise(packed, table, counts, num_counted=len(numbers), filled=filled, num_words=num_words)


def _summarise(
    packed: PackedRows, table: TokenTable, counts: Ints, *, num_counted: int, filled: int, num_words: int
) -> Statistics:
    text_counts = np.where(table.is_text_V, counts, 0)
    total = max(int(text_counts.sum()), 1)
    scripts = np.bincount(table.script_V, weights=text_counts, minlength=len(SCRIPTS)) / total
    lengths = np.array([1 if i == table.unk_id else len(text) for i, text in enumerate(table.texts)])
    frequent = [int(i) for i in np.argsort(-text_counts, kind="stable")[:_NUM_FREQUENT] if text_counts[i]]
    return Statistics(
        rows=len(packed),
        counted_rows=num_counted,
        max_seq_length=packed.max_seq_length,
        tokens=round(int(text_counts.sum()) * len(packed) / num_counted),
        documents=_count_documents(packed),
        fill_rate=filled / (num_counted * packed.max_seq_length),
        unknown_share=float(text_counts[table.unk_id] / total),
        scripts=dict(zip(SCRIPTS, scripts.tolist(), strict=True)),
        words_per_row=num_words / num_counted,
        tokens_per_word=int(text_counts.sum()) / max(num_words, 1),
        characters_per_word=float((text_counts * lengths).sum()) / max(num_words, 1),
        frequent=[(table.tokens[i], float(text_counts[i] / total)) for i in frequent],
    )


def figures(statistics: Statistics) -> list[tuple[str, str]]:
    """The statistics as (name, value) for a table, without scripts and frequent tokens."""
    counted = statistics.counted_rows
    rows = [
        ("rows", f"{statistics.rows:,} of {statistics.max_seq_length} tokens"),
        ("tokens", f"{statistics.tokens:,}"),
        ("documents", f"{statistics.documents:,}"),
        ("fill rate", f"{statistics.fill_rate:.2%}"),
        ("[UNK]", f"{statistics.unknown_share:.3%} of the tokens"),
        ("words a row", f"{statistics.words_per_row:,.1f}"),
        (
            "mean word length",
            f"{statistics.tokens_per_word:.2f} tokens, {statistics.characters_per_word:.2f} characters",
        ),
    ]
    return rows if counted == statistics.rows else [*rows, ("counted from", f"{counted:,} evenly spread rows")]

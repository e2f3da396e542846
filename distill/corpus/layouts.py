"""The packing kinds: where special tokens go and rows begin, as pure functions of a run of tokens.

chunks          MiniRBT: all text joined and cut every L - 2 tokens, `[CLS] chunk [SEP]`.
documents       UER: `[CLS] document [SEP]` cut every L tokens; later pieces have no [CLS], all but the last no [SEP],
                and documents are never joined. UER's corpora have a document a line: put blank lines between them.
full_sentences  RoBERTa: as many whole sentences (a text line is one) as fit, `[CLS] d1s1 [SEP] d1s2 [SEP] [SEP] d2s1
                [SEP]`; between two documents of a row stands an extra [SEP]. A sentence that fits no row is split.
doc_sentences   the same, but every document begins a new row.
lines           `[CLS] line [SEP]`, a row each; a line that is too long is split.

fairseq packs as full_sentences does (`complete`), but its separator between documents is a sentence of its own, which
may also end a row or begin one; here, as in RoBERTa's paper, it only stands between two documents of a row.
How the rows are laid out and written is in packer.py. N tokens, L tokens a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Tokens:
    """Tokens in the order of the text. The first is where a row, a line's piece or a document begins."""

    input_ids: NDArray[np.int32]  # [N]
    continuation: Bools  # [N] continues the word of the token before
    document_start: Bools  # [N]
    line_start: Bools  # [N]

    def __len__(self) -> int:
        return len(self.input_ids)

    def map(self, function: Callable[[NDArray], NDArray]) -> "Tokens":
        """The same function of every array."""
        return Tokens(*(function(array) for array in vars(self).values()))


@dataclass(frozen=True)
class Layout:
    """Special tokens around N tokens, three masks [N]. A row begins at each [CLS], and every L tokens after it."""

    cls_before: Bools
    sep_before: Bools  # the extra separator between two documents
    sep_after: Bools


def lay_out_chunks(tokens: Tokens, max_seq_length: int) -> Layout:
    """All tokens joined."""
    return _frame(np.arange(0, len(tokens), max_seq_length - 2), len(tokens))


def lay_out_lines(tokens: Tokens, max_seq_length: int) -> Layout:
    """A row for each line."""
    return _frame(split_every(_starts(tokens.line_start), len(tokens), max_seq_length - 2), len(tokens))


def lay_out_documents(tokens: Tokens, max_seq_length: int) -> Layout:
    """A [CLS] before and a [SEP] after each document; the cutting every L tokens is the packer's."""
    return Layout(tokens.document_start, _nowhere(tokens), _ends(tokens.document_start))


def lay_out_full_sentences(tokens: Tokens, max_seq_length: int) -> Layout:
    """As many whole sentences as fit a row, over the borders of documents."""
    return _lay_out_sentences(tokens, max_seq_length, cross_documents=True)


def lay_out_doc_sentences(tokens: Tokens, max_seq_length: int) -> Layout:
    """As many whole sentences of one document as fit a row."""
    return _lay_out_sentences(tokens, max_seq_length, cross_documents=False)


LAYOUTS: dict[str, Callable[[Tokens, int], Layout]] = {
    "chunks": lay_out_chunks,
    "documents": lay_out_documents,
    "full_sentences": lay_out_full_sentences,
    "doc_sentences": lay_out_doc_sentences,
    "lines": lay_out_lines,
}


def _lay_out_sentences(tokens: Tokens, max_seq_length: int, *, cross_documents: bool) -> Layout:
    sentences = split_every(_starts(tokens.line_start), len(tokens), max_seq_length - 2)
    begins_document = tokens.document_start[sentences]
    # costs[k]: tokens, separators and extra separators of the sentences before sentence k; the extra one is k's own.
    sizes = np.diff(sentences, append=len(tokens)) + 1 + begins_document
    costs = np.concatenate([[0], np.cumsum(sizes)])
    limits = np.full(len(sentences), len(sentences))
    if not cross_documents:
        documents = np.append(np.flatnonzero(begins_document), len(sentences))
        limits = documents[np.searchsorted(documents, np.arange(len(sentences)), side="right")]
    first, firsts = 0, []
    while first < len(sentences):  # once a row
        firsts.append(first)
        room = costs[first] + begins_document[first] + max_seq_length - 1  # no extra separator after [CLS]
        first = min(int(np.searchsorted(costs, room, side="right")) - 1, int(limits[first]))
    layout = _frame(sentences[firsts], len(tokens))
    layout.sep_after[sentences[1:] - 1] = True
    layout.sep_before[sentences[begins_document]] = True
    return Layout(layout.cls_before, layout.sep_before & ~layout.cls_before, layout.sep_after)


def split_every(starts: Ints, end: int, size: int) -> Ints:
    """Starts of the pieces of at most `size` into which the segments that begin at `starts` are cut."""
    pieces = -(-np.diff(starts, append=end) // size)
    within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.repeat(starts, pieces) + within * size


def _frame(row_starts: Ints, num_tokens: int) -> Layout:
    """`[CLS] tokens [SEP]` for each row."""
    cls_before = np.zeros(num_tokens, dtype=bool)
    cls_before[row_starts] = True
    return Layout(cls_before, np.zeros(num_tokens, dtype=bool), _ends(cls_before))


def _starts(flags: Bools) -> Ints:
    """Indices of the flags and 0, where what was begun before goes on."""
    starts = np.flatnonzero(flags)
    return starts if flags[0] else np.concatenate([[0], starts])


def _ends(starts: Bools) -> Bools:
    """True at the token before each start, and at the last."""
    return np.append(starts[1:], True)


def _nowhere(tokens: Tokens) -> Bools:
    return np.zeros(len(tokens), dtype=bool)

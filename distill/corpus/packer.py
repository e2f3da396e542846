"""Tokens of one split as a stream -> rows, for any packing kind; holds little more than a row between calls.

1. The kind's layout (layouts.py) says where special tokens go among the tokens that are here.
2. They are put in, rows are cut and padded, and all rows but the last are written; more tokens may change the last.

Where the tokens come from is in packing.py, where the rows go in rows.py. N tokens, R rows, L tokens a row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.corpus.layouts import LAYOUTS, Layout, Tokens, split_every
from distill.corpus.rows import RowWriter
from distill.errors import InputError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Packer:
    """Makes rows of tokens. Rows and their order do not depend on how the tokens are cut into calls."""

    def __init__(self, writer: RowWriter, *, packing: str, frame_ids: tuple[int, int, int]) -> None:
        """
        Args:
            packing: a key of LAYOUTS.
            frame_ids: ids of [CLS], [SEP] and [PAD].
        """
        self.writer = writer
        self._lay_out = LAYOUTS[packing]
        self._cls_id, self._sep_id, self._pad_id = frame_ids
        nothing = np.empty(0, dtype=bool)
        self._tokens = Tokens(np.empty(0, dtype=np.int32), nothing, nothing, nothing)
        self._last_document = -1
        self._num_documents = self._num_lines = self._num_characters = self._num_filled = 0
        self.token_counts = np.zeros(0, dtype=np.int64)  # by id

    def add(
        self,
        input_ids: NDArray[np.int32],
        continuation: Bools,
        documents: Ints,
        *,
        line_start: Bools,
        num_characters: int,
    ) -> None:
        """Append tokens, four arrays [N], and write the rows that they finish.

        Args:
            documents: number of each token's document.
            line_start: True at the first token of each line; a line may go on in the next call.
        """
        self._num_characters += num_characters
        if not len(input_ids):
            return
        document_start = np.diff(documents, prepend=self._last_document) != 0
        self._last_document = int(documents[-1])
        self._num_documents += int(document_start.sum())
        self._num_lines += int(line_start.sum())
        counts = np.bincount(input_ids, minlength=len(self.token_counts))
        counts[: len(self.token_counts)] += self.token_counts
        self.token_counts = counts
        held, new = self._tokens, Tokens(input_ids, continuation, document_start, line_start)
        self._tokens = Tokens(*map(np.concatenate, zip(vars(held).values(), vars(new).values(), strict=True)))
        self._write_rows(at_end=False)

    def finish(self) -> None:
        """Write the rest and close the folder."""
        if len(self._tokens):
            self._write_rows(at_end=True)
        self.writer.close()

    def _write_rows(self, *, at_end: bool) -> None:
        """Lay out the tokens that are here; write all rows, or those before the last that has a token."""
        tokens, size = self._tokens, self.writer.max_seq_length
        layout = self._lay_out(tokens, size)
        framed, positions = self._put_in_specials(tokens, layout)
        cls_positions = positions[layout.cls_before] - 1
        if not len(cls_positions) or cls_positions[0] != 0:  # the rest of a document
            cls_positions = np.concatenate([[0], cls_positions])
        starts = split_every(cls_positions, len(framed), size)
        if not at_end:
            num_rows = int(np.searchsorted(starts, positions[-1], side="right")) - 1
            used = int(np.searchsorted(positions, starts[num_rows]))
            self._tokens = tokens.map(lambda array: array[used:].copy())
            starts, end = starts[:num_rows], int(starts[num_rows])
        else:
            end = len(framed)
        if len(starts):
            self._write(framed.map(lambda array: array[:end]), np.diff(starts, append=end))

    def _put_in_specials(self, tokens: Tokens, layout: Layout) -> tuple[Tokens, Ints]:
        """Tokens with the special ones among them, and the position of each token of the text there."""
        before = layout.cls_before | layout.sep_before
        after = np.cumsum(layout.sep_after)
        positions = np.arange(len(tokens)) + np.cumsum(before)
        positions[1:] += after[:-1]
        total = int(positions[-1]) + 1 + int(layout.sep_after[-1])
        input_ids = np.full(total, self._sep_id, dtype=np.int32)
        input_ids[positions[layout.cls_before] - 1] = self._cls_id
        input_ids[positions] = tokens.input_ids
        continuation, document_start, line_start = (np.zeros(total, dtype=bool) for _ in range(3))
        continuation[positions] = tokens.continuation & ~before
        document_start[positions - layout.sep_before] = tokens.document_start  # its extra separator opens a document
        line_start[positions] = tokens.line_start
        return Tokens(input_ids, continuation, document_start, line_start), positions

    def _write(self, tokens: Tokens, lengths: Ints) -> None:
        """Write the rows that the tokens make in order, `lengths` [R] each."""
        is_filled = np.arange(self.writer.max_seq_length) < lengths[:, None]
        input_ids = np.full(is_filled.shape, self._pad_id, dtype=np.int32)
        flags = np.zeros((2, *is_filled.shape), dtype=bool)
        input_ids[is_filled] = tokens.input_ids
        flags[0][is_filled], flags[1][is_filled] = tokens.continuation, tokens.document_start
        flags[0][:, 0] = False
        self._num_filled += int(lengths.sum())
        self.writer.write(input_ids, flags[0], flags[1], lengths)

    def describe(self, split: str, unk_id: int) -> dict[str, Any]:
        """Counts for info.json; `tokens` are those of the text, the fill rate counts special tokens as filled.

        Raises:
            InputError: if the split got no token.
        """
        num_rows, num_tokens = self.writer.num_rows, int(self.token_counts.sum())
        if not num_tokens:
            raise InputError(
                f"empty corpus: the text for {split} has no token; is it text at all, or only control characters?"
            )
        return {
            "rows": num_rows,
            "tokens": num_tokens,
            "documents": self._num_documents,
            "lines": self._num_lines,
            "characters": self._num_characters,
            "unk_tokens": int(self.token_counts[unk_id : unk_id + 1].sum()),
            "fill_rate": round(self._num_filled / (num_rows * self.writer.max_seq_length), 6),
        }

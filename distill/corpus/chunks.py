"""MiniRBT's packing: all tokens of a split in a row, cut every L - 2, `[CLS] chunk [SEP]`, the tail a padded row.

Nothing is lost between lines, documents and files. Where the tokens come from is in packing.py, where the rows go in
rows.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.corpus.rows import RowWriter
from distill.errors import InputError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class ChunkPacker:
    """Joins tokens and cuts them into rows of one split; holds less than a row between calls."""

    def __init__(self, writer: RowWriter, *, frame_ids: tuple[int, int, int]) -> None:
        self.writer = writer
        self._cls_id, self._sep_id, self._pad_id = frame_ids
        self._ids = np.empty(0, dtype=np.int32)
        self._flags = np.empty((2, 0), dtype=bool)  # continuation, document_start
        self._last_document = -1
        self._num_documents = self._num_characters = 0
        self.token_counts = np.zeros(0, dtype=np.int64)  # by id

    def add(self, input_ids: NDArray[np.int32], continuation: Bools, documents: Ints, *, num_characters: int) -> None:
        """Append tokens [N] with the document number of each, and write the rows that are full."""
        self._num_characters += num_characters
        if not len(input_ids):
            return
        document_start = np.diff(documents, prepend=self._last_document) != 0
        self._last_document = int(documents[-1])
        self._num_documents += int(document_start.sum())
        counts = np.bincount(input_ids, minlength=len(self.token_counts))
        counts[: len(self.token_counts)] += self.token_counts
        self.token_counts = counts
        self._ids = np.concatenate([self._ids, input_ids])
        self._flags = np.concatenate([self._flags, np.stack([continuation, document_start])], axis=1)
        body = self.writer.max_seq_length - 2
        num_rows = len(self._ids) // body
        if num_rows:
            used = num_rows * body
            self._write(self._ids[:used].reshape(num_rows, body), self._flags[:, :used].reshape(2, num_rows, body))
            self._ids, self._flags = self._ids[used:].copy(), self._flags[:, used:].copy()

    def _write(self, body_ids: NDArray[np.int32], body_flags: Bools) -> None:
        num_rows, body = body_ids.shape
        input_ids = np.full((num_rows, self.writer.max_seq_length), self._pad_id, dtype=np.int32)
        input_ids[:, 0], input_ids[:, 1 : body + 1], input_ids[:, body + 1] = self._cls_id, body_ids, self._sep_id
        flags = np.zeros((2, num_rows, self.writer.max_seq_length), dtype=bool)
        flags[:, :, 1 : body + 1] = body_flags
        flags[0, :, 1] = False
        self.writer.write(input_ids, flags[0], flags[1], np.full(num_rows, body + 2))

    def finish(self) -> None:
        """Write the tail as a padded row and close the folder."""
        if len(self._ids):
            self._write(self._ids[None], self._flags[:, None])
        self.writer.close()

    def describe(self, split: str, unk_id: int) -> dict[str, Any]:
        """Counts for info.json; `tokens` are those of the text, the fill rate counts [CLS] and [SEP] as filled.

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
            "characters": self._num_characters,
            "unk_tokens": int(self.token_counts[unk_id : unk_id + 1].sum()),
            "fill_rate": round((num_tokens + 2 * num_rows) / (num_rows * self.writer.max_seq_length), 6),
        }

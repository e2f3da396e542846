"""Each packing kind against hand-written rows and against its rule as a plain loop; no token lost however it comes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.corpus.layouts import LAYOUTS
from distill.corpus.packer import Packer

PAD, CLS, SEP, FIRST = 0, 2, 3, 10


class ListWriter:
    """Takes the place of a RowWriter and keeps the rows in memory."""

    def __init__(self, max_seq_length):
        self.max_seq_length, self.num_rows = max_seq_length, 0
        self.rows, self.continuation, self.document_start = [], [], []

    def write(self, input_ids, continuation, document_start, length):
        self.num_rows += len(length)
        for ids, flags, starts, end in zip(input_ids, continuation, document_start, length, strict=True):
            assert set(ids[end:]) <= {PAD} and not flags[end:].any() and not starts[end:].any() and end > 0
            self.rows.append(ids[:end].tolist())
            self.continuation.append(np.flatnonzero(flags).tolist())
            self.document_start.append(np.flatnonzero(starts).tolist())

    def close(self):
        pass


def number(documents):
    """Documents as lists of line lengths -> the same with consecutive token ids, so that each token is known."""
    following = iter(range(FIRST, 10**9))
    return [[[next(following) for _ in range(size)] for size in lines] for lines in documents]


def pack(documents, kind, max_seq_length, cuts=()):
    """The rows of documents (lists of lines of ids), given to the packer in parts that end at `cuts`."""
    writer = ListWriter(max_seq_length)
    packer = Packer(writer, packing=kind, frame_ids=(CLS, SEP, PAD))
    flat = [(t, d, i == 0) for d, lines in enumerate(documents) for line in lines for i, t in enumerate(line)]
    borders = sorted({0, *(cut % (len(flat) + 1) for cut in cuts), len(flat)})
    for start, end in zip(borders, borders[1:], strict=False):
        ids, numbers, line_start = zip(*flat[start:end], strict=True)
        packer.add(
            np.array(ids, dtype=np.int32),
            ~np.array(line_start),
            np.array(numbers),
            line_start=np.array(line_start),
            num_characters=0,
        )
    packer.finish()
    return writer, packer


def cut(tokens, size):
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]


def expected_rows(documents, kind, size):
    """The rule of each kind, written as the obvious loop."""
    lines = [line for document in documents for line in document]
    if kind == "chunks":
        return [[CLS, *part, SEP] for part in cut(sum(lines, []), size - 2)]
    if kind == "lines":
        return [[CLS, *part, SEP] for line in lines for part in cut(line, size - 2)]
    if kind == "documents":
        return [part for document in documents for part in cut([CLS, *sum(document, []), SEP], size)]
    rows = []
    for document in documents:
        is_first = True
        for sentence in (part for line in document for part in cut(line, size - 2)):
            separator = [SEP] if is_first else []
            fresh = not rows or (is_first and kind == "doc_sentences")
            if fresh or len(rows[-1]) + len(separator) + len(sentence) + 1 > size:
                rows.append([CLS, *sentence, SEP])
            else:
                rows[-1] += [*separator, *sentence, SEP]
            is_first = False
    return rows


def test_full_sentences_is_the_published_example():
    """https://github.com/facebookresearch/fairseq/issues/1023: `<s> d1s1 </s> d1s2 </s> </s> d2s1 </s>`."""
    writer, _ = pack([[[10], [11]], [[12]]], "full_sentences", 16)
    assert writer.rows == [[CLS, 10, SEP, 11, SEP, SEP, 12, SEP]]
    assert writer.document_start == [[1, 5]]  # the extra separator opens the second document


def test_full_sentences_puts_no_extra_separator_where_a_row_begins():
    writer, _ = pack(number([[3, 2], [4]]), "full_sentences", 8)
    assert writer.rows == [[CLS, 10, 11, 12, SEP, 13, 14, SEP], [CLS, 15, 16, 17, 18, SEP]]
    assert writer.document_start == [[1], [1]]


def test_a_sentence_too_long_for_a_row_is_split_and_others_follow_its_rest():
    writer, _ = pack(number([[1, 8, 2]]), "full_sentences", 8)
    rows = [[CLS, 10, SEP], [CLS, 11, 12, 13, 14, 15, 16, SEP], [CLS, 17, 18, SEP, 19, 20, SEP]]
    assert writer.rows == rows
    # The first token of a row is never a continuation.
    assert writer.continuation == [[], [2, 3, 4, 5, 6], [2, 5]]


def test_doc_sentences_begins_a_row_with_each_document():
    writer, _ = pack(number([[2, 1], [1], [1]]), "doc_sentences", 16)
    assert writer.rows == [[CLS, 10, 11, SEP, 12, SEP], [CLS, 13, SEP], [CLS, 14, SEP]]


def test_documents_are_cut_in_consecutive_pieces():
    """UER: later pieces have no [CLS], all but the last no [SEP]; a lone [SEP] may be left."""
    writer, _ = pack(number([[5, 5], [2], [7]]), "documents", 8)
    assert writer.rows == [
        [CLS, 10, 11, 12, 13, 14, 15, 16],
        [17, 18, 19, SEP],
        [CLS, 20, 21, SEP],
        [CLS, *range(22, 29)],
        [SEP],
    ]
    assert writer.document_start == [[1], [], [1], [1], []]
    assert writer.continuation[1] == [1, 2]


def test_lines_take_a_row_each():
    writer, packer = pack(number([[3, 7], [1]]), "lines", 8)
    assert writer.rows == [[CLS, 10, 11, 12, SEP], [CLS, *range(13, 19), SEP], [CLS, 19, SEP], [CLS, 20, SEP]]
    assert writer.document_start == [[1], [], [], [1]]
    assert packer.describe("train", 1) == {
        "rows": 4, "tokens": 11, "documents": 2, "lines": 3, "characters": 0, "unk_tokens": 0, "fill_rate": 19 / 32
    }  # fmt: skip


corpus = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=8)
cuts = st.lists(st.integers(0, 1000), max_size=12)


@pytest.mark.parametrize("kind", LAYOUTS)
@given(sizes=corpus, max_seq_length=st.sampled_from([8, 9, 13, 32, 64]), cuts=cuts)
@settings(max_examples=150, deadline=None)
def test_rows_are_those_of_the_plain_loop_however_the_tokens_come(kind, sizes, max_seq_length, cuts):
    documents = number(sizes)
    writer, packer = pack(documents, kind, max_seq_length, cuts)
    assert writer.rows == expected_rows(documents, kind, max_seq_length)
    kept = [token for row in writer.rows for token in row if token >= FIRST]
    assert kept == [token for document in documents for line in document for token in line]
    assert max(map(len, writer.rows)) <= max_seq_length
    assert sum(map(len, writer.document_start)) == len(documents)
    info = packer.describe("train", 1)
    assert (info["documents"], info["lines"]) == (len(documents), sum(map(len, documents)))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_little_is_held_of_a_document_that_never_ends(kind):
    """One line of 20,000 tokens, 100 at a time: between calls less than a row and what just came is in memory."""
    packer = Packer(ListWriter(32), packing=kind, frame_ids=(CLS, SEP, PAD))
    for i in range(200):
        ids = np.arange(FIRST, FIRST + 100, dtype=np.int32)
        start = np.arange(100) + i == 0
        packer.add(ids, ~start, np.zeros(100, dtype=np.int64), line_start=start, num_characters=100)
        assert len(packer._tokens) <= 32
    packer.finish()
    assert sum(token >= FIRST for row in packer.writer.rows for token in row) == 20_000

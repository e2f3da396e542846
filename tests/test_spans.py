"""Span masking against its rule written as a plain loop, and the lengths of spans."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.corpus.masking import MaskVocabulary, mask_rows
from distill.corpus.order import sample_key, sample_random
from distill.corpus.spans import MAX_SPAN_TOKENS, draw_lengths

CLS, SEP, MASK = 2, 3, 4
VOCABULARY = MaskVocabulary(mask_id=MASK, ordinary_ids=np.arange(10, 1000), special_ids=np.arange(5), vocab_size=1000)
KEY = sample_key(3, "spans")


def make_rows(num_rows, row_length, seed=0):
    """`[CLS] tokens [SEP]`, with a [SEP] in the middle."""
    input_ids = np.random.default_rng(seed).integers(10, 1000, (num_rows, row_length))
    input_ids[:, 0], input_ids[:, row_length // 2], input_ids[:, -1] = CLS, SEP, SEP
    return input_ids


def mask(input_ids, *, probability=0.15, numbers=None, length=None):
    numbers = np.arange(len(input_ids)) if numbers is None else numbers
    length = np.full(len(input_ids), input_ids.shape[1]) if length is None else length
    random = sample_random(KEY, numbers, input_ids.shape[1])
    return mask_rows(
        input_ids, np.zeros(input_ids.shape, dtype=bool), length, random=random, probability=probability, kind="span",
        vocabulary=VOCABULARY,
    )  # fmt: skip


def choose_by_loop(maskable, random, lengths, budget):
    """The rule for one row: spans in the order of their starts' numbers, until the budget is used up."""
    chosen = set()
    for start in sorted(np.flatnonzero(maskable), key=lambda i: int(random[i])):
        for position in range(start, min(start + int(lengths[start]), len(maskable))):
            if not maskable[position] or len(chosen) == budget:
                break
            chosen.add(position)
    return sorted(chosen)


def runs_of(positions):
    """Lengths of the runs of neighbouring positions."""
    return np.diff(np.flatnonzero(np.diff(positions, prepend=-9, append=10**9) > 1))


@given(
    row_length=st.integers(3, 80),
    special=st.lists(st.integers(0, 79), max_size=6),
    probability=st.sampled_from([0.02, 0.15, 0.5, 0.99]),
    first=st.integers(0, 10**12),
)
@settings(max_examples=200, deadline=None)
def test_chosen_positions_are_those_of_the_plain_loop(row_length, special, probability, first):
    input_ids = make_rows(3, row_length, seed=first % 97)
    for row, position in enumerate(special):
        input_ids[row % 3, position % row_length] = SEP
    length = np.array([row_length, row_length - 1, 1 + row_length // 2])
    numbers = np.arange(first, first + 3)
    random = sample_random(KEY, numbers, row_length)
    _, positions, _ = mask(input_ids, probability=probability, numbers=numbers, length=length)
    maskable = (input_ids >= 10) & (np.arange(row_length) < length[:, None])
    for row in range(3):
        budget = max(1, round(probability * int(maskable[row].sum())))
        expected = choose_by_loop(maskable[row], random[row], draw_lengths(random[row]), budget)
        assert (positions[positions // row_length == row] % row_length).tolist() == expected


def test_lengths_are_geometric_up_to_ten():
    lengths = draw_lengths(sample_random(KEY, np.arange(1000), 200))
    expected = 0.2 * 0.8 ** np.arange(MAX_SPAN_TOKENS)
    expected /= expected.sum()
    shares = np.bincount(lengths.astype(int).ravel(), minlength=11)[1:] / lengths.size
    assert len(shares) == MAX_SPAN_TOKENS and shares == pytest.approx(expected, abs=0.005)
    assert lengths.mean() == pytest.approx(3.797, abs=0.03)  # SpanBERT's "mean span length of 3.8"


def test_every_row_gets_exactly_its_budget():
    _, positions, _ = mask(make_rows(200, 512))
    assert np.bincount(positions // 512).tolist() == [round(0.15 * 509)] * 200


def test_spans_are_longer_than_words_and_end_at_special_tokens():
    input_ids = make_rows(400, 512)
    _, positions, labels = mask(input_ids)
    assert len(positions) > 30_000 and labels.min() >= 10
    runs = runs_of(positions)
    # Over 3.8, for neighbouring spans join; under 5, for few do.
    assert 3.8 < runs.mean() < 5.0
    assert not np.isin(positions % 512, [0, 256, 511]).any()


def test_every_place_behind_the_first_ten_is_chosen_about_equally_often():
    _, positions, _ = mask(make_rows(4000, 64))
    counts = np.bincount(positions % 64, minlength=64) / 4000
    assert counts[[0, 32, 63]].tolist() == [0, 0, 0]
    inner = counts[[*range(10, 32), *range(42, 63)]]
    assert inner.max() - inner.min() < 0.05
    assert counts[1] < inner.mean() / 2  # only its own span reaches the first


def test_the_tokens_of_a_span_share_their_fate():
    input_ids = make_rows(400, 512)
    masked_ids, positions, labels = mask(input_ids)
    now = masked_ids.ravel()[positions]
    kind = np.where(now == MASK, 0, np.where(now == labels, 1, 2))
    neighbours = np.diff(positions) == 1
    same = (kind[1:] == kind[:-1])[neighbours].mean()
    assert same > 0.9  # 0.66 if every token drew for itself; joined spans differ now and then


def test_a_row_is_masked_alike_in_any_batch():
    input_ids = make_rows(33, 96)
    masked_ids, positions, _ = mask(input_ids)
    for i in range(33):
        alone_ids, alone_positions, _ = mask(input_ids[i : i + 1], numbers=np.array([i]))
        assert np.array_equal(alone_ids[0], masked_ids[i])
        assert np.array_equal(alone_positions, positions[positions // 96 == i] % 96)

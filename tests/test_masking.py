"""Masking against the rule written as a plain loop, and its statistics."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from distill.corpus.masking import MAX_WORD_TOKENS, MaskVocabulary, mask_rows
from distill.corpus.order import sample_key, sample_random

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = np.arange(5)
VOCABULARY = MaskVocabulary(mask_id=MASK, ordinary_ids=np.arange(10, 1000), special_ids=SPECIAL, vocab_size=1000)
KEY = sample_key(3, "test")


def make_rows(words, row_length):
    """[CLS] word word ... [SEP] [PAD]... from lists of word lengths, 0 standing for an [UNK]."""
    input_ids = np.full((len(words), row_length), PAD)
    continuation = np.zeros((len(words), row_length), dtype=bool)
    length = np.zeros(len(words), dtype=np.int64)
    rng = np.random.default_rng(0)
    for row, sizes in enumerate(words):
        ids, flags = [CLS], [False]
        drawn = iter(rng.integers(10, 1000, sum(sizes)).tolist())
        for size in sizes:
            ids += itertools.islice(drawn, size) if size else [UNK]
            flags += [False] + [True] * (size - 1)
        length[row] = len(ids) + 1
        input_ids[row, : len(ids) + 1] = [*ids, SEP]
        continuation[row, : len(flags)] = flags
    return input_ids, continuation, length


def make_random_rows(num_rows, row_length, seed=0):
    rng = np.random.default_rng(seed)
    words = []
    for _ in range(num_rows):
        sizes = rng.choice([1, 1, 2, 2, 3, 4], row_length)
        words.append(sizes[np.cumsum(sizes) <= row_length - 2].tolist())
    return make_rows(words, row_length)


def mask(rows, *, numbers=None, probability=0.15, kind="whole_word", vocabulary=VOCABULARY):
    numbers = np.arange(len(rows[0])) if numbers is None else numbers
    random = sample_random(KEY, numbers, rows[0].shape[1])
    return mask_rows(*rows, random=random, probability=probability, kind=kind, vocabulary=vocabulary)


def choose_by_loop(input_ids, continuation, random, probability):
    """The rule of the design for one row: the set of positions, by the obvious loop over words in random order."""
    maskable = [i for i, token in enumerate(input_ids) if token not in SPECIAL]
    groups = []
    for i in range(len(input_ids)):
        if i == 0 or not continuation[i]:
            groups.append([])
        groups[-1].append(i)
    words = []
    for group in groups:
        tokens = [i for i in group if i in maskable]
        if len(tokens) > MAX_WORD_TOKENS:
            words += [(random[i], [i]) for i in tokens]
        elif tokens:
            words.append((random[group[0]], tokens))
    words.sort(key=lambda word: word[0])
    budget = max(1, round(probability * len(maskable)))
    chosen = []
    for _, tokens in words:
        if len(chosen) + len(tokens) <= budget:
            chosen += tokens
    if not chosen and words:
        chosen = min((tokens for _, tokens in words), key=len)
    return sorted(chosen)


row_strategy = st.lists(st.lists(st.integers(0, 20), max_size=12), min_size=1, max_size=5)


@given(words=row_strategy, probability=st.sampled_from([0.02, 0.15, 0.4, 1.0]), first=st.integers(0, 10**12))
@settings(max_examples=200, deadline=None)
def test_chosen_positions_are_those_of_the_plain_loop(words, probability, first):
    row_length = max(map(sum, words)) + max(map(len, words)) + 3
    rows = make_rows(words, row_length)
    numbers = np.arange(first, first + len(words))
    random = sample_random(KEY, numbers, row_length)
    masked_ids, positions, labels = mask(rows, numbers=numbers, probability=probability)
    expected = [
        choose_by_loop(ids, flags, bits, probability) for ids, flags, bits in zip(*rows[:2], random, strict=True)
    ]
    assert [(positions[positions // row_length == r] % row_length).tolist() for r in range(len(words))] == expected
    assert np.array_equal(labels, rows[0].ravel()[positions])
    untouched = np.setdiff1d(np.arange(rows[0].size), positions)
    assert np.array_equal(masked_ids.ravel()[untouched], rows[0].ravel()[untouched])


def test_full_rows_get_exactly_the_same_count():
    rows = make_random_rows(64, 512)
    rows = (np.where(rows[0] < 5, 20, rows[0]), rows[1], np.full(64, 512))
    rows[0][:, 0], rows[0][:, -1], rows[1][:, 1] = CLS, SEP, False
    _, positions, _ = mask(rows)
    assert np.bincount(positions // 512).tolist() == [round(0.15 * 510)] * 64


def test_whole_words_are_taken_or_left():
    input_ids, continuation, length = make_random_rows(64, 128)
    _, positions, _ = mask((input_ids, continuation, length))
    chosen = np.zeros(input_ids.size, dtype=bool)
    chosen[positions] = True
    inside = continuation.ravel()[1:]
    assert np.array_equal(chosen[1:][inside], chosen[:-1][inside])


def test_token_masking_splits_words():
    input_ids, continuation, length = make_random_rows(64, 128)
    _, positions, _ = mask((input_ids, continuation, length), kind="token")
    chosen = np.zeros(input_ids.size, dtype=bool)
    chosen[positions] = True
    inside = continuation.ravel()[1:]
    assert (chosen[1:][inside] != chosen[:-1][inside]).mean() > 0.15


def test_words_of_every_size_are_chosen_about_equally_often():
    """Skipping what no longer fits must not starve long words: in rows with room the rate is p for every size."""
    rows = make_random_rows(400, 512)
    _, positions, _ = mask(rows)
    starts = np.flatnonzero(~rows[1] & (rows[0] >= 10))
    sizes = np.diff(np.flatnonzero(~rows[1]), append=rows[1].size)[np.searchsorted(np.flatnonzero(~rows[1]), starts)]
    taken = np.isin(starts, positions)
    for size in (1, 2, 3, 4):
        assert taken[sizes == size].mean() == pytest.approx(0.15, abs=0.01)


def test_every_place_of_a_row_is_chosen_equally_often():
    rows = make_rows([[1] * 50] * 4000, 52)
    _, positions, _ = mask(rows)
    counts = np.bincount(positions % 52, minlength=52)[1:51]
    expected = len(positions) / 50
    assert ((counts - expected) ** 2 / expected).sum() < 50 * 0.85 + 5 * np.sqrt(2 * 50)


@pytest.mark.parametrize("kind, tolerance", [("whole_word", 0.006), ("token", 0.006), ("span", 0.012)])
def test_eighty_ten_ten_over_100000_tokens(kind, tolerance):
    """Four standard deviations; those of spans are twice as large, since the tokens of a span share their fate."""
    rows = make_random_rows(1600, 512)
    masked_ids, positions, labels = mask(rows, kind=kind)
    assert len(labels) > 100_000
    maskable = (rows[0] >= 10).sum()
    assert len(labels) / maskable == pytest.approx(0.15, abs=0.001)
    now = masked_ids.ravel()[positions]
    # A random token is the old one in 1 of 990 cases.
    assert (now == MASK).mean() == pytest.approx(0.8, abs=tolerance)
    assert ((now != MASK) & (now != labels)).mean() == pytest.approx(0.1, abs=tolerance)
    assert (now == labels).mean() == pytest.approx(0.1, abs=tolerance)


def test_random_tokens_are_ordinary_and_uniform():
    vocabulary = MaskVocabulary(mask_id=MASK, ordinary_ids=np.arange(10, 20), special_ids=SPECIAL, vocab_size=1000)
    rows = make_rows([[1] * 510] * 300, 512)
    rows[0][rows[0] >= 10] = 500
    masked_ids, positions, labels = mask(rows, probability=0.5, vocabulary=vocabulary)
    now = masked_ids.ravel()[positions]
    counts = np.bincount(now[(now != MASK) & (now != labels)], minlength=20)
    assert counts[:10].sum() == 0 and len(counts) == 20
    assert counts[10:] / counts.sum() == pytest.approx(np.full(10, 0.1), abs=0.012)


def test_special_tokens_are_never_masked_nor_put_in():
    rows = make_rows([[0, 3, 0, 1, 2]] * 200, 20)
    rows[0][:, 4] = SEP  # also one inside a word
    masked_ids, positions, labels = mask(rows, probability=0.9)
    assert not np.isin(labels, SPECIAL).any()
    assert set(np.unique(masked_ids[masked_ids < 10])) <= set(SPECIAL.tolist())
    assert np.array_equal(masked_ids[rows[0] < 5], rows[0][rows[0] < 5])


def test_tokens_beyond_the_length_are_never_masked():
    input_ids, continuation, _ = make_random_rows(50, 64)
    _, positions, _ = mask((input_ids, continuation, np.full(50, 20)), probability=0.9)
    assert (positions % 64).max() < 20


def test_a_row_of_special_tokens_only_is_left_alone():
    rows = make_rows([[], [0, 0], [1, 1, 1, 1]], 8)
    masked_ids, positions, _ = mask(rows)
    assert (positions // 8).tolist() == [2]
    assert np.array_equal(masked_ids[:2], rows[0][:2])


def test_the_shortest_word_is_taken_when_none_fits():
    rows = make_rows([[4, 2, 3]] * 20, 12)
    _, positions, _ = mask(rows, probability=0.1)
    assert (positions.reshape(20, 2) % 12).tolist() == [[5, 6]] * 20


def test_fewer_tokens_are_masked_when_only_longer_words_are_left():
    rows = make_rows([[4, 4, 4]] * 20, 14)
    _, positions, _ = mask(rows, probability=0.5)
    assert np.bincount(positions // 14).tolist() == [4] * 20


def test_long_words_are_masked_token_by_token():
    rows = make_rows([[MAX_WORD_TOKENS + 1]] * 50, 20)
    _, positions, _ = mask(rows, probability=0.3)
    assert np.bincount(positions // 20).tolist() == [round(0.3 * 17)] * 50
    whole = make_rows([[MAX_WORD_TOKENS]] * 50, 20)  # 15 of 16 asked
    _, positions, _ = mask(whole, probability=0.95)
    assert np.bincount(positions // 20).tolist() == [16] * 50


def test_a_row_is_masked_alike_in_any_batch():
    rows = make_random_rows(33, 96)
    masked_ids, positions, _ = mask(rows)
    for i in range(33):
        alone_ids, alone_positions, _ = mask(tuple(part[i : i + 1] for part in rows), numbers=np.array([i]))
        assert np.array_equal(alone_ids[0], masked_ids[i])
        assert np.array_equal(alone_positions, positions[positions // 96 == i] % 96)


def test_another_sample_number_gives_other_masks():
    rows = make_random_rows(1, 512)
    first, second = (set(mask(rows, numbers=np.array([n]))[1].tolist()) for n in (0, 1))
    assert len(first & second) < 30


def test_inputs_are_left_as_they_were():
    rows = make_random_rows(4, 64)
    before = [part.copy() for part in rows]
    mask(rows)
    assert all(np.array_equal(a, b) for a, b in zip(rows, before, strict=True))


def test_vocabulary_of_a_tokenizer(tmp_path):
    tokens = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "天", "##气", "[unused99]", "unused1"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    vocabulary = MaskVocabulary.from_tokenizer(BertTokenizer.from_pretrained(str(tmp_path)))
    assert vocabulary.mask_id == 5
    assert vocabulary.special_ids.tolist() == [0, 2, 3, 4, 5]
    assert vocabulary.ordinary_ids.tolist() == [6, 7, 9]
    assert vocabulary.is_special.tolist() == [True, False, True, True, True, True, False, False, False, False]

"""Sample numbers: the order is a bijection, differs by epoch, seed and stage, and its random bits look random."""

import numpy as np
import pytest
from scipy.stats import chisquare

from distill.corpus.order import locate_samples, permuted_row, sample_key, sample_random

KEY = sample_key(7, "stage", "from-roberta")


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 63, 64, 65, 100, 1000, 4096, 4097, 100_003])
@pytest.mark.parametrize("epoch", [0, 1, 123_456])
def test_order_is_a_bijection(rows, epoch):
    order = permuted_row(np.arange(rows), rows=rows, key=KEY, epochs=epoch)
    assert np.array_equal(np.sort(order), np.arange(rows))


def test_order_needs_no_array_of_all_rows():
    rows = 3 * 10**12
    order = permuted_row(np.arange(1000), rows=rows, key=KEY)
    assert len(set(order.tolist())) == 1000 and 0 <= order.min() and order.max() < rows
    assert order.max() > rows // 2


def test_order_differs_by_epoch_seed_and_stage():
    orders = [
        permuted_row(np.arange(100), rows=100, key=sample_key(seed, stage), epochs=epoch)
        for seed, stage, epoch in [(0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0)]
    ]
    for i, order in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(order == other) < 0.1


@pytest.mark.parametrize("parts", [(1, "a"), (0, "b"), (0, "a", ""), (0, "", "a"), (0,)])
def test_every_part_changes_the_key(parts):
    assert sample_key(*parts) != sample_key(0, "a")


def test_key_and_bits_never_change():
    """A finished run must stay repeatable with a later version: these numbers are part of the format."""
    assert sample_key(0, "stage", "x") == 10435432695211440869
    assert sample_random(1, np.array([5]), 2).tolist() == [[14158279874372184248, 10239796771996217815]]
    assert permuted_row(np.arange(5), rows=5, key=1).tolist() == [2, 1, 3, 0, 4]


@pytest.mark.parametrize("rows", [2, 5, 6, 8, 12, 100])
def test_every_row_comes_equally_often_at_each_place_of_an_epoch(rows):
    """And so does every pair of neighbours: with fewer rounds or a smaller domain this fails."""
    epochs = 20_000
    order = permuted_row(np.tile([0, 1], epochs), rows=rows, key=KEY, epochs=np.repeat(np.arange(epochs), 2))
    first, second = order.reshape(epochs, 2).T
    assert chisquare(np.bincount(first, minlength=rows)).pvalue > 1e-4
    pairs = np.bincount(first * rows + second, minlength=rows * rows).reshape(rows, rows)
    assert np.trace(pairs) == 0
    if rows <= 12:
        assert chisquare(pairs[~np.eye(rows, dtype=bool)]).pvalue > 1e-4


def test_samples_run_through_one_epoch_after_the_other():
    epochs, rows = locate_samples(np.arange(25), rows=10, key=KEY)
    assert epochs.tolist() == [0] * 10 + [1] * 10 + [2] * 5
    assert sorted(rows[:10]) == sorted(rows[10:20]) == list(range(10))
    assert rows[:10].tolist() != rows[10:20].tolist()


def test_a_sample_does_not_depend_on_the_others_asked_with_it():
    epochs, rows = locate_samples(np.arange(100), rows=37, key=KEY)
    alone = [locate_samples(np.array([n]), rows=37, key=KEY) for n in range(100)]
    assert [int(r[0]) for _, r in alone] == rows.tolist()
    assert np.array_equal(sample_random(KEY, np.array([64]), 8)[0], sample_random(KEY, np.arange(100), 8)[64])


def test_random_bits_are_uniform_and_uncorrelated():
    bits = sample_random(KEY, np.arange(2000), 64)
    ones = np.unpackbits(bits.view(np.uint8)).reshape(-1, 64).sum(axis=0)
    assert chisquare(np.stack([ones, bits.size - ones]), axis=0).pvalue.min() > 1e-5
    values = bits.astype(np.float64) / 2**64
    assert chisquare(np.histogram(values, bins=256, range=(0, 1))[0]).pvalue > 1e-4
    # Neighbours in the stream and the same place of neighbouring samples.
    for a, b in [(values[:, :-1], values[:, 1:]), (values[:-1], values[1:])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)
    assert len(np.unique(bits)) == bits.size

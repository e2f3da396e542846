"""Span masking as in SpanBERT and UER: runs of tokens, whose lengths are geometric, without regard to words.

1. Every maskable token is the start of a span, whose length is drawn; a span ends early before a special token.
2. Spans in random order cover tokens until the row's budget is used up; the last one is cut where it is.
3. All tokens of a span share one draw of what stands there instead ([MASK], random tokens, or themselves).

Vectorised: a token's number is the smallest of the spans that reach it, and the tokens of smallest number are taken.
As in the originals, spans reach to the right only, so a row's first few tokens are chosen less often.
B sequences, L tokens, N masked tokens.
"""

import numpy as np
from numpy.typing import NDArray

from distill.corpus.order import mix_bits

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
UInts = NDArray[np.uint64]

# https://arxiv.org/abs/1907.10529, section 3.1; UER's defaults, too. The mean length is 3.8.
GEOMETRIC_P, MAX_SPAN_TOKENS = 0.2, 10
_CUMULATIVE = np.cumsum(GEOMETRIC_P * (1 - GEOMETRIC_P) ** np.arange(MAX_SPAN_TOKENS))
# Length by 16 random bits: four times as fast as searchsorted on the bits themselves.
_LENGTHS = (1 + np.searchsorted(_CUMULATIVE / _CUMULATIVE[-1], np.arange(2**16) / 2**16, side="right")).astype(
    np.uint64
)
_SHIFT_4, _SHIFT_32, _SHIFT_36, _SHIFT_48 = (np.uint64(bits) for bits in (4, 32, 36, 48))
_LENGTH = np.uint64(0x6C656E677469)
_NO_SPAN, _LENGTH_MASK = np.uint32(2**32 - 1), np.uint32(15)


def choose_spans(maskable_BL: Bools, random: UInts, budgets: Ints) -> tuple[Ints, UInts]:
    """Flat positions [N], ascending, of the tokens to mask, and random bits [N] that are the same all over a span.

    Args:
        random: [B, L] random bits.
        budgets: [B] tokens to take, no more than the row has maskable ones (a row without any gets none).
    """
    row_length = random.shape[1]
    # A span's number: 28 random bits, then its length - 1, in 32 bits since the loop below is all the time this takes.
    numbers = ((random >> _SHIFT_36 << _SHIFT_4) | (draw_lengths(random) - np.uint64(1))).astype(np.uint32)
    numbers[~maskable_BL] = _NO_SPAN
    smallest, carried = numbers.copy(), numbers
    for distance in range(1, min(MAX_SPAN_TOKENS, row_length)):
        reaches = (carried[:, :-1] & _LENGTH_MASK) >= np.uint32(distance)
        reaches &= maskable_BL[:, distance:]
        carried = np.where(reaches, carried[:, :-1], _NO_SPAN)
        np.minimum(smallest[:, distance:], carried, out=smallest[:, distance:])
    spans = smallest.astype(np.uint64)
    order = (spans << _SHIFT_32) | np.arange(row_length, dtype=np.uint64)
    last = np.sort(order, axis=1)[np.arange(len(order)), np.minimum(budgets, row_length) - 1]
    positions = np.flatnonzero((order <= last[:, None]) & maskable_BL)
    return positions, mix_bits(spans.reshape(-1)[positions] * _LENGTH)


def draw_lengths(random: UInts) -> UInts:
    """A length for each number, 1 to MAX_SPAN_TOKENS, P(n) proportional to p (1 - p)^(n - 1)."""
    return _LENGTHS[mix_bits(random ^ _LENGTH) >> _SHIFT_48]

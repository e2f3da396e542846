"""Sample number -> epoch, row and random bits: pure functions, so that a run can be stopped and continued anywhere.

Sample n of a stage is decided by (seed, stage, n) alone: epoch = n // rows, row = a keyed bijection of n % rows that
differs by epoch, mask = counter-based random bits of n. No state, and no array of all rows.
What the bits are used for is in masking.py; how samples become batches in batches.py.
"""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

# Constants of SplitMix64 (Steele, Lea, Flood 2014), a counter-based generator that passes BigCrush.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_27, _SHIFT_30, _SHIFT_31, _SHIFT_32 = (np.uint64(bits) for bits in (27, 30, 31, 32))
# Separates the uses of one key, so that the order and the masks share no random bits.
_ORDER, _BITS = np.uint64(0x6F72646572), np.uint64(0x62697473)
# With fewer rounds (4), or on 8 places instead of at least 64, pairs of neighbours fail the chi-square test of
# tests/test_order.py for corpora of 5 to 12 rows.
_ROUND_KEYS = np.arange(1, 9, dtype=np.uint64) * _GAMMA
_MIN_BITS = 6

UInts = NDArray[np.uint64]
Ints = NDArray[np.int64]


def sample_key(seed: int, *parts: str) -> int:
    """64-bit key of a seed and names, such as `sample_key(seed, "stage", stage)`; every part and their order count."""
    text = json.dumps([seed, *parts], ensure_ascii=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def mix_bits(values: UInts) -> UInts:
    """SplitMix64's finaliser: a bijection on 64-bit numbers whose output bits each depend on all input bits."""
    mixed = values ^ (values >> _SHIFT_30)
    mixed *= _MIX_1
    mixed ^= mixed >> _SHIFT_27
    mixed *= _MIX_2
    mixed ^= mixed >> _SHIFT_31
    return mixed


def permuted_row(positions: Ints, *, rows: int, key: int, epochs: Ints | int = 0) -> Ints:
    """Row at each position of its epoch's order: for a fixed key and epoch a bijection on [0, rows).

    An unbalanced Feistel network on the next power of two; results outside are sent through it again (cycle walking).

    Args:
        positions: [B], each in [0, rows).
        epochs: [B] or one number; another epoch is another order.
    """
    if rows == 1:
        return np.zeros(len(positions), dtype=np.int64)
    epoch_bits = np.broadcast_to(np.asarray(epochs, dtype=np.uint64), np.shape(positions))
    epoch_keys = mix_bits(mix_bits(epoch_bits * _GAMMA + _ORDER) ^ np.uint64(key))
    walked = _feistel(positions.astype(np.uint64), epoch_keys, rows)
    outside = np.flatnonzero(walked >= rows)
    while outside.size:
        walked[outside] = _feistel(walked[outside], epoch_keys[outside], rows)
        outside = outside[walked[outside] >= rows]
    return walked.astype(np.int64)


def _feistel(values: UInts, keys: UInts, rows: int) -> UInts:
    """Keyed bijection on the smallest power of two >= rows, at least 2**_MIN_BITS."""
    bits = max((rows - 1).bit_length(), _MIN_BITS)
    low_bits = np.uint64(bits - bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(bits // 2)) - np.uint64(1)
    low, high = values & low_mask, values >> low_bits
    for round_number, round_key in enumerate(_ROUND_KEYS):
        round_keys = keys + round_key
        if round_number % 2:
            high ^= (mix_bits(low ^ round_keys) >> _SHIFT_32) & high_mask
        else:
            low ^= (mix_bits(high ^ round_keys) >> _SHIFT_32) & low_mask
    return (high << low_bits) | low


def locate_samples(numbers: Ints, *, rows: int, key: int) -> tuple[Ints, Ints]:
    """Epoch and row of each sample number, both [B]."""
    epochs, positions = np.divmod(np.asarray(numbers, dtype=np.int64), rows)
    return epochs, permuted_row(positions, rows=rows, key=key, epochs=epochs)


def sample_random(key: int, numbers: Ints, count: int) -> UInts:
    """[B, count] random 64-bit numbers; those of row b depend on (key, numbers[b]) alone, and a longer row goes on."""
    starts = mix_bits(mix_bits(np.asarray(numbers, dtype=np.uint64) * _GAMMA + _BITS) ^ np.uint64(key))
    counters = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
    return mix_bits(starts[:, None] + counters)

"""Masking of packed rows by words, tokens or spans, vectorised over the batch: no Python loop over tokens or words.

1. Maskable tokens are all but the special ones; a word is a maskable token and those that continue it, or a token.
2. Each word gets a random priority; the words of a row are sorted by it.
3. Greedy: take words while they fit the row's budget (prefix sums), skip one that does not, go on. What is left is
   less than the skipped word by then, so a few rounds of one word a row settle every row.
4. Of the chosen tokens 80 % become [MASK], 10 % a random ordinary token, 10 % stay.

Spans are chosen in spans.py. Where the random bits come from is in order.py. B sequences, L tokens, N masked tokens in
the suffixes and shapes.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distill.corpus.order import mix_bits
from distill.corpus.spans import choose_spans

if TYPE_CHECKING:
    from transformers import BertTokenizer

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
UInts = NDArray[np.uint64]

# Longer "words" are URLs, formulas, unsegmented runs: guessed whole they teach little and eat a short row's budget.
MAX_WORD_TOKENS = 16
_MASKED, _MASKED_OR_RANDOM = np.uint64(int(0.8 * 2**32)), np.uint64(int(0.9 * 2**32))
_FATE = np.uint64(0x66617465)
_LOW_32, _SHIFT_32 = np.uint64(2**32 - 1), np.uint64(32)
# A sort key ends in the word's size: MAX_WORD_TOKENS fits 5 bits. Places without a word sort last and have size 0.
_SIZE_BITS, _SIZE_MASK = np.uint64(5), np.uint64(31)
_NO_WORD = np.uint64(2**64 - 32)


@dataclass(frozen=True, eq=False)
class MaskVocabulary:
    """What masking must know of a vocabulary.

    `special_ids` ([PAD] [UNK] [CLS] [SEP] [MASK] and further special tokens) are never masked and never put in; [UNK]
    is among them as in MiniRBT (transformers' get_special_tokens_mask): a model that learned to say it is of no use.
    `ordinary_ids` are all others but [unusedN], ascending.
    """

    mask_id: int
    ordinary_ids: Ints
    special_ids: Ints
    vocab_size: int

    @classmethod
    def from_tokenizer(cls, tokenizer: "BertTokenizer") -> "MaskVocabulary":
        """Vocabulary of a loaded tokenizer; tokens that it marks as special are special, whatever their names."""
        vocab: dict[str, int] = tokenizer.get_vocab()
        special = set(tokenizer.all_special_ids)
        special.update(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        ordinary = sorted(i for t, i in vocab.items() if i not in special and not re.fullmatch(r"\[unused\d+\]", t))
        return cls(
            mask_id=tokenizer.mask_token_id,
            ordinary_ids=np.array(ordinary, dtype=np.int64),
            special_ids=np.array(sorted(special), dtype=np.int64),
            vocab_size=max(vocab.values()) + 1,
        )

    @cached_property
    def is_special(self) -> Bools:
        """[vocab_size] table, True at special ids."""
        table = np.zeros(self.vocab_size, dtype=bool)
        table[self.special_ids] = True
        return table


def mask_rows(
    input_ids: Ints,
    continuation: Bools,
    length: Ints,
    *,
    random: UInts,
    probability: float,
    kind: str,
    vocabulary: MaskVocabulary,
) -> tuple[Ints, Ints, Ints]:
    """Masked copy of the rows, the masked positions, and the tokens that were there.

    In each row max(1, round(probability * maskable tokens)) tokens are chosen (Python's round; a row without maskable
    tokens gets none): words in random order, skipping what no longer fits. If only longer words are left for the
    remaining budget, fewer tokens are chosen; if nothing fits at all, the shortest word is, so that a row may get more.
    Words of more than MAX_WORD_TOKENS maskable tokens are masked token by token. Tokens and spans take exactly what
    was asked. A row's result depends on that row and its bits alone.

    Args:
        input_ids: [B, L].
        continuation: [B, L], True where a token continues the word of the token before it.
        length: [B], tokens of each row before its padding.
        random: [B, L] random bits, see order.sample_random.
        kind: "whole_word", "token" (every token is a word) or "span" (see spans.py; `continuation` is not looked at).
    Returns: masked input_ids [B, L]; masked_positions [N], ascending indices into the flattened B*L; labels [N].
    """
    maskable_BL = ~vocabulary.is_special[input_ids]
    if (length < input_ids.shape[1]).any():
        maskable_BL &= np.arange(input_ids.shape[1]) < length[:, None]
    budgets = np.rint(maskable_BL.sum(axis=1) * probability).astype(np.int64)
    np.maximum(budgets, 1, out=budgets)

    if kind == "span":
        masked_positions, fates = choose_spans(maskable_BL, random, budgets)
        places = mix_bits(random.reshape(-1)[masked_positions] ^ _FATE)
    else:
        masked_positions = _choose_words(maskable_BL, continuation if kind == "whole_word" else None, random, budgets)
        fates = places = mix_bits(random.reshape(-1)[masked_positions] ^ _FATE)
    labels = input_ids.reshape(-1)[masked_positions]
    masked_input_ids = input_ids.copy()
    masked_input_ids.reshape(-1)[masked_positions] = _draw_replacements(labels, fates, places, vocabulary)
    return masked_input_ids, masked_positions, labels


def _find_words(maskable_BL: Bools, continuation: Bools | None) -> tuple[Ints, Ints]:
    """Flat start index and number of maskable tokens of each word; words tile the batch, and special tokens count 0."""
    if continuation is None:
        return np.arange(maskable_BL.size), maskable_BL.reshape(-1).astype(np.int64)
    is_start_BL = ~continuation
    is_start_BL[:, 0] = True  # a word never reaches into the next row
    is_start = is_start_BL.reshape(-1)
    starts, sizes = _measure_words(is_start, maskable_BL)
    long = sizes > MAX_WORD_TOKENS
    if not long.any():
        return starts, sizes
    is_start |= np.repeat(long, np.diff(starts, append=is_start.size))
    return _measure_words(is_start, maskable_BL)


def _measure_words(is_start: Bools, maskable_BL: Bools) -> tuple[Ints, Ints]:
    starts = np.flatnonzero(is_start)
    # Differences of running sums: a third of the time of np.add.reduceat.
    sums = np.zeros(maskable_BL.size + 1, dtype=np.int64)
    np.cumsum(maskable_BL.reshape(-1), out=sums[1:])
    sums = sums[starts]
    return starts, np.diff(sums, append=np.count_nonzero(maskable_BL))


def _choose_words(maskable_BL: Bools, continuation: Bools | None, random: UInts, budgets: Ints) -> Ints:
    """Flat positions [N], ascending, of the tokens to mask: steps 2 and 3 of the module, for all rows at once."""
    starts, sizes = _find_words(maskable_BL, continuation)
    num_rows, row_length = random.shape
    firsts = np.searchsorted(starts, np.arange(num_rows + 1) * row_length)  # every row begins with a word
    num_words = np.diff(firsts)
    columns = np.arange(num_words.max())
    low_bits = np.uint64(row_length.bit_length()) + _SIZE_BITS
    # A key a word: random bits, then its number in the row, then its size, so that one plain sort orders all three.
    numbers = (random.reshape(-1)[starts] >> low_bits << low_bits) | sizes.astype(np.uint64)
    numbers[sizes == 0] = _NO_WORD
    keys_BW = np.full((num_rows, len(columns)), _NO_WORD)
    keys_BW[columns < num_words[:, None]] = numbers
    keys_BW |= columns.astype(np.uint64) << _SIZE_BITS
    keys_BW.sort(axis=1)
    taken = np.flatnonzero(_take_words((keys_BW & _SIZE_MASK).astype(np.uint8), budgets))

    column_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    chosen_columns = ((keys_BW.reshape(-1)[taken] & column_mask) >> _SIZE_BITS).astype(np.int64)
    is_chosen = np.zeros(len(starts), dtype=bool)
    is_chosen[firsts[taken // len(columns)] + chosen_columns] = True
    chosen = np.flatnonzero(is_chosen)
    ends = np.append(starts[1:], maskable_BL.size)[chosen]
    spans = ends - starts[chosen]
    positions = np.arange(spans.sum()) + np.repeat(ends - np.cumsum(spans), spans)
    return positions[maskable_BL.reshape(-1)[positions]]


def _take_words(sizes_BW: NDArray[np.uint8], budgets: Ints) -> Bools:
    """Every word that still fits its row's budget when its turn comes, the shortest if none does.

    Args:
        sizes_BW: in each row's order; 0 = no word, all of these at the end.
    """
    window = min(sizes_BW.shape[1], int(budgets.max()))  # no more words than this can fit
    sums = np.cumsum(sizes_BW[:, :window], axis=1, dtype=np.int64)
    fits = sums <= budgets[:, None]
    taken = np.zeros(sizes_BW.shape, dtype=bool)
    taken[:, :window] = fits & (sizes_BW[:, :window] > 0)
    num_seen = fits.sum(axis=1)
    left = budgets - np.where(fits, sums, 0).max(axis=1)
    rows = np.flatnonzero(left)
    columns = np.arange(sizes_BW.shape[1])
    while rows.size:  # the next word of each row that fits
        sizes = sizes_BW[rows]
        fits = (sizes <= left[rows, None]) & (sizes > 0) & (columns >= num_seen[rows, None])
        first = fits.argmax(axis=1)
        found = fits[np.arange(len(rows)), first]
        rows, first = rows[found], first[found]
        taken[rows, first] = True
        num_seen[rows] = first + 1
        left[rows] -= sizes_BW[rows, first]
        rows = rows[left[rows] > 0]
    empty = np.flatnonzero((left == budgets) & (sizes_BW > 0).any(axis=1))
    if empty.size:
        shortest = np.where(sizes_BW[empty] > 0, sizes_BW[empty], np.iinfo(np.uint8).max).argmin(axis=1)
        taken[empty, shortest] = True
    return taken


def _draw_replacements(labels: Ints, fates: UInts, places: UInts, vocabulary: MaskVocabulary) -> Ints:
    """What stands at each chosen position: 80 % [MASK], 10 % a random ordinary token, 10 % the token that was there.

    The upper half of `fates` decides which of them, the lower half of `places` which random token.
    """
    fate = fates >> _SHIFT_32
    places = ((places & _LOW_32) * np.uint64(len(vocabulary.ordinary_ids))) >> _SHIFT_32
    replaced = np.where(fate < _MASKED_OR_RANDOM, vocabulary.ordinary_ids[places], labels)
    replaced[fate < _MASKED] = vocabulary.mask_id
    return replaced

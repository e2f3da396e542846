"""Laying words over tokens: the ids of a line's tokens, and which of them continue a word.

Both are laid over the characters of the line: a token continues a word if the token before it is in the same word, or
if it is a "##" piece. There is no search for word strings, so equal words at other places do not matter.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from distill.corpus.characters import is_kept
from distill.corpus.lookup import character_table, look_up_tokens, spread_encodings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PIECE_CHARS = 20_000
BATCH_CHARS = 200_000  # bounds the memory of the tokenizer's results, about 0.5 KB a token
# Before a space or a Han character, which the tokenizer makes a token of its own: nothing around changes what it gives.
_TOKEN_BORDER = re.compile("[ \t\u3000\u4e00-\u9fff]")


def align(
    lines: Sequence[str], words: Sequence[Sequence[str]], tokenizer: "Tokenizer"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of all lines in one: input_ids [T] (int32, no special tokens), whether each continues a word [T]
    (bool), and num_tokens [lines].

    Args:
        words: of each line, as a Segmenter gives them.
    """
    backend = without_limits(tokenizer)
    input_ids, starts, num_tokens = tokenize_lines(lines, backend)
    word_of_token = _word_of_character(lines, words)[starts]
    # Not "starts inside a word": a word's first character may be one that the tokenizer strips, such as an accent.
    continuation = is_piece(backend, backend.get_vocab_size())[input_ids]
    continuation[1:] |= (word_of_token[1:] == word_of_token[:-1]) & (word_of_token[1:] >= 0)
    return input_ids, continuation, num_tokens


def tokenize_lines(
    lines: Sequence[str], backend: "Tokenizer", *, use_table: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """input_ids [T], starts [T] (character in the joined lines), num_tokens [lines]; see lookup.py for the table."""
    table = character_table(backend, backend.get_vocab_size()) if use_table else None
    if table is None:
        return _tokenize_by_line(lines, backend)
    # A newline between lines, so that no token reaches over a line's end; it is no token itself.
    input_ids, starts = look_up_tokens("\n".join(lines), backend, table)
    line_ends = np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)) + 1)
    token_ends = np.searchsorted(starts, line_ends)
    num_tokens = np.diff(token_ends, prepend=0)
    return input_ids, starts - np.repeat(np.arange(len(lines)), num_tokens), num_tokens


def _tokenize_by_line(lines: Sequence[str], backend: "Tokenizer") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pieces, line_of_piece = [], []
    for number, line in enumerate(lines):
        for piece in _tokenizer_pieces(line):
            pieces.append(piece)
            line_of_piece.append(number)
    piece_chars = np.fromiter(map(len, pieces), np.int64, len(pieces))
    piece_starts = np.cumsum(piece_chars) - piece_chars
    piece_tokens = np.zeros(len(pieces), dtype=np.int64)
    ids, starts = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
    for batch in _batches(piece_chars):
        batch_ids, batch_starts, counts = spread_encodings(
            backend.encode_batch(pieces[batch], add_special_tokens=False)
        )
        piece_tokens[batch] = counts
        ids.append(batch_ids)
        starts.append(batch_starts + np.repeat(piece_starts[batch], counts))
    num_tokens = np.bincount(line_of_piece, weights=piece_tokens, minlength=len(lines)).astype(np.int64)
    return np.concatenate(ids), np.concatenate(starts), num_tokens


def _tokenizer_pieces(line: str) -> Iterator[str]:
    """The line, cut where BERT's tokenizer parts tokens anyway; whole, a long one takes 1 GB a million characters."""
    start = 0
    while len(line) - start > PIECE_CHARS:
        border = _TOKEN_BORDER.search(line, start + PIECE_CHARS)
        if border is None:
            break
        yield line[start : border.start()]
        start = border.start()
    yield line[start:]


def _batches(piece_chars: np.ndarray) -> Iterator[slice]:
    """Slices of the pieces with about BATCH_CHARS characters each."""
    batch_of_piece = (np.cumsum(piece_chars) - piece_chars) // BATCH_CHARS
    borders = [0, *(np.flatnonzero(np.diff(batch_of_piece)) + 1).tolist(), len(piece_chars)]
    return (slice(start, end) for start, end in zip(borders, borders[1:], strict=False) if start < end)


def _word_of_character(lines: Sequence[str], words: Sequence[Sequence[str]]) -> np.ndarray:
    """The number of the word that each character of the joined lines is in, -1 for white space and the like. [C]"""
    kept = is_kept(lines)
    word_chars = np.fromiter(map(len, chain.from_iterable(words)), np.int64)
    if int(word_chars.sum()) != int(kept.sum()) or len(words) != len(lines):
        raise ValueError(_misfit(lines, words))
    word_of_character = np.full(len(kept), -1, dtype=np.int64)
    word_of_character[kept] = np.repeat(np.arange(len(word_chars)), word_chars)
    return word_of_character


def _misfit(lines: Sequence[str], words: Sequence[Sequence[str]]) -> str:
    for line, line_words in zip(lines, words, strict=False):
        if sum(map(len, line_words)) != int(is_kept([line]).sum()):
            return f"words {list(line_words)[:20]} do not make up the line {line[:80]!r}"
    return f"{len(words)} word lists for {len(lines)} lines"


def without_limits(backend: "Tokenizer") -> "Tokenizer":
    """The tokenizer, or a copy of it that neither truncates nor pads."""
    return _copy_without_limits(backend) if backend.truncation or backend.padding else backend


@lru_cache(maxsize=4)
def _copy_without_limits(backend: "Tokenizer") -> "Tokenizer":
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


@lru_cache(maxsize=4)
def is_piece(backend: "Tokenizer", vocab_size: int) -> np.ndarray:
    """Which ids are "##" pieces, which continue a word whatever the segmenter says. [V], bool."""
    vocab = backend.get_vocab(with_added_tokens=True)
    pieces = np.zeros(max(vocab.values(), default=0) + 1, dtype=bool)
    pieces[[number for token, number in vocab.items() if token.startswith("##") and len(token) > 2]] = True
    return pieces

"""Token ids of Han characters and Chinese punctuation from a table, of everything else from the tokenizer.

BERT's pre-tokeniser puts each of these characters alone, whatever stands around it, so that its token depends on the
character only. What is left of a text, a tenth of it in Chinese, goes to the Rust tokenizer in one piece with a space
for every stretch that was looked up. The result is the tokenizer's own, on any text (tests/test_lookup.py).
"""

import json
import unicodedata
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distill.corpus.characters import code_points

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Ints = NDArray[np.int64]

# Checked with the tokenizer. Compatibility ideographs and rarer blocks are left to it.
_CANDIDATES = (
    (0x00B7, 0x00B7), (0x2010, 0x2027), (0x2030, 0x205E), (0x3001, 0x3003), (0x3008, 0x3011), (0x3014, 0x301F),
    (0x3400, 0x4DB5), (0x4E00, 0x9FEF), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF3D), (0xFF5B, 0xFF65),
)  # fmt: skip
_PIECE_CHARS = 2_000
_BATCH_PIECES = 50  # results of the tokenizer take about 0.5 KB a token
_SPACE, _NEWLINE = 0x20, 0x0A


def spread_encodings(encodings: "list[Encoding]") -> tuple[NDArray[np.int32], Ints, Ints]:
    """input_ids [T], starts [T] (character in its own text) and the number of tokens of each encoding."""
    counts = np.fromiter(map(len, encodings), np.int64, len(encodings))
    total = int(counts.sum())
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, total)
    # Pairs of start and end, in characters of the text as it was given.
    offsets = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
    return ids, np.fromiter(offsets, np.int64, 2 * total)[::2], counts


@lru_cache(maxsize=4)
def character_table(backend: "Tokenizer", vocab_size: int) -> NDArray[np.int32] | None:
    """Character -> its token id where the table decides, -1 where the tokenizer must. None: use the tokenizer alone.

    That is so for a tokenizer that is not BERT's, and for added tokens that look at more than ASCII characters, since
    they are searched in the text before anything else.
    """
    config = json.loads(backend.to_str())
    kinds = [(config[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
        return None
    for token in config["added_tokens"]:
        plain = token["content"].isascii() and not any(map(str.isspace, token["content"]))
        if not plain or token["single_word"] or token["lstrip"] or token["rstrip"]:
            return None
    characters = [chr(c) for first, last in _CANDIDATES for c in range(first, last + 1)]
    characters = _standing_alone([c for c in characters if unicodedata.category(c)[0] in "LP"], backend)
    table = np.full(0x110000, -1, dtype=np.int32)
    if characters:
        ids = backend.encode(" ".join(characters), add_special_tokens=False).ids
        if len(ids) == len(characters):
            table[list(map(ord, characters))] = ids
    return table


def _standing_alone(characters: list[str], backend: "Tokenizer") -> list[str]:
    """Those that the normaliser keeps as they are and the pre-tokeniser parts from letters on both sides."""
    assert backend.normalizer is not None and backend.pre_tokenizer is not None
    characters = [c for c in characters if unicodedata.normalize("NFD", c) == c]
    text = "".join(f"a{character}a " for character in characters)
    parts = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
    alone = {text for text, (start, end) in parts if end - start == 1 and text != "a"}
    return [character for character in characters if character in alone]


def look_up_tokens(text: str, backend: "Tokenizer", table: NDArray[np.int32]) -> tuple[NDArray[np.int32], Ints]:
    """input_ids [T] and starts [T] (character in the text) of a text, whose lines may be joined by newlines."""
    codes = code_points(text)
    direct_ids = table[codes]
    is_direct = direct_ids >= 0
    keep = ~is_direct
    keep[1:] |= is_direct[1:] & ~is_direct[:-1]  # one space for each stretch that is looked up
    kept = np.flatnonzero(keep)
    rest = np.where(is_direct[kept], np.uint32(_SPACE), codes[kept])
    rest_ids, rest_starts = _tokenize_rest(rest, backend)
    rest_starts = kept[rest_starts]
    direct = np.flatnonzero(is_direct)
    total = len(direct) + len(rest_ids)
    rest_places = np.searchsorted(direct, rest_starts) + np.arange(len(rest_ids))
    is_rest = np.zeros(total, dtype=bool)
    is_rest[rest_places] = True
    input_ids, starts = np.empty(total, dtype=np.int32), np.empty(total, dtype=np.int64)
    input_ids[is_rest], starts[is_rest] = rest_ids, rest_starts
    input_ids[~is_rest], starts[~is_rest] = direct_ids[direct], direct
    return input_ids, starts


def _tokenize_rest(codes: NDArray[np.uint32], backend: "Tokenizer") -> tuple[NDArray[np.int32], Ints]:
    """Tokens of what is left, cut into pieces at spaces and newlines, which part tokens anyway."""
    spaces = np.flatnonzero((codes == _SPACE) | (codes == _NEWLINE))
    wanted = np.searchsorted(spaces, np.arange(_PIECE_CHARS, len(codes), _PIECE_CHARS))
    borders = np.unique(np.concatenate([[0], spaces[wanted[wanted < len(spaces)]], [len(codes)]]))
    text = codes.tobytes().decode("utf-32-le", "surrogatepass")
    ids, starts = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
    for first in range(0, len(borders) - 1, _BATCH_PIECES):
        batch = borders[first : first + _BATCH_PIECES + 1].tolist()
        pieces = [text[start:end] for start, end in zip(batch, batch[1:], strict=False)]
        batch_ids, batch_starts, counts = spread_encodings(backend.encode_batch(pieces, add_special_tokens=False))
        ids.append(batch_ids)
        starts.append(batch_starts + np.repeat(batch[:-1], counts))
    return np.concatenate(ids), np.concatenate(starts)

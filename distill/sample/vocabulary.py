"""A WordPiece vocabulary for BertTokenizer that covers every character of the sample world."""

import re
import string
import unicodedata
from collections.abc import Iterable

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LATIN_WORD = re.compile(r"[a-z]+|[0-9]+")
_MIN_WORD_COUNT = 3


def build_vocabulary(prose: Iterable[str], labelled: Iterable[str]) -> list[str]:
    """Tokens in order of their ids: special ones, punctuation, letters, digits, Latin words, Han characters.

    Latin words count in `prose` only; of the task files `labelled`, which hold JSON keys too, just the characters.
    """
    counts: dict[str, int] = {}
    characters: set[str] = set()
    for text in prose:
        lowered = text.lower()
        characters.update(lowered)
        for word in _LATIN_WORD.findall(lowered):
            counts[word] = counts.get(word, 0) + 1
    characters.update(*(text.lower() for text in labelled))
    words = sorted(word for word, count in counts.items() if len(word) > 1 and count >= _MIN_WORD_COUNT)
    singles = string.ascii_lowercase + string.digits
    han = sorted(c for c in characters if _is_han(c))
    rest = sorted(c for c in characters | set(string.punctuation) if c not in singles and not _is_han(c))
    rest = [c for c in rest if not c.isspace() and unicodedata.category(c)[0] != "C"]
    return [*SPECIAL_TOKENS, *rest, *singles, *(f"##{c}" for c in singles), *words, *han]


def _is_han(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"

"""CLUE's rules that turn Google's 21,128 Chinese tokens into 8,021, from files the user has.

The rules are those of CLUEPretrainedModels' bert_dict.py. Two of its inputs have no licence that would let us ship them
and are given by the user: the map from traditional to simplified characters (bert_dict.py used a table copied from
Wikipedia) and the list of 132 tokens dropped by hand. With those two and Google's vocab.txt the original script gives
8,021 tokens: 5,689 Han characters, 1,320 Latin, 140 numbers, 106 special and placeholder tokens, 766 others.

What cannot be compared here: the vocabulary file that CLUE published is in no place we could read, so equality with it
byte for byte is not shown. With another map the Han characters differ: OpenCC's takes 1,714 for traditional where
CLUE's takes 1,632. The emoji come from Unicode's table instead of the `emoji` package; on Google's vocabulary both
name 56.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from distill.corpus.text import iter_lines
from distill.errors import InputError

# Put in behind the token at the left.
_ADDED = {'"': ("\u201c", "\u2018"), "9": tuple(map(str, (*range(10, 101), *range(2016, 2023))))}
_SPECIAL = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<S>", "<T>"}
_HAN = re.compile("[\u4e00-\u9fa5]")
_HANGUL = re.compile("[\uac00-\ud7ff\u1100-\u11ff\u15dc]")  # U+15DC is Canadian, but CLUE dropped it as Korean
# Of the half-width kana CLUE lists ten, and of zhuyin all but U+3127; what is not listed stayed.
_KANA = re.compile("[\u3040-\u30ffｲｸｼｽﾄﾉﾌﾗﾙﾝ]")
_ZHUYIN = re.compile("[\u3105-\u3126\u3128-\u312f\u31a0-\u31ba]")
# Unicode 15, emoji-data.txt, Emoji=Yes without ASCII; the plane of pictographs as a whole.
_EMOJI = re.compile(
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u23cf\u23e9-\u23f3\u23f8-\u23fa"
    "\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2604\u260e\u2611\u2614\u2615\u2618\u261d\u2620\u2622\u2623"
    "\u2626\u262a\u262e\u262f\u2638-\u263a\u2640\u2642\u2648-\u2653\u265f\u2660\u2663\u2665\u2666\u2668\u267b\u267e"
    "\u267f\u2692-\u2697\u2699\u269b\u269c\u26a0\u26a1\u26a7\u26aa\u26ab\u26b0\u26b1\u26bd\u26be\u26c4\u26c5\u26c8"
    "\u26ce\u26cf\u26d1\u26d3\u26d4\u26e9\u26ea\u26f0-\u26f5\u26f7-\u26fa\u26fd\u2702\u2705\u2708-\u270d\u270f\u2712"
    "\u2714\u2716\u271d\u2721\u2728\u2733\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763\u2764\u2795-\u2797"
    "\u27a1\u27b0\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)


def read_simplification(path: Path) -> dict[str, str]:
    """Traditional -> simplified character, from lines `traditional simplified [further ones]` split by white space.

    OpenCC's TSCharacters.txt is such a file. Of several simplified forms the first counts; lines that begin with # are
    comments.

    Raises:
        InputError: a line without two entries, or longer than one character at the left; an empty file.
    """
    pairs: dict[str, str] = {}
    for number, line in enumerate(iter_lines(path), start=1):
        entries = line.split()
        if not entries or line.startswith("#"):
            continue
        if len(entries) < 2 or len(entries[0]) != 1:
            raise InputError(
                f"{path}: line {number}: expected a traditional character and its simplified form split by white "
                f"space, found {line[:40]!r}"
            )
        pairs.setdefault(entries[0], entries[1])
    if not pairs:
        raise InputError(f"{path}: no pair of characters; lines 'traditional simplified' are needed")
    return pairs


def apply_clue_rules(
    tokens: Sequence[str], *, simplified: Mapping[str, str], dropped: Collection[str]
) -> tuple[list[str], dict[str, int]]:
    """The tokens that CLUE's rules keep or add, in order, each once, and how many were kept and dropped of each kind.

    A token that begins with ... is, rule by rule: listed in `dropped` (dropped); Han (kept if the map leaves it as it
    is and it has no '##'); Hangul, kana (dropped); a-z (kept with '##' or alone); an emoji (dropped); a digit (kept
    alone, with or without '##'); zhuyin (dropped); anything else (kept). “ ‘ go behind the token ", the numbers 10 to
    100 and 2016 to 2022 behind 9.
    """
    kept: dict[str, None] = {}
    counts: Counter[str] = Counter()
    for token in map(str.strip, tokens):
        if not token:
            continue
        kind, keep = _judge(token, simplified, dropped)
        counts[f"{kind} {'kept' if keep else 'dropped'}"] += 1
        if not keep:
            continue
        kept[token] = None
        for added in _ADDED.get(token, ()):
            counts["number kept" if added.isdigit() else "other kept"] += 1
            kept[added] = None
    return list(kept), dict(sorted(counts.items()))


def _judge(token: str, simplified: Mapping[str, str], dropped: Collection[str]) -> tuple[str, bool]:
    """Kind of a token and whether it stays; the order of the questions is CLUE's."""
    body = token.replace("##", "")
    is_piece = token.startswith("##")
    if token in dropped:
        return "listed", False
    if _HAN.match(body):
        if "".join(simplified.get(character, character) for character in body) != body:
            return "traditional", False
        return "Han", not is_piece
    for kind, pattern in (("Hangul", _HANGUL), ("kana", _KANA)):
        if pattern.match(body):
            return kind, False
    if re.match("[a-z]", body):
        return "Latin", is_piece or len(token) == 1
    if _EMOJI.match(body):
        return "emoji", False
    if re.match(r"(##)?\d", token):
        return "number", len(body) == 1
    if _ZHUYIN.match(body):
        return "zhuyin", False
    if token.startswith("[unused") or token in _SPECIAL:
        return "special", True
    return "other", True

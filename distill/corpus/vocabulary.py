"""WordPiece vocabularies: read, write, train from text, and count a tokenizer's tokens in text.

A vocabulary is a list of tokens, the place of a token its id. Models and their embedding rows are in
modeling/vocabulary.py, CLUE's rules in clue_vocabulary.py.
"""

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill.corpus.alignment import without_limits
from distill.corpus.characters import batches, windows
from distill.corpus.text import is_blank, iter_lines
from distill.corpus.tokenizing import load_tokenizer
from distill.durable import whole_folder
from distill.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BertTokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENIZER_SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
# What occurs once is mostly noise; also the trainer's own default for joining two pieces.
_MIN_COUNT = 2
_BATCH_CHARS = 200_000
_WINDOW_CHARS = 20_000
_UNUSED = re.compile(r"\[unused\d+\]")
# Text between spaces and Han characters, each of which is a word of its own; a letter alone has nothing inside.
_RUN = re.compile("[^ \t\u3000\u3400-\u4dbf\u4e00-\u9fff]{2,}")
_MAX_RUNS = 200_000

Progress = Callable[[int], None]


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of a vocab.txt as transformers reads it: one a line, white space around it dropped, blank lines count.

    Raises:
        InputError: no such file, not UTF-8, or no line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such vocabulary file; a vocab.txt with one token a line is needed")
    tokens = [line.strip() for line in iter_lines(path)]
    if not any(tokens):
        raise InputError(f"{path}: the vocabulary is empty")
    return tokens


def tokens_by_id(tokenizer: "BertTokenizer") -> list[str | None]:
    """Token of each id; None for an id that no token leads to (the earlier of two equal lines in vocab.txt)."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    tokens: list[str | None] = [None] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        tokens[number] = token
    return tokens


def special_tokens_of(tokenizer: "BertTokenizer") -> list[str]:
    """The five of BERT and what else the tokenizer marks as special, in the order of their ids."""
    special = {*SPECIAL_TOKENS, *tokenizer.all_special_tokens}
    special.update(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    vocabulary = tokenizer.get_vocab()
    return sorted(special & vocabulary.keys(), key=lambda token: vocabulary[token])


def is_placeholder(token: str) -> bool:
    """Whether a token is one of [unused1], [unused2], ..."""
    return _UNUSED.fullmatch(token) is not None


def tokenizer_settings(tokenizer: "BertTokenizer", *, where: str) -> dict[str, Any]:
    """do_lower_case, strip_accents and tokenize_chinese_chars as the tokenizer really works, whatever its files say."""
    normalizer = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"] or {}
    if normalizer.get("type") != "BertNormalizer":
        raise InputError(
            f"{where}: its tokenizer normalises text with {normalizer.get('type', 'nothing')}; only BERT's own "
            "normalizer can be written again"
        )
    values = (normalizer["lowercase"], normalizer["strip_accents"], normalizer["handle_chinese_chars"])
    return dict(zip(TOKENIZER_SETTINGS, values, strict=True))


def write_tokenizer(folder: Path, tokens: Sequence[str], settings: dict[str, Any]) -> None:
    """Writes vocab.txt and tokenizer_config.json, and makes sure that every token gets its place as id.

    Args:
        folder: exists.
        settings: further keys of tokenizer_config.json.
    Raises:
        InputError: a token that does not survive being a line, or occurs twice.
    """
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
    config = {"tokenizer_class": "BertTokenizer", **settings}
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    vocabulary = load_tokenizer(folder).get_vocab()
    for number, token in enumerate(tokens):
        if vocabulary.get(token) != number:
            raise InputError(
                f"vocabulary: token {token!r} at id {number} opens as id {vocabulary.get(token)}; a token must be one "
                "line of its own, without white space around it, and occur once"
            )


def write_tokenizer_folder(output: Path, tokens: Sequence[str], settings: dict[str, Any]) -> None:
    """A new folder with a tokenizer in it; whole or absent.

    Raises:
        InputError: see `refuse_existing` and `write_tokenizer`.
    """
    refuse_existing(output)
    with whole_folder(output) as folder:
        write_tokenizer(folder, tokens, settings)


def refuse_existing(output: Path) -> None:
    """InputError if something is at the output's place."""
    if output.exists():
        raise InputError(f"{output}: exists already; remove it or name another output")


def train_vocabulary(
    texts: Sequence[Path], *, size: int, cased: bool = False, progress: Progress | None = None
) -> list[str]:
    """A WordPiece vocabulary of at most `size` tokens: specials, characters, '##' characters, joined pieces.

    Han characters are tokens of their own, as in BERT. The same text gives the same list: the library's trainer numbers
    characters in the random order of its hash tables, so they are counted, chosen and numbered here.

    Args:
        progress: called with the number of characters just read; the text is read twice.
    Raises:
        InputError: no character occurs twice, or `size` leaves no room for characters.
    """
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    _split_like_bert(tokenizer, cased=cased)
    letters, pieces = _choose_characters(_read(texts, progress), tokenizer, size - len(SPECIAL_TOKENS))
    if not letters:
        raise InputError(
            f"vocabulary: nothing to learn for a size of {size}: there must be room for more than the "
            f"{len(SPECIAL_TOKENS)} special tokens, and the text must hold characters that occur {_MIN_COUNT} times"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=_MIN_COUNT, show_progress=False, initial_alphabet=letters,
        limit_alphabet=len(letters), special_tokens=[*SPECIAL_TOKENS, *pieces],
    )  # fmt: skip
    tokenizer.train_from_iterator(_read(texts, progress), trainer)
    numbers = tokenizer.get_vocab()
    learned = sorted(numbers.keys() - {*SPECIAL_TOKENS, *letters, *pieces}, key=lambda token: numbers[token])
    return [*SPECIAL_TOKENS, *letters, *pieces, *learned]


def _split_like_bert(tokenizer: "Tokenizer", *, cased: bool) -> None:
    from tokenizers import normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _choose_characters(lines: Iterable[str], tokenizer: "Tokenizer", room: int) -> tuple[list[str], list[str]]:
    """The commonest characters that fit, and their '##' forms where they stand inside words; both sorted."""
    raw: Counter[str] = Counter()
    runs: set[str] = set()
    inside: set[str] = set()
    for line in lines:
        raw.update(line)
        runs.update(_RUN.findall(line))
        if len(runs) > _MAX_RUNS:
            inside |= _inner_characters(runs, tokenizer)
            runs.clear()
    inside |= _inner_characters(runs, tokenizer)
    counts: Counter[str] = Counter()
    for letter, count in raw.items():  # BERT's normalizer works character by character
        for normal in tokenizer.normalizer.normalize_str(letter):
            counts[normal] += count
    letters, pieces = [], []
    for letter, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        cost = 2 if letter in inside else 1
        if count < _MIN_COUNT or letter.isspace() or cost > room:
            continue
        room -= cost
        letters.append(letter)
        if cost == 2:
            pieces.append(f"##{letter}")
    return sorted(letters), sorted(pieces)


def _inner_characters(runs: Iterable[str], tokenizer: "Tokenizer") -> set[str]:
    """Characters that follow another within a word of the runs; punctuation is a word of its own."""
    inside: set[str] = set()
    for run in runs:
        for word in tokenizer.normalizer.normalize_str(run).split():
            for before, letter in itertools.pairwise(word):
                if letter not in inside and not _is_punctuation(before) and not _is_punctuation(letter):
                    inside.add(letter)
    return inside


def _is_punctuation(letter: str) -> bool:
    return unicodedata.category(letter).startswith("P") or (letter.isascii() and not letter.isalnum())


def count_tokens(
    texts: Sequence[Path], tokenizer: "BertTokenizer", *, progress: Progress | None = None
) -> NDArray[np.int64]:
    """How often each token id occurs in the text, [highest id + 1]; no [CLS] and [SEP] are added."""
    backend = without_limits(tokenizer.backend_tokenizer)
    counts = np.zeros(len(tokens_by_id(tokenizer)), dtype=np.int64)
    for batch in batches(_read(texts, progress), chars=_BATCH_CHARS):
        encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
        ids = np.fromiter(itertools.chain.from_iterable(encoding.ids for encoding in encodings), dtype=np.int64)
        counts += np.bincount(ids, minlength=len(counts))
    return counts


def _read(texts: Sequence[Path], progress: Progress | None) -> Iterator[str]:
    """The lines that are not blank, long ones in pieces; the pieces end where no word is cut."""
    for text in texts:
        for line in iter_lines(text):
            if progress is not None:
                progress(len(line))
            if not is_blank(line):
                yield from windows(line, _WINDOW_CHARS)

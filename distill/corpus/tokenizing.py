"""Opening the tokenizer of a folder. What it does with text is in alignment.py and lookup.py.

A tokenizer folder is data: nothing in it is executed, and files that ask for it are refused.
"""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import InputError, first_line
from distill.json_file import read_object, short

if TYPE_CHECKING:
    from transformers import BertTokenizer

logger = logging.getLogger(__name__)

# A vocabulary with this share of tokens in capitals is a cased one; Google's Chinese one has 2 in 21,128.
_CASED_SHARE = 0.01
_KINDS = {
    "do_lower_case": (bool,), "strip_accents": (bool,), "tokenize_chinese_chars": (bool,),
    "model_max_length": (int, float),
}  # fmt: skip
TOKENIZER_FOLDER = "tokenizer"
"""Of the tokenizer a dataset was packed with, in its folder."""
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(folder: Path | str) -> "BertTokenizer":
    """transformers' BertTokenizer of a local folder.

    A folder whose settings forget `do_lower_case` though its vocabulary has capitals keeps case, with a warning:
    transformers would lower-case its text (haisongzhang/roberta-tiny-cased).

    Raises:
        InputError: no vocabulary there (transformers would silently make one of 5 tokens), files that are no
            WordPiece tokenizer's, or one that names code of its own.
    """
    folder = Path(folder)
    check_tokenizer_files(folder)
    from transformers import BertTokenizer

    settings: dict[str, Any] = {}
    if forgets_case(folder):
        settings = {"do_lower_case": False}
        _warn_of_case(folder)
    try:
        return BertTokenizer.from_pretrained(str(folder), local_files_only=True, **settings)
    except Exception as error:  # what its parser, written in Rust, raises has no other class
        reason = first_line(error)
        raise InputError(f"{folder}: its tokenizer files cannot be used ({reason}); download them again") from None


def save_tokenizer(tokenizer: "BertTokenizer", folder: Path) -> None:
    """Writes a tokenizer's files; OSError if they cannot be written."""
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # of the part that is written in Rust, on a full disk for instance
        raise OSError(f"{folder}: {first_line(error)}") from None


def check_tokenizer_files(folder: Path) -> None:
    """Finds what is wrong with a tokenizer folder before a library reads it; raises as `load_tokenizer`."""
    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise InputError(f"{folder}: no tokenizer there; a folder with vocab.txt or tokenizer.json is needed")
    for name in SETTINGS_FILES:
        if (folder / name).exists():
            _check_settings(folder / name)
    if (folder / "tokenizer.json").is_file():
        _read_wordpiece(folder / "tokenizer.json")
    else:
        _read_lines(folder / "vocab.txt")


def forgets_case(folder: Path) -> bool:
    """Whether a folder of vocab.txt has a cased vocabulary, and nothing says whether text is lower-cased."""
    if (folder / "tokenizer.json").is_file():
        return False  # says how text is normalised
    file = folder / "tokenizer_config.json"
    if file.exists() and "do_lower_case" in read_object(file, what="what belongs to a tokenizer"):
        return False
    tokens = _read_lines(folder / "vocab.txt")
    return len(tokens_in_capitals(tokens)) >= _CASED_SHARE * len(tokens)


def tokens_in_capitals(tokens: Sequence[str | None]) -> list[str]:
    """Tokens with A-Z, without names in brackets such as [CLS] and <S>."""
    named = (token for token in tokens if token and token[0] not in "[<")
    return [token for token in named if token != token.lower() and any("A" <= letter <= "Z" for letter in token)]


@functools.cache
def _warn_of_case(folder: Path) -> None:
    logger.warning("%s: its vocabulary has capitals, but no do_lower_case is set; case is kept", folder)


def _check_settings(file: Path) -> None:
    settings = read_object(file, what="what belongs to a tokenizer")
    if settings.get("auto_map"):
        raise InputError(f"{file}: 'auto_map' names Python code to run; only transformers' BertTokenizer is used")
    for key, kinds in _KINDS.items():
        if settings.get(key) is not None and type(settings[key]) not in kinds:
            expected = "true or false" if bool in kinds else "a number"
            raise InputError(f"{file}: '{key}' must be {expected}, found {short(settings[key])}")


def listed_tokens(folder: Path) -> set[str]:
    """The tokens in a folder's files, without those that transformers adds itself."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return set(_read_lines(folder / "vocab.txt"))
    return _read_wordpiece(file)


def _read_wordpiece(file: Path) -> set[str]:
    """The tokens of a tokenizer.json, those added to its model among them."""
    whole = read_object(file, what="a tokenizer")
    model, added = whole.get("model"), whole.get("added_tokens", [])
    if not isinstance(model, dict) or model.get("type", "WordPiece") != "WordPiece":
        kind = model.get("type") if isinstance(model, dict) else None
        raise InputError(f"{file}: its model is {short(kind)}; only BERT's WordPiece can be used here")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not all(type(i) is int and i >= 0 for i in vocabulary.values()):
        raise InputError(f"{file}: has no model.vocab of tokens and their ids; download it again")
    if len(set(vocabulary.values())) < len(vocabulary) or max(vocabulary.values(), default=0) >= 2 * len(vocabulary):
        raise InputError(f"{file}: model.vocab gives ids twice or far beyond its {len(vocabulary)} tokens")
    contents = [token.get("content") if isinstance(token, dict) else None for token in added or []]
    if not isinstance(added, (list, type(None))) or not all(isinstance(content, str) for content in contents):
        raise InputError(f"{file}: 'added_tokens' is no list of tokens with their 'content'; download it again")
    return {*vocabulary, *map(str, contents)} - (
        {"[UNK]"} - vocabulary.keys()
    )  # WordPiece itself must be able to say it


def _read_lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; a vocabulary has one token a line") from None
    if not any(lines):
        raise InputError(f"{file}: no tokens in it; a vocabulary has one token a line")
    return lines

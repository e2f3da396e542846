"""Reading JSON that a user wrote, and the words of messages about it."""

import difflib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.errors import InputError

MOST_BYTES = 64 << 20
"""Recipes, configs and the tokenizer.json of the largest vocabularies are far below."""
MOST_LEVELS = 100
"""Of brackets in brackets."""
_TOO_DEEP = f"brackets nested over {MOST_LEVELS} deep; not valid JSON here"
_MOST_DIGITS = 40


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        InputError: file, line and what is wrong; besides what is no JSON also what Python's reader passes over: keys
            that stand twice, NaN, numbers that are too large for any use, halves of characters.
    """
    content = _read_bytes(path)
    try:
        return parse_json(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at").removesuffix(" starting")
        raise InputError(f"{path}, line {error.lineno}: {what}; not valid JSON") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would block, /dev/zero never end
            raise InputError(f"{path}: found {'a folder' if path.is_dir() else 'no plain file'}; name a JSON file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if len(content) > MOST_BYTES:
        raise InputError(f"{path}: over {MOST_BYTES >> 20} MB; no JSON file of this kind is so large")
    return content


def read_object(path: Path, *, what: str) -> dict[str, Any]:
    """The JSON object in `path`; InputError if it holds something else than `what` says it is."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: {what} is a JSON object in braces, found {short(value)}")
    return value


def parse_json(text: str) -> Any:
    """The value of a JSON text, read strictly; see `read_json`.

    Raises:
        ValueError: what is wrong; a json.JSONDecodeError where it is no JSON at all.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_int, parse_float=_parse_float,
                           object_pairs_hook=_object_without_repeats)  # fmt: skip
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > MOST_LEVELS:
        _check_levels(value, MOST_LEVELS)
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a string holds half of a character (\\ud800 to \\udfff alone); write it whole") from None
    return value


def _check_levels(value: Any, left: int) -> None:
    """What is nested almost too deep for the parser would be too deep for everything that comes after it."""
    if isinstance(value, (dict, list)):
        if not left:
            raise ValueError(_TOO_DEEP)
        for part in value.values() if isinstance(value, dict) else value:
            _check_levels(part, left - 1)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number; not valid JSON")


def _parse_int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:  # transformers writes 10**30 for "no limit"
        raise ValueError(f"the number {_cut(digits)} is too large; at most {_MOST_DIGITS} digits are read")
    return int(digits)


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {_cut(digits)} is too large; the largest is 1.8e308")
    return number


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"'{_cut(twice)}' stands twice in one object; the second would silently replace the first")
    return found


def nearest(word: str, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """`; did you mean '...'?` for the closest known word; if none is close, `otherwise`, or the list of all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; {otherwise or 'known: ' + ', '.join(known)}"


def short(value: Any) -> str:
    """A value as JSON of at most 60 characters."""
    return _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."

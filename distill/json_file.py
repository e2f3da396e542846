"""Reading JSON that a user wrote, and the words of messages about it."""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.errors import InputError


def read_json(path: Path) -> Any:
    """The JSON value in `path`; InputError (file, line, what) if it cannot be read as such."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object_without_repeats)
    except _NotStrict as error:
        raise InputError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        place = (
            f", line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ": nested too deep"
        )
        raise InputError(f"{path}{place}; not valid JSON") from None


class _NotStrict(Exception):
    """Something that Python's JSON reader would pass over."""


def _refuse_constant(name: str) -> Any:
    raise _NotStrict(f"{name} is no number; not valid JSON")


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _NotStrict(f"'{twice}' stands twice in one object; the second would silently replace the first")
    return found


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?` for the closest known word, or the list of all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def short(value: Any) -> str:
    """A value as JSON of at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

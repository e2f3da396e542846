"""Mutations of JSON values and of bytes for test_fuzz.py: what editors, damaged disks and strangers leave behind.

All randomness comes in as a random.Random, so that a case can be made again from its number.
"""

import copy
import json
from random import Random
from typing import Any

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", " ",
    "\0", "a\nb", "\x1b[31m", "\ud800", "..", "../..", "/", "/dev/zero", "~", "*", "**/*", "[", "#", "a#b", "#skip-bad",
    "hf:", "ltp:", "x" * 5000, "天" * 300, "1", "true", "null", [], {}, [[]], [None], {"": None}, [1, "2", {}],
    {"train": "x"}, {"start": 0.3, "end": 0.1}, list(range(50)),
]  # fmt: skip
PIECES = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"\0", b"\xff", b"\xef\xbb\xbf", b"\r",
    b"\n", b"NaN", b"Infinity", b"1e999", b"-", b"9" * 30, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"null", b"true",
    b"\x1b[2J", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b" " * 300,
]  # fmt: skip


def mutate_json(value: Any, random: Random) -> bytes:
    """A JSON text of the value with one to three of its nodes changed."""
    root = [copy.deepcopy(value)]
    for _ in range(random.randint(1, 3)):
        _change_node(*random.choice(_places(root)), random)
    return json.dumps(root[0], ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every node below."""
    keys = holder.keys() if isinstance(holder, dict) else range(len(holder))
    found = [(holder, key) for key in keys]
    for key in keys:
        if isinstance(holder[key], (dict, list)):
            found += _places(holder[key])
    return found


def _change_node(holder: Any, key: Any, random: Random) -> None:
    kind = random.choice(("replace", "replace", "remove", "rename", "wrap", "double", "number", "add"))
    if kind == "remove" and (isinstance(holder, dict) or len(holder) > 1):
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        name = random.choice([key[:-1], key + "s", key.upper(), "", "\0", "__class__", "../" + key, key * 200])
        holder[name] = holder.pop(key)
    elif kind == "wrap":
        holder[key] = random.choice(([holder[key]], {"a": holder[key]}, {str(key): holder[key]}, [[holder[key]] * 3]))
    elif kind == "double" and isinstance(holder[key], list):
        holder[key] = holder[key] * random.choice((2, 50))
    elif kind == "number" and type(holder[key]) in (int, float):
        holder[key] = random.choice((-1, 10, 1e9, 0.5, 1e-300)) * holder[key]
    elif kind == "add" and isinstance(holder[key], dict):
        holder[key][random.choice(("x", "", "teacher", "data", "stages", "_ltp_target_"))] = random.choice(NASTY)
    else:
        holder[key] = copy.deepcopy(random.choice(NASTY))


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """The content with one to four stretches changed."""
    mutated = bytearray(content)
    for _ in range(random.randint(1, 4)):
        start = random.randint(0, len(mutated))
        end = min(len(mutated), start + random.choice((1, 1, 2, 4, 30)))
        kind = random.choice(("flip", "flip", "remove", "insert", "piece", "cut", "double", "zero"))
        if kind == "flip" and end > start:
            mutated[start] ^= 1 << random.randrange(8)
        elif kind == "remove":
            del mutated[start:end]
        elif kind == "insert":
            mutated[start:start] = random.randbytes(random.choice((1, 2, 8)))
        elif kind == "piece":
            mutated[start:start] = random.choice(PIECES)
        elif kind == "cut":
            del mutated[start:]
        elif kind == "double":
            mutated[start:start] = mutated[start:end] * random.choice((1, 100))
        elif kind == "zero":
            mutated[start:end] = random.choice((b"\0", b"\xff")) * (end - start)
    return bytes(mutated)

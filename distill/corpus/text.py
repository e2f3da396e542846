"""Finding text files and reading their lines. Nothing here knows words, tokens or models.

A text file is UTF-8, one passage a line, a blank line ends a document. Lines end at "\\n", "\\r\\n" or "\\r" and
nowhere else: U+2028 or a form feed stays inside its line.
"""

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from distill.errors import InputError

logger = logging.getLogger(__name__)

REFERENCE_ENDING = "_ref.txt"
FIRST_SURROGATE, LAST_SURROGATE = "\udc80", "\udcff"  # how "surrogateescape" writes a byte that is not UTF-8


def expand_text(patterns: Sequence[str | Path]) -> list[Path]:
    """The text files that files, folders (every *.txt below) and glob patterns name: sorted within each, each once.

    Hidden files and the references that lie beside their text (x_ref.txt beside x.txt) are no text.

    Raises:
        InputError: if one of them names nothing, or all files together are empty.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        files = _files_of(str(pattern))
        if not files:
            raise InputError(f"{pattern}: no text found; give a file, a folder with *.txt below it, or a glob pattern")
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    if not found:
        raise InputError("no text given; name files, folders with *.txt below them, or glob patterns")
    if all(file.stat().st_size == 0 for file in found.values()):
        raise InputError(f"empty corpus: {len(found)} file(s), all of 0 bytes, such as {next(iter(found.values()))}")
    return list(found.values())


def _files_of(pattern: str) -> list[Path]:
    pattern = os.path.expanduser(pattern)
    if os.path.isfile(pattern):
        return [Path(pattern)]
    # A folder or file whose name holds [ or * is meant literally if it exists.
    matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
    files: list[Path] = []
    for match in map(Path, matches):
        if match.is_dir():
            below = (file for file in match.rglob("*.txt") if file.is_file())
            files += sorted(file for file in below if not _is_hidden(file.relative_to(match)))
        elif match.is_file():
            files.append(match)
    return sorted({file for file in files if not _is_reference_of_a_neighbour(file)})


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _is_reference_of_a_neighbour(file: Path) -> bool:
    if not file.name.endswith(REFERENCE_ENDING):
        return False
    text = file.with_name(file.name.removesuffix(REFERENCE_ENDING) + ".txt")
    if text.is_file():
        logger.info("%s: left out, it looks like the reference of %s", file, text.name)
        return True
    return False


def text_root(patterns: Sequence[str | Path]) -> Path:
    """The deepest folder that holds everything the patterns name; output files mirror the folders below it.

    A folder is its own root, a file's is the folder it is in, a glob pattern's the part before its first wildcard. It
    depends on the patterns alone, so that a new file does not move the outputs of the others.
    """
    roots = []
    for pattern in map(os.path.expanduser, map(str, patterns)):
        if not os.path.exists(pattern):
            parts = Path(pattern).parts
            fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
            pattern = os.path.join(*parts[:fixed]) if fixed else os.curdir
        roots.append(os.path.abspath(os.path.dirname(pattern) if os.path.isfile(pattern) else pattern))
    if not roots:
        raise InputError("no text given; name files, folders with *.txt below them, or glob patterns")
    return Path(os.path.commonpath(roots))


def iter_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends, blank ones too; a byte-order mark at the start is dropped.

    Raises:
        InputError: if the file cannot be opened, or a line (named by its number) is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig", newline=None) as file:
            for line in file:
                yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        number, byte = _first_undecodable_line(path)
        raise InputError(
            f"{path}: line {number}: not UTF-8 (byte 0x{byte:02x}); convert the file to UTF-8, for instance with "
            "`iconv -f gb18030 -t utf-8`"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _first_undecodable_line(path: Path) -> tuple[int, int]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
        for number, line in enumerate(file, start=1):
            for character in line:
                if FIRST_SURROGATE <= character <= LAST_SURROGATE:
                    return number, ord(character) - 0xDC00
    raise AssertionError(f"{path} changed while it was read")


def is_blank(line: str) -> bool:
    """Whether a line ends a document: empty or white space only, as in MiniRBT and transformers' reference scripts."""
    return not line or line.isspace()


def count_lines(lines: Iterable[str]) -> tuple[int, int]:
    """(all lines, lines that are not blank)."""
    total = blank = 0
    for line in lines:
        total += 1
        blank += is_blank(line)
    return total, total - blank

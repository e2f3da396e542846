"""Finding text and reading its lines. Nothing here knows words, tokens or models.

Text is UTF-8, one passage a line, a blank line ends a document. Lines end at "\\n", "\\r\\n" or "\\r" and nowhere else:
U+2028 or a form feed stays inside its line. It comes in plain, .gz, .xz or .zst files, in records (.jsonl, .parquet,
.arrow: a record is a document), in a folder that `datasets` saved, or from the hub. What a name may say after "#" is in
text_names.py, how the kinds of files are opened in formats.py.
"""

import glob
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from distill.corpus.formats import (
    MOST_LINE_CHARS,
    BadRecord,
    estimate_bytes,
    iter_records,
    open_bytes,
    passages,
    replace_surrogates,
    unpacking_errors,
)
from distill.corpus.saved_datasets import HUB, dataset_files, hub_files, is_dataset
from distill.corpus.text_names import COMPRESSIONS, RECORD_KINDS, TextName, kind_of, skipping_bad, text_file
from distill.errors import InputError

logger = logging.getLogger(__name__)

REFERENCE_ENDING = "_ref.txt"
# What counts as text below a folder; a file that is named itself may be called anything.
TEXT_ENDINGS = (*(f"{kind}{packed}" for kind in (".txt", ".jsonl") for packed in ("", *COMPRESSIONS)), ".parquet")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how "surrogateescape" writes a byte that is not UTF-8
_SAMPLE_BYTES = 1 << 18


def expand_text(patterns: Sequence[str | Path], *, skip_bad: bool = False) -> list[Path]:
    """The text files that the patterns name: sorted within each, each once.

    A pattern is a file, a folder (every *.txt, *.jsonl, also packed, and *.parquet below), a glob pattern, a folder
    that `datasets` saved, or `hf:OWNER/NAME[:CONFIG[:SPLIT]]`; #FIELD after it names the field of records. Hidden files
    and the references that lie beside their text (x_ref.txt beside x.txt) are no text.

    Args:
        skip_bad: leave out what is not UTF-8 or no record, with a warning, instead of refusing it.
    Raises:
        InputError: if one of them names nothing, or all files together are empty.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        files = _files_of(str(pattern))
        if not files:
            raise InputError(
                f"{pattern}: no text found; give a file, a folder with *.txt, *.jsonl or *.parquet below it, or a glob "
                "pattern"
            )
        for file in files:
            _check_name(file)
            found.setdefault(os.path.abspath(file), skipping_bad(file) if skip_bad else file)
    if not found:
        raise InputError("no text given; name files, folders with *.txt below them, or glob patterns")
    if all(text_file(file).stat().st_size == 0 for file in found.values()):
        raise InputError(
            f"empty corpus: {len(found)} file(s), all of 0 bytes, such as {next(iter(found.values()))}; put text "
            "there, one passage a line"
        )
    return list(found.values())


def _check_name(file: Path) -> None:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise InputError(f"{file}: the name of this file is not UTF-8; rename it") from None


def _files_of(pattern: str) -> list[Path]:
    if not pattern.strip():
        raise InputError("a text has an empty name; give a file, a folder or a glob pattern")
    name = TextName.parse(os.path.expanduser(pattern))
    pattern = str(name.file)
    if pattern.startswith(HUB):
        return [name.at(file) for file in hub_files(pattern)]
    if os.path.isfile(pattern):
        if name.field and kind_of(name.file) not in RECORD_KINDS:
            raise InputError(f"{pattern}#{name.field}: lines of text have no fields; only {', '.join(RECORD_KINDS)} do")
        return [name.at(name.file)]
    # A folder or file whose name holds [ or * is meant literally if it exists.
    matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
    files: list[Path] = []
    for match in map(Path, matches):
        if is_dataset(match):
            files += dataset_files(match)
        elif match.is_dir():
            files += texts_below(match)
        elif match.is_file():
            files.append(match)
    return [name.at(file) for file in sorted({file for file in files if not _is_reference_of_a_neighbour(file)})]


def texts_below(folder: Path) -> list[Path]:
    """The text files at any depth below a folder, sorted; hidden ones left out.

    Links to folders are followed, as corpora often lie on another disk; a folder counts once, however it is reached.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        texts = (name for name in names if name.lower().endswith(TEXT_ENDINGS) and not name.startswith("."))
        found += filter(Path.is_file, (Path(place, name) for name in texts))
    return sorted(found)


def _is_reference_of_a_neighbour(file: Path) -> bool:
    if not file.name.endswith(REFERENCE_ENDING):
        return False
    name = file.name.removesuffix(REFERENCE_ENDING)
    for text in (file.with_name(name + ".txt"), text_file(file.with_name(name))):
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
        pattern = str(text_file(pattern))
        if pattern.startswith(HUB):
            roots.append(os.path.commonpath([os.path.abspath(file.parent) for file in hub_files(pattern)]))
            continue
        if not os.path.exists(pattern):
            parts = Path(pattern).parts
            fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
            pattern = os.path.join(*parts[:fixed]) if fixed else os.curdir
        roots.append(os.path.abspath(os.path.dirname(pattern) if os.path.isfile(pattern) else pattern))
    if not roots:
        raise InputError("no text given; name files, folders with *.txt below them, or glob patterns")
    return Path(os.path.commonpath(roots))


def iter_lines(path: Path) -> Iterator[str]:
    """The lines of a text without their ends, blank ones too; a byte-order mark at the start is dropped.

    A line or record that `#skip-bad` leaves out is an empty line, so that references keep their line numbers.

    Raises:
        InputError: if the file cannot be opened or is damaged, or a line or record (named by its number) is unusable.
    """
    name = TextName.parse(path)
    try:
        if kind_of(name.file) in RECORD_KINDS:
            yield from _lines_of_records(name)
        elif name.skip_bad:
            yield from _usable_lines(name.file)
        else:
            yield from _all_lines(name.file)
    except OSError as error:
        raise InputError(f"{name.file}: cannot be read: {error.strerror or error}") from error
    except unpacking_errors() as error:
        raise InputError(f"{name.file}: damaged or cut short ({error}); make or fetch it again") from error


def _all_lines(file: Path) -> Iterator[str]:
    try:
        with _open_lines(file) as lines:
            for line in _bounded(file, lines):
                yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        number, byte = _first_undecodable_line(file)
        raise InputError(
            f"{file}: line {number}: not UTF-8 (byte 0x{byte:02x}); convert the file to UTF-8, for instance with "
            '`iconv -f gb18030 -t utf-8`, or leave such lines out with --skip-bad (recipe: "skip_bad": true; anywhere: '
            f"{file.name}#skip-bad)"
        ) from error


def _open_lines(file: Path, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig", errors=errors, newline=None)


def _bounded(file: Path, lines: io.TextIOWrapper) -> Iterator[str]:
    """The lines with their ends; a file that unpacks to a line without end must not take all memory."""
    for number, line in enumerate(iter(partial(lines.readline, MOST_LINE_CHARS + 1), ""), start=1):
        if len(line) > MOST_LINE_CHARS + line.endswith("\n"):
            raise InputError(f"{file}: line {number}: over {MOST_LINE_CHARS:,} characters; a passage a line is wanted")
        yield line


def _first_undecodable_line(file: Path) -> tuple[int, int]:
    with _open_lines(file, "surrogateescape") as lines:
        for number, line in enumerate(_bounded(file, lines), start=1):
            if wrong := _NOT_UTF8.search(line):
                return number, ord(wrong[0]) - 0xDC00
    raise AssertionError(f"{file} changed while it was read")


def _usable_lines(file: Path) -> Iterator[str]:
    number = skipped = first = 0
    with _open_lines(file, "surrogateescape") as lines:
        for number, line in enumerate(_bounded(file, lines), start=1):
            if _NOT_UTF8.search(line):
                skipped += 1
                first = first or number
                yield ""
            else:
                yield line.removesuffix("\n")
    if skipped:
        _warn_once(f"{file}: {skipped:,} of {number:,} lines left out, not UTF-8; the first is line {first}")


def _lines_of_records(name: TextName) -> Iterator[str]:
    records = skipped = repaired = 0
    first = ""
    for record in iter_records(name):
        records += 1
        if isinstance(record, BadRecord):
            if not name.skip_bad:
                raise InputError(f'{record}; --skip-bad (recipe: "skip_bad": true) leaves such records out')
            skipped += 1
            first = first or str(record)
        else:
            text, halves = replace_surrogates(record)
            repaired += halves
            yield from passages(text)
        yield ""
    if skipped:
        _warn_once(f"{name.file}: {skipped:,} of {records:,} records left out; the first: {first}")
    if repaired:
        _warn_once(f"{name.file}: {repaired:,} halves of surrogate pairs, which are no characters, left out")


@cache
def _warn_once(message: str) -> None:
    """A text is read several times; one warning is enough."""
    logger.warning("%s", message)


def estimate_characters(texts: Sequence[Path]) -> int:
    """About how many characters the texts hold, from the start of each; for progress bars."""
    return int(sum(map(_estimate_characters, texts)))


def _estimate_characters(text: Path) -> float:
    file = text_file(text)
    if kind_of(file) in (".parquet", ".arrow"):
        return file.stat().st_size / 3  # as if it held Chinese only, at three bytes a character
    try:
        head, size = estimate_bytes(file, _SAMPLE_BYTES)
    except (OSError, *unpacking_errors()):  # type: ignore[misc]
        return 0.0  # whoever reads its lines says what is wrong
    return len(head.decode("utf-8", errors="ignore")) * size / max(1, len(head))


def is_blank(line: str) -> bool:
    """Whether a line ends a document: empty or white space only, as in MiniRBT and transformers' reference scripts."""
    return not line or line.isspace()

"""Opening what text comes in: plain or compressed files of lines, and files of records (JSON lines, Parquet, Arrow).

A record is a document: its newlines end passages, its blank lines are left out, and a blank line follows it. Which
files are read, and what they are called, is in text.py and text_names.py.
"""

import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from distill.corpus.text_names import TextName, kind_of
from distill.errors import InputError, first_line

DEFAULT_FIELD = "text"
ROWS_AT_ONCE = 1_000
MOST_LINE_CHARS = 50_000_000
"""Of a line of text: more is no passage, but would have to be in memory at once."""
ZSTD_PIECE = 8 << 10  # bytes; what they unpack to is in memory at once, at most 16,000 times as much
_NEWLINE = re.compile("\r\n|\r|\n")
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRecord(ValueError):
    """A record without readable text; the message says why."""


def open_bytes(file: Path) -> BinaryIO:
    """A file's content, unpacked if its name ends in .gz, .xz or .zst. Reading may raise unpacking_errors()."""
    return _unpacked(file, file.suffix.lower())


def _unpacked(source: Path | BinaryIO, ending: str) -> Any:
    if ending == ".gz":
        import gzip

        return gzip.open(source, "rb")
    if ending == ".xz":
        import lzma

        return lzma.open(source, "rb")
    packed = open(source, "rb") if isinstance(source, Path) else source
    return io.BufferedReader(_ZstdFile(packed), 1 << 16) if ending == ".zst" else packed


def estimate_bytes(file: Path, sample: int) -> tuple[bytes, float]:
    """The first `sample` bytes of a file's content, and how many it has in all, judged by how far they reach."""
    with open(file, "rb") as packed:
        content = _unpacked(packed, file.suffix.lower())
        head = content.read(sample)
        return head, len(head) * file.stat().st_size / max(1, packed.tell())


class _ZstdFile(io.RawIOBase):
    """A .zst file of any number of frames, unpacked. zstandard's own reader takes a file cut short for a whole one."""

    def __init__(self, packed: BinaryIO) -> None:
        import zstandard

        # "zstd --long=31" needs the largest window.
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._packed = packed
        self._frame = self._unpacker.decompressobj()
        self._inside = False
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._unpacked:
            piece = self._packed.read(ZSTD_PIECE)
            if not piece:
                if self._inside:
                    raise EOFError("it ends inside a compressed frame")
                return 0
            self._unpacked = memoryview(b"".join(self._unpack(piece)))
        size = min(len(buffer), len(self._unpacked))
        buffer[:size] = self._unpacked[:size]
        self._unpacked = self._unpacked[size:]
        return size

    def _unpack(self, piece: bytes) -> Iterator[bytes]:
        while piece:
            self._inside = True
            yield self._frame.decompress(piece)
            if not self._frame.eof:
                return
            piece = self._frame.unused_data
            self._frame, self._inside = self._unpacker.decompressobj(), False

    def close(self) -> None:
        self._packed.close()
        super().close()


def unpacking_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises, OSError set aside."""
    import lzma
    import zlib

    found: tuple[type[Exception], ...] = (EOFError, lzma.LZMAError, zlib.error)
    try:
        from zstandard import ZstdError
    except ImportError:
        return found
    return (*found, ZstdError)


def iter_records(name: TextName) -> Iterator[str | BadRecord]:
    """The text of each record, in order; a record that has none is a BadRecord that says where and why.

    Raises:
        InputError: a table without that column, or a damaged file of records.
    """
    field = name.field or DEFAULT_FIELD
    records = _json_lines(name.file, field) if kind_of(name.file) == ".jsonl" else _table_rows(name.file, field)
    for number, value in records:
        where = f"{name.file}: {'line' if kind_of(name.file) == '.jsonl' else 'row'} {number}"
        if isinstance(value, BadRecord):
            yield BadRecord(f"{where}: {value}")
        elif not isinstance(value, str):
            yield BadRecord(f"{where}: field {field!r} is {json.dumps(value, default=str)[:40]}, not a text")
        else:
            yield value


def _json_lines(file: Path, field: str) -> Iterator[tuple[int, object]]:
    with open_bytes(file) as content:
        for number, line in enumerate(iter(partial(content.readline, 4 * MOST_LINE_CHARS + 1), b""), start=1):
            if len(line) > 4 * MOST_LINE_CHARS:
                raise InputError(
                    f"{file}: line {number}: over {4 * MOST_LINE_CHARS:,} bytes; a document a line is wanted"
                )
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, _json_field(line, field)


def _json_field(line: bytes, field: str) -> object:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadRecord(f"not UTF-8 (byte 0x{line[error.start]:02x})")
    except json.JSONDecodeError as error:
        return BadRecord(f"not JSON ({error.msg} at character {error.pos + 1})")
    except RecursionError:
        return BadRecord("JSON nested too deep")
    except ValueError:  # Python reads no number of over 4,300 digits
        return BadRecord("a number with too many digits")
    if not isinstance(record, dict):
        return BadRecord(f"a JSON {type(record).__name__}, not an object with a field {field!r}")
    if field not in record:
        return BadRecord(_no_such_field(file="x.jsonl", field=field, fields=list(record)))
    return record[field]


def _no_such_field(*, file: str, field: str, fields: list[str]) -> str:
    known = ", ".join(fields[:8]) or "none"
    example = f"{file}#{fields[0] if fields else 'FIELD'}"
    return f"no field {field!r} (fields: {known}); name another after #, as in {example}"


def _table_rows(file: Path, field: str) -> Iterator[tuple[int, object]]:
    import pyarrow as pa

    number = 0
    try:
        for values in _table_columns(file, field):
            for value in values:
                number += 1
                yield number, value
    except pa.ArrowException as error:
        raise InputError(f"{file}: damaged, or not a {kind_of(file)} file ({first_line(error)})") from error


def _table_columns(file: Path, field: str) -> Iterator[list[object]]:
    """The values of one column, some rows at a time."""
    import pyarrow as pa

    if kind_of(file) == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(file) as table:
            _check_column(file, field, table.schema_arrow.names)
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=[field]):
                yield batch.column(0).to_pylist()
        return
    with pa.memory_map(str(file)) as content:
        # `datasets` writes streams; other programs write the file format with its index at the end.
        is_stream = content.read(6) != b"ARROW1"
        content.seek(0)
        reader = pa.ipc.open_stream(content) if is_stream else pa.ipc.open_file(content)
        _check_column(file, field, reader.schema.names)
        batches = reader if is_stream else map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            column = batch.column(field)
            column.validate(full=True)  # its offsets are followed without a look
            for start in range(0, len(column), ROWS_AT_ONCE):
                yield column.slice(start, ROWS_AT_ONCE).to_pylist()


def _check_column(file: Path, field: str, columns: list[str]) -> None:
    if field not in columns:
        raise InputError(f"{file}: {_no_such_field(file=file.name, field=field, fields=columns)}")


def passages(record: str) -> list[str]:
    """The lines of a record that are not blank."""
    return [line for line in _NEWLINE.split(record) if line and not line.isspace()]


def replace_surrogates(text: str) -> tuple[str, int]:
    """The text with U+FFFD for halves of characters (JSON's "\\ud83d" alone), which no file can hold; and how many."""
    return _SURROGATE.subn("\ufffd", text)

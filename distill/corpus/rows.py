"""Packed rows on disk: a datasets.Dataset folder with four columns, written as a stream and read through memory maps.

Columns: input_ids [L] (uint16, int32 for vocabularies over 65,536 tokens), continuation [L] bool (the token continues
the word of the one before), document_start [L] bool (a document begins here), length (int32, tokens before padding).
`datasets.load_from_disk` opens such a folder. What goes into a row is decided in layouts.py.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError, first_line
from distill.json_file import read_object

if TYPE_CHECKING:
    import pyarrow as pa

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Rows in one Arrow record batch. 4 MB of input_ids at 512 tokens: little to hold while writing, few objects to open.
_ROWS_PER_BATCH = 4096
_DATA_FILE = "data-00000-of-00001.arrow"
_LISTS = ("input_ids", "continuation", "document_start")
_REMEDY = "remove the packed dataset, and it will be made again"


class RowWriter:
    """Writes one split's folder; the bytes depend on the rows alone, not on how many came at a time."""

    def __init__(self, folder: Path, *, max_seq_length: int, vocab_size: int) -> None:
        import pyarrow as pa
        from datasets import DatasetInfo, Features, List, Value

        self.folder, self.max_seq_length, self.num_rows = folder, max_seq_length, 0
        self.id_type = np.uint16 if vocab_size <= 2**16 else np.int32
        flags = List(Value("bool"), length=max_seq_length)
        features = Features(
            input_ids=List(Value(np.dtype(self.id_type).name), length=max_seq_length),
            continuation=flags,
            document_start=flags,
            length=Value("int32"),
        )
        folder.mkdir(parents=True)
        DatasetInfo(features=features).write_to_directory(str(folder))
        self._schema = features.arrow_schema
        self._file = pa.OSFile(str(folder / _DATA_FILE), "wb")
        self._stream = pa.ipc.new_stream(self._file, self._schema)
        self._digest = hashlib.sha256(str(self._schema).encode())
        self._waiting: list[tuple[NDArray[Any], ...]] = []
        self._num_waiting = 0

    def write(self, input_ids: NDArray[Any], continuation: Bools, document_start: Bools, length: NDArray[Any]) -> None:
        """Append rows: three arrays [n, L] and one [n]."""
        columns = (input_ids.astype(self.id_type), continuation, document_start, length.astype(np.int32))
        self._waiting.append(columns)
        self._num_waiting += len(length)
        self.num_rows += len(length)
        if self._num_waiting >= _ROWS_PER_BATCH:
            joined = tuple(np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
            full = self._num_waiting - self._num_waiting % _ROWS_PER_BATCH
            for start in range(0, full, _ROWS_PER_BATCH):
                self._write_batch(tuple(column[start : start + _ROWS_PER_BATCH] for column in joined))
            self._waiting = [tuple(column[full:].copy() for column in joined)]
            self._num_waiting -= full

    def _write_batch(self, columns: tuple[NDArray[Any], ...]) -> None:
        import pyarrow as pa

        arrays: list[pa.Array] = []
        for column in columns:
            self._digest.update(column.tobytes())
            flat = pa.array(np.ascontiguousarray(column).reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, self.max_seq_length) if column.ndim == 2 else flat)
        self._stream.write_batch(pa.record_batch(arrays, schema=self._schema))

    def close(self) -> None:
        """Write what is waiting and the files that make the folder a dataset."""
        if self._num_waiting:
            self._write_batch(tuple(np.concatenate(parts) for parts in zip(*self._waiting, strict=True)))
        self.abort()
        state: dict[str, Any] = {
            "_data_files": [{"filename": _DATA_FILE}],
            # datasets names its caches by this; a hash of the rows makes the folder the same bytes wherever it is made
            "_fingerprint": self._digest.hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")

    def abort(self) -> None:
        """Close the data file if it is open; alone, without `close`, for a folder that will not be finished."""
        if not self._file.closed:
            self._stream.close()
            self._file.close()


class PackedRows:
    """One split of a packed dataset, memory-mapped. Cheap to send to another process, which opens the folder again.

    Raises:
        InputError: no such folder, or one whose rows are not all there as they were written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        table = open_table(self.path)
        self.max_seq_length: int = table.schema.field("input_ids").type.list_size
        chunks = table.column("input_ids").chunks
        self._ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        self._starts = self._ends - np.array([len(chunk) for chunk in chunks], dtype=np.int64)
        self._input_ids = [c.flatten().to_numpy().reshape(-1, self.max_seq_length) for c in chunks]
        self._bits = {
            name: [_bit_buffer(chunk.flatten()) for chunk in table.column(name).chunks]
            for name in ("continuation", "document_start")
        }
        self._length = [chunk.to_numpy() for chunk in table.column("length").chunks]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def rows(self, indices: Ints) -> tuple[Ints, Bools, Ints]:
        """input_ids [B, L], continuation [B, L] and length [B] of the rows, in the order asked, with repeats."""
        chunks, local = self._locate(indices)
        input_ids = np.empty((len(chunks), self.max_seq_length), dtype=np.int64)
        length = np.empty(len(chunks), dtype=np.int64)
        for i, (chunk, row) in enumerate(zip(chunks, local, strict=True)):
            input_ids[i] = self._input_ids[chunk][row]
            length[i] = self._length[chunk][row]
        return input_ids, self._read_bits("continuation", chunks, local), length

    def document_ids(self, indices: Ints) -> Ints:
        """[B, L]: which document of its row a token belongs to, counted from 0.

        [CLS] belongs to the first, the last [SEP] and the padding to the last document.
        """
        starts = self._read_bits("document_start", *self._locate(indices))
        starts[:, :2] = False  # the row's first document, behind [CLS] or not
        return starts.cumsum(axis=1)

    def _locate(self, indices: Ints) -> tuple[list[int], list[int]]:
        """Record batch of each row, and its number there."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"{self.path}: rows {indices.min()} to {indices.max()} asked, there are {len(self)}")
        chunks = np.searchsorted(self._ends, indices, side="right")
        return chunks.tolist(), (indices - self._starts[chunks]).tolist()

    def _read_bits(self, column: str, chunks: list[int], local: list[int]) -> Bools:
        # One byte more than a row fills: a row may begin inside a byte.
        packed = np.zeros((len(chunks), self.max_seq_length // 8 + 2), dtype=np.uint8)
        shifts = np.empty(len(chunks), dtype=np.int64)
        for i, (chunk, row) in enumerate(zip(chunks, local, strict=True)):
            buffer, first_bit = self._bits[column][chunk]
            byte, shifts[i] = divmod(first_bit + row * self.max_seq_length, 8)
            part = buffer[byte : byte + packed.shape[1]]
            packed[i, : len(part)] = part
        bits = np.unpackbits(packed, axis=1, bitorder="little").view(bool)
        if shifts.any():
            return np.take_along_axis(bits, shifts[:, None] + np.arange(self.max_seq_length), axis=1)
        return bits[:, : self.max_seq_length]


def open_table(folder: Path) -> "pa.Table":
    """The table of a split, which RowWriter wrote; read without `datasets`, which would follow what its JSON says."""
    import pyarrow as pa

    if not (folder / "state.json").is_file():
        raise InputError(f"{folder}: not a packed dataset (no state.json); make it with 'distill pack'")
    file = folder / _DATA_FILE
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    except (OSError, pa.ArrowException) as error:
        reason = first_line(error)
        raise InputError(f"{file}: damaged or cut short ({reason}); {_REMEDY}") from None
    lists = [table.schema.field(name).type if name in table.column_names else None for name in _LISTS]
    kinds = [(getattr(kind, "list_size", 0), str(getattr(kind, "value_type", ""))) for kind in lists]
    is_whole = "length" in table.column_names and table.schema.field("length").type == pa.int32()
    if not is_whole or kinds[0][1] not in ("uint16", "int32") or {*kinds[1:]} != {(kinds[0][0], "bool")}:
        raise InputError(f"{file}: holds other columns than {', '.join(_LISTS)} and length; {_REMEDY}")
    if any(
        part.null_count for name in _LISTS for chunk in table.column(name).chunks for part in (chunk, chunk.flatten())
    ):
        raise InputError(f"{file}: damaged, values are missing in it; {_REMEDY}")
    if table.column("length").null_count:
        raise InputError(f"{file}: damaged, values are missing in it; {_REMEDY}")
    written = _rows_written(folder)
    if written is not None and written != len(table):
        raise InputError(f"{file}: {len(table):,} of {written:,} rows are there; {_REMEDY}")
    return table


def _rows_written(folder: Path) -> int | None:
    """How many rows the info.json beside the splits counts; None if there is none."""
    info = folder.parent / "info.json"
    split = read_object(info, what="what is packed").get(folder.name) if info.is_file() else None
    return split.get("rows") if isinstance(split, dict) else None


def _bit_buffer(flags: "pa.BooleanArray") -> tuple[NDArray[np.uint8], int]:
    """Bytes of an Arrow boolean array and the bit at which it begins; no copy."""
    return np.frombuffer(flags.buffers()[1], dtype=np.uint8), flags.offset

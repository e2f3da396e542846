"""How a text is named: a path, and after "#" how to read it. `PATH[#FIELD][#skip-bad]`.

`news.jsonl#content` takes the field "content" of every record instead of "text"; `x.txt#skip-bad` leaves out lines that
are not UTF-8. The name travels as one Path through everything that only passes texts on; what opens the file asks here.
A file that really is called so is meant literally. How files are read is in formats.py.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

SKIP_BAD = "#skip-bad"
COMPRESSIONS = (".gz", ".xz", ".zst")
RECORD_KINDS = (".jsonl", ".parquet", ".arrow")


@dataclass(frozen=True)
class TextName:
    """A text's file and how to read it."""

    file: Path
    field: str | None = None  # of the records of a .jsonl, .parquet or .arrow file; None: "text"
    skip_bad: bool = False

    @classmethod
    def parse(cls, name: str | Path) -> "TextName":
        name = str(name)
        if "#" not in name or os.path.exists(name):
            return cls(Path(name))
        skip_bad = name.endswith(SKIP_BAD)
        name = name.removesuffix(SKIP_BAD)
        path, mark, field = name.rpartition("#")
        if not mark or not field or os.sep in field or os.path.exists(name):
            return cls(Path(name), skip_bad=skip_bad)
        return cls(Path(path), field, skip_bad)

    def at(self, file: Path) -> Path:
        """The name of another file that is to be read the same way; a field only where there are records."""
        field = f"#{self.field}" if self.field and kind_of(file) in RECORD_KINDS else ""
        return Path(f"{file}{field}{SKIP_BAD if self.skip_bad else ''}")


def text_file(name: str | Path) -> Path:
    """The file that a text's name means."""
    return TextName.parse(name).file


def skipping_bad(name: Path) -> Path:
    """The same text, with what is not UTF-8 left out."""
    return name if TextName.parse(name).skip_bad else Path(f"{name}{SKIP_BAD}")


def without_skip_bad(name: Path) -> Path:
    """The name of a text's outputs: leaving out bad lines does not change what they are called."""
    return Path(str(name).removesuffix(SKIP_BAD)) if TextName.parse(name).skip_bad else name


def kind_of(file: Path) -> str:
    """.jsonl, .parquet or .arrow for files of records, whatever compresses them; "" for lines of text."""
    name = unpacked_name(file)
    return next((kind for kind in RECORD_KINDS if name.endswith(kind)), "")


def unpacked_name(file: Path) -> str:
    """A file's name in lower case, without the ending of what compresses it."""
    name = file.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return name


def hash_text(name: str | Path) -> str:
    """A hex hash of what decides a text's lines: the file's bytes and how they are read, not its path."""
    text = TextName.parse(name)
    with open(text.file, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    compression = next((ending for ending in COMPRESSIONS if text.file.name.lower().endswith(ending)), "")
    reading = [kind_of(text.file), compression, text.field or "", SKIP_BAD if text.skip_bad else ""]
    if not any(reading):
        return content
    return hashlib.sha256("\n".join([*reading, content]).encode()).hexdigest()

"""MiniRBT's training-data JSON: which text files train, which are for development, and their reference files.

{"train": {"train_files": [...], "train_ref_files": [...]}, "dev": {"dev_files": [...], "dev_ref_files": [...]}}, paths
relative to the working directory. Nothing here opens the text; packing.py does.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.corpus.text_names import text_file
from distill.errors import InputError
from distill.json_file import nearest, read_object, short


@dataclass(frozen=True)
class DataFiles:
    """(text file, its reference file or None) in the order of the JSON. None: no reference yet."""

    train: list[tuple[Path, Path | None]]
    dev: list[tuple[Path, Path | None]]


def read_data_json(path: Path | str) -> DataFiles:
    """Files that a JSON in MiniRBT's format names, all of them present.

    "dev" and the lists of references may be missing or empty; then dev is empty, and the references are None.

    Raises:
        InputError: not such a JSON, an unknown key, lists of different lengths, no training file, or a missing file.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise InputError(f"{path}: no such data file{_nearest_file(path)}")
    data = read_object(path, what='a data file with "train" and "dev"')
    _check_keys(data, allowed=("train", "dev"), where=str(path))
    train = _read_section(data, "train", path)
    if not train:
        raise InputError(f'{path}: no training text; name at least one file in "train": {{"train_files": [...]}}')
    return DataFiles(train=train, dev=_read_section(data, "dev", path))


def _check_keys(data: dict[str, Any], *, allowed: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in allowed:
            raise InputError(f"{where}: unknown key '{key}'{nearest(key, allowed)}")


def _read_section(data: dict[str, Any], split: str, path: Path) -> list[tuple[Path, Path | None]]:
    section = data.get(split, {})
    where = f"{path}: {split!r}"
    if not isinstance(section, dict):
        raise InputError(f"{where}: expected an object with '{split}_files', found {short(section)}")
    _check_keys(section, allowed=(f"{split}_files", f"{split}_ref_files"), where=where)
    texts = _read_paths(section, f"{split}_files", where)
    references = _read_paths(section, f"{split}_ref_files", where)
    if not references:
        return [(text, None) for text in texts]
    if len(references) != len(texts):
        raise InputError(
            f"{where}: {len(texts)} text files but {len(references)} reference files; "
            "give one for each text file in the same order, or none"
        )
    return list(zip(texts, references, strict=True))


def _read_paths(section: dict[str, Any], key: str, where: str) -> list[Path]:
    names = section.get(key)
    names = [] if names is None else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise InputError(f"{where}: {key!r} must be a list of file names, found {short(names)}")
    paths = [Path(name) for name in names]
    for file in paths:
        if not os.path.isfile(text_file(file)):
            raise InputError(f"{where}: {key!r} names {file}, which is not a file{_nearest_file(file)}")
    return paths


def _nearest_file(path: Path) -> str:
    """Hint at the most similar file of the folder, or of the folders above when there is none."""
    if not os.path.isdir(path.parent):
        return f"; there is no folder {path.parent}"
    files = [entry.name for entry in os.scandir(path.parent) if entry.is_file()]
    near = difflib.get_close_matches(path.name, files, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""

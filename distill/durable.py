"""Files and folders that are whole or not there, whatever ends the process or the machine.

Content goes to a temporary name first, is flushed to disk, and then gets its name by a rename, which a file system
does as one. So a crash at any moment leaves the old content or the new one, and at worst a temporary file beside it.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file as a whole. OSError leaves the old one."""
    if path.is_dir():  # the error of the rename would name the temporary file
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two may write the same, such as a report
    try:
        write_flushed(partial, content)
        os.replace(partial, path)
    except OSError:
        remove_file(partial)
        raise
    flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file as a whole. OSError leaves the old one."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_flushed(path: Path, content: str | bytes) -> None:
    """Writes a file and waits until it is on the disk. A crash may leave a part of it."""
    content = content.encode() if isinstance(content, str) else content
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Writes all of `content`, however little of it each call takes."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest[: 1 << 30]) :]


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A new folder to fill, which gets the name `final` at the end of the block; a block that fails leaves nothing."""
    partial = final.with_name(f".partial-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        place_folder(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def place_folder(partial: Path, final: Path) -> None:
    """Flushes a finished folder and gives it its name, in place of one that had it.

    A folder cannot be replaced in one step. The old one is renamed first and removed last: a crash in between leaves
    it beside, as `.replaced-<name>`, and an error puts it back. Files get the rights that the folder has: safetensors
    makes its own readable for their owner alone, and a server or a colleague is to read a model.
    """
    rights = stat.S_IMODE(partial.stat().st_mode) & 0o666
    for path in [*partial.rglob("*"), partial]:
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != rights:
            with contextlib.suppress(OSError):  # a file system without rights
                path.chmod(rights)
        flush(path)
    old = final.with_name(f".replaced-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    was_there = final.exists()
    if was_there:
        os.replace(final, old)
    try:
        os.replace(partial, final)
    except OSError:
        if was_there:
            os.replace(old, final)
        raise
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder so that a crash leaves all or nothing under its name. What cannot be removed is warned about."""
    doomed = folder.with_name(f".removed-{folder.name}")
    try:
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(folder, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        logger.warning("%s could not be removed (%s); it is not needed any more", folder, error)


def remove_file(path: Path) -> None:
    """Removes a file if it is there and that is possible."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s could not be removed (%s); it is not needed any more", path, error)


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

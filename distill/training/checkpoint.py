"""Checkpoints: a folder of safetensors and JSON, written whole or not at all, verified before it is used.

A checkpoint holds step, weights, projections, optimiser, scheduler and scaler. It holds no random state: order,
masks and dropout are functions of the step (DESIGN: sample numbers).

 1. The files go to `.partial-step-X`, each flushed to disk, their SHA-256 last, in manifest.json.
 2. The folder is renamed to `step-X`. Until then it does not exist for anybody.
 3. Older checkpoints go, but for the newest few that were read again and found sound.

Looking never changes anything (`newest_checkpoint`). Damaged checkpoints are kept, renamed, by the one process that
resumes (`set_damaged_aside`).
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from distill.durable import remove_folder, whole_folder, write_flushed
from distill.json_file import read_object

logger = logging.getLogger(__name__)

KEEP = 2
"""Checkpoints that stay if nothing else is said: the newest and one before it, should the newest be damaged."""
_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVERS = (".partial-step-*", ".removed-step-*", ".replaced-step-*")


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int = KEEP,
) -> Path:
    """Writes `folder/step-XXXXXXXX` and removes older checkpoints than the newest `keep` sound ones.

    Args:
        tensors: file stem -> name -> tensor; each becomes one safetensors file.
        state: JSON values.
    Raises:
        OSError: it could not be written; nothing of it stays, and the older ones are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    final = checkpoint_path(folder, step)
    with whole_folder(final) as partial:
        _write_files(partial, tensors, state)
    _remove_old(folder, keep)
    return final


def clear_leftovers(folder: Path) -> None:
    """Removes what saves that were cut short have left."""
    for pattern in _LEFTOVERS:
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def _write_files(partial: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    manifest = {}
    for stem, named in tensors.items():
        content = save({name: tensor.detach().contiguous().cpu() for name, tensor in named.items()})
        manifest[f"{stem}.safetensors"] = _entry(len(content), hashlib.sha256(content))
        write_flushed(partial / f"{stem}.safetensors", content)
    content = json.dumps(state, indent=1).encode()
    manifest["state.json"] = _entry(len(content), hashlib.sha256(content))
    write_flushed(partial / "state.json", content)
    write_flushed(partial / "manifest.json", json.dumps(manifest, indent=1))


def _remove_old(folder: Path, keep: int) -> None:
    """Removes what is older than the `keep` newest sound checkpoints; reads them only if there is something to remove.

    A damaged one among them does not count.
    """
    checkpoints = list_checkpoints(folder)
    if len(checkpoints) <= keep:
        return
    num_sound = 0
    for path in checkpoints:
        if num_sound >= keep:
            remove_folder(path)
        else:
            num_sound += find_damage(path) is None


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints by their step, the newest first, damaged ones among them."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def checkpoint_step(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step whose files are all there and unchanged. Nothing is written."""
    return next((path for path in list_checkpoints(folder) if find_damage(path) is None), None)


def set_damaged_aside(folder: Path) -> list[str]:
    """Renames damaged checkpoints that are newer than the newest sound one to `damaged-...`; one process calls this.

    Returns: a line about each.
    """
    lines = []
    for path in list_checkpoints(folder):
        problem = find_damage(path)
        if problem is None:
            break
        aside = path.with_name(f"damaged-{path.name}")
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"damaged-{path.name}-{number}")
        os.rename(path, aside)
        lines.append(f"{path} is damaged ({problem}); it was renamed to {aside.name} and is not used")
        logger.warning(lines[-1])
    return lines


def checkpoint_students(folder: Path) -> list[str]:
    """The students whose state the newest sound checkpoint holds; none if there is no checkpoint."""
    newest = newest_checkpoint(folder)
    return list(read_state(newest)["students"]) if newest else []


def clear_other_checkpoints(folder: Path, students: list[str]) -> None:
    """Removes the checkpoints of an earlier pass that lacks one of these students, so that this pass starts at step 0.

    A pass that had more students serves: a run ended while it wrote the finished models goes on with those it lacks.
    Damaged checkpoints stay.
    """
    for path in list_checkpoints(folder):
        if find_damage(path) is None:
            if set(students) <= set(read_state(path)["students"]):
                return
            remove_folder(path)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None.

    Raises:
        PermissionError: they may not be read, which says nothing about them.
    """
    try:
        for file in path.iterdir():
            if file.exists() and not os.access(file, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        manifest = read_object(path / "manifest.json", what="a checkpoint's list of files")
        for name, expected in manifest.items():
            if Path(name).name != name:
                return f"{name} is no file of its own"
            if _fingerprint(path / name) != expected:
                return f"{name} changed"
        if "state.json" not in manifest:
            return "state.json is not listed"
    except PermissionError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by file stem and the state of a verified checkpoint."""
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return tensors, read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """The JSON values of a verified checkpoint."""
    return dict(json.loads((path / "state.json").read_text(encoding="utf-8")))


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return _entry(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256"))


def _entry(size: int, digest: Any) -> dict[str, Any]:
    return {"bytes": size, "sha256": digest.hexdigest()}

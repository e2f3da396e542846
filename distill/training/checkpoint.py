"""Checkpoints: a folder of safetensors and JSON, written whole or not at all, verified before it is used.

A checkpoint holds step, weights, projections, optimiser, scheduler and scaler. It holds no random state: order,
masks and dropout are functions of the step (DESIGN: sample numbers).
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)

KEEP = 2
"""Checkpoints that stay on disk: the newest and one before it, should the newest be damaged."""


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Writes `folder/step-XXXXXXXX` and removes older checkpoints than the last `KEEP`.

    The files go to a temporary folder, are flushed to disk, listed with their SHA-256 in manifest.json, and only then
    the folder gets its name.

    Args:
        tensors: file stem -> name -> tensor; each becomes one safetensors file.
        state: JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    partial = folder / f".partial-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for stem, named in tensors.items():
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in named.items()},
                  partial / f"{stem}.safetensors")  # fmt: skip
    (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    manifest = {path.name: _fingerprint(path) for path in sorted(partial.iterdir())}
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*partial.iterdir(), partial]:
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    _flush(folder)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there and unchanged; damaged ones are renamed and passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        problem = find_damage(path)
        if problem is None:
            return path
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
        logger.warning("%s is damaged (%s); it was renamed to %s and is not used", path, problem, aside.name)
    return None


def checkpoint_students(folder: Path) -> list[str]:
    """The students whose state the newest sound checkpoint holds; none if there is no checkpoint."""
    newest = newest_checkpoint(folder)
    if newest is None:
        return []
    return list(json.loads((newest / "state.json").read_text(encoding="utf-8"))["students"])


def clear_other_checkpoints(folder: Path, students: list[str]) -> None:
    """Removes the checkpoints of an earlier pass that lacks one of these students, so that this pass starts at step 0.

    A pass that had more students serves: a run ended while it wrote the finished models goes on with those it lacks.
    """
    if not set(students) <= set(checkpoint_students(folder)):
        shutil.rmtree(folder, ignore_errors=True)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if _fingerprint(path / name) != expected:
                return f"{name} changed"
        if "state.json" not in manifest:
            return "state.json is not listed"
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by file stem and the state of a verified checkpoint."""
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return tensors, json.loads((path / "state.json").read_text(encoding="utf-8"))


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

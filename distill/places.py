"""Whether what a command writes can be written where it is to go, said before anything slow starts."""

import os
from pathlib import Path

from distill.errors import InputError
from distill.recipe import Recipe


def check_writable(folder: Path) -> None:
    """InputError unless `folder` is one, or could be made, and may be written."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{folder}: cannot be made as output folder, {there} is a file; name another folder")
    if hasattr(os, "statvfs") and os.statvfs(there).f_flag & os.ST_RDONLY:
        raise InputError(f"{folder}: cannot be written, {there} is on a read-only file system; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written, you have no permission for {there}; name another folder")


def check_writable_file(path: Path) -> None:
    """InputError unless a file could be written at `path`."""
    if path.is_dir():
        raise InputError(f"{path}: a folder is there; name a file")
    check_writable(path.parent)


def check_places(recipe: Recipe) -> None:
    """InputError if something of the user's stands where a stage or a finished model goes, which would be replaced."""
    output = Path(recipe.output_dir)
    for stage in recipe.stages:
        models = [output / "models" / name for name in stage.students]
        for place in (output / "stages" / stage.name, output / "stages" / stage.name / "checkpoints", *models):
            if place.is_symlink():
                raise InputError(
                    f"{place}: a symbolic link, and a run replaces what is there; put a folder in its place"
                )
        for model in models:
            empty = model.is_dir() and not any(model.iterdir())
            if model.exists() and not empty and not (model / "config.json").exists():
                raise InputError(f"{model}: something else than a model is there; move it away, the student goes there")

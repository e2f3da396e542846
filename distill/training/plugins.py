"""Losses of a user: Python files, named on the command line, that register with TextBrewer's `register_new`.

A recipe cannot name them, so that nobody's code runs because somebody opened a recipe. What a loss function may say
about itself by attributes: `unit`, what it averages over (default "tokens"), and `same_width`, whether student and
teacher states must have one width (default False). docs/methods.md has an example.
"""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from textbrewer.presets import KD_LOSS_MAP, MATCH_LOSS_MAP, PROJ_MAP

from distill.errors import InputError, first_line
from distill.training.losses import TOKENS, UNITS

_REGISTRIES = (KD_LOSS_MAP, MATCH_LOSS_MAP, PROJ_MAP)
_loaded: dict[Path, str] = {}
"""Files that this process has imported, with their SHA-256; TextBrewer's registries are as global as this."""


def loaded_plugins() -> dict[str, str]:
    """File name -> SHA-256 of the plugins of this process, by which a run notices that one has changed."""
    return {path.name: content for path, content in _loaded.items()}


def load_plugins(paths: Sequence[str | Path]) -> None:
    """Imports the files, each once a process.

    Raises:
        InputError: no such file, an error in it, a built-in loss replaced, a unit that does not exist.
    """
    names: set[str] = set()
    for path in map(Path, paths):
        if not path.is_file() or path.suffix != ".py":
            raise InputError(f"--plugin {path}: {'not a .py file' if path.is_file() else 'no such file'}")
        if path.name in names:
            raise InputError(f"--plugin {path}: a second file of this name; rename one of them")
        names.add(path.name)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        if _loaded.get(path.resolve()) != content:
            _import_plugin(path)
            _loaded[path.resolve()] = content


def _import_plugin(path: Path) -> None:
    name = f"distill_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    before = [dict(registry) for registry in _REGISTRIES]
    known = set(MATCH_LOSS_MAP)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file may raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        line = f", line {lines[-1]}" if lines else ""
        raise InputError(f"--plugin {path}{line}: {type(error).__name__}: {first_line(error, None)}") from error
    for registry, entries in zip(_REGISTRIES, before, strict=True):
        for entry, function in entries.items():
            if registry.get(entry) is not function and getattr(function, "__module__", "") != name:
                registry[entry] = function
                raise InputError(f"--plugin {path}: replaces '{entry}'; register the loss under a name of its own")
    for entry in sorted(MATCH_LOSS_MAP.keys() - known):
        unit = getattr(MATCH_LOSS_MAP[entry], "unit", TOKENS)
        if unit not in UNITS:
            raise InputError(f"--plugin {path}: '{entry}' has unit {unit!r}; units are {', '.join(UNITS)}")

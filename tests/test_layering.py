"""Imports point down only: this is what keeps the rooms apart."""

import ast
import os
from pathlib import Path

import pytest

import distill
from distill.machine import child_environment

ROOT = Path(distill.__file__).resolve().parent
ORDER = """
    errors durable json_file markdown shipped machine progress
    recipe_types recipe_tasks recipe recipe_file places
    sample corpus modeling training downstream release
    launch run examining reporting finetuning pipeline worker compare
    commands cli __main__
""".split()
"""From the ground up: a room may import what stands before it."""
FILES = sorted(ROOT.rglob("*.py"))


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "distill"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for module in imports_of(path):
        room = room_of(module)
        if room != "__init__":
            assert ORDER.index(room) <= ORDER.index(here), f"{path} ({here}) imports {module} above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path):
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


def test_recipe_and_command_line_import_no_torch():
    import subprocess
    import sys

    code = "import sys, distill.recipe, distill.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent).returncode == 0


def test_processes_that_are_started_import_the_package_from_where_this_one_did():
    assert Path(child_environment()["PYTHONPATH"].split(os.pathsep)[0]) == ROOT.parent

"""The pins are what is installed, they lie in setup.py's ranges, and nothing is imported that is not asked for."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import distill

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(distill.__file__).resolve().parent
PINS = {
    canonicalize_name(requirement.name): requirement
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
    for requirement in [Requirement(line)]
}

OPTIONAL = {"tensorflow"}
"""Imported only if the user has it; a message asks for it where it is needed."""


def ranges() -> dict[str, Requirement]:
    """What setup.py asks for, extras included."""
    found = {}
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg in ("install_requires", "extras_require"):
            lists = [ast.literal_eval(node.value)]
            if isinstance(lists[0], dict):
                lists = list(lists[0].values())
            for requirement in map(Requirement, (text for listed in lists for text in listed)):
                found[canonicalize_name(requirement.name)] = requirement
    return found


@pytest.mark.parametrize("name", PINS)
def test_a_pin_is_one_version_in_the_range_and_the_one_installed(name):
    (pin,) = PINS[name].specifier
    assert pin.operator == "==" and "*" not in pin.version
    if name in ranges():
        assert ranges()[name].specifier.contains(pin.version), f"setup.py: {ranges()[name]}"
    installed = importlib.metadata.version(name)
    assert installed.partition("+")[0] == pin.version, f"requirements.txt: {PINS[name]}, installed: {installed}"


@pytest.mark.parametrize("name", ranges())
def test_what_setup_asks_for_is_pinned(name):
    assert name in PINS


def test_what_is_imported_is_asked_for():
    """A package that only comes along with another may go with its next version."""
    known = {*PINS, *ranges(), "minidistill"}
    owners = importlib.metadata.packages_distributions()
    missing = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in (
                {name.partition(".")[0] for name in names} - sys.stdlib_module_names - OPTIONAL - {"distill", ""}
            ):
                if not {canonicalize_name(owner) for owner in owners.get(name, [])} & known:
                    missing.add((name, str(path.relative_to(PACKAGE))))
    assert not missing


def test_there_are_no_other_sources_in_the_pins():
    """No URLs, no indexes, no paths: the index is the user's choice (PIP_INDEX_URL)."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert not re.search(r"^\s*-|://|@", text, re.MULTILINE)

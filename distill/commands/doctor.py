"""`distill doctor`: what this machine has and lacks for MiniDistill, found without importing torch.

Versions come from package metadata, processor features from the kernel, GPUs from nvidia-smi. A finding is a line;
"needed" ones make the command fail, the others say what does not work yet and how to get it.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import typer

from distill.commands.project_folders import SEGMENTER, TOKENIZER, is_filled
from distill.machine import cpuinfo, list_gpus, num_cores, processor_name
from distill.shipped import shipped

OLDEST_PYTHON = (3, 11)
MIN_MEMORY_GB, MIN_DISK_GB = 4, 5
"""What the sample needs, and a checkpoint with a packed corpus of some size."""
EXTRAS = {
    "jieba": ("jieba", "segmenter jieba"),
    "onnx": ("onnx onnxruntime onnxscript", "distill export"),
    "ray": ("ray", "--ray, many machines"),
}
"""Extra -> its packages, and what needs them."""
SEGMENTER_PACKAGES = ("ltp", "ltp-core", "ltp-extension")
_TOOLS = "# tests and checks"
"""The line of requirements.txt below which nothing is needed to run."""
_FEATURES = {"AVX2": "avx2", "AVX-512": "avx512f", "VNNI": "avx512_vnni avx_vnni", "bf16": "avx512_bf16",
             "AMX": "amx_bf16"}  # fmt: skip
"""What makes steps and int8 fast -> its flags in /proc/cpuinfo."""


def add_doctor_command(app: typer.Typer) -> None:
    """Adds the command to the main one."""
    app.command()(doctor)


def doctor() -> None:
    """Say what this machine has and lacks.

    Looks at versions, processor, memory, disk, GPU, weights and extras, and says how to get what is missing. Exit code
    2 if something that every run needs is missing.
    """
    findings = examine()
    width = max(len(finding.about) for finding in findings)
    for finding in findings:
        typer.echo(f"{finding.state:7}  {finding.about:{width}}  {finding.found}")
    if not is_usable(findings):
        typer.echo("error: something needed is missing; pip install -r requirements.txt installs it", err=True)
        raise typer.Exit(2)


class State(StrEnum):
    """How a finding is meant."""

    ok = "ok"
    note = "note"
    missing = "MISSING"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it."""

    state: State
    about: str
    found: str


def examine() -> list[Finding]:
    """Everything that is looked at, in the order in which it is printed."""
    return [*_packages(), *_extras(), _docs(), *_machine(), *_weights()]


def is_usable(findings: list[Finding]) -> bool:
    """Whether nothing is missing that every run needs."""
    return all(finding.state is not State.missing for finding in findings)


def _packages() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        yield Finding(State.missing, "Python", f"{version}; 3.11 or newer is needed")
    else:
        yield Finding(State.ok, "Python", f"{version}, {platform.system()} {platform.machine()}")
    optional = {name for packages, _ in EXTRAS.values() for name in packages.split()} | {*SEGMENTER_PACKAGES}
    tested = _tested_versions()
    others, found = [], {}
    for name, version in tested.items():
        if name in optional:
            continue
        found[name] = _installed(name)
        if found[name] is None:
            yield Finding(State.missing, name, f"not installed; pip install {name}=={version}")
        elif found[name] != version:
            others.append(f"{name} {found[name]} (tested: {version})")
    if "torch" in found and found["torch"]:
        yield Finding(State.ok, "torch", str(importlib.metadata.version("torch")))
    if others:
        yield Finding(State.note, "versions", f"not those that were tested: {', '.join(others)}")
    elif all(found.values()):
        yield Finding(State.ok, "versions", f"{len(found)} packages as tested")


def _tested_versions() -> dict[str, str]:
    """Package -> version of requirements.txt, without the tools of tests."""
    listed = shipped("requirements.txt").read_text(encoding="utf-8").partition(_TOOLS)[0]
    pins = (line.partition("==") for line in listed.splitlines() if "==" in line)
    return {name: version.strip() for name, _, version in pins}


def _installed(name: str) -> str | None:
    """The version without what follows a plus (+cpu, +cu128); None if it is not there."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Finding]:
    missing = [name for name in SEGMENTER_PACKAGES if _installed(name) is None]
    if missing:
        yield Finding(State.note, "ltp", f"{', '.join(missing)} not installed; pip install ltp, or use the segmenters "
                      "jieba or words, or \"mask\": \"token\"")  # fmt: skip
    for extra, (packages, use) in EXTRAS.items():
        lacking = [name for name in packages.split() if _installed(name) is None]
        if lacking:
            yield Finding(State.note, f"extra {extra}", f"not installed, for {use}: pip install {' '.join(lacking)}")
        else:
            yield Finding(State.ok, f"extra {extra}", f"installed, for {use}")


def _docs() -> Finding:
    folder = shipped("docs")
    if folder.is_dir():
        return Finding(State.ok, "docs/", f"{folder}, whose pages messages name")
    return Finding(State.note, "docs/", "not installed; the pages that messages name are in the repository")


def _machine() -> Iterator[Finding]:
    flags = _processor_flags()
    have = [name for name, any_of in _FEATURES.items() if flags & set(any_of.split())]
    threads = os.environ.get("OMP_NUM_THREADS")
    used = f", of which torch uses {threads} (OMP_NUM_THREADS)" if threads else ""
    yield Finding(State.ok, "processor", f"{processor_name()}, {num_cores()} cores{used}")
    if flags:
        told = "" if {"bf16", "AMX"} & {*have} else "; without bf16 or AMX, training runs in float32 here"
        state = State.ok if "AVX2" in have or platform.machine() not in ("x86_64", "AMD64") else State.note
        yield Finding(state, "instructions", f"{', '.join(have) or 'none of ' + ', '.join(_FEATURES)}{told}")
    if _installed("psutil"):
        import psutil

        memory = psutil.virtual_memory()
        state = State.ok if memory.total >= MIN_MEMORY_GB * 2**30 else State.note
        advice = "" if state is State.ok else f"; the sample needs {MIN_MEMORY_GB} GB"
        told = f"{memory.available / 2**30:.1f} GB free of {memory.total / 2**30:.1f} GB"
        yield Finding(state, "memory", told + advice)
    space = shutil.disk_usage(Path.cwd()).free / 2**30
    state = State.ok if space >= MIN_DISK_GB else State.note
    advice = "" if state is State.ok else "; checkpoints and packed text need more: put output_dir elsewhere"
    yield Finding(state, "disk", f"{space:.1f} GB free here{advice}")
    yield _gpus()


def _processor_flags() -> set[str]:
    """The kernel's names of the processor's features; empty where it does not say."""
    return set((cpuinfo("flags") or cpuinfo("Features")).split())


def _gpus() -> Finding:
    names = list_gpus("name,memory.total")
    if names is None:
        return Finding(State.note, "GPU", "nvidia-smi is there but does not answer; check the driver")
    if not names:
        return Finding(State.ok, "GPU", "none found; everything runs on the CPU, see docs/performance.md for times")
    if _installed("torch") and importlib.metadata.version("torch").endswith("+cpu"):
        return Finding(
            State.note, "GPU", f"{'; '.join(names)}, but torch is the CPU build; pip install torch from PyPI"
        )
    return Finding(State.ok, "GPU", "; ".join(names))


def _weights() -> Iterator[Finding]:
    """Whether the places of the published recipe are filled, where they are looked for: below the working folder."""
    for folder, what, get in (
        (SEGMENTER, "LTP's weights", "LTP/small or LTP/legacy"),
        (TOKENIZER, "a teacher", "hfl/chinese-roberta-wwm-ext"),
    ):
        if is_filled(folder):
            yield Finding(State.ok, str(folder), f"{what} there")
        else:
            yield Finding(State.note, str(folder), f"{what} not there (the sample needs none); put the files of {get} "
                          "there, or name the hub id in the recipe")  # fmt: skip

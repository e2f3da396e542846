"""`distill doctor` answers fast and without torch, says what is missing and how to get it; shell completion works."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest
from fixtures_cli import ROOT, children_seconds, run

from distill import machine
from distill.commands import doctor
from distill.commands.doctor import State, examine, is_usable


def found(about):
    return next(finding for finding in examine() if finding.about == about)


def test_this_environment_is_as_tested(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok") and "packages as tested" in line for line in lines)
    assert {line.split()[0] for line in lines} <= {"ok", "note"}
    assert any(line.startswith("note") and "pretrained_model_path/ltp" in line for line in lines)


def test_it_answers_without_torch_and_fast(python, command_environment):
    code = "import sys; from distill.cli import main\ntry: main(['doctor'])\nexcept SystemExit: pass\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets', 'ltp', 'numpy')))"
    before = children_seconds()
    assert subprocess.run([python, "-c", code], env=command_environment, capture_output=True).returncode == 0
    assert children_seconds() - before < 5  # half a second


def without(monkeypatch, *names, **versions):
    installed = doctor._installed
    monkeypatch.setattr(
        doctor, "_installed", lambda name: None if name in names else versions.get(name, installed(name))
    )


def test_a_package_that_every_run_needs_is_missing(monkeypatch, capsys):
    without(monkeypatch, "safetensors")
    assert run("doctor") == 2
    told = capsys.readouterr()
    assert "MISSING  safetensors" in told.out and "pip install safetensors==" in told.out
    assert told.err.startswith("error: something needed is missing") and told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "about", "told"),
    [
        ("ltp", "ltp", "pip install ltp, or use the segmenters jieba or words"),
        ("onnxscript", "extra onnx", "not installed, for distill export: pip install onnxscript"),
        ("ray", "extra ray", "pip install ray"),
    ],
)
def test_what_can_be_done_without_is_a_note(package, about, told, monkeypatch):
    without(monkeypatch, package)
    assert found(about).state is State.note and told in found(about).found
    assert is_usable(examine())


def asked_by_setup(field):
    """The value of a keyword of setup.py."""
    nodes = ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
    (value,) = (node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == field)
    return ast.literal_eval(value)


def names(requirements):
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}


def test_every_extra_of_setup_is_looked_at():
    extras = {extra: names(listed) for extra, listed in asked_by_setup("extras_require").items() if extra != "test"}
    assert {extra: set(packages.split()) for extra, (packages, _) in doctor.EXTRAS.items()} == extras


def test_what_setup_asks_of_every_run_is_needed(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    missing = {finding.about.lower() for finding in examine() if finding.state is State.missing}
    assert missing >= names(asked_by_setup("install_requires")) - {"ltp"}
    assert not missing & {"ltp", "jieba", "onnx", "ray", "pytest"}


def test_another_version_is_named_beside_the_tested_one(monkeypatch):
    without(monkeypatch, pydantic="2.99.0")
    finding = found("versions")
    assert finding.state is State.note and "pydantic 2.99.0 (tested: 2." in finding.found


def test_weights_that_are_there_are_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = Path("pretrained_model_path/ltp")
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("put weights here")
    assert found(str(folder)).state is State.note
    (folder / "config.json").write_text("{}")
    assert found(str(folder)).state is State.ok


@pytest.mark.parametrize(
    ("script", "told", "state"),
    [
        ("echo 'NVIDIA H200, 143771 MiB'", "NVIDIA H200, 143771 MiB", None),
        ("exit 9", "does not answer; check the driver", State.note),
        ("sleep 9", "does not answer", State.note),
    ],
)
def test_gpus_are_those_of_nvidia_smi(script, told, state, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_SECONDS", 0.2)
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\nexec {script}\n" if script.startswith("sleep") else f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert told in found("GPU").found
    assert state is None or found("GPU").state is state


@pytest.mark.parametrize(
    ("words", "expected"),
    [("distill ex", {"export"}), ("distill export --int", {"--int4", "--int8"}), ("distill segmenter t", {"train"})],
)
def test_the_shell_completes_commands_and_options(words, expected, python, command_environment):
    environment = {**command_environment, "_DISTILL_COMPLETE": "complete_bash", "COMP_WORDS": words,
                   "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
    code = "import sys, distill.__main__ as m\ntry: m.main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True)
    assert set(done.stdout.split()) == expected, done.stderr


def test_completion_can_be_installed(python, command_environment, tmp_path):
    environment = {**command_environment, "HOME": str(tmp_path)}
    command = [python, "-m", "distill", "--install-completion", "bash"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (script,) = tmp_path.glob(".bash_completions/*")
    assert "complete -o default -F _distill_completion distill" in script.read_text()

"""The command line: help, options, and each command on a tiny text."""

import json
import os
import re
import subprocess
import sys

import pytest
from fixtures_cli import ROOT, SENTENCES, VOCAB, children_seconds, complaint, nothing_written, run

from distill import __version__

pytest_plugins = ["fixtures_cli"]

COMMANDS = [[], ["ref"], ["pack"], ["train"], ["models"], ["sample"], ["segmenter"], ["segmenter", "train"]]
EXPLAINED = [["ref"], ["pack"], ["train"], ["compare"], ["convert"], ["features"], ["segmenter", "train"], ["export"]]
COMMANDS += [["compare"], ["convert"], ["fill-mask"], ["features"], ["export"], ["doctor"]]
COMMANDS += [["report"], ["watch"], ["push"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "distill")
def test_every_command_has_help(command, capsys):
    assert run(*command, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: {' '.join(['distill', *command])}")


@pytest.mark.parametrize("command", EXPLAINED, ids=" ".join)
def test_every_option_is_explained(command, capsys):
    run(*command, "--help")
    out = capsys.readouterr().out
    entries = re.split(r"\n  (?=--|-h)", out)[1:]
    assert entries and all(len(re.sub(r"^\S+(, \S+)?( \[?[A-Z]+[^ ]*)?", "", entry).split()) > 1 for entry in entries)


def test_without_arguments_the_help_comes(capsys):
    assert run() == 0
    assert "Commands:" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"distill {__version__}\n"


def test_help_imports_no_torch_and_comes_at_once():
    code = (
        "import sys\nfrom distill.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'ltp', 'datasets', 'numpy')))"
    )
    before = children_seconds()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert children_seconds() - before < 3  # half a second


def test_the_model_comparison_is_the_published_table(capsys):
    assert run("models") == 0
    sizes = {}
    for line in capsys.readouterr().out.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        sizes[cells[0]] = (cells[5].split()[0], cells[6].split()[0])
    assert sizes == {
        "RoBERTa": ("102.3M", "85.7M"),
        "RBT6": ("59.76M", "43.14M"),
        "RBT3": ("38.5M", "21.9M"),
        "RBT4-h312": ("11.4M", "4.7M"),
        "MiniRBT-h256": ("10.4M", "4.8M"),
        "MiniRBT-h288": ("12.3M", "6.1M"),
    }


def test_models_takes_configs_and_folders(project, capsys):
    assert run("models", "student.json", "teacher") == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]] == ["student", "teacher"]


@pytest.mark.parametrize("option", ["--max_seq_length", "--max-seq-length"])
def test_fields_take_dash_and_underscore_alike(option, project, capsys):
    assert run("train", "recipe.json", "--dry-run", option, "24", "--learning_rate=1e-3") == 0
    assert "24 tokens each" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--dry-run", "--dry_run"])
def test_a_dry_run_prints_the_plan_and_writes_nothing(option, project, capsys):
    with nothing_written(project):
        assert run("train", "recipe.json", option) == 0
    out = capsys.readouterr().out
    assert "one: small from teacher, 2 steps of 4 sequences = 1 process(es) x 1 micro-batch(es) x up to 4" in out
    assert re.search(r"small: [\d,]+ parameters, matches: 3", out)
    assert "256 tokens x" in out and "MB a process" in out


def test_the_plan_counts_processes(project, capsys, monkeypatch):
    monkeypatch.setenv("NPROC", "2")
    assert run("train", "recipe.json", "--dry-run", "--global-batch-size", "7", "--micro-batch-size", "2") == 0
    assert "7 sequences = 2 process(es) x 2 micro-batch(es) x up to 2" in capsys.readouterr().out


def test_fields_and_set_reach_the_plan(project, capsys):
    assert run("train", "recipe.json", "--dry-run", "--steps", "9", "--set", "stages.one.steps=5") == 0
    assert "5 steps" in capsys.readouterr().out


# ---- ref, pack, segmenter train


def reference(project, segmenter):
    arguments = ["--text", "text", "--output", "ref", "--tokenizer", "teacher", "--segmenter", segmenter]
    assert run("ref", *arguments, "--processes", "1") == 0
    return (project.root / "ref/a_ref.txt").read_text(encoding="utf-8").splitlines()


def test_ref_of_segmented_text_marks_the_given_words(project, capsys):
    project.write("text/a.txt", "天气 很 好\n\n今天 天气 很 好\n")
    assert reference(project, "words") == ["[2]", "[]", "[2, 4]"]
    assert "references of 1 file(s), 3 lines, 7 words, 3 tokens continue a word" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_ref_by_jieba(project):
    pytest.importorskip("jieba")
    project.write("text/a.txt", "今天天气很好\n")
    (line,) = reference(project, "jieba")
    assert {2, 4} <= set(json.loads(line))  # 今天 and 天气 are words, or parts of one


def data_json(project, **dev):
    train = {"train_files": ["text/a.txt"], "train_ref_files": ["ref/a_ref.txt"]}
    return project.write("data.json", {"train": train, "dev": dev})


def test_pack_makes_a_dataset_named_by_content(project, capsys):
    reference(project, "words")
    data_json(project)
    arguments = ["--data", "data.json", "--tokenizer", "teacher", "--max_seq_length", "32", "--processes", "1"]
    assert run("pack", *arguments, "--output", "packed") == 0
    captured = capsys.readouterr()
    folder = captured.out.strip().splitlines()[-1]
    info = json.loads((project.root / folder / "info.json").read_text())
    assert info["max_seq_length"] == 32 and info["train"]["rows"] > 10 and "packed" in captured.err
    with nothing_written(project):
        assert run("pack", *arguments, "--output", "packed") == 0  # the second time it is there
    assert capsys.readouterr().out.strip() == folder


def test_pack_with_token_masking_needs_no_references(project):
    project.write("data.json", {"train": {"train_files": ["text/a.txt"]}})
    arguments = ["--data", "data.json", "--tokenizer", "teacher", "--max-seq-length", "32", "--mask", "token"]
    assert run("pack", *arguments, "--processes", "1", "--output", "packed") == 0


@pytest.mark.slow
def test_segmenter_train_then_ref_then_pack(project, capsys):
    project.write("segmented.txt", "\n".join(SENTENCES) + "\n")
    assert run("segmenter", "train", "--text", "segmented.txt", "--output", "seg") == 0
    assert "LTP perceptron from" in capsys.readouterr().out
    project.write("text/a.txt", "今天天气很好。\n\n明天天气会很冷。\n")
    assert len(reference(project, "ltp:seg")) == 3
    data_json(project)
    arguments = ["--data", "data.json", "--tokenizer", "teacher", "--max-seq-length", "32", "--output", "packed"]
    assert run("pack", *arguments) == 0


def test_two_texts_with_one_reference_are_told(project, capsys):
    project.write("text/b/x.txt", "天 气\n")
    project.write("other.txt", "天 气\n")
    out = ["--output", "ref", "--tokenizer", "teacher", "--segmenter", "words", "--processes", "1"]
    assert run("ref", "--text", "text", "--text", "other.txt", *out) == 0
    found = sorted(str(path.relative_to(project.root / "ref")) for path in (project.root / "ref").rglob("*.txt"))
    assert found == ["other_ref.txt", "text/a_ref.txt", "text/b/x_ref.txt"]


# ---- errors of the program itself


def test_an_unexpected_error_is_no_usage_error(project, monkeypatch):
    """A mistake of ours shows its traceback: hiding it would leave nobody with anything to report."""

    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("distill.pipeline.describe_plan", broken)
    with pytest.raises(ZeroDivisionError):
        run("train", "recipe.json", "--dry-run")


def test_ctrl_c_is_130(project, monkeypatch, capsys):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("distill.pipeline.describe_plan", interrupted)
    assert run("train", "recipe.json", "--dry-run") == 130
    assert capsys.readouterr().err == "stopped\n"


def test_the_help_of_a_wrong_option_is_named(capsys):
    assert complaint(capsys, "ref", "--txt", "x").endswith("; see `distill ref --help`")


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_scripts_are_well_formed(shell):
    scripts = ["distill.sh", "scripts/setup.sh"]
    for script in scripts if shell == "sh" else [*scripts, "scripts/test.sh", "scripts/test_wheel.sh"]:
        assert subprocess.run([shell, "-n", str(ROOT / script)]).returncode == 0


def distill_sh(tmp_path, *arguments):
    """What distill.sh would start: a virtual environment whose python prints its arguments stands in."""
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "VIRTUAL_ENV": str(tmp_path / "venv")}
    done = subprocess.run(
        ["sh", str(ROOT / "distill.sh"), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [line.replace(f"{ROOT}/", "") for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        (["r.json", "--steps", "5"], ["train.py r.json --steps 5"]),
        (["--teacher_name_or_path", "t"], ["train.py --teacher_name_or_path t"]),
        (["--output_dir", "o", "--teacher_name_or_path=t"], ["train.py --output_dir o --teacher_name_or_path=t"]),
        ([], ["-m distill sample --output saves/sample-world", "train.py jsons/recipes/sample.json"]),
        (
            ["--steps", "9"],
            ["-m distill sample --output saves/sample-world", "train.py jsons/recipes/sample.json --steps 9"],
        ),
        (["--help"], ["train.py --help"]),
    ],
)
def test_distill_sh_starts_the_right_program(arguments, started, tmp_path):
    assert distill_sh(tmp_path, *arguments) == started


def test_the_tiny_vocabulary_covers_the_tiny_text():
    assert len(VOCAB) == len(set(VOCAB)) and "天" in VOCAB

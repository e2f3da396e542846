"""MiniRBT's project structure: run_chinese_ref.py, my_datasets.py and train.py's flags, one after the other."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from fixtures_cli import ROOT, SENTENCES, bert, run

from distill.cli import main
from distill.commands import project_folders

pytest_plugins = ["fixtures_cli"]

TRAIN, DEV = SENTENCES[:48], SENTENCES[48:]


@pytest.fixture
def structure(project):
    """The seed's folders, without an LTP model yet."""
    for split, lines in (("train", TRAIN), ("dev", DEV)):
        text = "\n".join(line.replace(" ", "") + ("\n" if i % 3 == 2 else "") for i, line in enumerate(lines))
        project.write(f"dataset/{split}/part/a.txt", text + "\n")
        project.write(f"dataset/{split}/README.md", "put text here\n")
        project.write(f"pretrained_model_path/{'ltp' if split == 'train' else 'RoBERTa'}/README.md", "put it here\n")
    project.model("pretrained_model_path/RoBERTa", num_hidden_layers=4, form="bin")
    return project


def call(function):
    from distill.cli import guard

    with pytest.raises(SystemExit) as left:
        guard(function)
    return int(left.value.code or 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: None, "pretrained_model_path/ltp: nothing there; put the LTP model (e.g. LTP/small"),
        (lambda p: shutil.rmtree(p.root / "pretrained_model_path/RoBERTa"), "pretrained_model_path"),
        (lambda p: p.write("pretrained_model_path/ltp/config.json", "{}"), "not an LTP config"),
        (lambda p: (p.write("pretrained_model_path/ltp/config.json", "{}"), shutil.rmtree(p.root / "dataset/train")),
         "dataset/train: no text there; put your *.txt there, one passage a line"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_before_anything_is_written(spoil, message, structure, capsys):
    spoil(structure)
    assert call(project_folders.write_project_references) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (structure.root / "dataset/references").exists()


def test_packing_before_the_references_says_what_to_run(structure, capsys):
    assert call(project_folders.pack_arguments) == 2
    assert "run python run_chinese_ref.py first" in capsys.readouterr().err


def test_a_damaged_list_is_one_line(structure, capsys):
    structure.write("dataset/data.json", "{")
    assert call(lambda: main(project_folders.pack_arguments())) == 2
    assert "dataset/data.json, line 1: " in capsys.readouterr().err


def program(structure, name, *arguments, ltp=True):
    """Runs one of the programs at the project's root; without `ltp` no process of it can import LTP."""
    environment = dict(os.environ)
    if not ltp:
        blocked = "import sys\nfor name in ('ltp', 'ltp_core', 'ltp_extension'): sys.modules[name] = None\n"
        folder = structure.write("blocked/sitecustomize.py", blocked).parent
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, str(ROOT / name), *arguments], env=environment, capture_output=True, text=True, timeout=190
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def with_ltp(structure):
    """The structure with an LTP perceptron trained on the tiny text."""
    structure.write("segmented.txt", "\n".join(SENTENCES) + "\n")
    arguments = ["--text", "segmented.txt", "--output", "pretrained_model_path/ltp", "--epochs", "3"]
    assert run("segmenter", "train", *arguments) == 0
    return structure


FLAGS = [
    "--teacher_name_or_path", "pretrained_model_path/RoBERTa", "--data_files_json", "dataset/data.json",
    "--output_dir", "out", "--max_seq_length", "32", "--train_batch_size", "4", "--gradient_accumulation_steps", "2",
    "--num_train_steps", "2", "--do_train", "--learning_rate", "4e-4", "--temperature", "8", "--ckpt_steps", "1",
]  # fmt: skip


@pytest.mark.slow
def test_the_projects_programs_run_without_arguments(with_ltp):
    """References, packing and two steps by MiniRBT's flags; LTP cannot be imported after the references."""
    shown = program(with_ltp, "run_chinese_ref.py").stdout
    assert "dataset/references: references of 2 file(s), listed in dataset/data.json" in shown
    listed = json.loads((with_ltp.root / "dataset/data.json").read_text())
    assert listed["train"] == {"train_files": ["dataset/train/part/a.txt"],
                               "train_ref_files": ["dataset/references/train/part/a_ref.txt"]}  # fmt: skip
    references = (with_ltp.root / listed["dev"]["dev_ref_files"][0]).read_text().splitlines()
    assert len(references) == len((with_ltp.root / "dataset/dev/part/a.txt").read_text().splitlines())
    assert any(json.loads(line) for line in references)

    packed = program(with_ltp, "my_datasets.py", ltp=False).stdout.strip()
    assert (with_ltp.root / packed / "info.json").is_file() and packed.startswith("saves/data/")

    with_ltp.model("start")
    with_ltp.write("student.json", bert())
    shown = program(with_ltp, "train.py", *FLAGS, "--student_config", "student.json", "--student_pretrained_weights",
                    "start", "--do_lower_case", ltp=False)  # fmt: skip
    assert "warning: --do_lower_case never had an effect in MiniRBT" in shown.stderr
    assert "makes 4 sequences an optimiser step" in shown.stderr
    assert re.search(r"\| student +\| pretrained_model_path/RoBERTa", shown.stdout)
    assert (with_ltp.root / "out/models/student/model.safetensors").is_file()


@pytest.mark.slow
def test_the_teacher_may_be_safetensors(with_ltp):
    with_ltp.model("pretrained_model_path/RoBERTa", num_hidden_layers=4)
    assert call(project_folders.write_project_references) == 0
    program(with_ltp, "train.py", *FLAGS, "--student_config", "student.json", ltp=False)
    assert (with_ltp.root / "out/models/student/model.safetensors").is_file()


@pytest.mark.slow
def test_a_recipe_over_text_trains_without_ltp_once_the_references_are_there(with_ltp):
    """Text, references and dataset are known by content: a later run needs no segmenter."""
    data = {"text": ["dataset/train"], "segmenter": "ltp:pretrained_model_path/ltp"}
    with_ltp.recipe(data=data)
    program(with_ltp, "train.py", "recipe.json")
    student = {"config": "student.json"}
    with_ltp.recipe(data=data, stage={"students": {"small": student, "tiny": student}})
    program(with_ltp, "train.py", "recipe.json", ltp=False)
    assert (with_ltp.root / "out/models/tiny/model.safetensors").is_file()


@pytest.mark.slow
def test_a_teacher_assistants_starting_weights_are_the_teachers(structure):
    from safetensors.torch import load_file

    structure.model("teacher", num_hidden_layers=4)
    done = program(
        structure, "scripts/init_checkpoint_TA.py", "--teacher", "teacher", "--layers", "0,3", "--output", "ta"
    )
    assert done.stdout == "ta: 2 layers of teacher\n" and done.stderr == ""
    teacher, assistant = (load_file(structure.root / name / "model.safetensors") for name in ("teacher", "ta"))
    for name, value in assistant.items():
        source = name.replace("encoder.layer.1.", "encoder.layer.3.")
        assert value.equal(teacher[source]), name

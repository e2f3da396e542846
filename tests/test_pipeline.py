"""A run over its stages: what it leaves, what it skips, what it does when something is added."""

import json
import subprocess
import sys

import pytest
from fixtures_cli import ROOT, nothing_written, run

pytest_plugins = ["fixtures_cli"]

SMALL = {"config": "student.json"}


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def two_stages(project, **second):
    """recipe.json with a second stage, whose teacher is the first one's student."""
    recipe = json.loads(project.recipe().read_text())
    students = {"smaller": {"config": "student.json"}, **second}
    recipe["stages"].append({"name": "two", "teacher": "small", "students": students, "steps": 3})
    project.write("recipe.json", recipe)


def records(project, stage):
    lines = (project.root / f"out/stages/{stage}/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# ---- planning, without training


def test_a_stage_alone_needs_the_models_of_earlier_stages(project, capsys):
    two_stages(project)
    with nothing_written(project):
        assert run("train", "recipe.json", "--stage", "two") == 2
    assert "stage 'two' needs the model 'small', which an earlier stage makes" in capsys.readouterr().err


def test_a_later_stage_is_checked_before_the_first_trains(project, capsys):
    two_stages(project, odd={"config": "student.json", "matches": [{"layer_T": 9, "layer_S": 1, "feature": "hidden",
                                                                     "loss": "mmd"}]})  # fmt: skip
    with nothing_written(project):
        assert run("train", "recipe.json") == 2
    assert "stage 'two', student 'odd'" in capsys.readouterr().err


def test_the_plan_follows_a_name_to_an_earlier_student(project, capsys):
    two_stages(project)
    assert run("train", "recipe.json", "--dry-run") == 0
    assert "two: smaller from small, 3 steps" in capsys.readouterr().out


def test_the_plan_of_one_stage_shows_that_stage(project, capsys):
    two_stages(project)
    assert run("train", "recipe.json", "--dry-run", "--stage", "one") == 0
    assert "two:" not in capsys.readouterr().out


def test_a_finished_stage_is_planned_as_finished(project, capsys):
    project.model("out/models/small")
    assert run("train", "recipe.json", "--dry-run") == 0
    assert capsys.readouterr().out == "one: finished\n"


def test_resuming_a_dry_run_does_not_touch_a_damaged_checkpoint(project):
    """Damaged checkpoints are set aside when training starts, not when somebody asks for the plan."""
    project.write("out/stages/one/checkpoints/step-00000001/state.json", "{}")
    with nothing_written(project):
        assert run("train", "recipe.json", "--dry-run") == 0


def test_epochs_and_no_teacher_are_planned(project, capsys):
    recipe = json.loads(project.recipe().read_text())
    recipe["stages"] = [{"name": "plain", "students": {"lm": SMALL}, "epochs": 2, "steps": None}]
    recipe["defaults"]["data"]["tokenizer"] = "teacher"
    project.write("recipe.json", recipe)
    assert run("train", "recipe.json", "--dry-run") == 0
    assert "plain: lm without a teacher, 2 epochs of 4 sequences" in capsys.readouterr().out


# ---- real runs


@pytest.mark.slow
def test_a_run_leaves_what_the_design_says_and_a_second_run_trains_nothing(project, capsys):
    two_stages(project)
    assert run("train", "recipe.json") == 0
    shown = capsys.readouterr().out
    assert "one: finished small in" in shown and "two: finished smaller in" in shown
    rows = [line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("|")]
    assert rows[2:] == ["teacher", "small", "small", "smaller"] or rows[2:] == ["teacher", "small", "smaller"]
    out = project.root / "out"
    names = {"config.json", "model.safetensors", "vocab.txt", "README.md"}
    assert names <= {path.name for path in (out / "models/small").iterdir()}
    for stage in ("one", "two"):
        status = json.loads((out / f"stages/{stage}/status.json").read_text())
        assert status["state"] == "finished"
        assert (out / f"stages/{stage}/log.txt").is_file() and (out / f"stages/{stage}/tensorboard").is_dir()
        first = records(project, stage)[0]
        assert list(first)[:5] == ["step", "samples", "tokens", "split", "student"]
    assert {record["student"] for record in records(project, "one")} == {"teacher", "small"}
    models, stages = files_of(out / "models"), files_of(out / "stages")
    assert run("train", "recipe.json") == 0
    again = capsys.readouterr().out
    assert (
        "finished" not in again
        and [line for line in shown.splitlines() if line.startswith("|")] == again.splitlines()[:-1]
    )
    assert (files_of(out / "models"), files_of(out / "stages")) == (models, stages)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_student_added_to_a_finished_stage_is_trained_alone(project, capsys):
    assert run("train", "recipe.json") == 0
    before = files_of(project.root / "out/models/small")
    old = records(project, "one")
    capsys.readouterr()
    project.recipe(stage={"students": {"small": SMALL, "added": SMALL}})
    assert run("train", "recipe.json") == 0
    assert "one: added from teacher" in capsys.readouterr().out
    assert files_of(project.root / "out/models/small") == before
    assert (project.root / "out/models/added/model.safetensors").is_file()
    new = records(project, "one")
    assert [r for r in new if r["student"] == "small"] == [r for r in old if r["student"] == "small"]
    assert {record["student"] for record in new} == {"teacher", "small", "added"}


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_fields_that_change_no_training_may_change_on_a_finished_run(project, capsys):
    assert run("train", "recipe.json") == 0
    assert run("train", "recipe.json", "--log-every", "1", "--micro-batch-size", "2") == 0
    assert run("train", "recipe.json", "--learning-rate", "1e-5") == 2
    assert "learning_rate was 0.0004 and is now 1e-05" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_two_processes_ends_like_one_and_prints_one_line_when_wrong(project, capsys, monkeypatch):
    monkeypatch.setenv("NPROC", "2")
    config = json.loads((project.root / "teacher/config.json").read_text())
    project.write("teacher/config.json", {**config, "num_hidden_layers": 5})
    assert run("train", "recipe.json") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: stage 'one', teacher") and "16 weights are missing" in err and err.count("\n") == 1
    project.write("teacher/config.json", config)
    assert run("train", "recipe.json") == 0
    assert (project.root / "out/models/small/model.safetensors").is_file()


@pytest.mark.slow
def test_under_the_users_own_torchrun_one_stage_is_trained(project):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1",
               str(ROOT / "train.py"), "recipe.json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=190)
    assert done.returncode != 0 and "error: under torchrun one stage is trained; name it with --stage" in done.stderr
    done = subprocess.run([*command, "--stage", "one"], capture_output=True, text=True, timeout=190)
    assert done.returncode == 0, done.stderr
    assert (project.root / "out/models/small/model.safetensors").is_file()

"""`distill watch`: the state of a run from its files alone."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from fixtures_cli import complaint, run
from rich.console import Console

from distill.corpus.lock import this_process
from distill.downstream.run import digest_model
from distill.errors import InputError
from distill.recipe_file import load_recipe
from distill.release.watching import MetricsTail, Watch, draw
from distill.run.status import at_work

pytest_plugins = ["fixtures_cli"]


@pytest.fixture
def watched(project):
    """A run of two stages that has begun."""
    recipe = json.loads(project.recipe().read_text())
    recipe["stages"].append({"name": "two", "teacher": "small", "students": {"smaller": {"config": "student.json"}}})
    project.write("recipe.json", recipe)
    project.write("out/recipe.json", load_recipe("recipe.json").model_dump())
    return project


def write_progress(project, state="running", step=30, steps=100, **facts):
    status = {"state": state, "messages": ["[bold]training[/] on cpu\x1b[31m"], "step": step, "steps": steps, **facts}
    project.write("out/stages/one/status.json", status)
    records = [
        {"step": 0, "tokens": 0, "split": "dev", "student": "teacher", "mlm_loss": 3.0, "accuracy": 0.4},
        {"step": 20, "tokens": 2000, "split": "train", "student": "small", "loss": 7.5, "grad_norm": float("nan"),
         "learning_rate": 1e-3, "tokens_per_second": 50.0, "mfu": 0.25, "data_wait": 0.0},
        {"step": 20, "tokens": 2000, "split": "dev", "student": "small", "mlm_loss": 6.0, "accuracy": 0.125},
    ]  # fmt: skip
    project.write("out/stages/one/metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def write_command(project, state="running", doing="training", **facts):
    """What `distill train` says of itself, as this process."""
    status = {"state": state, "messages": [], "doing": doing, "process": this_process(), **facts}
    project.write("out/status.json", status)


def finish_models(project):
    for name in ("small", "smaller"):
        project.write(f"out/models/{name}/config.json", "{}")


def look(capsys) -> dict:
    capsys.readouterr()
    assert run("watch", "out", "--once") == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_state_of_a_running_run(watched, capsys):
    write_progress(watched)
    view = look(capsys)
    one, two = view["stages"]
    assert (view["state"], one["state"], two["state"], view["tasks"]) == ("running", "running", "waiting", None)
    assert (one["step"], one["steps"], one["mfu"]) == (30, 100, 0.25)
    assert one["eta_s"] == 70 * 100 / 50  # steps left x tokens a step / tokens a second
    assert one["students"]["small"] == {"loss": 7.5, "mlm_loss": 6.0, "accuracy": 0.125, "grad_norm": None,
                                        "learning_rate": 1e-3}  # fmt: skip
    assert one["students"]["teacher"]["accuracy"] == 0.4


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_run_that_ended_badly_says_why_and_ends_the_view(state, watched, capsys):
    write_progress(watched, state, message="out of memory; lower micro_batch_size")
    assert look(capsys)["state"] == state
    assert run("watch", "out") == 1
    assert "out of memory; lower micro_batch_size" in capsys.readouterr().out


def test_how_the_last_run_ended_is_forgotten_when_the_next_begins(watched, capsys, monkeypatch):
    """Its data may be prepared for hours before the stage's processes say how they are."""
    write_progress(watched, "failed")
    seen = []

    def prepare(*arguments, **options):
        seen.append(Watch(watched.root / "out").look()["state"])
        raise InputError("the data")

    monkeypatch.setattr("distill.pipeline._prepare", prepare)
    assert "the data" in complaint(capsys, "train", "recipe.json")
    assert seen == ["preparing"]
    view = look(capsys)
    assert (view["state"], view["message"]) == ("failed", "the data")


def test_run_without_a_word_is_doubted(watched, capsys):
    write_progress(watched)
    old = time.time() - 300
    os.utime(watched.root / "out/stages/one/status.json", (old, old))
    assert look(capsys)["state"] == "silent"


def test_long_steps_are_no_silence(watched, capsys):
    write_progress(watched)
    path = watched.root / "out/stages/one/metrics.jsonl"
    path.write_text(path.read_text().replace('"tokens_per_second": 50.0', '"tokens_per_second": 1.0'))  # 100 s a step
    old = time.time() - 300
    os.utime(watched.root / "out/stages/one/status.json", (old, old))
    assert look(capsys)["state"] == "running"


@pytest.mark.parametrize("facts", [{"messages": 5}, {"step": "x", "steps": []}, {"message": {}}])
def test_damaged_status_is_drawn(facts, watched):
    write_progress(watched)
    status = {"state": "running", "messages": [], "step": 3, "steps": 9, **facts}
    watched.write("out/stages/one/status.json", status)
    view = Watch(watched.root / "out").look()
    assert view["state"] == "running" and draw(view, watched.root / "out")


def test_stages_are_finished_by_their_models(watched, capsys):
    write_progress(watched, "finished", step=100)
    watched.write("out/models/small/config.json", "{}")
    assert look(capsys)["state"] == "silent"  # nobody is known who would begin the next
    write_command(watched)
    view = look(capsys)
    assert [stage["state"] for stage in view["stages"]] == ["finished", "waiting"] and view["state"] == "running"
    watched.write("out/models/smaller/config.json", "{}")
    assert look(capsys)["state"] == "running"  # its results are being collected
    write_command(watched, "finished")
    assert look(capsys)["state"] == "finished"


def test_command_that_was_killed_between_stages_is_known_to_be_gone(watched, capsys):
    write_progress(watched, "finished", step=100)
    watched.write("out/models/small/config.json", "{}")
    dead = subprocess.run([sys.executable, "-c", "from distill.corpus.lock import this_process; print(this_process())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    write_command(watched, process=dead)
    view = look(capsys)
    assert (view["state"], view["doing"]) == ("failed", None)
    assert view["message"] == f"{dead} was killed while it was training; the same command goes on"
    assert run("watch", "out") == 1 and "was killed" in capsys.readouterr().out


def test_command_on_another_machine_is_known_by_its_beat(watched, capsys):
    finish_models(watched)
    write_command(watched, doing="fine-tuning", process="process 1 on elsewhere")
    assert look(capsys)["state"] == "running"
    old = time.time() - 300
    os.utime(watched.root / "out/status.json", (old, old))
    assert look(capsys)["state"] == "silent"


def test_command_says_that_it_is_there_as_long_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.run.status.BEAT_SECONDS", 0.01)
    with at_work(tmp_path, print):
        os.utime(tmp_path / "status.json", (1, 1))
        for _ in range(500):
            if (tmp_path / "status.json").stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert (tmp_path / "status.json").stat().st_mtime > 1


@pytest.mark.slow
def test_one_stage_alone_that_ended_well_ends_the_view(watched, capsys):
    assert run("train", "recipe.json", "--stage", "one") == 0
    view = look(capsys)
    assert (view["state"], [stage["state"] for stage in view["stages"]]) == ("finished", ["finished", "waiting"])
    assert run("watch", "out") == 0


def test_who_is_refused_says_nothing_of_who_is_at_work(watched, capsys):
    with at_work(watched.root / "out", print) as work:
        work.begin("fine-tuning")
        assert "is at work there" in complaint(capsys, "train", "recipe.json")
        assert look(capsys)["doing"] == "fine-tuning"


def test_tasks_are_finished_when_the_tables_tell_of_these_models(watched, capsys):
    recipe = json.loads((watched.root / "out/recipe.json").read_text())
    watched.write("out/recipe.json", {**recipe, "finetune": {"data": "tasks", "tasks": ["tnews"]}})
    finish_models(watched)
    watched.write("out/finetune/small/tnews/abc/metrics.json", "{}")
    write_command(watched, doing="fine-tuning")
    assert look(capsys)["tasks"] == {"runs": 1, "state": "running"}
    write_command(watched, "finished")
    assert look(capsys)["tasks"] == {"runs": 1, "state": "waiting"}
    digests = {name: digest_model(watched.root / f"out/models/{name}") for name in ("small", "smaller")}
    rows = [{"Model": name, "Task": "tnews", "Dev": "50"} for name in digests]
    watched.write("out/report/tables.json", {"tables": {"details": rows}, "models": digests, "teacher": "teacher"})
    os.utime(watched.root / "out/report/tables.json", (1, 1))  # as `cp -r` may leave it
    assert look(capsys)["tasks"] == {"runs": 1, "state": "finished"}
    watched.write("out/models/smaller/config.json", '{"other": "weights"}')
    assert look(capsys)["tasks"]["state"] == "waiting"


def test_data_is_being_prepared(project, capsys):
    write_command(project, doing="preparing data")
    assert look(capsys) == {"state": "preparing", "doing": "preparing data", "message": "", "stages": [], "tasks": None}


def test_data_that_could_not_be_prepared_ends_the_view(project, capsys):
    write_command(project, "failed", message="text/a.txt, line 3: not UTF-8")
    assert run("watch", "out") == 1
    assert "text/a.txt, line 3: not UTF-8" in capsys.readouterr().out


def test_half_written_recipe_is_one_line(watched, capsys):
    watched.write("out/recipe.json", '{"output_d')
    assert "out/recipe.json, line 1: Unterminated string; not valid JSON" in complaint(capsys, "watch", "out")


def test_other_folder_is_refused(project, capsys):
    assert "teacher: no folder of a run" in complaint(capsys, "watch", "teacher")


def test_text_from_files_is_shown_as_it_is(watched):
    write_progress(watched)
    console = Console(width=100, record=True, file=open(os.devnull, "w"))
    console.print(draw(Watch(watched.root / "out").look(), watched.root / "out"))
    text = console.export_text()
    assert "[bold]training[/] on cpu" in text and "\x1b[31m" not in text
    assert "30/100" in text and "2:20" in text and "12.50%" in text and "25%" in text


def test_only_what_is_new_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    tail.read()
    path.write_text('{"split": "train", "student": "a", "loss": 1}\n{"split": "tra')
    tail.read()
    assert tail.newest["train", "a"]["loss"] == 1
    with path.open("a") as file:
        file.write('in", "student": "a", "loss": 2}\n5\nnonsense\n')
    tail.read()
    assert tail.newest["train", "a"]["loss"] == 2
    path.write_text('{"split": "train", "student": "b", "loss": 3}\n')  # cut back
    tail.read()
    assert list(tail.newest) == [("train", "b")]


def test_watching_needs_no_torch_and_ends_on_ctrl_c(watched, command_environment):
    write_progress(watched)
    code = (
        "import sys, distill.cli as c\ntry: c.main(['watch', 'out'])\n"
        "finally: print('with torch' if 'torch' in sys.modules else 'without torch', file=sys.stderr)"
    )
    master, slave = pty.openpty()  # rich draws while it lasts on a terminal alone
    child = subprocess.Popen([sys.executable, "-c", code], env=command_environment, stdout=slave,
                             stderr=subprocess.PIPE, text=True)  # fmt: skip
    os.close(slave)
    drawn = b""
    while b"30/100" not in drawn and select.select([master], [], [], 60)[0]:
        drawn += os.read(master, 1000)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    os.close(master)
    assert (child.returncode, err.split()) == (130, ["stopped", "without", "torch"]), drawn

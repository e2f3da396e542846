"""Trackers of Accelerate: what they are told, and that none of them can end a run."""

import os
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, on_main_process, register_tracker_class
from fixtures_cli import complaint

from distill.recipe_file import load_recipe
from distill.training.metrics import MetricsLog, read_metrics
from distill.training.trackers import check_trackers, open_trackers

pytest_plugins = ["fixtures_cli"]


class Notebook(GeneralTracker):
    """Keeps what it is told."""

    name = "notebook"
    requires_logging_directory = True
    main_process_only = True
    told: list = []
    breaks_at = ""

    def __init__(self, project, folder):
        super().__init__()
        self._tell("made", project, Path(folder).name)

    def _tell(self, what, *facts):
        if what == self.breaks_at:
            raise ConnectionError("no way to the server\nand more")
        self.told.append((what, *facts))

    @property
    def tracker(self):
        return self

    @on_main_process
    def start(self):
        self._tell("start")

    @on_main_process
    def store_init_configuration(self, values):
        self._tell("configuration", values)

    @on_main_process
    def log(self, values, step=None, **kwargs):
        self._tell("log", values, step)

    @on_main_process
    def finish(self):
        self._tell("finish")


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    monkeypatch.setattr(Notebook, "told", [])
    return Notebook


@pytest.fixture
def stage(project):
    return load_recipe(project.recipe(), {"report_to": "tensorboard, notebook"}).stages[0]


def write_log(stage, folder, said):
    log = MetricsLog(folder, students=["small"], step=0, trackers=open_trackers(stage, folder, said.append))
    log.write(step=1, samples=4, tokens=9, split="train", student="small", values={"loss": 2.5})
    log.close()


def test_tracker_is_told_settings_and_every_value(stage, notebook, tmp_path):
    said: list[str] = []
    write_log(stage, tmp_path / "run" / "stages" / "one", said)
    made, start, configuration, log, finish = notebook.told
    assert (made, start, finish) == (("made", "run", "one"), ("start",), ("finish",)) and said == []
    assert log == ("log", {"small/train/loss": 2.5}, 1)
    assert configuration[1]["students.small.config"] == "student.json" and configuration[1]["global_batch_size"] == 4
    assert all(isinstance(value, (bool, int, float, str)) for value in configuration[1].values())


@pytest.mark.parametrize("what", ["made", "start", "configuration", "log", "finish"])
def test_tracker_that_fails_is_given_up_with_one_line(what, stage, notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "breaks_at", what)
    said: list[str] = []
    write_log(stage, tmp_path, said)
    assert said == ["tracker notebook is given up (ConnectionError: no way to the server); metrics.jsonl goes on"]
    assert [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [2.5]


def test_trackers_under_torchrun_open_no_process_group(stage, notebook, tmp_path, monkeypatch):
    """Accelerate's state would open one on a GPU, which nobody would leave again."""
    torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *a, **k: pytest.fail("a process group"))
    monkeypatch.setattr(PartialState, "_shared_state", {})
    said: list[str] = []
    write_log(stage, tmp_path, said)
    assert said == [] and PartialState().is_main_process and PartialState().num_processes == 1
    assert torchrun.items() <= os.environ.items()


def test_field_takes_commas_and_lists(project):
    recipe = project.recipe(stage={"report_to": ["mlflow"]})
    assert load_recipe(recipe).stages[0].report_to == ["mlflow"]
    assert load_recipe(recipe, {"report_to": "mlflow, wandb"}).stages[0].report_to == ["mlflow", "wandb"]


@pytest.mark.parametrize(
    ("name", "line"), [("wandb", "the package of tracker 'wandb' is not installed; `pip install wandb`"),
                       ("mlfow", "no tracker 'mlfow'; did you mean 'mlflow'?")]
)  # fmt: skip
def test_tracker_that_is_not_there_is_said_before_anything_starts(name, line, project, capsys, monkeypatch):
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    project.recipe()
    said = complaint(capsys, "train", "recipe.json", "--report-to", name)
    assert f"stage 'one', report_to: {line}" in said and not (project.root / "out").exists()


def test_tensorboard_and_registered_trackers_are_known(monkeypatch):
    monkeypatch.setattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS", dict(LOGGER_TYPE_TO_CLASS))
    register_tracker_class(type("Mine", (GeneralTracker,), {"name": "mine", "requires_logging_directory": False}))
    check_trackers(["tensorboard", "mine"], where="here")

"""Losses of a user: the example of the documentation, mistakes in the file, and a file that changes on the way."""

import hashlib
import json
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from fixtures_cli import ROOT, complaint, nothing_written, run
from textbrewer.presets import MATCH_LOSS_MAP

from distill.errors import InputError
from distill.training.losses import SEQUENCES, TOKENS, loss_unit, needs_same_width
from distill.training.plugins import load_plugins, loaded_plugins

pytest_plugins = ["fixtures_cli"]

EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "docs/methods.md").read_text(encoding="utf-8"), re.S)[1]
REGISTER = "from textbrewer.distiller_utils import register_new\n"


@pytest.fixture(autouse=True)
def registry():
    """TextBrewer's registry is global: what a test registers goes again."""
    before = dict(MATCH_LOSS_MAP)
    yield
    MATCH_LOSS_MAP.clear()
    MATCH_LOSS_MAP.update(before)


def write(folder, code, name="mine.py"):
    (folder / name).write_text(code, encoding="utf-8")
    return folder / name


def test_the_example_of_the_documentation_is_a_loss(tmp_path):
    path = write(tmp_path, EXAMPLE, "my_losses.py")
    load_plugins([path])
    assert loaded_plugins()["my_losses.py"] == hashlib.sha256(EXAMPLE.encode()).hexdigest()
    assert loss_unit("huber") == TOKENS and needs_same_width("huber")
    student, teacher = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)) * 2, torch.zeros(2, 5, 4)
    expected = F.smooth_l1_loss(student, teacher)
    torch.testing.assert_close(MATCH_LOSS_MAP["huber"](student, teacher), expected)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
    short = F.smooth_l1_loss(student[:, :3], teacher[:, :3])
    torch.testing.assert_close(MATCH_LOSS_MAP["huber"](student, teacher, mask=mask), short)


def test_a_unit_is_read_from_the_function(tmp_path):
    code = "def first(S, T, mask=None):\n    return (S[:, 0] - T[:, 0]).square().mean()\n"
    code += "first.unit = 'sequences'\nregister_new('match_Loss', 'first', first)\n"
    load_plugins([write(tmp_path, REGISTER + code)])
    assert loss_unit("first") == SEQUENCES and not needs_same_width("first")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\nx.y()\n", r"mine.py, line 2: AttributeError: 'int' object has no attribute 'y'"),
        ("def (:\n", r"mine.py: SyntaxError: invalid syntax .*line 1"),
        ("import no_such_module\n", "mine.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        (REGISTER + "register_new('match_Loss', 'cos', max)\n", "mine.py: replaces 'cos'; register the loss"),
        (REGISTER + "f = lambda S, T, mask=None: 0\nf.unit = 'words'\nregister_new('match_Loss', 'f', f)\n",
         "mine.py: 'f' has unit 'words'; units are masked, tokens, token_pairs, sequences"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_line(code, message, tmp_path):
    cos = MATCH_LOSS_MAP["cos"]
    with pytest.raises(InputError, match=message) as caught:
        load_plugins([write(tmp_path, code)])
    assert "\n" not in str(caught.value)
    assert MATCH_LOSS_MAP["cos"] is cos


def test_files_that_are_not_there_or_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="none.py: no such file"):
        load_plugins([tmp_path / "none.py"])
    with pytest.raises(InputError, match="x.txt: not a .py file"):
        load_plugins([write(tmp_path, "", "x.txt")])
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="a second file of this name"):
        load_plugins([write(tmp_path, ""), write(tmp_path / "b", "")])


# ---- through the commands


def test_a_recipe_knows_the_loss_with_the_plugin_and_not_without(project, capsys):
    project.recipe(student={"matches": ["uniform:huber"]})
    project.write("my_losses.py", EXAMPLE)
    assert "unknown loss 'huber'" in complaint(capsys, "train", "recipe.json", "--dry-run")
    assert run("train", "recipe.json", "--dry-run", "--plugin", "my_losses.py") == 0
    assert "small: " in capsys.readouterr().out


@pytest.mark.parametrize("key", ["plugin", "plugins"])
def test_a_recipe_cannot_name_code(key, project, capsys):
    for change in ({"stage": {key: "my.py"}}, {"student": {key: "my.py"}}, {key: "my.py"}):
        project.recipe(**change)
        assert f"unknown key '{key}'" in complaint(capsys, "train", "recipe.json")


def test_a_missing_plugin_is_one_line(project, capsys):
    with nothing_written(project):
        assert "--plugin none.py: no such file" in complaint(capsys, "train", "recipe.json", "--plugin", "none.py")


@pytest.mark.slow
def test_the_processes_of_a_stage_know_the_loss_and_a_changed_file_is_noticed(project, capsys):
    """A model folder that is gone beside its checkpoint is what a kill at the end of a stage leaves."""
    project.recipe(student={"matches": ["uniform:huber"]})
    project.write("my_losses.py", EXAMPLE)
    assert run("train", "recipe.json", "--plugin", "my_losses.py") == 0
    metrics = [json.loads(line) for line in (project.root / "out/stages/one/metrics.jsonl").read_text().splitlines()]
    assert any("huber_1_2" in record for record in metrics)
    shutil.rmtree(project.root / "out/models/small")
    project.write("my_losses.py", EXAMPLE + "\n# other\n")
    line = complaint(capsys, "train", "recipe.json", "--plugin", "my_losses.py")
    assert "stage 'one', plugin my_losses.py contains something else now" in line and "--allow-changes" in line
    project.write("my_losses.py", EXAMPLE)
    assert run("train", "recipe.json", "--plugin", "my_losses.py") == 0

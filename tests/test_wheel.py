"""What pip installs is enough: configs and recipes come along, and nothing but segmentation needs ltp."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures_cli import ROOT, beside_the_package
from test_finetune import make_task, write_encoder

from distill.modeling.config import load_config
from distill.recipe_file import load_recipe
from distill.shipped import or_shipped, shipped

RECIPES = sorted(path.name for path in (ROOT / "jsons/recipes").glob("*.json"))

BLOCK_LTP = """
import sys
class Blocked:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("ltp", "ltp_core", "ltp_extension"):
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Blocked())
"""

COMMANDS = """
import json, sys
from pathlib import Path
import distill
from distill.cli import main
assert Path(distill.__file__).is_relative_to(sys.argv[1]), distill.__file__
try: import ltp
except ImportError: pass
else: raise AssertionError("ltp can be imported here")
def run(*command):
    try: main(list(command))
    except SystemExit as left: assert not left.code, (command, left.code)
run("doctor")
run("models")
run("train", "jsons/recipes/minirbt.json", "--show-recipe", "--method", "tinybert")
run("tasks", "tnews")
run("finetune", "encoder", "--task", "data/task.json", "--data", "data", "--epochs", "1")
model = str(next(Path("saves/finetune/encoder").glob("*/*/model")))
run("predict", model, "--data", "data", "--split", "dev", "--output", "dev.jsonl")
run("export", model, "--data", "data", "--output", "exported", "--seconds", "0")
"""

SERVE = """
import json, runpy, sys
from pathlib import Path
print(json.dumps(runpy.run_path(sys.argv[1])["Model"](Path("exported"))(["一丁", "七"])))
"""


def test_recipes_configs_and_methods_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in RECIPES:
        recipe = load_recipe(Path("jsons/recipes") / name, {"method": "tinybert"} if name == "own_text.json" else {})
        for student in (student for stage in recipe.stages for student in stage.students.values()):
            if student.config:
                load_config(student.config)


@beside_the_package
def test_a_users_own_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "distill_configs/RBT6.json"
    assert or_shipped(name) == ROOT / name
    Path("distill_configs").mkdir()
    Path(name).write_text("{}")
    assert or_shipped(name) == Path(name)
    assert or_shipped("distill_configs/RBT7.json") == Path("distill_configs/RBT7.json")
    assert or_shipped("setup.py") == Path("setup.py")
    assert shipped("requirements.txt").is_file()


@beside_the_package
@pytest.mark.slow
def test_the_wheel_is_enough_without_ltp(python, tmp_path, clean_environment):
    """About 40 s: built from a copy of what git has, installed beside nothing, run in a folder of its own."""
    source, installed, work = tmp_path / "source", tmp_path / "installed", tmp_path / "work"
    source.mkdir()
    for name in ("distill", "distill_configs", "docs", "jsons"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE", "requirements.txt"):
        shutil.copyfile(ROOT / name, source / name)
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(wheels, check=True, env=clean_environment)
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)], check=True,
                   env=clean_environment)  # fmt: skip
    (installed / "sitecustomize.py").write_text(BLOCK_LTP)
    work.mkdir()
    write_encoder(work / "encoder")
    make_task(work / "data", train=64)
    environment = {**clean_environment, "PYTHONPATH": str(installed)}
    done = subprocess.run([python, "-c", COMMANDS, str(installed)], cwd=work, env=environment, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (installed / "distill/shipped_files/docs/faq.md").is_file() and "shipped_files/docs," in done.stdout
    assert "MiniRBT-h288" in done.stdout and '"distill_configs/MiniRBT-h256.json"' in done.stdout
    serve = [python, "-c", SERVE, str(ROOT / "scripts" / "serve_onnx.py")]
    done = subprocess.run(serve, cwd=work, env=environment, capture_output=True, text=True, check=True)
    assert [answer["label"] in ("good", "bad") for answer in json.loads(done.stdout)] == [True, True]
    assert len((work / "dev.jsonl").read_text(encoding="utf-8").splitlines()) == 40
    assert not (installed / "distill_configs").exists()  # the top level of site-packages is not ours

"""Model cards: what stands on them, that the Hub can read them, and how they get there."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from fixtures_cli import complaint, run
from huggingface_hub import ModelCard

from distill.downstream.run import digest_model
from distill.pipeline import record_settings
from distill.recipe_file import load_recipe
from distill.release.card import MARK, first_cards, refresh_cards
from distill.release.run_folder import open_run
from distill.release.task_tables import read_task_tables
from distill.run.planning import plan_recipe
from distill.training.metrics import StatusFile, read_status
from distill.worker import _write_cards

pytest_plugins = ["fixtures_cli"]

TABLES = {
    "details": [
        {"Model": name, "Task": "tnews", "Dev": f"{value}±0.30", "Seeds": "3", "Best": "epochs 3"}
        for name, value in (("small", "51.20"), ("smaller", "48.10"), ("other", "99.99"), ("smaller+kd", "49.50"))
    ],
    "latency": [{"Model": "smaller", "p50 ms": "4.2", "Speedup": "3.1x"}],
}


@pytest.fixture
def finished(project):
    """A run of two stages that is finished, untrained: teacher -> small -> smaller."""
    recipe = json.loads(project.recipe(stage={"steps": 7}).read_text())
    students = {"smaller": {"config": "student.json", "mlm_weight": 0.5, "init_layers": [0, 1],
                             "kd_scale": "tau_squared"}}  # fmt: skip
    recipe["stages"].append({"name": "two", "teacher": "small", "students": students})
    recipe["defaults"]["data"]["segmenter"] = "ltp:/home/someone/ltp"
    project.write("recipe.json", recipe)
    project.write("out/recipe.json", load_recipe("recipe.json").model_dump())
    info = {"train": {"rows": 1234, "tokens": 5678, "characters": 6000, "documents": 40}, "most_common_token": {}}
    for stage, name, accuracy in (("one", "small", 0.31), ("two", "smaller", 0.295)):
        project.write(f"out/stages/{stage}/dataset.json", {"path": "out/data/abc"})
        record = {"step": 7, "tokens": 9, "split": "dev", "student": name, "accuracy": accuracy, "mlm_loss": 4.5}
        project.write(f"out/stages/{stage}/metrics.jsonl", json.dumps(record) + "\n")
        project.model(f"out/models/{name}")
    project.write("out/data/abc/info.json", info)
    return project


def write_tables(project, **tables):
    """What a comparison of the models that are there leaves."""
    models = {name: digest_model(project.root / f"out/models/{name}") for name in ("small", "smaller")}
    models |= {"teacher": digest_model(project.root / "teacher"), "other": "not at hand"}
    tables = {"tables": {**TABLES, **tables}, "teacher": "teacher", "models": models}
    project.write("out/report/tables.json", tables)


def read_card(project, name="smaller") -> str:
    return (project.root / f"out/models/{name}/README.md").read_text(encoding="utf-8")


def make_card(project, name="smaller") -> str:
    folder = open_run(Path("out"))
    card = first_cards([name], folder)[name]
    assert folder.problems == []
    return card


def test_card_tells_the_chain_the_data_and_the_settings(finished):
    card = make_card(finished)
    for words in (
        "2 layers, 16 wide: 10,226 parameters, 5,010 without embeddings", "distilled from `small`",
        "| teacher | 4 x 16 |", "| small | 2 x 16 |", "stage two", "| train | 1,234 | 5,678 | 6,000 | 40 |",
        "Words were found by `ltp:ltp`", "| temperature | 8 |", "| mlm_weight | `0.5` |", "companies must pay",
        "| kd_scale | `tau_squared` |",
        "| layers taken from the teacher | 0, 1 |", "The teacher `teacher` has its own terms", "word by word, 0.15",
    ):  # fmt: skip
        assert words in card
    assert "/home/someone" not in card


def test_absolute_paths_are_cut_to_their_last_part(finished):
    recipe = json.loads((finished.root / "recipe.json").read_text())
    student = recipe["stages"][1]["students"]["smaller"]
    student |= {"init": "/home/someone/start", "matches": ["/home/someone/pairs.json", "uniform"]}
    del student["init_layers"]
    finished.write("recipe.json", recipe)
    finished.write("out/recipe.json", load_recipe("recipe.json").model_dump())
    card = make_card(finished)
    assert "stage two, starts from start |" in card and "`pairs.json`, `uniform`" in card and "/home" not in card


def test_start_from_a_published_model_is_told(project):
    recipe = load_recipe(project.recipe(student={"init": "hfl/rbt3"}))
    project.write("out/recipe.json", recipe.model_dump())
    card = make_card(project, "small")
    assert ModelCard(card).data.base_model == "hfl/rbt3"
    assert "began from `hfl/rbt3`, whose terms may reach it" in card


@pytest.mark.parametrize("place", ["out/data/abc/tokenizer", "out/models/small"])
def test_language_is_that_of_the_vocabulary(project, place):
    """Of the dataset before the first step, of the model when it is there, with or without its dataset."""
    project.write("out/recipe.json", load_recipe(project.recipe()).model_dump())
    if place == "out/models/small":
        project.model(place)
    else:
        project.write("out/stages/one/dataset.json", {"path": "out/data/abc"})
        project.write("out/data/abc/info.json", {"most_common_token": {}})
    project.write(f"{place}/vocab.txt", "".join(f"{token}\n" for token in ["[MASK]", "##ing", *"abcdefgh", "\u4e2d"]))
    card = make_card(project, "small")
    assert ModelCard(card).data.language is None and "A BERT encoder" in card
    assert "Paris is the [MASK] of France." in card


def test_results_stand_there_when_they_are_measured(finished):
    assert "accuracy 29.50%, loss 4.500 nats (one run, seed 0)" in make_card(finished)
    write_tables(finished)
    card = make_card(finished)
    assert "| smaller | tnews | 48.10±0.30 | 3 | epochs 3 |" in card and "| smaller+kd | tnews |" in card
    assert "| small | tnews |" in card and "99.99" not in card and "| smaller | 4.2 | 3.1x |" in card
    (finished.root / "out/stages/two/metrics.jsonl").unlink()
    (finished.root / "out/report/tables.json").unlink()
    assert "## Results" not in make_card(finished)


def test_results_of_former_weights_are_not_shown(finished):
    write_tables(finished)
    finished.model("out/models/smaller", initializer_range=0.5)
    card = make_card(finished)
    assert "| smaller | tnews |" not in card and "| smaller+kd |" not in card and "| smaller | 4.2 |" not in card
    assert "| small | tnews | 51.20±0.30 |" in make_card(finished, "small")
    (finished.root / "out/models/smaller/config.json").unlink()  # being trained anew
    assert "| smaller | tnews |" not in make_card(finished)


def test_results_relative_to_a_former_teacher_are_not_shown(finished):
    write_tables(finished)
    finished.model("teacher", num_hidden_layers=4, initializer_range=0.5)
    assert "| small | tnews |" not in make_card(finished, "small")


def test_difference_from_a_model_that_changed_is_not_shown(finished):
    rows = [{"Model": name, "tnews": "1.00"} for name in ("small", "smaller", "difference")]
    write_tables(finished, **{"small against smaller": rows})
    assert read_task_tables(open_run(Path("out")))["small against smaller"] == rows
    finished.model("out/models/smaller", initializer_range=0.5)
    tables = read_task_tables(open_run(Path("out")))
    assert "small against smaller" not in tables and [row["Model"] for row in tables["details"]] == ["small", "other"]


def test_teacher_that_is_a_folder_has_its_row(finished):
    """Tables call it by its folder's name, recipes by its path."""
    recipe = json.loads((finished.root / "out/recipe.json").read_text())
    recipe["stages"][0]["teacher"] = "given/RoBERTa"
    finished.write("out/recipe.json", recipe)
    finished.model("given/RoBERTa", num_hidden_layers=4)
    rows = [{"Model": name, "tnews": cell} for name, cell in (("RoBERTa", "100%"), ("smaller", "91.0%"))]
    write_tables(finished, relative=rows)
    assert "| RoBERTa | 100% |\n| smaller | 91.0% |" in make_card(finished)


def test_tables_that_do_not_say_of_which_weights_they_are_are_left_out(finished):
    finished.write("out/report/tables.json", {"tables": TABLES})
    run = open_run(Path("out"))
    assert read_task_tables(run) == {} and "does not say of which weights it is" in run.problems[0]


def test_metadata_are_the_hubs(finished):
    data = ModelCard(make_card(finished)).data
    expected = {"language": "zh", "library_name": "transformers", "pipeline_tag": "fill-mask"}
    assert expected.items() <= data.to_dict().items()
    assert data.tags == ["bert", "minidistill", "knowledge-distillation"] and data.license is None
    (result,) = data.eval_results
    assert (data.model_name, result.metric_type, result.metric_value) == ("smaller", "accuracy", 0.295)
    assert data.base_model is None  # a folder of somebody's machine is no id of the Hub


def test_teacher_from_the_hub_is_the_base_model(project):
    recipe = load_recipe(project.recipe(stage={"teacher": "hfl/chinese-roberta-wwm-ext"}))
    project.write("out/recipe.json", recipe.model_dump())
    front = make_card(project, "small").split("---")[1]
    assert yaml.safe_load(front)["base_model"] == "hfl/chinese-roberta-wwm-ext"


def test_folder_that_is_not_here_is_no_id_of_the_hub(project):
    """The report is made in another directory than the run was, or from a copy of its folder."""
    project.model("pretrained/RoBERTa")
    recipe = load_recipe(project.recipe(stage={"teacher": "pretrained/RoBERTa"}))
    project.write("out/recipe.json", recipe.model_dump())
    record_settings(plan_recipe(recipe)["one"], ["small"])
    (project.root / "pretrained").rename(project.root / "elsewhere")
    assert ModelCard(make_card(project, "small")).data.base_model is None


@pytest.mark.parametrize("name", ["my--models/rbt6", "a..b/c", "x/y."])
def test_names_that_the_hub_refuses_are_no_error(name, finished):
    recipe = json.loads((finished.root / "out/recipe.json").read_text())
    recipe["stages"][0]["teacher"] = name
    finished.write("out/recipe.json", recipe)
    assert f"| {name} | - | - | given |" in make_card(finished)


def test_settings_of_a_finished_model_are_those_it_was_trained_with(finished):
    """A later run with --allow-changes says something else of the stage."""
    plan = plan_recipe(load_recipe(finished.recipe(stage={"steps": 7})))["one"]
    record_settings(plan, ["small"])
    recipe = json.loads((finished.root / "out/recipe.json").read_text())
    recipe["stages"][0]["steps"] = 200
    finished.write("out/recipe.json", recipe)
    assert "| length | 7 steps of" in make_card(finished, "small")
    finished.write("out/stages/one/settings.json", {"students": {"small": {"steps": "many"}}, "given": {"teacher": []}})
    assert "| length | 200 steps of" in first_cards(["small"], open_run(Path("out")))["small"]


def test_student_without_a_teacher_was_distilled_from_nothing(project):
    recipe = project.recipe(stage={"teacher": None}, data={"tokenizer": "teacher"})
    changed = json.loads(recipe.read_text())
    changed["defaults"]["matches"] = []
    project.write("out/recipe.json", load_recipe(project.write("recipe.json", changed)).model_dump())
    card = make_card(project, "small")
    assert "without a teacher, with MiniDistill" in card and "knowledge-distillation" not in card
    assert "temperature" not in card and "LTP" not in card and "its teacher" not in card


def test_first_card_is_the_same_when_training_goes_on(project):
    project.write("out/recipe.json", load_recipe(project.recipe()).model_dump())
    before = make_card(project, "small")
    records = [
        {"step": 0, "tokens": 0, "split": "dev", "student": "teacher", "accuracy": 0.4, "mlm_loss": 3.0},
        {"step": 1, "tokens": 9, "split": "dev", "student": "small", "accuracy": 0.1, "mlm_loss": 5.0},
    ]
    project.write("out/stages/one/metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    assert make_card(project, "small") == before and "40.00%" not in before


@pytest.mark.parametrize("values", [{"accuracy": 0.5}, {"accuracy": "high"}, {"accuracy": 0.5, "mlm_loss": []}])
def test_odd_measurements_leave_a_card(values, finished):
    record = {"step": 7, "tokens": 9, "split": "dev", "student": "smaller", **values}
    finished.write("out/stages/two/metrics.jsonl", json.dumps(record) + "\n")
    assert ("accuracy 50.00% (one run, seed 0" in make_card(finished)) == (values["accuracy"] == 0.5)


def test_stage_is_trained_though_its_cards_cannot_be_written(finished, monkeypatch):
    monkeypatch.setattr("distill.worker.first_cards", lambda names, run: 1 / 0)
    status = StatusFile(Path("out/stages/two/status.json"))
    card = _write_cards(["smaller"], open_run(Path("out")), status)["smaller"]
    status.write("running")
    assert "# smaller" in card and MARK in card and ModelCard(card).data.to_dict()["library_name"] == "transformers"
    (told,) = read_status(status.path)["messages"]
    assert "ZeroDivisionError" in told


def test_refreshing_keeps_what_a_user_wrote(finished):
    finished.write("out/models/small/README.md", "my own words")
    finished.write("out/models/smaller/README.md", f"{MARK}\nold")
    refresh_cards(open_run(Path("out")))
    assert read_card(finished, "small") == "my own words"
    assert read_card(finished) == make_card(finished)


def test_report_refreshes_the_cards(finished, monkeypatch):
    monkeypatch.setattr("distill.reporting.examine_models", lambda run: None)
    finished.write("out/models/smaller/README.md", MARK)
    assert run("report", "out") == 0
    assert "## Results" in read_card(finished)


@pytest.mark.parametrize("name", ["report/tables.json", "stages/two/metrics.jsonl", "data/abc/info.json"])
@pytest.mark.parametrize("content", [b"\xff", b'{"tables": {"details": [3, {}]}, "train": 5}'])
def test_damaged_files_leave_a_card(name, content, finished):
    finished.write(f"out/{name}", content)
    assert "# smaller" in first_cards(["smaller"], open_run(Path("out")))["smaller"]


# ---- distill push


@pytest.fixture
def hub(monkeypatch):
    """A server that answers like the Hub and keeps what it is sent; its address is HF_ENDPOINT."""
    told: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told.append((self.path, self.headers.get("Authorization", ""), body))
            here = f"http://127.0.0.1:{self.server.server_port}/me/small"
            answers = {
                "/api/repos/create": {"url": here},
                "/api/validate-yaml": {"errors": [], "warnings": []},
                "/api/models/me/small/commit/main": {"commitOid": "abc", "commitUrl": f"{here}/commit/abc"},
            }
            answer = answers.get(self.path)
            if "/preupload/" in self.path:
                files = json.loads(body)["files"]
                answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            self.reply(200 if answer else 403, answer or {"error": "Forbidden: your token may not write here"})

        def do_GET(self):
            self.reply(404, {"error": "not found"})

        def reply(self, code, value):
            content = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    # What HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN become when the hub's client is imported.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield told
    server.shutdown()
    server.server_close()


def test_push_sends_the_whole_folder_in_one_commit(hub, finished, capsys):
    finished.write("out/models/small/README.md", make_card(finished, "small"))
    assert run("push", "out/models/small", "me/small", "--private") == 0
    assert capsys.readouterr().out.strip().endswith("/me/small")
    made = next(json.loads(body) for path, _, body in hub if path == "/api/repos/create")
    assert made["name"] == "small" and made["organization"] == "me" and made["visibility"] == "private"
    ((path, token, body),) = [one for one in hub if "/commit/" in one[0]]
    assert token == "Bearer hf_secret"
    sent = {json.loads(line)["value"].get("path") for line in body.splitlines()} - {None}
    assert sent == {"README.md", "config.json", "model.safetensors", "vocab.txt"}


def test_refusal_of_the_hub_is_one_line(hub, finished, capsys):
    assert "did not take other/small" in complaint(capsys, "push", "out/models/small", "other/small")


@pytest.mark.parametrize(
    ("folder", "name", "line"), [("text", "me/small", "text: no model folder"),
                                 ("teacher", "small", "write OWNER/NAME"),
                                 ("teacher", "a b/c", "no name of a repository"),
                                 ("teacher", "me/small", "HF_HUB_OFFLINE is set")]
)  # fmt: skip
def test_what_cannot_be_pushed_is_said_in_one_line(folder, name, line, project, capsys):
    assert line in complaint(capsys, "push", folder, name)


def test_missing_token_is_said_in_one_line(hub, project, capsys, monkeypatch):
    monkeypatch.setattr("distill.commands.publishing.get_token", lambda: None)
    assert "no token for the Hub; `hf auth login`" in complaint(capsys, "push", "teacher", "me/small")
    assert hub == []

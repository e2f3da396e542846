"""The report of a run: what is on the page, what it survives, and the numbers it computes itself."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures_cli import ROOT, Project, complaint, run

from distill.corpus.prepare import prepare_dataset
from distill.corpus.rows import PackedRows
from distill.corpus.statistics import TokenTable
from distill.corpus.tokenizing import load_tokenizer
from distill.downstream.run import digest_model
from distill.examining import choose_sentences, examine_models, gram_matrices, similarity
from distill.modeling.inference import fill_mask
from distill.progress import show_progress
from distill.recipe_file import load_recipe
from distill.release.chain import read_chain
from distill.release.charts import Axis, heat_chart, line_chart, scatter_chart, show, thin_out
from distill.release.report import collect_parts
from distill.release.run_folder import open_run
from distill.reporting import report_at_end
from distill.run.passes import record_pass

pytest_plugins = ["fixtures_cli"]

TABLES = {
    "summary": [{"Model": "teacher", "W/O embeddings": "1.2M", "Mean of tasks": "100.0%"},
                {"Model": "small", "W/O embeddings": "0.3M", "Mean of tasks": "91.5%"}],
    "latency": [{"Model": "teacher", "Batch": "32", "Length": "64", "p50 ms": "1,300.09"},
                {"Model": "small", "Batch": "32", "Length": "64", "p50 ms": "20.5"}],
}  # fmt: skip


def write_tables(project, tables) -> None:
    """What a comparison of the models that are there leaves."""
    folders = {"teacher": project.root / "teacher", "small": project.root / "out/models/small"}
    models = {name: digest_model(folder) for name, folder in folders.items()}
    project.write("out/report/tables.json", {"tables": tables, "machine": {}, "teacher": "teacher", "models": models})


def write_metrics(project, stage: str, student: str, steps: int = 40) -> None:
    lines = [{"step": 0, "samples": 0, "tokens": 0, "split": "dev", "student": "teacher", "mlm_loss": 4.0,
              "accuracy": 0.3}]  # fmt: skip
    for step in range(10, steps + 1, 10):
        common = {"step": step, "samples": 4 * step, "tokens": 100 * step, "student": student}
        lines.append({**common, "split": "train", "loss": 9 - step / 10, "kd": 5.0, "mlm": 4 - step / 10,
                      "hidden_mse_1_2": 0.1, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens_per_second": 900.0,
                      "data_wait": 0.01, "mfu": 0.4})  # fmt: skip
        lines.append({**common, "split": "gradients", "grad_norm_kd": 1.0, "weighted_grad_norm_kd": 2.0})
        lines.append({**common, "split": "dev", "mlm_loss": 5.0 - step / 100, "accuracy": step / 400})
    project.write(f"out/stages/{stage}/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def _built_run(_built_project, tmp_path_factory):
    """The tiny project with the folder `out` of a run of one stage, as a finished run leaves it, untrained."""
    project = Project(tmp_path_factory.mktemp("run") / "project")
    shutil.copytree(_built_project, project.root)
    with contextlib.chdir(project.root):
        recipe = load_recipe(project.recipe())
        project.write("out/recipe.json", recipe.model_dump())
        packed = prepare_dataset(
            recipe.stages[0].data, tokenizer=Path("teacher"), max_seq_length=32, folder=Path("out/data"), processes=1,
            progress=show_progress, report=print,
        )  # fmt: skip
        project.write("out/stages/one/dataset.json", {"path": str(packed)})
        status = {"state": "finished", "messages": ["as usual"], "step": 40, "steps": 40}
        project.write("out/stages/one/status.json", status)
        with record_pass(Path("out/stages/one/passes.jsonl"), students=["small"], processes=2):
            pass
        project.model("out/models/small")
        write_tables(project, TABLES)
        write_metrics(project, "one", "small")
        examine_models(open_run(Path("out")))
    return project.root


@pytest.fixture
def finished(_built_run, tmp_path, monkeypatch):
    """A copy of that project, which is the working directory."""
    shutil.copytree(_built_run, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


class Tags(HTMLParser):
    """Checks that every tag is closed, and collects ids and what is loaded from elsewhere."""

    VOID = {"meta", "link", "br", "img", "input", "hr", "!doctype"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.scripts = 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(project) -> str:
    return (project.root / "out/report/index.html").read_text(encoding="utf-8")


def test_page_of_a_finished_run_is_whole_and_needs_nothing_else(finished, capsys):
    assert run("report", "out") == 0
    assert capsys.readouterr() == ("report: out/report/index.html\n", "")
    page = page_of(finished)
    tags = Tags(page)
    assert tags.open == [] and tags.scripts == 1
    assert all(link.startswith(("#", "data:")) for link in tags.loaded)
    assert {link[1:] for link in tags.loaded if link[0] == "#"} <= set(tags.ids)
    assert (finished.root / "out/report/curves-one.png").read_bytes()[:4] == b"\x89PNG"


def test_every_part_of_a_finished_run_is_there(finished):
    assert run("report", "out") == 0
    parts = collect_parts(open_run(Path("out")))
    assert parts["problems"] == []
    (teacher,) = parts["roots"]
    assert teacher.name == "teacher" and [m.name for m in teacher.students] == ["small"]
    assert teacher.config.num_hidden_layers == 4 and parts["cards"]["small"]["accuracy"] == 0.1
    (stage,) = parts["stages"]
    assert stage["state"] == "finished" and set(stage["charts"]) == {
        "loss", "dev_loss", "dev_accuracy", "grad_norm", "learning_rate", "speed", "shares"}  # fmt: skip
    assert [name for name, _ in stage["terms"][0]["charts"]["terms"].legend] == ["kd", "mlm", "hidden_mse_1_2"]
    assert [name for name, _ in stage["terms"][0]["charts"]["norms"].legend] == ["kd"]
    assert parts["quality"]["shape"] == "32 x 64" and "91.5" in parts["quality"]["latency"].svg
    assert {row["model"] for row in parts["examples"][0]["rows"]} == {"teacher", "small"}
    (layers,) = parts["similarity"]
    assert layers["mean"] is not None and layers["chart"].svg.count('class="heat pair"') == 3
    (dataset,) = parts["datasets"]
    assert (
        dataset["splits"]["train"]["rows"] > 0
        and dataset["data"]["text"] == ["text"]
        and 'class="masked"' in "".join(dataset["rows"])
    )
    (time,) = parts["times"]
    assert time["processes"] == 2 and time["process_hours"] == pytest.approx(time["seconds"] * 2 / 3600)
    assert parts["versions"][0]["torch"] == torch.__version__


def test_models_are_asked_once_until_they_change(finished, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("distill.examining.load_masked_lm", None)
        assert run("report", "out") == 0
    finished.model("out/models/small", num_hidden_layers=3)
    examine_models(open_run(Path("out")))
    assert len(json.loads((finished.root / "out/report/examples.json").read_text())["similarity"][0]["cka"]) == 4


def test_answers_of_a_teacher_that_is_gone_are_kept(finished):
    before = (finished.root / "out/report/examples.json").read_bytes()
    shutil.rmtree(finished.root / "teacher")
    assert run("report", "out") == 0
    assert (finished.root / "out/report/examples.json").read_bytes() == before


def test_damaged_answers_are_made_again_without_a_word(finished, capsys):
    before = (finished.root / "out/report/examples.json").read_bytes()
    finished.write("out/report/examples.json", "{")
    assert run("report", "out") == 0
    assert capsys.readouterr().err == ""
    assert json.loads((finished.root / "out/report/examples.json").read_bytes()) == json.loads(before)


def test_run_that_has_only_begun_says_what_is_missing(project, capsys):
    project.write("out/recipe.json", load_recipe(project.recipe()).model_dump())
    assert run("report", "out") == 0
    page = page_of(project)
    assert capsys.readouterr().err == "" and Tags(page).open == []
    for words in ("<b>0 / 1</b>", "Nothing is logged yet", "No data is prepared yet", "no section"):
        assert words in page


@pytest.mark.parametrize(
    ("config", "layers"), [("distill_configs/RBT3.json", 3), ("student.json", 2), ("gone.json", None)]
)
def test_sizes_of_planned_students_come_from_their_configs(config, layers, project):
    """Those that are shipped, too, wherever the working directory is."""
    project.write("out/recipe.json", load_recipe(project.recipe(student={"config": config})).model_dump())
    _, small = read_chain(open_run(Path("out")))
    assert (small.config.num_hidden_layers if small.config else None) == layers and not small.is_finished


def test_students_in_training_stand_in_the_table_with_what_they_have_reached(project):
    project.write("out/recipe.json", load_recipe(project.recipe()).model_dump())
    write_metrics(project, "one", "small")
    project.write("out/stages/one/status.json", {"state": "running", "step": 44, "steps": 100})
    parts = collect_parts(open_run(Path("out")))
    teacher, small = parts["rows"]
    assert (teacher["name"], teacher["dev_accuracy"], teacher["is_finished"]) == ("teacher", 0.3, True)
    assert teacher["parameters"] == parts["roots"][0].counts.masked_lm
    assert (small["steps"], small["tokens"], small["dev_accuracy"], small["is_finished"]) == (40, 4000, 0.1, False)
    assert parts["cards"]["small"]["state"] == "running" and parts["cards"]["small"]["progress"] == 0.44


def test_text_from_files_is_escaped(finished):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    finished.write("out/stages/one/status.json", {"state": evil, "messages": [evil], "message": evil})
    write_tables(finished, {evil: [{evil: evil}]})
    record = {"seconds": 1, "machine": {evil: evil}, "versions": {evil: evil}, "begun": evil, "processes": evil}
    finished.write("out/stages/one/passes.jsonl", json.dumps(record) + "\n")
    line = {"step": 1, "split": "train", "student": evil, evil: 1.0, "loss": 1.0, "mlm": 2.0}
    finished.write("out/stages/one/metrics.jsonl", json.dumps(line) + "\n")
    assert run("report", "out") == 0
    page = page_of(finished)
    tags = Tags(page)
    assert tags.scripts == 1 and tags.open == [] and "x" not in tags.loaded
    assert page.count("&lt;script&gt;alert(1)") >= 8


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'{"tables": {"a": [1]}}'])
@pytest.mark.parametrize(
    "name", ["stages/one/metrics.jsonl", "stages/one/status.json", "stages/one/passes.jsonl", "stages/one/dataset.json",
             "report/tables.json", "report/examples.json", "models/small/config.json"]
)  # fmt: skip
def test_damaged_file_costs_a_line_and_not_the_page(name, content, finished, capsys, monkeypatch):
    monkeypatch.setattr("distill.reporting.draw_curves", lambda run: [])  # slow, and read from the same curves
    finished.write(f"out/{name}", content)
    assert run("report", "out") == 0
    err = capsys.readouterr().err
    assert "Traceback" not in err and all(line.startswith("warning: ") for line in err.splitlines())
    assert Tags(page_of(finished)).open == []


def test_damaged_answers_are_named(finished, capsys):
    assert run("report", "out") == 0
    path = finished.root / "out/report/examples.json"
    found = json.loads(path.read_text())
    del found["fill_mask"]["answers"]["small"][0]
    found["similarity"][0]["pairs"] = [[9, 9]]
    path.write_text(json.dumps(found))
    assert run("report", "out") == 0
    assert "out/report/examples.json: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", '{"most_common_token": 5}', '{"most_common_token": {"dev_share": "much"}}'])
def test_finished_run_does_not_fail_by_damaged_data(content, finished, capsys):
    """What comes after training is fine-tuning, which needs no such file."""
    (folder,) = (finished.root / "out/data").glob("*/info.json")
    folder.write_text(content)
    assert run("train", "recipe.json") == 0
    assert "results: out/data" in capsys.readouterr().out


def test_run_does_not_fail_by_its_report(finished, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("distill.reporting.write_report", lambda run: 1 / 0)
    report_at_end(Path("out"), said.append)
    assert said == ["report: not written (division by zero); `distill report out` tries again"]


def test_page_is_there_though_its_pictures_are_not(finished, monkeypatch, capsys):
    monkeypatch.setattr("distill.reporting.draw_curves", lambda run: 1 / 0)
    assert run("report", "out") == 0
    assert "warning: out: a part could not be read (ZeroDivisionError" in capsys.readouterr().err
    assert Tags(page_of(finished)).open == []


def test_what_is_no_number_costs_no_page(finished, capsys):
    cells = TABLES["summary"][:1] + [{**TABLES["summary"][1], "Mean of tasks": "nan%"}]
    write_tables(finished, {**TABLES, "summary": cells})
    finished.write("out/stages/one/passes.jsonl", '{"seconds": NaN}\n{"seconds": 5, "processes": 1}\n')
    path = finished.root / "out/report/examples.json"
    answers = json.loads(path.read_text())
    answers["similarity"][0]["cka"][0][0] = None
    path.write_text(json.dumps(answers))
    assert run("report", "out") == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert "passes.jsonl: 1 line(s) are damaged" in warning
    page = page_of(finished)
    assert Tags(page).open == [] and ">-</text>" in page


def test_models_that_do_not_fit_are_left_out(finished, monkeypatch, capsys):
    monkeypatch.setattr("distill.examining.psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    (finished.root / "out/report/examples.json").unlink()
    assert run("report", "out") == 0
    assert "too large for 0 MB of free memory" in capsys.readouterr().err


def test_teacher_that_was_fetched_from_the_hub_is_found(finished, monkeypatch):
    recipe = json.loads((finished.root / "out/recipe.json").read_text())
    recipe["stages"][0]["teacher"] = "hfl/teacher"
    finished.write("out/recipe.json", recipe)
    monkeypatch.setattr("distill.release.run_folder.try_to_load_from_cache", lambda name, file: f"teacher/{file}")
    (teacher,) = collect_parts(open_run(Path("out")))["roots"]
    assert teacher.name == "hfl/teacher" and teacher.config.num_hidden_layers == 4


@pytest.mark.parametrize("folder", ["nowhere", "teacher"])
def test_folder_that_is_no_run_is_refused(folder, project, capsys):
    assert f"{folder}: no folder of a run" in complaint(capsys, "report", folder)


def test_help_needs_no_torch(command_environment):
    code = "import sys; from distill.cli import main\ntry: main(['report', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=command_environment, capture_output=True, text=True)
    assert done.returncode == 0 and "index.html" in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_run_ends_with_its_report(project, capsys):
    project.recipe(report=True)
    assert run("train", "recipe.json") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report: out/report/index.html"
    parts = collect_parts(open_run(Path("out")))
    assert parts["problems"] == [] and parts["examples"] and parts["similarity"]
    assert parts["times"][0]["passes"] == 1 and parts["times"][0]["seconds"] > 0
    assert str(ROOT) not in page_of(project)


# ---- charts


@pytest.mark.parametrize(
    ("low", "high", "is_log", "expected"),
    [(0, 10, False, [0, 2, 4, 6, 8, 10]), (5.52, 5.59, False, [5.52, 5.54, 5.56, 5.58]), (0, 0.001, False, None),
     (0.001, 10, True, [0.001, 0.01, 0.1, 1, 10]), (12, 80, True, [20, 30, 40, 50, 60, 70, 80])],
)  # fmt: skip
def test_ticks_are_round_and_inside(low, high, is_log, expected):
    ticks = Axis(low, high, 0, 100, is_log=is_log).ticks()
    assert expected is None or ticks == pytest.approx(expected) or len(ticks) >= 3
    assert 2 <= len(ticks) <= 7 and all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert [float(f"{tick:.3g}") for tick in ticks] == pytest.approx(ticks)


def test_line_goes_through_the_places_of_its_values():
    chart = line_chart({"a": [(0, 0.0), (10, 5.0), (20, float("nan")), (30, 10.0)]}, from_zero=True)
    (points,) = re.findall(r'polyline class="line c0" data-name="a" points="([^"]*)"', chart.svg)
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert len(places) == 3 and places[0][0] < places[1][0] < places[2][0]
    assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=0.2)  # up by equal steps


def test_values_can_be_read_back_from_places():
    """As the page's script does for the pointer."""
    chart = line_chart({"a": [(10, 0.001), (40, 5.0)]})
    axes = json.loads(unescape(re.search('data-axes="([^"]*)"', chart.svg)[1]))
    (points,) = re.findall(r'points="([^"]*)"', chart.svg)
    x, y = map(float, points.split()[0].split(","))
    share = (y - axes["y"]["start"]) / (axes["y"]["end"] - axes["y"]["start"])
    assert axes["y"]["is_log"] and axes["y"]["low"] * (axes["y"]["high"] / axes["y"]["low"]) ** share == pytest.approx(
        0.001, rel=0.01
    )
    share = (x - axes["x"]["start"]) / (axes["x"]["end"] - axes["x"]["start"])
    assert axes["x"]["low"] + share * (axes["x"]["high"] - axes["x"]["low"]) == pytest.approx(10)


def test_nothing_to_draw_is_no_chart():
    assert line_chart({}) is line_chart({"a": []}) is line_chart({"a": [(1, float("inf"))]}) is None
    assert scatter_chart({}) is heat_chart([], []) is None


@pytest.mark.parametrize("values", [[3.0], [0.0], [0.0, 0.0], [-1.0, -1.0], [1e-9, 1e9], [1e300, 1e-300]])
def test_any_values_can_be_drawn(values):
    assert "nan" not in line_chart({"a": list(enumerate(values))}).svg


def test_long_lines_become_means_of_neighbours():
    points = [(step, float(step % 2)) for step in range(10_000)]
    thin = thin_out(points)
    assert len(thin) <= 240 and thin[-1][0] == 9999
    assert np.mean([y for _, y in thin]) == pytest.approx(0.5, abs=0.01)


def test_names_of_dots_do_not_cover_each_other():
    chart = scatter_chart({"narrow-deep": (30, 76.5), "narrow-deep-alone": (29, 70.6), "wide-shallow": (30.2, 74.0)})
    boxes = [(float(x), float(y) - 11, float(x) + 7 * len(name), float(y) + 3) for x, y, name in
             re.findall(r'<text class="name" x="([\d.-]+)" y="([\d.-]+)">([^<]*)', chart.svg)]  # fmt: skip
    assert len(boxes) == 3
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize(
    ("value", "percent", "text"), [(0.4567, True, "45.7%"), (12_340, False, "12.34k"), (5.12345, False, "5.123"),
                                   (1.5e6, False, "1.5M"), (0, False, "0"), (1e-5, False, "1e-05")]
)  # fmt: skip
def test_numbers_are_short(value, percent, text):
    assert show(value, percent=percent) == text


# ---- what the models are asked


def test_similarity_is_linear_cka():
    """Kornblith et al. 2019, equation 3: |Y'X|^2 / (|X'X| |Y'Y|) of centred features, Frobenius norms."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 8, generator=generator), torch.randn(50, 5, generator=generator)
    a, b = x - x.mean(0), y - y.mean(0)
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert similarity(*gram_matrices([x, y])) == pytest.approx(float(expected), rel=1e-4)


def test_similarity_ignores_rotation_and_scale():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2))).Q
    assert similarity(*gram_matrices([x, 3 * x @ rotation + 5])) == pytest.approx(1, abs=1e-5)


def test_sentences_are_whole_and_filled_as_the_pipeline_fills_them(finished):
    run_folder = open_run(Path("out"))
    dataset = run_folder.dataset(run_folder.stages[0])
    table = TokenTable(load_tokenizer("teacher"))
    sentences = choose_sentences(PackedRows(dataset / "dev"), table)
    assert sentences == choose_sentences(PackedRows(dataset / "dev"), table) != []
    assert run("report", "out") == 0
    answers = json.loads((finished.root / "out/report/examples.json").read_text())["fill_mask"]["answers"]["teacher"]
    for sentence, answer in zip(sentences, answers, strict=True):
        assert [sentence.input_ids[place] for place in sentence.places] == [table.masks.mask_id] * len(sentence.word)
        assert sentence.after[-1:] in "\u3002\uff01\uff1f"
        text = sentence.before + "[MASK]" * len(sentence.word) + sentence.after
        (expected,) = fill_mask(Path("teacher"), [text], top_k=3)
        for ours, theirs in zip(answer, expected, strict=True):
            assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in theirs], abs=1e-4)
            assert ours[0]["token"] == theirs[0]["token_str"].removeprefix("##").replace(" ", "")


def test_pass_that_fails_is_recorded_too(tmp_path):
    with pytest.raises(KeyError), record_pass(tmp_path / "passes.jsonl", students=["a", "b"], processes=3):
        raise KeyError
    record = json.loads((tmp_path / "passes.jsonl").read_text())
    assert (record["students"], record["processes"], record["outcome"]) == (["a", "b"], 3, "KeyError")

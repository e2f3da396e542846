"""The `finetune` section of a recipe, the tables of a comparison, and how speed is measured."""

import json
from decimal import Decimal

import pytest
from fixtures_cli import SENTENCES, complaint, nothing_written, run

from distill.downstream.latency import Shape, Timing, latency_table, make_shapes, measure_latency, peak_memory
from distill.downstream.report import TaskComparison, draw, make_tables, relative_means, write_report
from distill.downstream.results import Result
from distill.finetuning import grid_of
from distill.modeling.counting import Parameters
from distill.recipe_file import load_recipe
from distill.recipe_tasks import FineTune

pytest_plugins = ["fixtures_cli"]

SECTION = {"data": "tasks", "tasks": ["tasks/mine.json"]}


@pytest.fixture
def tasks(project):
    """The tiny project with a task: whether a character that half of the sentences have stands in a sentence."""
    texts = ["".join(sentence.split()) for sentence in SENTENCES]
    common = max(
        set("".join(texts)), key=lambda character: abs(len(texts) / 2 - sum(character in t for t in texts)) * -1
    )
    rows = [json.dumps({"text": text, "label": str(common in text)}, ensure_ascii=False) for text in texts]
    for split, lines in (("train", rows[:40]), ("dev", rows[40:60])):
        project.write(f"tasks/{split}.jsonl", "\n".join(lines) + "\n")
    project.write("tasks/mine.json", {
        "name": "mine", "kind": "classification", "metrics": ["accuracy"], "texts": ["text"],
        "files": {"train": ["train.jsonl"], "dev": ["dev.jsonl"]},
        "defaults": {"learning_rate": 0.001, "epochs": 1, "batch_size": 8, "max_length": 32},
    })  # fmt: skip
    return project


def test_a_section_names_models_tasks_and_search(tasks):
    section = {**SECTION, "seeds": [0, 1], "grid": {"epochs": [1, 2], "learning_rate": [1e-4]}, "speed": None}
    recipe = load_recipe(tasks.recipe(finetune=section))
    grid = grid_of(recipe.finetune)
    assert list(grid.tasks) == ["tasks/mine.json"] and grid.seeds == [0, 1] and grid.grid.epochs == [1, 2]
    assert recipe.finetune.speed is None and load_recipe(tasks.recipe()).finetune is None


def test_a_preset_gives_way_to_what_stands_beside_it():
    section = FineTune(preset="minirbt", tasks=["ocnli"], grid={"learning_rate": [3e-4]})
    grid = grid_of(section)
    assert list(grid.tasks) == ["ocnli"] and grid.seeds == [0, 1, 2] and grid.grid.epochs == [2, 3, 5, 10]
    assert grid.tasks["ocnli"].learning_rate == [3e-4]


def test_a_dry_run_counts_the_runs(tasks, capsys):
    tasks.recipe(finetune={**SECTION, "seeds": [0, 1, 2], "speed": {"lengths": [16]}})
    assert run("train", "recipe.json", "--dry-run") == 0
    assert "finetune: 6 runs: 2 model(s) x 1 task(s) x settings x 3 seed(s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "finetune: give 'tasks', or a 'preset' that has some"),
        ({"tasks": ["mine"], "modls": []}, "finetune, modls: unknown key; did you mean 'models'?"),
        ({"tasks": ["mine"], "grid": {"rate": [1]}}, "finetune, grid, rate: unknown key; known: batch_size"),
        ({"tasks": ["mine"], "seeds": [-1]}, "finetune, seeds, 0: input should be greater than or equal to 0"),
        ({"tasks": ["tnews", "tnews"]}, "names one twice"),
        ({"tasks": ["tnew"]}, "finetune: task 'tnew': not known; did you mean 'tnews'?"),
        ({"preset": "ure"}, "finetune: grid 'ure': not known; did you mean 'uer'?"),
        ({"preset": "minirbt", "tasks": ["afqmc"]}, "finetune: task 'afqmc': not in this grid"),
        ({"tasks": ["tnews"], "data": "empty"}, "finetune: tnews: no data for split 'train': looked in empty/tnews"),
        ({"models": ["smal"]}, "finetune: smal: no such model folder"),
        ({"teacher": "bert"}, "finetune: 'bert' is none of the models"),
        ({"compare": [["small", "big"]]}, "finetune: 'big' is none of the models"),
        ({"grid": {"max_length": [65]}}, "65"),
        ({"distil": {"matches": ["uniform:relatoin"]}}, "finetune: distil, small: unknown loss 'relatoin'"),
        ({"distil": {"temp": 1}}, "finetune, distil, temp: unknown key; did you mean 'temperature'?"),
        ({"speed": {"lengths": [128]}}, "length 128 cannot be timed, the model has 64 positions"),
    ],
)  # fmt: skip
def test_a_section_that_is_wrong_is_one_line_before_anything_is_trained(tasks, capsys, section, message):
    tasks.recipe(finetune={**SECTION, "speed": {"lengths": [16]}, **section} if section else {})
    with nothing_written(tasks):
        assert message in complaint(capsys, "train", "recipe.json")


def test_a_value_of_the_section_is_set_on_the_command_line(tasks, capsys):
    tasks.recipe(finetune=SECTION)
    assert run("train", "recipe.json", "--show-recipe", "--set", "finetune.seeds=[4, 5]") == 0
    assert json.loads(capsys.readouterr().out)["finetune"]["seeds"] == [4, 5]
    assert "did you mean 'models'" in complaint(capsys, "train", "recipe.json", "--set", "finetune.model=1")


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_recipe_ends_with_the_tables_and_repeats_nothing(tasks, capsys):
    tasks.recipe(finetune={**SECTION, "compare": [["small", "small+kd"]], "seeds": [0, 1], "distil": {},
                           "speed": {"batch_sizes": [2], "lengths": [16]}})  # fmt: skip
    assert run("train", "recipe.json") == 0
    shown = capsys.readouterr().out
    for part in ("### summary", "Speedup (2 x 16)", "### relative", "### small against small+kd", "### latency"):
        assert part in shown
    report = tasks.root / "out/report"
    tables = json.loads((report / "tables.json").read_text("utf-8"))["tables"]
    assert [row["Model"] for row in tables["results"]] == ["teacher", "small", "small+kd"]
    assert {path.name for path in report.iterdir()} >= {
        "tables.md",
        "results.csv",
        "latency.json",
        "quality-latency.png",
    }
    runs = sorted((tasks.root / "out/finetune").glob("*/mine/*/metrics.json"))
    before = [path.read_bytes() for path in runs]
    assert len(runs) == 6
    assert run("train", "recipe.json") == 0
    again = capsys.readouterr().out
    assert "2 runs, 2 finished, 0 to do" in again and "timing" not in again
    assert again[again.index("### summary") :] == shown[shown.index("### summary") :]
    assert [path.read_bytes() for path in runs] == before


def result(model, task, dev, std=0.5):
    names = tuple(f"m{i}" for i in range(len(dev)))
    values = dict(zip(names, dev, strict=True))
    return Result(
        model,
        task,
        "text",
        names,
        {"epochs": 3},
        values,
        dict.fromkeys(names, std),
        values,
        None,
        None,
        None,
        (0, 1),
        4,
    )


SIZES = {"big": Parameters(0, 0, 102_290_312, 0, 16_622_592), "small": Parameters(0, 0, 10_366_856, 0, 5_540_864)}


def comparison(**changes):
    results = [result("big", "a", [80.0]), result("big", "b", [90.0, 70.0]), result("small", "a", [60.0]),
               result("small", "b", [81.0, 63.0]), result("big", "c", [50.0])]  # fmt: skip
    timings = [Timing(name, batch, 128, 1, p50, 2 * p50, 1000.0, 5)
               for batch in (1, 32) for name, p50 in (("big", 68.0 * batch), ("small", 10.0 * batch))]  # fmt: skip
    return TaskComparison(results, "big", SIZES, timings, [["small", "big"]], **changes)


def test_the_summary_has_sizes_speed_and_the_mean_of_the_common_tasks():
    """Task c counts for nobody, small has none; a is 75 %, b (81 + 63) / (90 + 70) = 90 %."""
    assert relative_means(comparison()) == {"big": Decimal("100.0"), "small": Decimal("82.5")}
    summary = make_tables(comparison())["summary"]
    assert summary.columns[3] == "Speedup (32 x 128)"
    assert summary.rows == (("big", "102.3M", "85.7M", "1.0x", "100.0%"), ("small", "10.4M", "4.8M", "6.8x", "82.5%"))


def test_every_table_is_written_in_every_form(tmp_path):
    markdown = write_report(comparison(), tmp_path, {"cpu": "x"}, {"big": "digest"})
    assert (tmp_path / "tables.md").read_text("utf-8") == markdown
    found = json.loads((tmp_path / "tables.json").read_text("utf-8"))
    assert (found["teacher"], found["models"]) == ("big", {"big": "digest"})
    names = {"summary", "results", "relative", "small-against-big", "details", "latency"}
    assert {path.stem for path in tmp_path.glob("*.csv")} == names
    assert "| difference | -20.00 | -9.00/-7.00 |" in markdown
    assert (tmp_path / "quality-size.png").read_bytes()[:4] == b"\x89PNG"


def test_dollar_signs_in_a_name_are_no_formula(tmp_path):
    draw({"a$\\b$c": Decimal("50.0")}, {"a$\\b$c": 1.0}, "size", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size


def test_latency_is_relative_to_the_same_shape():
    table = latency_table(
        [Timing("big", 1, 8, 1, 4.0, 5.0, 2000.0, 5), Timing("small", 1, 8, 1, 1.5, 2.0, 5333.3, 5)], "big"
    )
    assert [row[-1] for row in table.rows] == ["1.0x", "2.7x"]


def test_models_are_timed_in_turns(project):
    project.model("other", num_hidden_layers=1)
    shapes = make_shapes([2, 1, 2], [16], [1])
    assert shapes == [Shape(1, 16, 1), Shape(2, 16, 1)]
    timings = measure_latency({"teacher": project.root / "teacher", "other": project.root / "other"}, shapes, seconds=0)
    assert [(t.model, t.batch_size) for t in timings] == [("teacher", 1), ("other", 1), ("teacher", 2), ("other", 2)]
    for timing in timings:
        assert timing.num_forwards == 5 and 0 < timing.p50_ms <= timing.p95_ms
        assert timing.tokens_per_second == pytest.approx(1000 * timing.batch_size * 16 / timing.p50_ms, rel=1e-2)


def test_lengths_that_no_model_reads_are_not_timed_by_default(project, monkeypatch, capsys):
    project.model("short", max_position_embeddings=48)
    asked = []

    def times(models, shapes, **others):
        asked.extend(shapes)
        return [Timing(name, *vars(shape).values(), 1.0, 1.0, 1.0, 5) for shape in shapes for name in models]

    monkeypatch.setattr("distill.downstream.latency.measure_latency", times)
    monkeypatch.setattr("distill.downstream.latency.peak_memory", lambda *shape: 1.0)
    assert run("latency", "teacher", "short", "--threads", "1") == 0
    assert asked == make_shapes([1, 32], [32, 48], [1])


@pytest.mark.slow
def test_the_command_tells_time_and_memory(project, capsys):
    arguments = ["--batch-size", "1", "--length", "16", "--threads", "1", "--seconds", "0", "--output", "times.json"]
    assert run("latency", "teacher", *arguments) == 0
    told = capsys.readouterr().out
    assert "| teacher | 1     | 16     | 1       |" in told and "Memory MB" in told
    assert json.loads((project.root / "times.json").read_text("utf-8"))["timings"][0]["model"] == "teacher"


@pytest.mark.slow
def test_memory_grows_with_the_weights(project):
    """Eight layers of 512 are 17 million weights of 4 bytes."""
    project.model("large", hidden_size=512, num_hidden_layers=8, intermediate_size=1024)
    small, large = (peak_memory(project.root / name, 1, 16) for name in ("teacher", "large"))
    assert 50 < large - small < 400

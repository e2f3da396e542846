"""Comparisons: what is varied, how it is named, and that a variation is the student a recipe would have trained."""

import json
import re

import pytest
from fixtures_cli import bert, complaint, nothing_written, run

from distill.compare import _passes, parse_variations, plan_comparison
from distill.errors import InputError
from distill.release.variations import collect_variations, format_variations

pytest_plugins = ["fixtures_cli"]


def plan(project, *vary, **options):
    return plan_comparison(project.root / "recipe.json", vary, **options)


def chain(project):
    """recipe.json with a first stage without teacher and a second that has the first's student as teacher."""
    recipe = json.loads(project.recipe().read_text())
    recipe["defaults"]["data"]["tokenizer"] = "teacher"
    recipe["stages"] = [
        {"name": "base", "students": {"big": {"config": "student.json", "mlm_weight": 1}}},
        {"name": "unused", "teacher": "teacher", "students": {"other": {"config": "student.json"}}},
        {"name": "last", "teacher": "big", "students": {"small": {"config": "student.json", "temperature": 3}}},
    ]
    project.write("recipe.json", recipe)


# ---- what is varied


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("seed=0,1,2", "seed", [0, 1, 2]),
        ("method=minirbt,pkd", "method", ["minirbt", "pkd"]),
        ('matches=["uniform","last:cos"],[]', "matches", [["uniform", "last:cos"], []]),
        ('matches=uniform,[{"match": "uniform:cos", "weight": 2}]', "matches",
         ["uniform", [{"match": "uniform:cos", "weight": 2}]]),
        ("dropout=null,0.1", "dropout", [None, 0.1]),
        ("kd-weight=1, 2", "kd_weight", [1, 2]),
        ('config="a,b.json",c.json', "config", ["a,b.json", "c.json"]),
    ],
)  # fmt: skip
def test_values_are_separated_by_commas_outside_of_json(text, field, values):
    assert parse_variations([text]) == {field: values}


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ([], "nothing to vary; give --vary FIELD=V1,V2"),
        (["seed"], "--vary seed: expected FIELD=V1,V2"),
        (["seed=1"], "every varied field has one value, so there is nothing to compare"),
        (["seed=1,2,1"], "--vary seed: the value 1 stands there twice"),
        (["seed=1,2", "seed=3"], "--vary seed: given twice"),
        (["seed=1,,2"], "there is an empty value between commas"),
        (["steps=1,2"], "--vary steps: a field of the stage.*fields of a student are .*config, .*dropout"),
        (["temprature=1,2"], "--vary temprature: no field of a student; did you mean 'temperature'"),
    ],
)
def test_what_cannot_be_varied_is_one_line(vary, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_variations(vary)
    assert "\n" not in str(caught.value)


def test_every_combination_is_a_student_with_a_readable_name(project):
    comparison = plan(project, "method=logits,minilmv2", "temperature=2,4.5", "seed=0,1")
    assert list(comparison.variations) == [
        f"{method}-temperature{t}-seed{seed}" for method in ("logits", "minilmv2") for t in (2, 4.5) for seed in (0, 1)
    ]
    students = comparison.stage.students
    assert list(students) == list(comparison.variations)
    one = students["minilmv2-temperature4.5-seed1"]
    assert (one.method, one.temperature, one.seed, one.matches) == ("minilmv2", 4.5, 1, ["last:relation"])


def test_values_without_a_readable_name_are_numbered(project):
    project.write("a/student.json", bert())
    names = plan(project, 'matches=[],["last:cos"],uniform:pkd', "config=student.json,a/student.json").variations
    assert list(names) == [f"matches{i}-config{j}" for i in (1, 2, 3) for j in (1, 2)]


def test_a_varied_value_wins_over_the_students_own(project):
    project.recipe(student={"temperature": 3, "matches": ["uniform"], "learning_rate": 1e-3})
    students = plan(project, "method=distilbert,logits").stage.students
    assert [(s.temperature, s.matches, s.learning_rate) for s in students.values()] == [
        (2, ["last:cos"], 1e-3), (2, [], 1e-3),
    ]  # fmt: skip


@pytest.mark.parametrize(("student", "expected"), [({}, [5, 5]), ({"seed": 3}, [3, 3])])
def test_variations_start_from_one_seed(student, expected, project):
    project.recipe(student=student, stage={"seed": 5})
    students = plan(project, "method=logits,minirbt").stage.students
    assert [student.seed for student in students.values()] == expected


def test_variations_that_are_the_same_student_are_refused(project):
    for name in ("mine.json", "copy.json"):
        project.write(name, {"temperature": 8})
    with pytest.raises(InputError, match="the variations 'mine' and 'copy' are the same student"):
        plan(project, "method=mine.json,copy.json")


def test_the_last_stage_with_a_teacher_and_its_first_student_are_taken(project):
    chain(project)
    comparison = plan(project, "temperature=1,2")
    assert (comparison.stage.name, comparison.student, comparison.earlier) == ("last", "small", ["base"])
    assert comparison.stage.teacher == "out/models/big"
    assert plan(project, "temperature=1,2", stage_name="unused").earlier == []


def test_fields_reach_the_compared_stage_and_not_the_ones_before(project):
    chain(project)
    comparison = plan(project, "temperature=1,2", overrides={"steps": 7, "output_dir": "elsewhere"},
                      settings=["stages.last.global_batch_size=2"])  # fmt: skip
    assert (comparison.stage.steps, comparison.stage.global_batch_size) == (7, 2)
    assert [stage.steps for stage in comparison.source.stages] == [2, 2, 2]
    assert comparison.stage.teacher == "elsewhere/models/big"
    with pytest.raises(InputError, match="only the compared stage 'last' can be changed here"):
        plan(project, "temperature=1,2", settings=["stages.base.steps=3"])


def test_the_folder_depends_on_what_is_compared_and_not_on_how_often_it_is_logged(project):
    folders = [plan(project, *vary, overrides=overrides).recipe.output_dir for vary, overrides in (
        (["temperature=1,2"], {}), (["temperature=1,2"], {"log_every": 3}), (["temperature=1,3"], {}),
        (["temperature=1,2"], {"learning_rate": 1e-5}))]  # fmt: skip
    assert re.fullmatch(r"out/compare/one-[0-9a-f]{10}", folders[0])
    assert folders[0] == folders[1] and len(set(folders)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "method=pdk,minirbt"], "--vary: unknown method 'pdk'; did you mean 'pkd'"),
        (["--vary", "temperature=0,1"], "stage 'one', student 'temperature0', temperature: .*greater than 0, found 0"),
        (["--vary", 'matches=[],["unifrm"]'], "student 'matches2': unknown match 'unifrm'"),
        (["--vary", "seed=0,1", "--stage", "two"], "no stage 'two'; there are: one"),
        (["--vary", "seed=0,1", "--student", "smal"], "--student smal: no such student in stage 'one'; did you mean"),
        (["--vary", "seed=0,1", "--step", "3"], "unknown key '--step'; did you mean 'steps'"),
        (["--vary", "seed=0,1", "--plugin", "none.py"], "--plugin none.py: no such file"),
        (["--vary", "seed=0,1", "--at-once", "0"], "'--at-once'.*greater than or equal to 1"),
        ([], "nothing to vary"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(arguments, message, project, capsys):
    with nothing_written(project):
        line = complaint(capsys, "compare", "recipe.json", *arguments)
    assert re.search(message, line), line


def test_a_recipe_without_any_teacher_has_nothing_to_compare(project, capsys):
    project.recipe(stage={"teacher": None}, data={"tokenizer": "teacher"})
    assert "no stage has a teacher" in complaint(capsys, "compare", "recipe.json", "--vary", "seed=0,1")
    assert "stage 'one' has no teacher" in complaint(
        capsys, "compare", "recipe.json", "--vary", "seed=0,1", "--stage", "one"
    )


def test_a_dry_run_shows_the_variations_and_what_comes_first(project, capsys):
    chain(project)
    with nothing_written(project):
        assert run("compare", "recipe.json", "--vary", "method=logits,tinybert", "--dry-run", "--steps", "5") == 0
    out = capsys.readouterr().out
    assert "base: first, its models are missing" in out and "unused" not in out
    assert "last: logits, tinybert from big, 5 steps" in out and "output: out/compare/last-" in out


@pytest.mark.parametrize(
    ("at_once", "recorded", "expected"),
    [
        (None, "", ["abcd"]),
        (1, "", ["a", "ab", "abc", "abcd"]),
        (3, "", ["abc", "abcd"]),
        (3, "abc", ["abc", "abcd"]),
        (2, "bd", ["bd", "bdac"]),
        (2, "abcd", ["abcd"]),
    ],
)
def test_passes_train_more_and_more_and_never_forget_what_is_recorded(at_once, recorded, expected, project):
    """The pipeline takes students that are added to a folder, and refuses ones that are missing."""
    methods = {"logits": "a", "pkd": "b", "minirbt": "c", "distilbert": "d"}
    comparison = plan(project, f"method={','.join(methods)}")
    raw = comparison.recipe.model_dump()
    if recorded:
        students = raw["stages"][0]["students"]
        stage = {**raw["stages"][0], "students": {n: s for n, s in students.items() if methods[n] in recorded}}
        project.write(f"{comparison.recipe.output_dir}/recipe.json", {**raw, "stages": [stage]})
    passes = [list(recipe.stages[0].students) for recipe in _passes(comparison, at_once)]
    assert ["".join(methods[name] for name in names) for names in passes] == expected


# ---- the table


def test_the_table_gives_mean_and_sample_deviation_over_seeds(tmp_path):
    def dev(student, loss, accuracy, step=2):
        return {"step": step, "tokens": 100 * step, "split": "dev", "student": student, "mlm_loss": loss,
                "accuracy": accuracy}  # fmt: skip

    def speed(student, rate):
        return {"step": 2, "tokens": 200, "split": "train", "student": student, "tokens_per_second": rate}

    records = [dev("teacher", 1.5, 0.75, 0), dev("a0", 9.0, 0.0, 1), dev("a0", 2.0, 0.5), dev("a1", 3.0, 0.25),
               dev("b0", 4.0, 0.125), dev("b1", 4.0, 0.125), speed("a0", 10.0), speed("a0", 30.0), speed("a0", 1000.0),
               speed("a1", 50.0)]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    variations = {f"{method}{seed}": {"method": method, "seed": seed} for method in "ab" for seed in (0, 1)}
    result = collect_variations(tmp_path, variations, {"a0": True, "a1": True, "b0": False, "b1": False})
    first, second = result["variations"]
    assert first["students"] == ["a0", "a1"] and first["dev_loss"]["values"] == [2.0, 3.0]
    assert first["dev_loss"]["mean"] == 2.5 and first["dev_loss"]["std"] == pytest.approx(0.5**0.5)
    assert first["tokens"] == 200 and first["tokens_per_second"] == 40.0
    assert second["dev_loss"]["std"] == 0.0 and second["head_trained"] is False
    lines = format_variations({"stage": "one", "student": "s", "teacher": "t", **result}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[2] == ["teacher t", "-", "1.500", "75.00%", "-", "-"]
    assert cells[3] == ["method=a", "2", "2.500 ± 0.707", "37.50% ± 17.68%", "200", "40"]
    assert cells[4] == ["method=b", "2", "-", "-", "200", "-"]
    assert any(line.startswith("method=b: nothing trains the prediction head") for line in lines)


# ---- real runs


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_comparison_trains_what_a_recipe_would_and_goes_on(project, capsys):
    """Two methods and two seeds; one of them trained by an ordinary recipe has the same weights; a seed comes later."""
    chain(project)
    arguments = ["compare", "recipe.json", "--vary", "method=distilbert,minilmv2", "--vary", "seed=0,1",
                 "--output", "cmp"]  # fmt: skip
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert "base: finished big" in out and "unused" not in out
    assert "last: finished distilbert-seed0, distilbert-seed1, minilmv2-seed0, minilmv2-seed1 in" in out
    result = json.loads((project.root / "cmp/comparison.json").read_text())
    assert [len(group["students"]) for group in result["variations"]] == [2, 2]
    first = result["variations"][0]["dev_loss"]
    assert first["values"][0] != first["values"][1] and first["std"] > 0
    assert (project.root / "cmp/comparison.md").read_text() in out and "| method=distilbert " in out
    assert (project.root / "cmp/data").resolve() == project.root / "out/data", "the recipe's own packed data serves"

    student = {"config": "student.json", "temperature": 3, "method": "distilbert", "seed": 1}
    recipe = json.loads((project.root / "recipe.json").read_text())
    recipe["stages"][2]["students"] = {"alone": {**student, "temperature": 2}}
    project.write("alone.json", {**recipe, "output_dir": "out"})
    assert run("train", "alone.json", "--stage", "last") == 0
    ours, alone = (project.root / path / "model.safetensors" for path in ("cmp/models/distilbert-seed1",
                                                                          "out/models/alone"))  # fmt: skip
    assert ours.read_bytes() == alone.read_bytes()

    before = {path: path.stat().st_mtime_ns for path in (project.root / "cmp/models").rglob("*.safetensors")}
    capsys.readouterr()
    arguments[5] = "seed=0,1,2"
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert "last: finished distilbert-seed2, minilmv2-seed2 in" in out and "| 3 " in out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_numbers_that_differ_after_six_digits_are_two_variations(project):
    names = plan(project, "seed=1000000,1000001", "learning_rate=0.00012345678,0.00012345679").variations
    assert len(names) == 4 and "seed1e06-learning_rate0.00012345678" in names


def test_values_that_begin_alike_are_no_seeds_of_one_variation(tmp_path):
    """The label of a long value is cut."""
    long = [{"layer_T": n, "layer_S": n, "feature": "hidden", "loss": "hidden_mse"} for n in range(5)]
    variations = {"a": {"matches": long}, "b": {"matches": long[:4]}}
    result = collect_variations(tmp_path, variations, dict.fromkeys(variations, True))
    assert [group["students"] for group in result["variations"]] == [["a"], ["b"]]
    table = format_variations({**result, "stage": "one", "student": "small", "teacher": "big"})
    assert "| a " in table and "| b " in table

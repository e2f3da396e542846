"""Recipes: merging, checking, and what is said about mistakes."""

import json
from pathlib import Path

import pytest

from distill.errors import InputError
from distill.modeling.architectures import NAMES
from distill.recipe_file import load_recipe, resolve_recipe

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "jsons/recipes").glob("*.json"))
DATA = {"text": ["t"], "segmenter": "jieba"}


def make(**changes):
    """A recipe of one stage with one student `s`; `stage`, `student` and `defaults` are added to."""
    student = {"config": "c.json", **changes.pop("student", {})}
    stage = {"name": "a", "teacher": "t", "students": {"s": student}, **changes.pop("stage", {})}
    defaults = {"data": DATA, "steps": 10, **changes.pop("defaults", {})}
    return {"output_dir": "out", "defaults": defaults, "stages": [stage], **changes}


def two_stages(**changes):
    raw = make(**changes)
    raw["stages"].append({"name": "b", "teacher": "s", "students": {"x": {"config": "c"}, "y": {"config": "c"}}})
    return raw


def resolve(raw, **kwargs):
    return resolve_recipe(raw, where="r.json", **kwargs)


# ---- order


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 8.0),
        ({"defaults": {"temperature": 1}}, 1),
        ({"defaults": {"temperature": 1}, "stage": {"temperature": 2}}, 2),
        ({"defaults": {"temperature": 1}, "stage": {"temperature": 2}, "student": {"temperature": 3}}, 3),
    ],
)
def test_a_nearer_value_of_a_student_wins(given, expected):
    assert resolve(make(**given)).stages[0].students["s"].temperature == expected


def test_field_on_the_command_line_beats_the_student_and_set_beats_the_field():
    raw = two_stages(student={"temperature": 3})
    by_field = resolve(raw, overrides={"temperature": 4})
    assert [s.temperature for stage in by_field.stages for s in stage.students.values()] == [4, 4, 4]
    by_set = resolve(raw, overrides={"temperature": 4}, settings=["stages.b.students.y.temperature=5"])
    assert [s.temperature for stage in by_set.stages for s in stage.students.values()] == [4, 4, 5]


@pytest.mark.parametrize(
    ("defaults", "stage", "overrides", "expected"),
    [
        ({}, {}, {}, 256),
        ({"global_batch_size": 1}, {}, {}, 1),
        ({"global_batch_size": 1}, {"global_batch_size": 2}, {}, 2),
        ({"global_batch_size": 1}, {"global_batch_size": 2}, {"global_batch_size": 3}, 3),
    ],
)
def test_a_nearer_value_of_a_stage_wins(defaults, stage, overrides, expected):
    recipe = resolve(make(defaults=defaults, stage=stage), overrides=overrides)
    assert recipe.stages[0].global_batch_size == expected


def test_defaults_give_a_field_to_stages_and_students_alike():
    recipe = resolve(two_stages(defaults={"seed": 7, "mlm_weight": 0.5}))
    assert {stage.seed for stage in recipe.stages} == {7}
    assert {s.mlm_weight for stage in recipe.stages for s in stage.students.values()} == {0.5}


def test_set_of_a_student_field_on_a_stage_reaches_its_students_only():
    recipe = resolve(two_stages(), settings=["stages.b.learning_rate=0.1"])
    assert [s.learning_rate for stage in recipe.stages for s in stage.students.values()] == [4e-4, 0.1, 0.1]


def test_later_data_adds_to_earlier_data():
    recipe = resolve(make(stage={"data": {"mask_probability": 0.2}}), settings=["stages.a.data.dev=x.txt"])
    data = recipe.stages[0].data
    assert (data.text, data.segmenter, data.mask_probability, data.dev) == (["t"], "jieba", 0.2, ["x.txt"])


def test_a_data_json_replaces_text_and_its_dev():
    data = resolve(make(defaults={"data": {**DATA, "dev": 0.1}}, stage={"data": "d.json"})).stages[0].data
    assert (data.files, data.text, data.dev) == ("d.json", None, 0.005)


def test_text_by_set_replaces_a_data_json():
    data = (
        resolve(make(defaults={"data": "d.json"}), settings=["stages.a.data.segmenter=words", "stages.a.data.text=x"])
        .stages[0]
        .data
    )
    assert (data.files, data.text) == (None, ["x"])


@pytest.mark.parametrize("value", ["t", ["t"]])
def test_one_text_may_stand_without_its_list(value):
    assert resolve(make(defaults={"data": {**DATA, "text": value}})).stages[0].data.text == ["t"]


# ---- length of a run


@pytest.mark.parametrize(
    ("where", "kwargs"),
    [({"stage": {"epochs": 2}}, {}), ({}, {"overrides": {"epochs": 2}}), ({}, {"settings": ["stages.a.epochs=2"]})],
)
def test_nearer_epochs_replace_steps(where, kwargs):
    stage = resolve(make(**where), **kwargs).stages[0]
    assert (stage.steps, stage.epochs) == (None, 2)


def test_nearer_steps_replace_epochs():
    stage = resolve(make(defaults={"steps": None, "epochs": 3}, stage={"steps": 5})).stages[0]
    assert (stage.steps, stage.epochs) == (5, None)


@pytest.mark.parametrize("stage", [{"steps": 5, "epochs": 2}, {"steps": None}])
def test_both_or_neither_length_is_refused(stage):
    with pytest.raises(InputError, match="stage 'a': give either 'steps' or 'epochs'"):
        resolve(make(stage=stage))


@pytest.mark.parametrize(("epochs", "rows", "steps"), [(1, 100, 10), (1, 101, 11), (0.5, 100, 5), (3, 5, 2), (1, 1, 1)])
def test_epochs_are_rounded_up_to_whole_steps(epochs, rows, steps):
    stage = resolve(make(stage={"epochs": epochs, "global_batch_size": 10})).stages[0]
    assert stage.num_steps(rows) == steps


# ---- unknown keys


@pytest.mark.parametrize(
    ("raw", "place", "near"),
    [
        (make(output_dirs="x"), r"r\.json: unknown key 'output_dirs'", "output_dir"),
        (make(defaults={"temprature": 1}), r"r\.json: defaults: unknown key 'temprature'", "temperature"),
        (make(stage={"techer": 1}), r"r\.json: stage 'a': unknown key 'techer'", "teacher"),
        (make(stage={"learning_rates": 1}), r"r\.json: stage 'a': unknown key 'learning_rates'", "learning_rate"),
        (make(student={"init_layer": 1}), r"r\.json: stage 'a', student 's': unknown key 'init_layer'", "init_layers"),
        (
            make(defaults={"data": {**DATA, "segmentr": 1}}),
            r"r\.json: stage 'a', data, segmentr: unknown key",
            "segmenter",
        ),
    ],
)
def test_an_unknown_key_names_file_place_and_the_nearest_known(raw, place, near):
    with pytest.raises(InputError, match=f"{place}; did you mean '{near}'"):
        resolve(raw)


def test_an_unknown_key_near_to_none_lists_the_known():
    with pytest.raises(InputError, match="unknown key 'zzz'; known: .*global_batch_size.*temperature"):
        resolve(make(stage={"zzz": 1}))


def test_an_unknown_field_on_the_command_line_is_named_as_it_was_typed():
    with pytest.raises(InputError, match="command line: unknown key '--step'; did you mean 'steps'"):
        resolve(make(), overrides={"step": 1})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stages.a.steps", "expected PATH=VALUE"),
        ("steps=3", "name a field of one stage or student"),
        ("stages.z.steps=3", "no 'z'; there are: a"),
        ("stages.a.students.z.config=3", "no 'z'; there are: s"),
        ("stages.a.stps=3", "did you mean 'steps'"),
        ("stages.a.students.s.steps=3", "'steps' is a field of the stage; set stages.a.steps"),
        ("stages.a.data.txt=3", "did you mean 'text'"),
        ("output_dir.x=3", "name a field of one stage or student"),
        ("stages.a.students.s={}", "name a field of one stage or student"),
        ("stages.a=3", "name a field of one stage or student"),
    ],
)
def test_a_wrong_set_says_what_there_is(setting, message):
    with pytest.raises(InputError, match=message):
        resolve(make(), settings=[setting])


# ---- values


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (make(stage={"steps": 0}), "stage 'a', steps: .*greater than 0, found 0"),
        (make(stage={"steps": -5}), "stage 'a', steps: .*greater than 0, found -5"),
        (make(stage={"steps": "many"}), "stage 'a', steps: .*found \"many\""),
        (make(student={"learning_rate": -1}), "stage 'a', student 's', learning_rate: .*found -1"),
        (make(student={"kd_weight": -0.5}), "kd_weight: .*greater than or equal to 0, found -0.5"),
        (make(student={"temperature": 0}), "temperature: .*greater than 0"),
        (make(student={"kd_scale": "square"}), "kd_scale: .*'none' or 'tau_squared', found \"square\""),
        (make(student={"init": "m", "init_width": "pca"}), "'init' and 'init_width' both set the starting weights"),
        (
            make(student={"init_attention": "neighbours", "init_layers": [0]}),
            "'init_attention' and 'init_layers' both set the starting weights",
        ),
        (make(student={"init_width": "svd"}), "init_width: .*'importance' or 'pca', found \"svd\""),
        (
            make(student={"init_width": "pca"}, stage={"teacher": None}),
            "student 's' has 'init_width', but the stage has no 'teacher'",
        ),
        (make(student={"optimizer": "sgd"}), "stage 'a', student 's', optimizer: .*'adamw' or 'muon', found \"sgd\""),
        (
            make(student={"scheduler": "warmup_stable_decay", "warmup_ratio": 0.7, "decay_ratio": 0.4}),
            "stage 'a', student 's': warmup_ratio 0.7 and decay_ratio 0.4 are together more than the whole run",
        ),
        (make(student={"decay_ratio": 0}), "decay_ratio: .*greater than 0, found 0"),
        (make(student={"init_layers": [0, -1]}), "init_layers, 1: .*found -1"),
        (make(student={"matches": [3]}), "matches, 0.*found 3"),
        (make(student={"config": None}), "student 's': give 'config'"),
        (make(student={"init": "m", "init_layers": [0]}), "'init' and 'init_layers' both"),
        (make(stage={"name": "../x"}), "stage '../x', name: .*pattern"),
        (make(stage={"students": {}}), "students: .*at least 1"),
        (make(stage={"students": []}), "students: expected an object in braces, found \\[\\]"),
        (make(stage={"teacher": None}, student={"init_layers": [0]}), "'init_layers', but the stage has no 'teacher'"),
        (make(stage={"teacher": None}, student={"matches": ["uniform"]}), "'matches', but the stage has no 'teacher'"),
        (make(defaults={"data": {"text": ["t"]}}), "data: whole_word masking of raw text needs a 'segmenter'"),
        (make(defaults={"data": {"dev": 0.1}}), "data: give either 'text'"),
        (make(defaults={"data": {**DATA, "files": "x"}}), "data: give either 'text'"),
        (make(defaults={"data": {**DATA, "dev": 1}}), "dev: give dev files, or the fraction .*, found 1"),
        (make(defaults={"data": {**DATA, "dev": -0.1}}), "dev: give dev files.*found -0.1"),
        (make(defaults={"data": {**DATA, "segmenter": {"trian": "x"}}}), 'segmenter: an object here is {"train"'),
        (make(defaults={"data": {**DATA, "mask_probability": 1.5}}), "mask_probability: .*found 1.5"),
        (make(stages=3), "'stages' must be a list of stages, found 3"),
        (make(stages=[]), "stages: .*at least 1"),
        (make(stages=["x"]), r"stages\[0\]: expected an object"),
        (make(output_dir=""), "output_dir: .*at least 1"),
        ([], "a recipe is a JSON object, found list"),
        (make(stage={"students": {"teacher": {"config": "c"}}}), "student 'teacher': the log calls"),
    ],
)
def test_a_wrong_value_names_its_place_and_what_was_found(raw, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve(raw)
    assert str(caught.value).startswith("r.json: ") and "\n" not in str(caught.value)


def test_a_stage_without_teacher_ignores_matches_meant_for_the_others():
    raw = two_stages(stage={"teacher": None}, defaults={"matches": ["uniform"]})
    recipe = resolve(raw, overrides={"matches": "uniform"})
    assert [s.matches for stage in recipe.stages for s in stage.students.values()] == [[], ["uniform"], ["uniform"]]


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("stage name 'a'", make(stages=[{"name": "a", "students": {"x": {"config": "c"}}}] * 2)),
        ("student name 's'", make(stages=[{"name": name, "students": {"s": {"config": "c"}}} for name in "ab"])),
    ],
)
def test_a_name_used_twice_is_refused(kind, raw):
    with pytest.raises(InputError, match=f"{kind} is used twice"):
        resolve(raw)


# ---- files


def load(tmp_path, content: bytes):
    (tmp_path / "r.json").write_bytes(content)
    return load_recipe(tmp_path / "r.json")


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    text = json.dumps(make(), indent=1).replace("\n", "\r\n")
    assert load(tmp_path, b"\xef\xbb\xbf" + text.encode()) == resolve(make())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"output_dir": "x",\n oops}', r"r\.json, line 2: .*not valid JSON"),
        (b"", r"r\.json, line 1: .*not valid JSON"),
        (b'{"output_dir": NaN}', "NaN is no number"),
        (b'{"steps": 1, "steps": 2}', "'steps' stands twice"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"[" * 100_000, "nested over 100 deep"),
    ],
)
def test_a_file_that_is_no_recipe_says_where(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, content)


def test_a_missing_or_unreadable_recipe_is_named(tmp_path):
    with pytest.raises(InputError, match="none.json: no such file"):
        load_recipe(tmp_path / "none.json")
    with pytest.raises(InputError, match="found a folder; name a JSON file"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_survives_being_written(path):
    recipe = load_recipe(path)
    assert resolve_recipe(json.loads(json.dumps(recipe.model_dump())), where="again") == recipe
    for student in (student for stage in recipe.stages for student in stage.students.values()):
        assert student.config is None or student.config in NAMES or (ROOT / student.config).is_file()


def test_a_written_recipe_takes_the_command_line_like_its_source():
    written = resolve(two_stages()).model_dump()
    recipe = resolve(written, overrides={"epochs": 2, "data": "d.json", "matches": ["uniform"]})
    assert [(stage.steps, stage.epochs, stage.data.files, stage.data.text) for stage in recipe.stages] == [
        (None, 2, "d.json", None)
    ] * 2


def test_minirbt_is_the_published_recipe():
    recipe = load_recipe(ROOT / "jsons/recipes/minirbt.json")
    assert [(stage.teacher, list(stage.students)) for stage in recipe.stages] == [
        ("pretrained_model_path/RoBERTa", ["rbt6", "rbt4-h312"]),
        ("rbt6", ["minirbt-h256", "minirbt-h288"]),
    ]
    for stage in recipe.stages:
        assert (stage.global_batch_size, stage.steps, stage.max_seq_length) == (4096, 100_000, 512)
        assert (stage.data.mask, stage.data.mask_probability) == ("whole_word", 0.15)
        for student in stage.students.values():
            assert (student.learning_rate, student.temperature, student.kd_scale) == (4e-4, 8, "none")
            assert (student.warmup_ratio, student.weight_decay, student.scheduler) == (0.1, 0.01, "linear")
            assert (student.dropout, student.kd_weight, student.mlm_weight) == (None, 1, 0)
            assert student.matches == ["uniform"]
    assert recipe.stages[0].students["rbt6"].init_layers == [0, 2, 4, 7, 9, 11]


def test_the_two_arms_of_the_published_comparison_differ_in_their_stages_only():
    names = ("minirbt_one_stage", "minirbt_two_stage_30k")
    one, two = (load_recipe(ROOT / f"jsons/recipes/{name}.json") for name in names)
    assert {stage.steps for stage in [*one.stages, *two.stages]} == {30_000}
    assert one.stages[0].students["minirbt-h256"] == two.stages[1].students["minirbt-h256"]
    assert [len(recipe.stages) for recipe in (one, two)] == [1, 2]


# ---- methods and seeds of students


METHODS = sorted((ROOT / "distill_configs/methods").glob("*.json"))


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_shipped_method_gives_its_fields_to_the_student(path):
    fields = json.loads(path.read_text())
    student = resolve(make(student={"method": path.stem})).stages[0].students["s"]
    assert student.method == path.stem
    assert {name: student.model_dump()[name] for name in fields} == fields
    assert {"matches", "kd_weight", "mlm_weight"} <= fields.keys()


MINE = {"temperature": 2.0, "kd_scale": "tau_squared"}


@pytest.mark.parametrize(
    ("given", "temperature", "kd_scale"),
    [
        ({"student": {"method": "mine.json"}}, 2, "tau_squared"),
        ({"student": {"method": "mine.json", "temperature": 3}}, 3, "tau_squared"),
        ({"student": {"method": "mine.json"}, "defaults": {"temperature": 1}}, 2, "tau_squared"),
        ({"student": {"temperature": 3}, "stage": {"method": "mine.json"}}, 3, "tau_squared"),
        ({"stage": {"method": "mine.json", "temperature": 4}}, 4, "tau_squared"),
        ({"stage": {"temperature": 4}, "defaults": {"method": "mine.json"}}, 4, "tau_squared"),
        ({"student": {"method": None}, "defaults": {"temperature": 1}}, 1, "none"),
    ],
)
def test_a_method_stands_where_its_name_stands_below_what_is_written_beside_it(
    given, temperature, kd_scale, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps(MINE))
    student = resolve(make(**given)).stages[0].students["s"]
    assert (student.temperature, student.kd_scale) == (temperature, kd_scale)


def test_a_method_on_the_command_line_wins_and_a_field_beside_it_wins_over_the_method():
    raw = two_stages(student={"temperature": 3, "matches": ["uniform"]})
    recipe = resolve(raw, overrides={"method": "distilbert", "kd_weight": 7})
    for stage in recipe.stages:
        for student in stage.students.values():
            assert (student.temperature, student.kd_weight, student.matches) == (2, 7, ["last:cos"])


def test_set_of_a_method_writes_its_fields_in_one_place():
    recipe = resolve(two_stages(), settings=["stages.b.students.x.method=minilmv2", "stages.b.method=pkd",
                                             "stages.b.students.y.method=logits"])  # fmt: skip
    students = recipe.stages[1].students
    assert (students["x"].method, students["x"].temperature) == ("pkd", 10)
    assert students["x"].matches[0]["match"] == "inner:pkd"
    assert (students["y"].temperature, students["y"].matches) == (2, [])
    assert recipe.stages[0].students["s"].method is None


def test_a_resolved_recipe_does_not_need_the_file_of_its_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps(MINE))
    recipe = resolve(make(student={"method": "mine.json"}))
    (tmp_path / "mine.json").unlink()
    assert resolve(recipe.model_dump()) == recipe


@pytest.mark.parametrize(
    ("content", "method", "message"),
    [
        (None, "tinybret", "stage 'a', student 's': unknown method 'tinybret'; did you mean 'tinybert'"),
        (None, "none.json", "none.json: no such file"),
        ("[]", "mine.json", "mine.json: expected an object in braces, found \\[\\]"),
        ('{"temprature": 3}', "mine.json", "mine.json: unknown key 'temprature'; did you mean 'temperature'"),
        ('{"steps": 3}', "mine.json", "mine.json: unknown key 'steps'"),
        ('{"seed": 3}', "mine.json", "mine.json: unknown key 'seed'"),
        ('{"temperature": -3}', "mine.json", "stage 'a', student 's', temperature: .*found -3"),
    ],
)
def test_a_wrong_method_is_one_line(content, method, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "mine.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        resolve(make(student={"method": method}))
    assert "\n" not in str(caught.value)


def test_matches_of_a_default_method_are_left_out_without_a_teacher():
    raw = two_stages(stage={"teacher": None}, defaults={"method": "minirbt"})
    recipe = resolve(raw)
    expected = [[], ["uniform:hidden_mse"], ["uniform:hidden_mse"]]
    assert [s.matches for stage in recipe.stages for s in stage.students.values()] == expected
    assert resolve(recipe.model_dump()) == recipe


def test_a_seed_beside_stages_is_the_stages_and_one_in_a_student_is_the_students():
    raw = make(defaults={"seed": 7}, student={"seed": 3})
    assert [(s.seed, s.students["s"].seed) for s in resolve(raw).stages] == [(7, 3)]
    recipe = resolve(raw, overrides={"seed": 8}, settings=["stages.a.seed=9"])
    assert [(s.seed, s.students["s"].seed) for s in recipe.stages] == [(9, 3)]
    recipe = resolve(make(), settings=["stages.a.students.s.seed=4"])
    assert [(s.seed, s.students["s"].seed) for s in recipe.stages] == [(0, 4)]

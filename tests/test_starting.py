"""A student that starts from its wider teacher: measured once, on the stage's own rows, whatever else is in the run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_stage import HIDDEN, make_paths, make_stage, stop_before, train, without_head
from tiny import tiny_config, write_config

from distill.errors import InputError
from distill.modeling.models import load_masked_lm
from distill.recipe_file import resolve_recipe
from distill.run.planning import plan_recipe
from distill.training import starting

NARROW = {**HIDDEN, "init_width": "importance"}


def start(world, student=NARROW, *, beside=None, **fields):
    """The student's weights before the first step."""
    shutil.rmtree(world / "start", ignore_errors=True)
    stage = make_stage({"a": student, **({"b": beside} if beside else {})}, **fields)
    paths = stop_before(world, stage, "start", 1)
    found = load_file(paths.checkpoints / "step-00000000" / "a.safetensors")
    return {name: value for name, value in found.items() if name.startswith("student.")}


def is_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_start_depends_on_teacher_rows_and_method_and_on_nothing_else(world):
    plain = start(world)
    assert is_equal(plain, start(world))
    assert is_equal(plain, start(world, beside=HIDDEN, micro_batch_size=1))
    assert is_equal(plain, start(world, {**NARROW, "seed": 5})), "nothing of it is random"
    assert not is_equal(plain, start(world, {**NARROW, "init_width": "pca"}))
    assert not is_equal(plain, start(world, {**NARROW, "init_layers": [0, 1]}))
    assert not is_equal(plain, start(world, seed=1)), "the rows' masks are others"
    assert not is_equal(plain, start(world, HIDDEN))


def test_a_start_that_looks_at_neighbours_is_random_but_for_them(world):
    name = "student.bert.encoder.layer.0.attention.self.key.weight"
    found, plain = start(world, {**HIDDEN, "init_attention": "neighbours"}), start(world, HIDDEN)
    assert (found[name] == 0).any() and not (plain[name] == 0).any()
    later = "student.bert.encoder.layer.1.attention.self.key.weight"
    assert torch.equal(found[later], plain[later])
    assert not is_equal(found, start(world, {**HIDDEN, "init_attention": "neighbours", "seed": 5}))


def test_a_student_as_wide_as_its_teacher_starts_as_its_layers(world):
    write_config(world / "deep.json", tiny_config(layers=4, width=32, heads=4, intermediate_size=64))
    found = start(world, {"config": "deep.json", "init_width": "importance"})
    for name, value in load_masked_lm(world / "teacher").named_parameters():
        assert torch.equal(found[f"student.{name}"], value), name


@pytest.mark.parametrize("method", ["importance", "pca"])
def test_projections_start_where_they_lead_back_to_the_teacher(world, method):
    losses = {}
    for name, student in (("random", HIDDEN), ("cut", {**HIDDEN, "init_width": method})):
        stage = make_stage({"a": {**student, "learning_rate": 1e-9}}, log_every=1)
        train(world, stage, name)
        metrics = (make_paths(world, name).stage / "metrics.jsonl").read_text("utf-8")
        rows = [json.loads(line) for line in metrics.splitlines()]
        losses[name] = [row["hidden_mse_0_0"] for row in rows if "hidden_mse_0_0" in row][0]
    teacher, student = load_masked_lm(world / "teacher").config, tiny_config()
    kept = student.hidden_size / teacher.hidden_size
    assert losses["cut"] < (1.1 - kept) * losses["random"]


@pytest.mark.parametrize("stop", [1, 5])
def test_a_resumed_run_measures_nothing_again(world, monkeypatch, stop):
    stage = make_stage({"a": NARROW})
    stop_before(world, stage, "out", stop)

    def fail(*_args, **_fields):
        raise AssertionError("measured again")

    monkeypatch.setattr(starting, "narrow_teacher", fail)
    train(world, stage, "out")
    with pytest.raises(AssertionError, match="measured again"):
        train(world, stage, "new")


def test_the_average_of_a_narrow_start_begins_with_it(world):
    start(world, {**NARROW, "ema": 0.9})
    folder = make_paths(world, "start").checkpoints / "step-00000000"
    student, average = (load_file(folder / f"{name}.safetensors") for name in ("a", "a+average"))
    assert all(torch.equal(student[f"student.{name}"], value) for name, value in average.items())


def test_a_teacher_without_head_is_refused(world):
    without_head(world)
    with pytest.raises(InputError, match="no masked-language-model head"):
        train(world, make_stage({"a": {**NARROW, "kd_weight": 0.0}}), "out")


@pytest.mark.parametrize("width, message", [
    (40, "stage 'one', student 's': init_width: hidden_size is 40 in the student, but must be at most the 32"),
    (16, None),
])  # fmt: skip
def test_a_plan_refuses_students_that_are_wider(world, width, message):
    write_config(world / "s.json", tiny_config(layers=2, width=width, heads=4))
    recipe = resolve_recipe(json.loads(json.dumps({
        "output_dir": "out",
        "stages": [{"name": "one", "teacher": "teacher", "steps": 1, "max_seq_length": 16,
                    "data": {"text": ["text.txt"], "mask": "token"},
                    "students": {"s": {"config": "s.json", "init_width": "pca"}}}],
    })), where="r.json")  # fmt: skip
    (world / "text.txt").write_text("\u4e00\u4e01\n", encoding="utf-8")
    if message is None:
        assert plan_recipe(recipe).keys() == {"one"}
        return
    with pytest.raises(InputError) as caught:
        plan_recipe(recipe)
    assert message in str(caught.value)

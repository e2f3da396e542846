"""A stage from start to model folders: bit for bit the same alone, beside others, and after a stop."""

import contextlib
import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    ALONE,
    LENGTH,
    VOCABULARY,
    NeverStop,
    StopBeforeStep,
    tiny_config,
    tiny_model,
    write_config,
    write_model,
    write_world,
)

from distill.errors import InputError
from distill.modeling.models import load_masked_lm
from distill.recipe import Stage
from distill.training import bookkeeping
from distill.training.loop import StageStopped, TrainingFailed
from distill.training.metrics import StatusFile, read_metrics
from distill.training.stage import StagePaths, needs_teacher_head, train_stage

STEPS = 8
SPEED = {"tokens_per_second", "data_wait", "mfu"}
HIDDEN = {"config": "student.json", "matches": ["uniform"]}
ATTENTION = {"config": "student.json", "matches": ["uniform:attention_mse", "uniform:mmd"], "kd_weight": 0.5}
RELATION = {"config": "student.json", "matches": ["last:relation_8"], "kd_weight": 0.0, "mlm_weight": 0.1}
MUON = {**HIDDEN, "optimizer": "muon", "mlm_weight": 0.5}
EMA = {**HIDDEN, "ema": 0.9, "init_width": "importance"}
BALANCED = {**HIDDEN, "mlm_weight": 0.5, "balance_every": 3, "temperature_end": 2.0, "kd_scale": "tau_squared"}
LABELS = {"config": "student.json", "mlm_weight": 1.0, "learning_rate": 1e-3, "temperature": 2.0}


def make_stage(students, **fields) -> Stage:
    """32 samples of 10 rows: more than three epochs, two micro-batches a step, dropout 0.1, clipping always active."""
    fields = {
        "name": "one", "teacher": "teacher", "data": {"text": ["text.txt"], "mask": "token"}, "max_seq_length": LENGTH,
        "steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2, "precision": "fp32", "log_every": 1,
        "save_every": 2, "eval_every": 4, **fields,
    }  # fmt: skip
    students = {name: {"max_grad_norm": 0.05, **student} for name, student in students.items()}
    return Stage(students=students, **fields)


def make_paths(world, output, *, inits=None, teacher=True) -> StagePaths:
    return StagePaths(
        dataset=world / "data", tokenizer=world / "teacher", teacher=world / "teacher" if teacher else None,
        inits=inits or {}, stage=world / output / "stages" / "one", models=world / output / "models",
    )  # fmt: skip


def train(world, stage, output, *, stop=None, names=None, inits=None) -> StagePaths:
    paths = make_paths(world, output, inits=inits, teacher=stage.teacher is not None)
    names = names or list(stage.students)
    cards = dict.fromkeys(names, "card\n")
    train_stage(stage, names, paths, cards, ALONE, stop or NeverStop(), StatusFile(paths.status))
    return paths


def stop_before(world, stage, output, step, *, first_step=0) -> StagePaths:
    with pytest.raises(StageStopped) as stopped:
        train(world, stage, output, stop=StopBeforeStep(step, first_step))
    assert stopped.value.step == step - 1
    return make_paths(world, output)


def weights(paths: StagePaths, name: str) -> bytes:
    return (paths.models / name / "model.safetensors").read_bytes()


def metrics(paths: StagePaths, **wanted):
    """Records without the speed, which differs from run to run."""
    lines = read_metrics(paths.stage / "metrics.jsonl")
    lines = [{key: value for key, value in line.items() if key not in SPEED} for line in lines]
    return [line for line in lines if all(line[key] == value for key, value in wanted.items())]


def train_apart(tmp_path_factory, stage):
    """A run in a world of its own, for all tests of a module."""
    folder = tmp_path_factory.mktemp("whole")
    write_world(folder)
    with contextlib.chdir(folder):
        return train(folder, stage, "whole")


BESIDE = {"a": HIDDEN, "b": ATTENTION, "c": LABELS, "d": RELATION, "e": MUON, "f": EMA, "g": BALANCED}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return train_apart(tmp_path_factory, make_stage(BESIDE))


@pytest.mark.parametrize("name", BESIDE)
def test_a_student_beside_others_is_bit_for_bit_the_one_alone(together, world, name):
    alone = train(world, make_stage({name: BESIDE[name]}), "alone")
    assert weights(together, name) == weights(alone, name)
    for line in metrics(alone, student=name, split="train"):
        assert line["grad_norm"] > 0.05, "clipping must be active here"
    assert metrics(together, student=name) == metrics(alone, student=name)


def test_terms_are_balanced_at_the_start_and_every_few_steps(world):
    """Steps 0, 3 and 6; dev, and with it the log of gradients, is at 4 and 8."""
    paths = train(world, make_stage({"a": BALANCED, "b": {**HIDDEN, "mlm_weight": 0.5}}), "out")
    first, second = metrics(paths, student="a", split="gradients")
    factors = [{key: value for key, value in line.items() if key.startswith("balance_")} for line in (first, second)]
    assert factors[0].keys() == factors[1].keys() and len(factors[0]) == 5 and factors[0] != factors[1]
    assert max(factors[0].values()) > 1 > min(factors[0].values()) > 0
    pulls = [value for key, value in first.items() if key.startswith("weighted_grad_norm_") and "mlm" not in key]
    assert max(pulls) < 3 * min(pulls), "they were equal one step before"
    for line in metrics(paths, student="b", split="gradients"):
        assert not [key for key in line if key.startswith("balance_")]
        pulls = [value for key, value in line.items() if key.startswith("weighted_grad_norm_") and "mlm" not in key]
        assert max(pulls) > 10 * min(pulls)


def test_a_stop_in_the_evaluation_of_a_balance_step_loses_no_balance(world, monkeypatch):
    stage = make_stage({"a": {**HIDDEN, "balance_every": 4}})
    whole = train(world, stage, "whole")
    measure, calls = bookkeeping.evaluate_masked_lm, []

    def stopping(*arguments):
        calls.append(arguments)
        return None if len(calls) == 2 else measure(*arguments)  # the first is the teacher's

    monkeypatch.setattr(bookkeeping, "evaluate_masked_lm", stopping)
    with pytest.raises(StageStopped):
        train(world, stage, "stopped")
    stopped = train(world, stage, "stopped")
    assert len(calls) == 4
    assert metrics(stopped, split="train") == metrics(whole, split="train")
    assert weights(stopped, "a") == weights(whole, "a")


def test_students_that_differ_by_name_only_are_different_models(world):
    """So that the test above cannot pass by everything being equal."""
    paths = train(world, make_stage({"a": HIDDEN, "b": HIDDEN}, steps=2), "out")
    assert weights(paths, "a") != weights(paths, "b")


STOPPED = {"a": HIDDEN, "b": ATTENTION, "c": MUON, "d": EMA, "e": BALANCED}


@pytest.fixture(scope="module")
def whole_of_many(tmp_path_factory):
    return train_apart(tmp_path_factory, make_stage(STOPPED))


@pytest.mark.parametrize("stop", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 8))])
def test_a_stopped_run_goes_on_to_the_same_weights(whole_of_many, world, stop):
    stage = make_stage(STOPPED)
    stopped = stop_before(world, stage, "stopped", stop)
    assert not (stopped.models / "a").exists()
    train(world, stage, "stopped")
    for name in STOPPED:
        assert weights(whole_of_many, name) == weights(stopped, name)
    assert metrics(whole_of_many) == metrics(stopped)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one student that nothing interrupts."""
    return train_apart(tmp_path_factory, make_stage({"a": HIDDEN}))


def test_a_run_stopped_three_times_goes_on_to_the_same_weights(whole, world):
    stage = make_stage({"a": HIDDEN}, save_every=100)
    stop_before(world, stage, "stopped", 3)
    stop_before(world, stage, "stopped", 4, first_step=2)
    stopped = stop_before(world, stage, "stopped", 7, first_step=3)
    train(world, stage, "stopped")
    assert weights(whole, "a") == weights(stopped, "a")


def test_pre_training_without_a_teacher_resumes_to_the_same_weights(world):
    stage = make_stage({"a": {"config": "student.json"}}, teacher=None)
    whole = train(world, stage, "whole")
    with pytest.raises(StageStopped):
        train(world, stage, "stopped", stop=StopBeforeStep(5))
    stopped = train(world, stage, "stopped")
    assert weights(whole, "a") == weights(stopped, "a")
    assert {"loss", "mlm", "grad_norm"} < metrics(whole, split="train")[0].keys()


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_its_log_has_each_step_once(whole, world):
    """A kill leaves log lines after the checkpoint, the last of them cut short."""
    stage = make_stage({"a": HIDDEN})
    killed = stop_before(world, stage, "killed", 8)
    shutil.rmtree(killed.checkpoints / "step-00000007")
    with (killed.stage / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "sam')
    train(world, stage, "killed")
    assert weights(whole, "a") == weights(killed, "a")
    assert metrics(whole) == metrics(killed)


def test_a_run_killed_before_its_first_checkpoint_starts_its_log_again(whole, world):
    stage = make_stage({"a": HIDDEN})
    killed = stop_before(world, stage, "killed", 3)
    shutil.rmtree(killed.checkpoints)
    train(world, stage, "killed")
    assert metrics(whole) == metrics(killed)


@pytest.mark.parametrize("file", ["a.safetensors", "a+optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_with_the_same_weights_in_the_end(whole, world, file, caplog):
    stage = make_stage({"a": HIDDEN})
    damaged = stop_before(world, stage, "damaged", 6)
    path = damaged.checkpoints / "step-00000005" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.INFO):
        train(world, stage, "damaged")
    assert f"step-00000005 is damaged ({file} changed)" in caplog.text
    assert "continuing from" in caplog.text and "step-00000004" in caplog.text
    assert weights(whole, "a") == weights(damaged, "a")


def test_optimiser_state_is_needed_for_the_same_weights(whole, world, monkeypatch):
    """The control: a resume that loses the moments ends elsewhere, so equal weights mean that all was restored."""
    stage = make_stage({"a": HIDDEN})
    stopped = stop_before(world, stage, "stopped", 5)
    from distill.training.student import StudentRun

    load = StudentRun.load

    def load_without_moments(run, tensors, state):
        load(run, {**tensors, "a+optimizer": {}}, state)

    monkeypatch.setattr(StudentRun, "load", load_without_moments)
    train(world, stage, "stopped")
    assert weights(whole, "a") != weights(stopped, "a")


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_without_dropout_the_micro_batch_size_changes_rounding_only(world, micro_batch_size):
    students = {"a": {**HIDDEN, "dropout": 0.0}}
    two = train(world, make_stage(students), "two")
    other = train(world, make_stage(students, micro_batch_size=micro_batch_size), "other")
    ours, theirs = (metrics(paths, split="train") for paths in (two, other))
    for key in ("loss", "kd", "hidden_mse_2_4", "grad_norm"):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in theirs], rel=1e-4)


def test_metrics_have_one_schema(world):
    paths = train(world, make_stage({"a": HIDDEN, "c": LABELS}), "out")
    lines = read_metrics(paths.stage / "metrics.jsonl")
    assert all(list(line)[:5] == ["step", "samples", "tokens", "split", "student"] for line in lines)
    assert [line["step"] for line in metrics(paths, split="train", student="c")] == list(range(1, STEPS + 1))
    assert [line["step"] for line in metrics(paths, split="dev", student="a")] == [4, 8]
    assert [line["step"] for line in metrics(paths, student="teacher")] == [0]
    assert all(line["samples"] == 4 * line["step"] for line in lines)
    assert {"loss", "kd", "mlm", "grad_norm", "learning_rate", *SPEED} < lines[1 + 1].keys()
    assert {"mlm_loss", "accuracy", "masked_tokens"} < metrics(paths, split="dev", student="a")[0].keys()


def test_a_stage_without_dev_rows_trains_without_evaluation(world):
    shutil.rmtree(world / "data" / "dev")
    paths = train(world, make_stage({"a": HIDDEN}), "out")
    assert metrics(paths, split="dev") == []


def test_training_lowers_the_dev_loss_of_a_student_that_learns_from_the_labels(world):
    stage = make_stage({"a": {**LABELS, "learning_rate": 5e-3, "max_grad_norm": 1.0}}, steps=60, eval_every=20,
                       save_every=60)  # fmt: skip
    losses = [line["mlm_loss"] for line in metrics(train(world, stage, "out"), split="dev", student="a")]
    first, last = (metrics(make_paths(world, "out"), split="train")[i]["mlm"] for i in (0, -1))
    assert last < first - 0.5 and len(losses) == 3


def test_the_finished_folder_has_the_dropout_of_its_config_and_the_weights_of_the_last_step(world):
    paths = train(world, make_stage({"a": {**HIDDEN, "dropout": 0.4}}), "out")
    config = json.loads((paths.models / "a" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.1
    files = {path.name for path in (paths.models / "a").iterdir()}
    assert {"config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "README.md"} <= files
    last = load_file(paths.checkpoints / f"step-{STEPS:08d}" / "a.safetensors")
    saved = load_masked_lm(paths.models / "a").state_dict()
    for name, value in last.items():
        if name.startswith("student."):
            assert torch.equal(value, saved[name.removeprefix("student.")]), name


def test_dropout_0_and_dropout_of_the_config_train_other_weights(world):
    with_dropout = train(world, make_stage({"a": HIDDEN}, steps=2), "with")
    without = train(world, make_stage({"a": {**HIDDEN, "dropout": 0.0}}, steps=2), "without")
    assert weights(with_dropout, "a") != weights(without, "a")


def start_weights(world, students, *, inits=None, **fields):
    """The weights before the first step, as a stop there saves them."""
    stage = make_stage(students, **fields)
    with pytest.raises(StageStopped):
        train(world, stage, "start", stop=StopBeforeStep(1), inits=inits)
    return load_file(make_paths(world, "start").checkpoints / "step-00000000" / "a.safetensors")


def test_init_starts_from_the_weights_of_a_folder(world):
    write_model(world / "before", tiny_config(layers=2, width=16, heads=4), seed=7)
    student = {"init": "before", "matches": ["uniform"]}
    start = start_weights(world, {"a": student}, inits={"a": world / "before"})
    for name, value in load_masked_lm(world / "before").named_parameters():
        assert torch.equal(start[f"student.{name}"], value), name


def test_init_layers_starts_from_layers_and_head_of_the_teacher(world):
    write_config(world / "assistant.json", tiny_config(layers=2, width=32, heads=4))
    start = start_weights(world, {"a": {"config": "assistant.json", "init_layers": [1, 3]}})
    teacher = dict(load_masked_lm(world / "teacher").named_parameters())
    for name, value in start.items():
        source = name.removeprefix("student.").replace("layer.1.", "layer.3.").replace("layer.0.", "layer.1.")
        assert torch.equal(value, teacher[source]), name


def test_random_starts_depend_on_seed_stage_and_student(world):
    def start(**fields):
        shutil.rmtree(world / "start", ignore_errors=True)
        return start_weights(world, {"a": HIDDEN}, **fields)["student.bert.embeddings.word_embeddings.weight"]

    assert torch.equal(start(), start())
    assert not torch.equal(start(), start(seed=1))
    assert not torch.equal(start(), start(name="two"))


def test_students_of_one_seed_start_equal_whatever_they_and_their_stage_are_called(world):
    def start(student, **fields):
        stage = make_stage({student: {**HIDDEN, "seed": 5}}, **fields)
        with pytest.raises(StageStopped):
            train(world, stage, student, stop=StopBeforeStep(1))
        return load_file(make_paths(world, student).checkpoints / "step-00000000" / f"{student}.safetensors")

    one, other = start("one"), start("other", name="two", seed=3)
    assert one.keys() == other.keys() and any(name.startswith("projections.") for name in one)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_students_of_one_seed_train_equal_and_the_seed_of_the_stage_still_decides_the_data(world):
    same = train(world, make_stage({"a": {**HIDDEN, "seed": 5}, "b": {**HIDDEN, "seed": 5}}, steps=2), "same")
    assert weights(same, "a") == weights(same, "b")
    for output, fields in (("own", {"seed": 6}), ("none", {})):
        other = train(world, make_stage({"a": {**HIDDEN, **fields}}, steps=2), output)
        assert weights(other, "a") != weights(same, "a")
    other_data = train(world, make_stage({"a": {**HIDDEN, "seed": 5}}, steps=2, seed=1), "data")
    assert weights(other_data, "a") != weights(same, "a")


def without_head(world):
    """A teacher folder with an encoder alone."""
    model = tiny_model(tiny_config(layers=4, width=32, heads=4), seed=1)
    shutil.rmtree(world / "teacher")
    write_model(world / "teacher", model.config)
    (world / "teacher" / "model.safetensors").unlink()
    model.bert.save_pretrained(world / "teacher")


def test_a_teacher_without_head_is_refused_where_its_logits_are_used(world):
    without_head(world)
    with pytest.raises(InputError, match="no masked-language-model head"):
        train(world, make_stage({"a": HIDDEN}), "out")


def test_a_teacher_without_head_teaches_hidden_states_and_no_head_is_invented_for_the_log(world):
    without_head(world)
    paths = train(world, make_stage({"a": {**HIDDEN, "kd_weight": 0.0}}, steps=2), "out")
    assert metrics(paths, student="teacher") == []
    assert "kd" not in metrics(paths, split="train")[0]


@pytest.mark.parametrize("student, needed", [
    (HIDDEN, True), ({**HIDDEN, "kd_weight": 0.0}, False),
    ({**HIDDEN, "kd_weight": 0.0, "init_layers": [0, 1]}, True),
])  # fmt: skip
def test_when_the_head_of_the_teacher_is_needed(student, needed):
    assert needs_teacher_head(make_stage({"a": student}).students.values()) is needed


def test_a_run_that_diverges_leaves_no_checkpoint_with_broken_weights(world):
    """A checkpoint of NaN would make every later attempt fail, though the message sends the user there."""
    stage = make_stage({"a": {**HIDDEN, "learning_rate": 1e30, "max_grad_norm": 0, "warmup_ratio": 0}}, log_every=8,
                       save_every=1)  # fmt: skip
    with pytest.raises(TrainingFailed, match="student 'a'"):
        train(world, stage, "out")
    for folder in make_paths(world, "out").checkpoints.glob("step-*"):
        for file in folder.glob("*.safetensors"):
            assert all(bool(value.isfinite().all()) for value in load_file(file).values()), file


def test_a_corpus_smaller_than_a_step_repeats_with_a_note(world):
    stage = make_stage({"a": HIDDEN}, global_batch_size=24, micro_batch_size=8, steps=2)
    paths = make_paths(world, "out")
    status = StatusFile(paths.status)
    train_stage(stage, ["a"], paths, {"a": ""}, ALONE, NeverStop(), status)
    status.write("finished")
    messages = json.loads(paths.status.read_text())["messages"]
    assert any("10 rows, fewer than one step takes" in message for message in messages)


def test_the_vocabulary_of_the_tests_is_the_one_of_the_models(world):
    assert load_masked_lm(world / "teacher").config.vocab_size == len(VOCABULARY)

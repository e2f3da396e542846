"""Losses that are no numbers, and losses that stand out: what a run says, keeps, and does about them."""

import json
import random
import re

import pytest
import torch
from safetensors.torch import load_file
from test_stage import HIDDEN, LABELS, make_paths, make_stage, metrics, train, weights
from tiny import ALONE, LENGTH, NeverStop
from transformers import BertForMaskedLM

from distill.training.checkpoint import list_checkpoints
from distill.training.loop import TrainingFailed
from distill.training.metrics import StatusFile
from distill.training.stage import train_stage
from distill.training.step_log import LEAST, SpikeWatch, StudentLog
from distill.training.student import StudentRun

STUDENTS = {"a": HIDDEN, "b": LABELS}


@pytest.fixture
def broken(monkeypatch):
    """A function that lets a student's loss be multiplied at these steps."""

    def at(name, factors):
        backward, seed_dropout = StudentRun.backward, StudentRun.seed_dropout

        def seed(run, *, step, **seeds):
            run.number = step
            seed_dropout(run, step=step, **seeds)

        def multiplied(run, loss):
            backward(run, loss * factors.get(run.number, 1.0) if run.name == name else loss)

        monkeypatch.setattr(StudentRun, "seed_dropout", seed)
        monkeypatch.setattr(StudentRun, "backward", multiplied)

    return at


def messages(paths):
    return json.loads(paths.status.read_text())["messages"]


def train_noting(world, stage, output):
    """As test_stage.train, with a status file that shows what the user was told."""
    paths = make_paths(world, output)
    status = StatusFile(paths.status)
    train_stage(stage, list(stage.students), paths, dict.fromkeys(stage.students, ""), ALONE, NeverStop(), status)
    status.write("finished")
    return paths


def test_a_loss_that_is_no_number_stops_before_the_update_and_leaves_its_batch(world, broken):
    stage = make_stage(STUDENTS, save_every=2)
    broken("a", {6: float("nan")})
    with pytest.raises(TrainingFailed) as failed:
        train(world, stage, "out")
    paths = make_paths(world, "out")
    dump = paths.stage / "bad-batch-step-6.safetensors"
    assert str(failed.value).startswith(
        f"student 'a': loss or gradient is not finite at step 6 (samples 20 to 23; they are in {dump}), so the weights "
        "were not changed by it; lower learning_rate"
    )
    assert [path.name for path in list_checkpoints(paths.checkpoints)] == ["step-00000004", "step-00000002"]
    tensors = load_file(dump)
    assert {name: list(value.shape) for name, value in tensors.items()} == {
        name: [4, LENGTH] for name in ("input_ids", "attention_mask", "labels")
    }
    about = json.loads(dump.with_suffix(".json").read_text())
    assert about["first_and_last_sample"] == [20, 23] and len(about["rows"]) == 4
    output = BertForMaskedLM.from_pretrained(world / "teacher")(**tensors)
    assert output.loss.isfinite() and 0 < int((tensors["labels"] != -100).sum()) < 4 * LENGTH


def test_the_batch_that_is_left_is_the_one_of_that_step(world, broken):
    """Rows and masks by the loss that the same step gives in a run in which nothing breaks."""
    stage = make_stage({"a": {**LABELS, "kd_weight": 0.0, "learning_rate": 1e-30, "dropout": 0.0}}, save_every=100)
    whole = train(world, stage, "whole")
    broken("a", {6: float("nan")})
    with pytest.raises(TrainingFailed):
        train(world, stage, "out")
    tensors = load_file(make_paths(world, "out").stage / "bad-batch-step-6.safetensors")
    loss = BertForMaskedLM.from_pretrained(whole.models / "a").eval()(**tensors).loss
    (record,) = metrics(whole, step=6, split="train")
    assert loss.item() == pytest.approx(record["mlm"], rel=1e-4)


def test_bad_updates_up_to_the_allowed_number_are_left_out_and_told(world, broken):
    stage = make_stage(STUDENTS, skip_bad_steps=2)
    whole = train(world, make_stage({"b": LABELS}), "whole")
    broken("a", {3: float("inf"), 6: float("nan")})
    paths = train_noting(world, stage, "out")
    told = [message for message in messages(paths) if "not finite" in message]
    assert len(told) == 2 and told[1].endswith("left out 2 of 2 allowed")
    assert weights(paths, "b") == weights(whole, "b"), "its sibling trains as if alone"
    assert [line["step"] for line in metrics(paths, student="a", split="train")] == [1, 2, 4, 5, 7, 8]


def test_one_bad_update_more_than_allowed_stops_also_after_a_restart(world, broken):
    stage = make_stage(STUDENTS, skip_bad_steps=1)
    broken("a", {2: float("nan"), 5: float("nan")})
    with pytest.raises(TrainingFailed, match=r"at step 5 .*\(2 so far, 1 allowed\)"):
        train(world, stage, "out")
    with pytest.raises(TrainingFailed, match=r"at step 5 .*\(2 so far, 1 allowed\)"):
        train(world, stage, "out")


def test_a_run_in_fp16_that_does_nothing_but_overflow_ends(world, broken, monkeypatch):
    monkeypatch.setattr("distill.training.stage.choose_dtype", lambda *_: torch.float16)
    stage = make_stage({"a": HIDDEN}, steps=40, save_every=40, eval_every=40)
    broken("a", dict.fromkeys(range(4, 41), float("inf")))
    with pytest.raises(TrainingFailed, match=r"in fp16 the gradients overflow .*\(6e-05 at step 33\); use precision"):
        train(world, stage, "out")


def test_a_loss_that_stands_out_is_told_with_its_samples(world, monkeypatch):
    add, calls = StudentLog.add, []

    def spiking(log, values):
        calls.append(log)
        is_spike = (len(calls) + 1) // 2 == LEAST + 3  # two micro-batches a step
        add(log, {**values, "loss": values["loss"] * (5 if is_spike else 1)})

    monkeypatch.setattr(StudentLog, "add", spiking)
    stage = make_stage({"a": LABELS}, steps=LEAST + 5, save_every=100, eval_every=100)
    told = [message for message in messages(train_noting(world, stage, "out")) if "stands out" in message]
    assert len(told) == 1
    assert re.match(r"student 'a': loss [\d.]+ at step 23 \(samples 88 to 91\) stands out from the last ones", told[0])


# ---- what counts as a spike


def feed(losses):
    watch = SpikeWatch()
    return [watch.usual(loss) for loss in losses]


def noisy(count, *, start=8.0, slope=0.0, seed=0):
    generator = random.Random(seed)
    return [start - slope * step + generator.gauss(0, 0.1) for step in range(count)]


def test_a_spike_is_told_with_the_usual_loss_and_does_not_hide_the_next():
    found = feed([*noisy(60), 12.0, 13.0, *noisy(10, seed=1)])
    assert found[60] == pytest.approx(8.0, abs=0.1) and found[61] == pytest.approx(8.0, abs=0.1)
    assert [value for number, value in enumerate(found) if number not in (60, 61)] == [None] * 70


@pytest.mark.parametrize("losses", [
    noisy(1000), noisy(1000, slope=0.005), [8.0] * 200, [8.0 - 0.01 * step for step in range(300)],
    [*noisy(LEAST - 1), 50.0],
])  # fmt: skip
def test_noise_a_falling_loss_a_constant_one_and_the_first_steps_are_no_spikes(losses):
    assert sum(value is not None for value in feed(losses)) <= len(losses) // 1000


def test_a_loss_that_stays_high_is_told_only_until_it_is_usual():
    found = feed([*noisy(100), *noisy(200, start=9.0, seed=2)])
    assert found[100] is not None and found[-100:] == [None] * 100

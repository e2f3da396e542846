"""The moving average of a student's weights: its formula, its checkpoints, and that it is what counts."""

import pytest
import torch
from safetensors.torch import load_file
from test_loop import BATCH, run, start_run
from test_stage import EMA, make_stage, metrics, train_apart, weights

from distill.modeling.models import load_masked_lm

PLAIN = {**EMA, "ema": None}


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_average_is_the_recursion_over_the_weights_of_the_steps():
    student = start_run(ema=0.4, steps=20, learning_rate=0.01)
    expected = flat(student.objective.student).double()
    for step, _ in enumerate(run([student], [[BATCH]] * 12), start=1):
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * flat(student.objective.student).double()
        torch.testing.assert_close(flat(student.average).double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(flat(student.average), flat(student.objective.student))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with the average and one without."""
    return [train_apart(tmp_path_factory, make_stage({"a": student})) for student in (EMA, PLAIN)]


def test_an_average_changes_nothing_of_the_training(runs):
    with_average, without = runs
    last = (paths.checkpoints / "step-00000008" / "a.safetensors" for paths in (with_average, without))
    ours, theirs = (load_file(path) for path in last)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(with_average, split="train") == metrics(without, split="train")
    assert weights(with_average, "a") != weights(without, "a")


def test_dev_and_the_published_model_are_the_averages(runs):
    with_average, without = runs
    kept = load_file(with_average.checkpoints / "step-00000008" / "a+average.safetensors")
    published = dict(load_masked_lm(with_average.models / "a").named_parameters())
    assert kept.keys() == published.keys()
    assert all(torch.equal(kept[name], value) for name, value in published.items())
    both = zip(metrics(with_average, split="dev", student="a"), metrics(without, split="dev", student="a"), strict=True)
    for ours, theirs in both:
        assert ours["unaveraged_mlm_loss"] == theirs["mlm_loss"] != ours["mlm_loss"]
        assert ours["unaveraged_accuracy"] == theirs["accuracy"]


def test_a_run_that_begins_to_average_later_begins_with_the_weights_of_that_time():
    """What --allow-changes lets through."""
    before, later = start_run(), start_run(ema=0.9)
    list(run([before], [[BATCH]] * 2))
    later.load(before.tensors(), before.state())
    assert torch.equal(flat(later.average), flat(before.objective.student))


@pytest.mark.parametrize("ema", [None, 0.9])
def test_what_counts_is_the_average_if_there_is_one(ema):
    student = start_run(ema=ema)
    assert (student.published is student.objective.student) is (ema is None)
    assert "student+average" in student.tensors() or ema is None


def test_an_update_that_was_left_out_moves_no_average():
    student = start_run(ema=0.9)
    list(run([student], [[BATCH]] * 2))
    before = flat(student.average)
    assert not torch.equal(before, flat(student.objective.student))
    for parameter in student.parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    student.step(3)
    assert torch.equal(flat(student.average), before)

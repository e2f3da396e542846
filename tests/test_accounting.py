"""Model FLOPs of a pass, the machine's peak, and what a stage says about its speed."""

import pytest
import torch
from tiny import ALONE, LENGTH, make_batch, tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from distill.recipe import Student
from distill.training import accounting
from distill.training.accounting import Throughput, measure_peak, pass_flops
from distill.training.loop import TeacherPass
from distill.training.losses import UNITS
from distill.training.matches import resolve_matches
from distill.training.student import StudentRun

TEACHER = tiny_config(layers=4, width=32, heads=4)
STUDENT = tiny_config(layers=2, width=16, heads=4)
SECOND_OF_FOUR = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "proj": ["linear", 16, 32]}
FULL_ROWS = make_batch([LENGTH] * 4, [4] * 4)


def count(*, matches, teacher=True, **settings):
    """Model FLOPs a token as we say, and as torch counts them in one forward and backward."""
    settings = Student(config="x", matches=list(matches), **settings)
    resolved = resolve_matches(list(matches), TEACHER, STUDENT) if teacher else []
    run = StudentRun(
        "s", tiny_model(STUDENT, attention="eager"), settings, matches=resolved, distilled=teacher, steps=1,
        seed_parts=(0,), device=ALONE.device, dtype=torch.float32,
    )  # fmt: skip
    frozen = tiny_model(TEACHER, attention="eager")
    teacher_pass = TeacherPass(frozen, [run.objective.teacher_needs], run.objective.autocast) if teacher else None
    frozen.set_attn_implementation("eager")  # torch counts plain matrix products alone on every device
    with FlopCounterMode(display=False) as counter:
        features = teacher_pass(FULL_ROWS)[run.objective.teacher_needs.attention] if teacher_pass else None
        loss, _ = run.objective(FULL_ROWS, features, dict.fromkeys(UNITS, 1.0))
        loss.backward()
    told = pass_flops(TEACHER if teacher else None, [(STUDENT, resolved, settings)], length=LENGTH, head_share=0.25)
    return told, counter.get_total_flops() / FULL_ROWS.num_tokens


@pytest.mark.parametrize("case", [
    {"matches": ["uniform"]},
    {"matches": ["uniform:mmd", "uniform:gram"], "kd_weight": 0.0, "mlm_weight": 1.0},
    {"matches": [SECOND_OF_FOUR], "kd_weight": 0.0, "mlm_weight": 1.0},
    {"matches": ["uniform:attention_mse_sum"]},
    {"matches": [], "teacher": False},
], ids=str)  # fmt: skip
def test_model_flops_are_those_that_torch_counts(case):
    """But for the products inside losses (gram, mmd), which are no model work, and a first layer's input gradient."""
    told, counted = count(**case)
    if any("mmd" in str(match) for match in case["matches"]):
        assert told < counted < 1.6 * told
    else:
        assert told == pytest.approx(counted, rel=0.02)


def test_a_second_student_costs_no_second_teacher():
    settings, matches = Student(config="x"), resolve_matches(["uniform"], TEACHER, STUDENT)
    one, two = (pass_flops(TEACHER, [(STUDENT, matches, settings)] * n, length=LENGTH, head_share=0.15) for n in (1, 2))
    alone = pass_flops(None, [(STUDENT, matches, settings)], length=LENGTH, head_share=0.15)
    assert two - one == pytest.approx(alone)
    assert one > alone


def test_the_peak_is_no_less_than_one_product_gives_and_leaves_the_random_state_alone(monkeypatch):
    monkeypatch.setattr(accounting, "PEAK_SECONDS", 0.1)
    state = torch.random.get_rng_state()
    peak = measure_peak(torch.float32, ALONE)
    assert torch.equal(state, torch.random.get_rng_state())
    single = 2 * 512**3 / accounting._time_product(512, torch.float32, ALONE.device)
    assert 1e8 < single < 3 * peak


def test_throughput_is_over_all_steps_and_speaks_of_data_only_if_it_was_waited_for():
    throughput = Throughput(flops_per_token=2e6, peak=1e10)
    assert throughput.summary() == ""
    assert throughput.add(1000, {"tokens_per_second": 1000.0, "data_wait": 0.0}) == pytest.approx(0.2)
    throughput.add(1000, {"tokens_per_second": 500.0, "data_wait": 0.0})
    said = "667 tokens/s x 2.0 MFLOPs a token = 1.3 GFLOP/s of model work, 13% of the 10 GFLOP/s"
    assert said in throughput.summary()
    assert "data" not in throughput.summary()
    throughput.add(1000, {"tokens_per_second": 1000.0, "data_wait": 1.0})
    assert throughput.summary().endswith("25% of the time went by waiting for data")

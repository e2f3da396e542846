"""Which dtype a stage takes, what stays in float32 whatever it is, and that bf16 trains like float32."""

import pytest
import torch
from test_loop import BATCH, TEACHER
from tiny import ALONE, LENGTH, NeverStop, make_batch, tiny_config, tiny_model

from distill.errors import InputError
from distill.recipe import Student
from distill.training.loop import TeacherPass, run_steps
from distill.training.losses import UNITS
from distill.training.matches import resolve_matches
from distill.training.precision import autocast_for, choose_dtype, has_bf16_units
from distill.training.student import StudentRun

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONFIG = tiny_config(layers=2, width=16, heads=4)


def test_auto_is_bf16_where_the_machine_has_units_for_it(monkeypatch):
    for units, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("distill.training.precision.has_bf16_units", lambda device, units=units: units)
        assert choose_dtype("auto", CPU) == dtype
    assert choose_dtype("bf16", CPU) == torch.bfloat16 and choose_dtype("fp32", GPU) == torch.float32
    with pytest.raises(InputError, match="fp16 needs an NVIDIA GPU"):
        choose_dtype("fp16", CPU)


@pytest.mark.parametrize("capabilities, found", [
    ({"avx2": True, "amx_bf16": False, "amx_tile": False, "avx512_bf16": False}, False),
    ({"avx2": True, "amx_bf16": True, "amx_tile": True}, True), ({"avx512_bf16": True}, True),
])  # fmt: skip
def test_which_processors_have_bf16_units(monkeypatch, capabilities, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bf16_units(CPU) is found


def start(dtype, *, learning_rate=3e-3, steps=200):
    """A student and a teacher as a stage starts them: the teacher is cast as a whole."""
    student = Student(
        config="x", matches=["uniform"], temperature=2.0, mlm_weight=1.0, learning_rate=learning_rate, kd_weight=4.0
    )
    run = StudentRun(
        "s", tiny_model(CONFIG, seed=2), student, matches=resolve_matches(["uniform"], TEACHER, CONFIG),
        distilled=True, steps=steps, seed_parts=(0,), device=CPU, dtype=dtype,
    )  # fmt: skip
    teacher = TeacherPass(
        tiny_model(TEACHER, seed=1).to(dtype), [run.objective.teacher_needs], autocast_for(torch.float32, CPU)
    )
    return run, teacher


def test_in_bf16_weights_moments_losses_and_gradients_stay_float32():
    student, teacher = start(torch.bfloat16)
    seen = []
    student.objective.student.bert.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    features = teacher(BATCH)[False]
    loss, terms = student.objective(BATCH, features, dict.fromkeys(UNITS, 1.0))
    loss.backward()
    assert seen == [torch.bfloat16], "the products are in bf16"
    assert teacher.model.bert.encoder.layer[0].intermediate.dense.weight.dtype == torch.bfloat16
    tensors = [loss, *terms.values(), features.logits, *(state for state in features.hidden if state is not None)]
    tensors += [parameter.grad for parameter in student.parameters] + student.parameters
    student.step(1)
    tensors += [value for state in student.optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def curve(dtype, **settings):
    """Losses of 200 steps over eight batches in turn."""
    student, teacher = start(dtype, **settings)
    batches = [make_batch([LENGTH, LENGTH, 9, 12], [4, 4, 2, 3], seed=n) for n in range(8)]
    reports = run_steps(
        [student], teacher, ([batches[n % 8]] for n in range(200)), first_step=0, tokens=0, log_every=8, last_step=200,
        processes=ALONE, stop=NeverStop(),
    )  # fmt: skip
    return torch.tensor([report.values["s"]["loss"] for report in reports if report.values])


@pytest.mark.slow
def test_two_hundred_steps_in_bf16_follow_the_float32_curve_within_a_thousandth():
    """The loss falls by far more than the band, and a learning rate a tenth lower leaves the band."""
    band = 0.001
    single, half = curve(torch.float32), curve(torch.bfloat16)
    slower = curve(torch.float32, learning_rate=2.7e-3)
    assert float(single[-1]) < 0.9 * float(single[0])
    apart, control = (float(((other - single) / single).abs().max()) for other in (half, slower))
    assert apart < band < control

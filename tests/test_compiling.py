"""torch.compile changes rounding only, and what is compiled does not depend on what came before."""

import shutil

import pytest
import torch
from test_loop import TEACHER, start_run
from test_stage import make_stage, metrics, train, weights
from tiny import ALONE, LENGTH, StopBeforeStep, make_batch, tiny_config, tiny_model

from distill.errors import InputError
from distill.recipe import Student
from distill.training.compiling import should_compile
from distill.training.loop import UNITS, StageStopped, TeacherPass
from distill.training.matches import resolve_matches
from distill.training.precision import autocast_for
from distill.training.student import StudentRun

CPU, GPU = torch.device("cpu"), torch.device("cuda")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")


def test_auto_compiles_on_no_cpu():
    assert should_compile(True, CPU) and not should_compile(False, GPU)
    assert not should_compile("auto", CPU)


def test_compile_without_compiler_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not should_compile("auto", CPU) and not should_compile("auto", GPU)
    with pytest.raises(InputError, match="compile: torch.compile needs a C.. compiler and there is no g.."):
        should_compile(True, CPU)


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def loss_and_gradients(*, compiled, matches, batches, dtype=torch.float32):
    config = tiny_config(layers=2, width=16, heads=4)
    autocast = autocast_for(dtype, ALONE.device)
    attention = "eager" if any("attention" in match for match in matches) else "sdpa"
    run = StudentRun(
        "s", tiny_model(config, seed=2, attention=attention), Student(config="x", mlm_weight=0.5),
        matches=resolve_matches(list(matches), TEACHER, config), distilled=True, steps=1, seed_parts=(0,),
        device=ALONE.device, dtype=dtype, compiled=compiled,
    )  # fmt: skip
    teacher = TeacherPass(tiny_model(TEACHER, seed=1), [run.objective.teacher_needs], autocast, compiled=compiled)
    losses = []
    for number, batch in enumerate(batches):
        run.objective.balance({"kd": 2.0 + number})
        run.objective.set_temperature(4.0 - number, factor=1.0 + number)
        features = teacher(batch)[run.objective.teacher_needs.attention]
        loss, terms = run.loss(batch, features, dict.fromkeys(UNITS, 0.5))
        loss.backward()
        losses.append({name: float(value.detach()) for name, value in {"loss": loss, **terms}.items()})
    gradients = {name: p.grad for name, p in run.objective.named_parameters() if p.grad is not None}
    return losses, gradients


@needs_compiler
@pytest.mark.slow
def test_losses_and_gradients_are_the_same_but_for_rounding_and_there_is_one_graph():
    """Also while the factor that balances a term, and the temperature, change."""
    matches = ("uniform", "uniform:attention_mse")
    batches = [make_batch([LENGTH, 9, 12, LENGTH], masked, seed=n) for n, masked in
               enumerate([[3, 1, 2, 1], [2, 2, 5, 1], [4, 1, 1, 2]])]  # fmt: skip
    expected, expected_gradients = loss_and_gradients(compiled=False, matches=matches, batches=batches)
    torch._dynamo.utils.counters.clear()
    found, gradients = loss_and_gradients(compiled=True, matches=matches, batches=batches)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "student and teacher, for all mask counts"
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    scale = max(float(value.abs().max()) for value in expected_gradients.values())
    for name, value in gradients.items():
        assert float((value - expected_gradients[name]).abs().max()) < 1e-5 * scale, name


@needs_compiler
@pytest.mark.slow
def test_a_stopped_compiled_run_goes_on_to_the_same_weights(world):
    """After a stop the first batch compiled is another one; code that depends on the first would round otherwise."""
    stage = make_stage({"a": {"config": "student.json"}}, teacher=None, steps=4, compile=True, eval_every=9)
    whole = train(world, stage, "whole")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "with padding and without"
    torch._dynamo.reset()
    with pytest.raises(StageStopped):
        train(world, stage, "stopped", stop=StopBeforeStep(3))
    torch._dynamo.reset()
    stopped = train(world, stage, "stopped")
    assert weights(whole, "a") == weights(stopped, "a")
    assert metrics(whole) == metrics(stopped)


def test_the_loop_calls_the_objective_itself_without_compile():
    student = start_run()
    assert student.loss is student.objective

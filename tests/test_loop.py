"""One optimiser step after the other: reports, clipping, dropout's seeds, the stop, and losses that are not finite."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import ALONE, LENGTH, NeverStop, StopBeforeStep, cut_batch, make_batch, tiny_config, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from distill.errors import InputError
from distill.recipe import Student
from distill.training import accounting
from distill.training.encoder import Needs
from distill.training.loop import StageStopped, TeacherPass, run_steps
from distill.training.matches import resolve_matches
from distill.training.optimizer import check_scheduler, parameter_groups
from distill.training.precision import autocast_for
from distill.training.student import StudentRun

TEACHER = tiny_config(layers=4, width=32, heads=4, initializer_range=0.2)
STUDENT = tiny_config(layers=2, width=16, heads=4, dropout=0.1)
STILL = tiny_config(layers=2, width=16, heads=4)
FLOAT32 = autocast_for(torch.float32, ALONE.device)
BATCH = make_batch([LENGTH, 9, 12, LENGTH], [3, 1, 2, 1])


def start_run(name="student", matches=("uniform",), *, steps=6, config=STUDENT, **settings) -> StudentRun:
    attention = "eager" if any("attention" in str(match) for match in matches) else "sdpa"
    return StudentRun(
        name, tiny_model(config, seed=2, attention=attention), Student(config="x", matches=list(matches), **settings),
        matches=resolve_matches(list(matches), TEACHER, config), distilled=True, steps=steps, seed_parts=(0, "stage"),
        device=ALONE.device, dtype=torch.float32,
    )  # fmt: skip


def start_teacher(*runs: StudentRun) -> TeacherPass:
    return TeacherPass(tiny_model(TEACHER, seed=1), [run.objective.teacher_needs for run in runs], FLOAT32)


def run(runs, batches, *, log_every=1, last_step=None, stop=None, first_step=0, tokens=0):
    return run_steps(
        runs, start_teacher(*runs), batches, first_step=first_step, tokens=tokens, log_every=log_every,
        last_step=last_step or len(batches), processes=ALONE, stop=stop or NeverStop(),
    )  # fmt: skip


def test_a_report_a_step_with_values_on_log_steps_and_at_the_end():
    reports = list(run([start_run()], [[BATCH]] * 5, log_every=2))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert [report.values is not None for report in reports] == [False, True, False, True, True]
    assert [report.tokens for report in reports] == [53 * step for step in range(1, 6)]


def test_a_log_line_holds_the_means_since_the_last_one():
    each = [report.values["student"] for report in run([start_run()], [[BATCH]] * 4)]
    pairs = [report.values["student"] for report in run([start_run()], [[BATCH]] * 4, log_every=2) if report.values]
    for number, line in enumerate(pairs):
        for name in ("loss", "kd", "hidden_mse_1_2", "grad_norm"):
            mean = (each[2 * number][name] + each[2 * number + 1][name]) / 2
            assert line[name] == pytest.approx(mean, rel=1e-5)
        assert line["learning_rate"] == each[2 * number + 1]["learning_rate"]


def test_steps_and_tokens_go_on_from_where_a_run_stopped():
    reports = list(run([start_run()], [[BATCH]] * 2, first_step=3, tokens=1000, last_step=5))
    assert [(report.step, report.tokens) for report in reports] == [(4, 1053), (5, 1106)]


def test_a_request_to_stop_leaves_between_steps():
    done = []
    with pytest.raises(StageStopped) as stopped:
        done += [report.step for report in run([start_run()], [[BATCH]] * 5, stop=StopBeforeStep(1))]
    assert stopped.value.step == 0
    steps = run([start_run()], [[BATCH]] * 5, stop=StopBeforeStep(4))
    with pytest.raises(StageStopped) as stopped:
        for report in steps:
            done.append(report.step)
    assert done == [1, 2, 3] and stopped.value.step == 3 and stopped.value.signum == 15


def test_an_update_by_gradients_that_are_no_numbers_is_left_out_for_that_student_alone(monkeypatch):
    """Its weights and moments stay as they were, its sibling's are those of a run in which nothing happened."""
    whole, runs = start_run("good"), [start_run("good"), start_run("bad")]
    list(run([whole], [[BATCH]] * 3))
    backward, calls = runs[1].backward, []

    def backward_with_nan(loss):
        calls.append(loss)
        backward(loss * float("nan") if len(calls) == 2 else loss)

    monkeypatch.setattr(runs[1], "backward", backward_with_nan)
    reports = run(runs, [[BATCH]] * 3, log_every=3)
    next(reports)
    before = copies(runs[1])
    next(reports)
    assert runs[1].tell_left_out() == (1, 1, 2) and runs[1].tell_left_out() == (1, 0, 2)
    assert all(torch.equal(value, copies(runs[1])[name]) for name, value in before.items())
    report = next(reports)
    assert any(not torch.equal(value, copies(runs[1])[name]) for name, value in before.items())
    assert runs[0].tell_left_out() == (0, 0, 0)
    assert all(torch.equal(value, copies(runs[0])[name]) for name, value in copies(whole).items())
    assert list(report.losses["bad"]) == [1, 3] and list(report.losses["good"]) == [1, 2, 3]
    assert all(math.isfinite(value) for value in report.values["bad"].values())


def copies(student):
    return {
        f"{stem}.{name}": value.clone() for stem, named in student.tensors().items() for name, value in named.items()
    }


def test_a_loss_that_is_infinite_is_seen_though_its_gradients_are_numbers():
    student = start_run()
    loss = sum(parameter.sum() for parameter in student.parameters)
    student.backward(loss - loss.detach() + float("inf"))
    student.step(1)
    assert student.tell_left_out() == (1, 1, 1)


def test_a_student_without_an_update_since_the_last_line_has_no_values(monkeypatch):
    runs = [start_run("good"), start_run("bad")]
    with torch.no_grad():
        runs[1].objective.student.bert.embeddings.LayerNorm.weight.fill_(float("nan"))
    (*_, report) = run(runs, [[BATCH]] * 2, log_every=2)
    assert set(report.values) == set(report.losses) == {"good"}
    assert runs[1].tell_left_out() == (2, 2, 1)


class Impatient(NeverStop):
    """A StopRequest whose signal comes within a step."""

    def __init__(self, looks):
        self.looks = looks

    def interrupts(self):
        self.looks -= 1
        return self.looks < 0


def test_a_step_of_one_process_is_given_up_between_micro_batches():
    done = []
    with pytest.raises(StageStopped) as stopped:
        for report in run([start_run()], [cut_batch(BATCH, [1, 2, 1])] * 3, stop=Impatient(4)):
            done.append(report.step)
    assert done == [1] and stopped.value.step == 1


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
@pytest.mark.parametrize("limit", [0.01, 0.0])
def test_clipping_covers_student_and_projections_and_reports_the_norm_before(limit):
    """TextBrewer leaves the projections out."""
    student = start_run(max_grad_norm=limit)
    generator = torch.Generator().manual_seed(0)
    for parameter in student.parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    raw = {name: p.grad.clone() for name, p in student.objective.named_parameters()}
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in raw.values()))
    given = {}
    student.optimizer.step = lambda: given.update({n: p.grad.clone() for n, p in student.objective.named_parameters()})
    assert float(student.step(1)) == pytest.approx(norm, rel=1e-5)
    assert any(name.startswith("projections.") for name in given)
    for name, value in given.items():
        torch.testing.assert_close(value, raw[name] * (limit / norm if limit else 1.0), rtol=1e-4, atol=1e-9)


def test_the_scheduler_moves_once_an_optimiser_step_whatever_the_micro_batches():
    student = start_run(steps=10, warmup_ratio=0.2, learning_rate=1.0)
    reports = run([student], [cut_batch(BATCH, [1, 2, 1])] * 10)
    rates = [report.values["student"]["learning_rate"] for report in reports]
    assert rates == pytest.approx([0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])


def stable_run(steps, *, decay_ratio):
    return start_run(
        steps=steps, scheduler="warmup_stable_decay", warmup_ratio=0.2, decay_ratio=decay_ratio, learning_rate=1.0
    )


def rates_of(student, count):
    return [report.values["student"]["learning_rate"] for report in run([student], [[BATCH]] * count)]


def test_warmup_stable_decay_warms_up_stays_and_falls_by_the_root_of_the_time():
    falling = [1 - math.sqrt(progress / 4) for progress in range(5)]
    assert rates_of(stable_run(10, decay_ratio=0.4), 10) == pytest.approx([0.5, 1, 1, 1, 1, *falling])


@pytest.mark.parametrize("steps, warmup, decay", [(3, 0.5, 0.5), (1, 0.0, 0.2), (5, 0.1, 0.9)])
def test_parts_of_a_schedule_that_do_not_divide_evenly_end_at_0(steps, warmup, decay):
    student = start_run(steps=steps, scheduler="warmup_stable_decay", warmup_ratio=warmup, decay_ratio=decay)
    assert rates_of(student, steps)[-1] == 0


def test_a_run_prolonged_in_its_stable_part_stays_stable_for_longer():
    """Stopped at step 4 of 10, it goes on as a run of 15 steps would have."""
    before, longer, whole = (stable_run(steps, decay_ratio=0.2) for steps in (10, 15, 15))
    rates_of(before, 4)
    longer.load(before.tensors(), before.state())
    found = [report.values["student"]["learning_rate"] for report in run([longer], [[BATCH]] * 11, first_step=4)]
    assert found == rates_of(whole, 15)[4:] and found[:8] == [1.0] * 8


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup", "polynomial", "warmup_stable_decay"])
def test_schedules_of_transformers_are_taken(name):
    check_scheduler(name, where="here")


@pytest.mark.parametrize("name", ["lniear", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau"])
def test_schedules_that_are_unknown_or_need_more_are_refused(name):
    with pytest.raises(InputError, match=f"here: scheduler '{name}' cannot be used"):
        check_scheduler(name, where="here")


@pytest.mark.parametrize("kd_scale", ["none", "tau_squared"])
def test_a_temperature_moves_linearly_from_the_first_step_to_the_last(kd_scale):
    """With a learning rate of next to nothing each step is one of a student at that temperature."""
    settings = {"kd_scale": kd_scale, "matches": (), "learning_rate": 1e-30, "kd_weight": 3.0, "max_grad_norm": 0}
    keys = ("kd", "loss", "grad_norm")
    moving = start_run(steps=4, temperature=8.0, temperature_end=2.0, config=STILL, **settings)
    found = [report.values["student"] for report in run([moving], [[BATCH]] * 4)]
    for line, temperature in zip(found, (8.0, 6.0, 4.0, 2.0), strict=True):
        (report,) = run([start_run(temperature=temperature, config=STILL, **settings)], [[BATCH]])
        expected = report.values["student"]
        assert [line[key] for key in keys] == pytest.approx([expected[key] for key in keys], rel=1e-5)
    assert moving.objective.term_weights()["kd"] == 3.0 * (4.0 if kd_scale == "tau_squared" else 1.0)


def test_a_student_that_goes_on_has_the_temperature_of_its_step():
    before, whole, later = (start_run(steps=4, temperature=8.0, temperature_end=2.0) for _ in range(3))
    list(run([before], [[BATCH]] * 2))
    later.load(before.tensors(), before.state())
    (found,) = run([later], [[BATCH]], first_step=2, last_step=3)
    *_, expected = run([whole], [[BATCH]] * 3)
    assert found.values["student"]["kd"] == expected.values["student"]["kd"]


def test_matrices_decay_and_biases_and_layer_norms_do_not():
    student = start_run(weight_decay=0.3)
    decay = {id(p): group["weight_decay"] for group in student.optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(student.parameters)
    for name, parameter in student.objective.named_parameters():
        plain = name.endswith("bias") or "LayerNorm" in name
        assert decay[id(parameter)] == (0.0 if plain else 0.3), name


def test_a_projection_with_options_has_a_group_of_its_own():
    match = {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse",
             "proj": ["linear", 16, 32, {"lr": 0.25}]}  # fmt: skip
    student = start_run(matches=("uniform", match), learning_rate=0.5)
    groups = parameter_groups(student.objective, 0.1)
    assert [group.get("lr") for group in groups] == [None, None, 0.25]
    assert {id(p) for p in groups[2]["params"]} == {id(p) for p in student.objective.projections["3"].parameters()}
    counted = [id(p) for group in groups for p in group["params"]]
    assert len(counted) == len(set(counted)) == len(student.parameters)


@pytest.mark.parametrize("change", [{"step": 2}, {"micro_step": 1}, {"rank": 1}])
def test_dropout_depends_on_step_micro_step_and_rank_and_nothing_else(change):
    def draw(student, **seeds):
        student.seed_dropout(**{"step": 1, "micro_step": 0, "rank": 0, **seeds})
        return torch.rand(8)

    student = start_run("a")
    torch.manual_seed(99)
    first = draw(student)
    assert torch.equal(first, draw(start_run("a")))
    assert not torch.equal(first, draw(student, **change))
    assert not torch.equal(first, draw(start_run("b")))


def count_forwards(teacher: TeacherPass) -> list[int]:
    calls = []
    teacher.model.bert.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("specs, forwards", [
    ([("uniform",), (), ("uniform:mmd",)], 1),
    ([("uniform:attention_mse",), ("uniform:attention_mse", "uniform")], 1),
    ([("uniform",), ("uniform:attention_mse",), ()], 2),
])  # fmt: skip
def test_the_teacher_runs_once_for_all_students_and_twice_if_only_some_need_attention(specs, forwards):
    runs = [start_run(f"s{number}", spec) for number, spec in enumerate(specs)]
    teacher = start_teacher(*runs)
    calls = count_forwards(teacher)
    teacher(BATCH)
    assert len(calls) == forwards


def test_features_of_the_teacher_are_those_it_gives_alone():
    needs = [Needs(frozenset({1})), Needs(frozenset({3}), attention=True)]
    together = TeacherPass(tiny_model(TEACHER, seed=1), needs, FLOAT32)(BATCH)
    alone = TeacherPass(tiny_model(TEACHER, seed=1), needs[:1], FLOAT32)(BATCH)
    assert torch.equal(together[False].hidden[1], alone[False].hidden[1])
    assert torch.equal(together[False].logits, alone[False].logits)


def test_layers_that_no_match_needs_do_not_run_unless_logits_are_used():
    def layers_run(*specs, kd_weight):
        teacher = start_teacher(*(start_run(f"s{n}", (spec,), kd_weight=kd_weight) for n, spec in enumerate(specs)))
        ran = []
        for number, layer in enumerate(teacher.model.bert.encoder.layer):
            layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        teacher(BATCH)
        assert len(teacher.model.bert.encoder.layer) == 4, "the teacher is evaluated as a whole"
        return ran

    second = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "proj": ["linear", 16, 32]}
    last_attention = {"layer_T": 2, "layer_S": 1, "feature": "attention", "loss": "attention_mse"}
    assert layers_run(second, kd_weight=0.0) == [0, 1]
    assert layers_run(last_attention, kd_weight=0.0) == [0, 1, 2]
    assert layers_run(second, last_attention, kd_weight=0.0) == [0, 1, 0, 1, 2]
    assert layers_run(second, kd_weight=1.0) == [0, 1, 2, 3]


def test_features_of_the_layers_that_run_are_those_of_the_whole_teacher():
    model, whole = (tiny_model(TEACHER, seed=1) for _ in range(2))
    needs = Needs(frozenset({0, 2}), logits=False, layers=2)
    found = TeacherPass(model, [needs], FLOAT32)(BATCH)[False]
    expected = TeacherPass(whole, [Needs(frozenset({0, 2}))], FLOAT32)(BATCH)[False]
    assert found.logits is None
    assert torch.equal(found.hidden[0], expected.hidden[0]) and torch.equal(found.hidden[2], expected.hidden[2])


class HostReads(TorchDispatchMode):
    """Counts the operations for which the host waits for a device: scalars read, and shapes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0].removeprefix("_")
        if name in {known.removeprefix("_") for known in self.NAMES}:
            self.found.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("matches, optimizer", [
    (("uniform",), "adamw"), (("uniform:attention_mse", "uniform:mmd"), "adamw"), (("uniform",), "muon"),
])  # fmt: skip
def test_between_log_lines_the_host_never_waits_for_the_device(matches, optimizer):
    """Padded rows, clipping and two micro-batches included. TextBrewer reads every loss of every micro-batch."""
    student = start_run(matches=matches, mlm_weight=1.0, optimizer=optimizer)
    steps = run([student], [cut_batch(BATCH, [2, 2])] * 3, log_every=3)
    with HostReads() as reads:
        next(steps)
        next(steps)
    assert reads.found == []
    with HostReads() as reads:
        torch.ones(2).sum().item()
    assert reads.found == ["aten::_local_scalar_dense"], "the count works"


def test_the_share_of_time_spent_waiting_for_data_is_told_and_evaluation_is_no_training_time(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(accounting, "time", clock)

    def slow_batches():
        for _ in range(2):
            clock.now += 1
            yield [BATCH]

    student = start_run()
    backward = student.backward

    def slow_backward(loss):
        clock.now += 3
        backward(loss)

    monkeypatch.setattr(student, "backward", slow_backward)
    lines = []
    for report in run([student], slow_batches(), last_step=2):
        clock.now += 5  # an evaluation
        lines.append(report.values["student"])
    assert [(line["tokens_per_second"], line["data_wait"]) for line in lines] == [(53 / 4, 1 / 4)] * 2


def test_an_overflow_that_the_gradient_scaler_skips_does_not_end_an_fp16_run():
    """The scaler tries larger scales on purpose and drops the steps that overflow."""
    student = start_run(kd_weight=1e6)
    student.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = [parameter.detach().clone() for parameter in student.parameters]
    steps = run([student], [[BATCH]] * 2, log_every=1)
    report = next(steps)
    assert student.scaler.get_scale() < 2.0**127, "nothing overflowed"
    assert math.isfinite(report.values["student"]["grad_norm"])
    assert all(torch.equal(old, new) for old, new in zip(before, student.parameters, strict=True))

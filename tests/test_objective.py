"""The objective: gradients do not depend on how a step's batch is cut, and weights enter where they should.

That the terms themselves are TextBrewer's is shown in test_parity_textbrewer.py.
"""

import pytest
import torch
from tiny import ALONE, LENGTH, cut_batch, make_batch, tiny_config, tiny_model

from distill.errors import InputError
from distill.modeling.models import build_model
from distill.recipe import Student
from distill.training.encoder import Needs, encode
from distill.training.loop import UNITS, TeacherPass, count_units
from distill.training.losses import MASKED
from distill.training.matches import resolve_matches
from distill.training.objective import Objective, check_kd_loss
from distill.training.precision import autocast_for
from distill.training.student import StudentRun

TEACHER = tiny_config(layers=4, width=32, heads=4, initializer_range=0.2)
STUDENT = tiny_config(layers=2, width=16, heads=4)
MATCH_LOSSES = ["hidden_mse", "cos", "pkd", "gram", "fsp", "mmd", "nst", "mmd_fixed", "attention_mse",
                "attention_mse_sum", "attention_ce", "attention_ce_mean", "attention_ce_probs",
                "relation_4"]  # fmt: skip
# Uneven lengths and uneven masked counts; rows 0 and 1 are full, rows 2 and 4 have nothing masked.
LENGTHS, MASKS = [LENGTH, LENGTH, 5, 12, 9, LENGTH], [1, 5, 0, 3, 0, 2]
CUTS = [[3, 3], [2, 4], [1, 2, 3], [1, 1, 1, 1, 1, 1]]


def make_objective(**settings) -> Objective:
    attention = any("attention" in match["loss"] for match in settings.get("matches", []))
    student = build_model(STUDENT, seed=3, attention="eager" if attention else "sdpa")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return Objective(student, **{"temperature": 2.0, "kd_weight": 0.0, **settings}).train()


def teacher_pass(objective: Objective) -> TeacherPass:
    return TeacherPass(
        tiny_model(TEACHER, seed=1), [objective.teacher_needs], autocast_for(torch.float32, ALONE.device)
    )


def gradients(objective: Objective, batches, *, shares=None):
    """Gradients and summed terms of one step made of these micro-batches."""
    teacher = teacher_pass(objective) if objective.distilled else None
    counts = [count_units(batch) for batch in batches]
    totals = {unit: sum(count[unit] for count in counts) for unit in UNITS}
    objective.zero_grad()
    sums: dict[str, float] = {}
    for batch, count in zip(batches, counts, strict=True):
        share = shares or {unit: count[unit] / totals[unit] for unit in UNITS}
        features = teacher(batch)[objective.teacher_needs.attention] if teacher else None
        loss, terms = objective(batch, features, share)
        loss.backward()
        for name, value in {"loss": loss, **terms}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    named = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    return named, sums


def distance(a, b) -> float:
    """Largest difference over the largest gradient."""
    scale = max(float(value.abs().max()) for value in a.values())
    assert a.keys() == b.keys() and scale > 0
    return max(float((a[name] - b[name]).abs().max()) for name in a) / scale


TERMS = {
    **{loss: {"matches": resolve_matches([f"uniform:{loss}"], TEACHER, STUDENT)} for loss in MATCH_LOSSES},
    "last_relation": {"matches": resolve_matches(["last:relation"], TEACHER, STUDENT)},
    "kd": {"kd_weight": 1.0},
    "kd_mse": {"kd_weight": 1.0, "kd_loss": "mse"},
    "kd_and_mlm": {"kd_weight": 0.5, "mlm_weight": 2.0},
    "mlm": {"distilled": False},
    "all": {"kd_weight": 4.0, "mlm_weight": 0.5,
            "matches": resolve_matches(["uniform", "uniform:pkd", "uniform:mmd", "last:relation_8"], TEACHER,
                                       STUDENT)},
}  # fmt: skip


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("term", TERMS)
def test_gradients_do_not_depend_on_the_cut_into_micro_batches(term, cut):
    objective = make_objective(**TERMS[term])
    whole = make_batch(LENGTHS, MASKS)
    expected, expected_terms = gradients(objective, [whole])
    found, found_terms = gradients(objective, cut_batch(whole, cut))
    assert distance(expected, found) < 2e-5
    assert found_terms == pytest.approx(expected_terms, rel=2e-5)


@pytest.mark.parametrize("term", ["hidden_mse", "mmd", "attention_mse", "relation_4", "kd", "mlm"])
def test_a_mean_of_means_would_be_wrong(term):
    """The control of the test above: with equal shares the same comparison fails by far."""
    objective = make_objective(**TERMS[term])
    whole = make_batch(LENGTHS, MASKS)
    expected, _ = gradients(objective, [whole])
    found, _ = gradients(objective, cut_batch(whole, [1, 5]), shares=dict.fromkeys(UNITS, 0.5))
    assert distance(expected, found) > 0.05


def test_units_are_counted_without_padding():
    assert count_units(make_batch([16, 5], [3, 1])) == {
        "masked": 4, "tokens": 21, "token_pairs": 256 + 25, "sequences": 2
    }  # fmt: skip


@pytest.mark.parametrize("loss", ["hidden_mse", "mmd", "attention_mse", "relation_4"])
def test_the_weight_of_a_match_scales_its_gradient_and_not_its_logged_term(loss):
    matches = TERMS[loss]["matches"]
    batch = [make_batch(LENGTHS, MASKS)]
    once, terms = gradients(make_objective(matches=matches), batch)
    thrice, same_terms = gradients(make_objective(matches=[{**m, "weight": 3} for m in matches]), batch)
    assert distance({name: 3 * value for name, value in once.items()}, thrice) < 1e-5
    assert {k: v for k, v in same_terms.items() if k != "loss"} == {k: v for k, v in terms.items() if k != "loss"}
    assert same_terms["loss"] == pytest.approx(3 * terms["loss"])


def test_the_loss_is_the_weighted_sum_of_the_logged_terms():
    _, terms = gradients(make_objective(**TERMS["all"]), cut_batch(make_batch(LENGTHS, MASKS), [2, 1, 3]))
    matched = sum(value for name, value in terms.items() if name not in ("loss", "kd", "mlm"))
    assert terms["loss"] == pytest.approx(4.0 * terms["kd"] + 0.5 * terms["mlm"] + matched, rel=1e-5)
    assert {"kd", "mlm", "hidden_mse_0_0", "pkd_1_2", "mmd_2-2_4-4"} < terms.keys()


@pytest.mark.parametrize("scale, factor", [("none", 1.0), ("tau_squared", 9.0)])
def test_tau_squared_multiplies_the_gradient_of_the_kd_term(scale, factor):
    batch = [make_batch(LENGTHS, MASKS)]
    plain, terms = gradients(make_objective(kd_weight=0.7, temperature=3.0), batch)
    settings = Student(config="x", temperature=3.0, kd_weight=0.7, kd_scale=scale)
    run = StudentRun(
        "s", build_model(STUDENT, seed=3), settings, matches=[], distilled=True, steps=1, seed_parts=(0,),
        device=ALONE.device, dtype=torch.float32,
    )  # fmt: skip
    scaled, scaled_terms = gradients(run.objective, batch)
    assert distance({name: factor * value for name, value in plain.items()}, scaled) < 1e-5
    assert scaled_terms["kd"] == pytest.approx(terms["kd"])
    assert scaled_terms["loss"] == pytest.approx(0.7 * factor * terms["kd"])


@pytest.mark.parametrize("term", ["kd", "kd_and_mlm", "mlm", "all"])
def test_a_step_without_any_masked_token_is_finite(term):
    """A mean over no rows would be NaN and take the weights with it."""
    objective = make_objective(**TERMS[term])
    batch = make_batch([LENGTH, 7], [0, 0])
    share = {unit: 1.0 for unit in UNITS} | {MASKED: 0.0}
    found, terms = gradients(objective, [batch], shares=share)
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert all(abs(value) < float("inf") for value in terms.values())


def test_logits_are_those_of_the_masked_positions_of_the_whole_model():
    model, batch = tiny_model(TEACHER, seed=1).eval(), make_batch(LENGTHS, MASKS)
    with torch.no_grad():
        logits = encode(model, batch, Needs()).logits
        full = model(batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(logits, full.reshape(-1, full.size(-1))[batch.masked_positions])


def test_only_the_hidden_states_that_are_needed_are_kept():
    model, batch = tiny_model(TEACHER, seed=1).eval(), make_batch(LENGTHS, MASKS)
    with torch.no_grad():
        hidden = encode(model, batch, Needs(frozenset({0, 3}), logits=False)).hidden
        full = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True).hidden_states
    assert [state is not None for state in hidden] == [True, False, False, True, False][: len(hidden)]
    torch.testing.assert_close(hidden[3], full[3])
    torch.testing.assert_close(hidden[0], full[0])


def test_the_teacher_gets_no_gradients_and_no_dropout():
    objective = make_objective(**TERMS["all"])
    teacher = TeacherPass(
        tiny_model(tiny_config(layers=4, width=32, heads=4, dropout=0.5), seed=1).train(),
        [objective.teacher_needs], autocast_for(torch.float32, ALONE.device),
    )  # fmt: skip
    batch = make_batch(LENGTHS, MASKS)
    first, second = teacher(batch)[False], teacher(batch)[False]
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad and not any(p.requires_grad for p in teacher.model.parameters())


def test_attention_without_eager_attention_is_an_error_and_not_an_empty_list():
    model = tiny_model(STUDENT)
    with pytest.raises(RuntimeError, match="eager"):
        encode(model, make_batch(LENGTHS, MASKS), Needs(attention=True))


def test_unknown_kd_loss_names_the_nearest():
    check_kd_loss("mse", where="here")
    with pytest.raises(InputError, match="here: unknown kd_loss 'cee'; did you mean 'ce'"):
        check_kd_loss("cee", where="here")

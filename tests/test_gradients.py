"""Gradient norms of the terms: the right numbers, and no trace of the measuring in the training."""

import pytest
import torch
from test_loop import BATCH, run, start_run, start_teacher

from distill.training.gradients import balance_factors, describe_norms, term_gradient_norms

MATCHES = ("uniform", "uniform:mmd")


def test_norms_are_those_of_each_term_alone():
    student = start_run(matches=MATCHES, kd_weight=3.0, mlm_weight=0.5, dropout=0.0)
    teacher = start_teacher(student)
    norms = term_gradient_norms(student.objective, BATCH, teacher)
    objective = student.objective.eval()
    told = describe_norms(objective, norms)
    names = norms.keys()
    assert names == set(objective.term_weights()) >= {"kd", "mlm", "hidden_mse_1_2", "mmd_2-2_4-4"}
    for name in names:
        objective.zero_grad()
        features = teacher(BATCH)[False]
        _, terms = objective.loss_and_terms(BATCH, features, dict.fromkeys(("masked", "tokens", "token_pairs"), 1.0))
        terms[name].backward()
        squares = [float(p.grad.double().square().sum()) for p in objective.student.parameters() if p.grad is not None]
        norm = sum(squares) ** 0.5
        assert norms[name] == told[f"grad_norm_{name}"] == pytest.approx(norm, rel=1e-4) and norm > 0
        weight = {"kd": 3.0, "mlm": 0.5}.get(name, 1)
        assert told[f"weighted_grad_norm_{name}"] == pytest.approx(weight * norm, rel=1e-4)


def test_a_scale_against_underflow_changes_nothing_but_rounding():
    student = start_run()
    plain, scaled = (
        term_gradient_norms(student.objective, BATCH, start_teacher(student), scale=scale) for scale in (1.0, 1024.0)
    )
    assert scaled == pytest.approx(plain, rel=1e-4)


def test_weights_are_bit_equal_with_and_without_measuring():
    """Dropout is on."""

    def train(measure):
        student = start_run(matches=MATCHES, dropout=0.3)
        teacher = start_teacher(student)
        for _ in run([student], [[BATCH]] * 3):
            if measure:
                state = torch.random.get_rng_state()
                term_gradient_norms(student.objective, BATCH, teacher)
                assert torch.equal(state, torch.random.get_rng_state())
                assert all(parameter.grad is None for parameter in student.parameters)
                assert all(module.training for module in student.objective.modules())
        return student.parameters

    plain, measured = train(False), train(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, measured, strict=True))


def test_factors_give_each_term_the_share_of_its_weight_and_keep_the_sum():
    norms, weights = {"kd": 0.001, "mlm": 2.0, "hidden": 5.0}, {"kd": 1.0, "mlm": 0.5, "hidden": 2.5}
    factors = balance_factors(norms, weights, weights)
    pulls = {name: weights[name] * factors[name] * norm for name, norm in norms.items()}
    assert sum(pulls.values()) == pytest.approx(0.001 + 1.0 + 12.5)
    assert pulls["mlm"] / pulls["kd"] == pytest.approx(0.5) and pulls["hidden"] / pulls["kd"] == pytest.approx(2.5)


@pytest.mark.parametrize("norms", [{"kd": 0.0, "mlm": 3.0}, {"mlm": 3.0}])
def test_a_term_without_gradient_or_weight_gets_no_factor(norms):
    weights = {"kd": 1.0, "mlm": 2.0, "hidden": 0.0}
    assert balance_factors({**norms, "hidden": 4.0}, weights, weights) == {"mlm": 1.0}
    assert balance_factors({}, weights, weights) == {}


def test_the_factor_of_the_temperature_is_no_share():
    student = start_run(kd_weight=2.0, kd_scale="tau_squared", temperature=3.0, mlm_weight=0.5)
    shares, weights = student.term_shares(), student.objective.term_weights()
    assert (shares["kd"], weights["kd"], shares["mlm"]) == (2.0, 18.0, 0.5)
    norms = dict.fromkeys(weights, 1.0)
    factors = balance_factors(norms, weights, shares)
    assert weights["kd"] * factors["kd"] == pytest.approx(4 * weights["mlm"] * factors["mlm"])


def test_balanced_weights_are_those_of_the_loss_and_of_the_log():
    student = start_run(matches=MATCHES, kd_weight=3.0, mlm_weight=0.5, dropout=0.0)
    teacher, objective = start_teacher(student), student.objective
    norms, weights = term_gradient_norms(objective, BATCH, teacher), objective.term_weights()
    objective.balance(balance_factors(norms, weights, weights))
    share = dict.fromkeys(("masked", "tokens", "token_pairs", "sequences"), 1.0)
    loss, terms = objective.eval()(BATCH, teacher(BATCH)[False], share)
    factors = objective.factors()
    assert factors.keys() == weights.keys() and max(factors.values()) > 2 > min(factors.values()) > 0
    expected = sum(weights[name] * factors[name] * float(term) for name, term in terms.items())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    told = describe_norms(objective, norms)
    pulls = {name: told[f"weighted_grad_norm_{name}"] / weight for name, weight in weights.items()}
    assert list(pulls.values()) == pytest.approx([pulls["kd"]] * len(pulls), rel=1e-4)
    assert {f"balance_{name}" for name in weights} < told.keys()

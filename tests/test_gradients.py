"""Gradient norms of the terms: the right numbers, and no trace of the measuring in the training."""

import pytest
import torch
from test_loop import BATCH, run, start_run, start_teacher

from distill.training.gradients import term_gradient_norms

MATCHES = ("uniform", "uniform:mmd")


def test_norms_are_those_of_each_term_alone():
    student = start_run(matches=MATCHES, kd_weight=3.0, mlm_weight=0.5, dropout=0.0)
    teacher = start_teacher(student)
    norms = term_gradient_norms(student.objective, BATCH, teacher)
    objective = student.objective.eval()
    names = {name.removeprefix("grad_norm_") for name in norms if name.startswith("grad_norm_")}
    assert names == set(objective.term_weights()) >= {"kd", "mlm", "hidden_mse_1_2", "mmd_2-2_4-4"}
    for name in names:
        objective.zero_grad()
        features = teacher(BATCH)[False]
        _, terms = objective.loss_and_terms(BATCH, features, dict.fromkeys(("masked", "tokens", "token_pairs"), 1.0))
        terms[name].backward()
        squares = [float(p.grad.double().square().sum()) for p in objective.student.parameters() if p.grad is not None]
        norm = sum(squares) ** 0.5
        assert norms[f"grad_norm_{name}"] == pytest.approx(norm, rel=1e-4) and norm > 0
        weight = {"kd": 3.0, "mlm": 0.5}.get(name, 1)
        assert norms[f"weighted_grad_norm_{name}"] == pytest.approx(weight * norm, rel=1e-4)


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

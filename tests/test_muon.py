"""Muon: the update against torch's and against an SVD, which matrices it gets, guards, a change of the optimiser."""

import pytest
import torch
from test_loop import BATCH, copies, run, start_run
from torch import nn

from distill.training import muon
from distill.training.muon import ADAMW_RMS, MuonAdamW, muon_dtype, orthogonalise

SHAPES = [(16, 24), (24, 16), (20, 20)]


def random_matrix(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_five_updates_are_torchs(shape):
    """torch.optim.Muon is the reference; it knows no other dtype."""
    ours, theirs = (nn.Parameter(random_matrix(*shape)) for _ in range(2))
    ours_muon = MuonAdamW([{"params": [ours], "muon": True}], dtype=torch.bfloat16, lr=0.1, weight_decay=0.3)
    torchs = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        ours.grad = theirs.grad = random_matrix(*shape, seed=1 + step)
        ours_muon.step()
        torchs.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("at_once", [1 << 24, 1000, 1])
def test_matrices_of_any_shapes_are_updated_together_as_each_by_itself(at_once, monkeypatch):
    shapes = [(16, 24), (24, 16), (16, 24), (20, 20), (16, 24), (16, 24)]
    together, alone = (
        [nn.Parameter(random_matrix(*shape, seed=i)) for i, shape in enumerate(shapes)] for _ in range(2)
    )
    monkeypatch.setattr(muon, "MOST_AT_ONCE", at_once)
    options = {"dtype": torch.float32, "lr": 0.1, "weight_decay": 0.3}
    optimizers = [MuonAdamW([{"params": together, "muon": True}], **options)]
    optimizers += [MuonAdamW([{"params": [matrix], "muon": True}], **options) for matrix in alone]
    for step in range(3):
        for number, matrices in enumerate(zip(together, alone, strict=True)):
            for matrix in matrices if (step, number) != (1, 2) else ():  # which has no gradient then
                matrix.grad = random_matrix(*matrix.shape, seed=10 * step + number)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_an_update_has_the_directions_of_the_svd_and_singular_values_near_1(shape, scale):
    matrix = random_matrix(*shape) * scale
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonalise(matrix[None], torch.float32)[0] @ v.T
    assert values.max() / values.min() > 3, "something was orthogonalised"
    assert found.diagonal().min() > 0.6 and found.diagonal().max() < 1.3
    torch.testing.assert_close(found, found.diagonal().diag(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (32, 128), (128, 32)])
def test_an_update_is_as_large_as_adamws_usually_is(shape):
    matrix = nn.Parameter(torch.zeros(shape))
    optimizer = MuonAdamW([{"params": [matrix], "muon": True}], dtype=torch.float32, lr=0.5)
    matrix.grad = random_matrix(*shape)
    optimizer.step()
    assert float(matrix.detach().square().mean().sqrt()) == pytest.approx(0.5 * ADAMW_RMS, rel=0.2)


def test_float32_training_and_processors_without_bf16_units_orthogonalise_in_float32(monkeypatch):
    cpu = torch.device("cpu")
    for has_units in (False, True):
        monkeypatch.setattr("distill.training.muon.has_bf16_units", lambda _, has=has_units: has)
        assert muon_dtype(cpu, torch.float32) == torch.float32
        assert muon_dtype(cpu, torch.bfloat16) == (torch.bfloat16 if has_units else torch.float32)


def test_the_encoders_matrices_get_muon_and_all_else_adamw():
    student = start_run(optimizer="muon")
    list(run([student], [[BATCH]]))
    for name, parameter in student.objective.named_parameters():
        is_matrix = name.startswith("student.bert.encoder.") and parameter.dim() == 2
        state = student.optimizer.state[parameter].keys()
        assert state == ({"momentum_buffer"} if is_matrix else {"step", "exp_avg", "exp_avg_sq"}), name


def test_a_projection_with_options_keeps_them_and_adamw():
    match = {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse",
             "proj": ["linear", 16, 32, {"lr": 0.25, "muon": True}]}  # fmt: skip
    student = start_run(matches=(match,), optimizer="muon", steps=10, warmup_ratio=0.5)
    list(run([student], [[BATCH]]))
    own = student.optimizer.param_groups[2]
    assert own["initial_lr"] == 0.25 and own["lr"] == 0.25 * 1 / 5
    assert student.optimizer.state[own["params"][0]].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_every_group_follows_the_schedule():
    student = start_run(optimizer="muon", steps=4, warmup_ratio=0.5, learning_rate=1.0)
    for rate in (0.5, 1.0, 0.5, 0.0):
        list(run([student], [[BATCH]]))
        assert [group["lr"] for group in student.optimizer.param_groups] == [rate] * 3


def test_without_muon_nothing_but_adamw_is_used():
    assert type(start_run().optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("fp16", [False, True])
def test_an_update_by_gradients_that_are_no_numbers_is_left_out_as_a_whole(fp16):
    """A gradient of an embedding is infinite: Muon's matrices, whose own gradients are good, stay as they were, too."""
    student = start_run(optimizer="muon")
    list(run([student], [[BATCH]]))
    if fp16:
        student.scaler = torch.amp.GradScaler("cpu")
    before = copies(student)
    for bad in (True, False):
        loss = sum(parameter.square().sum() for parameter in student.parameters)
        student.backward(loss)
        if bad:
            student.objective.student.bert.embeddings.word_embeddings.weight.grad[0, 0] = float("inf")
        student.step(2)
        changed = {name for name, value in copies(student).items() if not torch.equal(value, before[name])}
        matrices = {name for name in before if name.endswith("attention.self.query.weight.momentum_buffer")}
        assert matrices and (not changed if bad else matrices < changed)


@pytest.mark.parametrize("first, then", [("adamw", "muon"), ("muon", "adamw")])
def test_a_student_may_change_its_optimiser_and_goes_on_with_new_moments(first, then):
    """What --allow-changes lets through."""
    old = start_run(optimizer=first, steps=8)
    list(run([old], [[BATCH]] * 2))
    new = start_run(optimizer=then, steps=8)
    new.load(old.tensors(), old.state())
    for name, parameter in new.objective.named_parameters():
        assert torch.equal(parameter, dict(old.objective.named_parameters())[name])
    assert new.scheduler.get_last_lr()[0] == old.scheduler.get_last_lr()[0]
    list(run([new], [[BATCH]], first_step=2))
    assert new.is_finite() and len(new.optimizer.param_groups) == (3 if then == "muon" else 2)

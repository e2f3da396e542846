"""Sparse teacher logits: sampling is unbiased, top-k is not, and TextBrewer's objective takes them for logits."""

import pytest
import torch
from textbrewer.losses import kd_ce_loss
from tiny import LENGTH, make_batch, tiny_config, tiny_model

from distill.training.encoder import Features, Needs, encode
from distill.training.losses import MASKED
from distill.training.objective import Objective
from distill.training.sparse_logits import SparseLogits, ce_sparse, draw_tokens, keep_likeliest

TOKENS, VOCABULARY, TEMPERATURE = 6, 200, 2.0


@pytest.fixture
def logits():
    """Of a teacher that is sure of little, and of a student that knows nothing of it."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(TOKENS, VOCABULARY, generator=generator) for _ in range(2))
    return 3 * teacher, student


def sample(teacher, draws, *, seed):
    """Sparse logits of `draws` draws a token."""
    uniform = torch.rand(len(teacher), draws, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ids = draw_tokens(teacher, uniform, TEMPERATURE)
    return SparseLogits(ids, torch.full(ids.shape, 1 / draws))


def all_tokens(teacher):
    """Sparse logits that are not sparse: every token with its probability."""
    probabilities = torch.softmax(teacher / TEMPERATURE, dim=-1)
    return SparseLogits(torch.arange(VOCABULARY).expand_as(probabilities), probabilities)


def gradient(student, sparse):
    student = student.clone().requires_grad_()
    ce_sparse(student, sparse, TEMPERATURE).backward()
    return student.grad


def test_with_every_token_it_is_textbrewers_cross_entropy(logits):
    teacher, student = logits
    expected = student.clone().requires_grad_()
    loss = kd_ce_loss(expected, teacher, TEMPERATURE)
    loss.backward()
    assert ce_sparse(student, all_tokens(teacher), TEMPERATURE).item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(gradient(student, all_tokens(teacher)), expected.grad, rtol=1e-5, atol=1e-8)


def test_the_mean_over_many_draws_is_the_cross_entropy_to_all_of_the_teacher(logits):
    """Within 4 standard errors, which are small enough for a bias of 1 % to be seen; that of top-k is far larger."""
    teacher, student = logits
    full = kd_ce_loss(student, teacher, TEMPERATURE).item()
    losses = torch.tensor([ce_sparse(student, sample(teacher, 16, seed=i), TEMPERATURE).item() for i in range(500)])
    standard_error = losses.std().item() / len(losses) ** 0.5
    assert standard_error < 0.0025 * full
    assert losses.mean().item() == pytest.approx(full, abs=4 * standard_error)
    biased = ce_sparse(student, SparseLogits(*keep_likeliest(teacher, 16, TEMPERATURE)), TEMPERATURE).item()
    assert abs(biased - full) > 10 * standard_error


def test_the_mean_weight_of_each_token_is_its_probability(logits):
    teacher, _ = logits
    probabilities = torch.softmax(teacher.double() / TEMPERATURE, dim=-1)
    repeats, draws = 400, 16
    counts = torch.zeros_like(probabilities)
    for seed in range(repeats):
        sparse = sample(teacher, draws, seed=seed)
        counts.scatter_add_(1, sparse.ids, sparse.weights.double())
    # Independent draws have this standard error, and draws from equal parts of the probability no larger one.
    standard_error = (probabilities * (1 - probabilities) / (draws * repeats)).sqrt()
    assert ((counts / repeats - probabilities).abs() < 5 * standard_error + 1e-4).all()


def test_draws_from_equal_parts_vary_less_than_independent_ones(logits):
    teacher, student = logits
    probabilities = torch.softmax(teacher / TEMPERATURE, dim=-1)
    generator = torch.Generator().manual_seed(0)
    independent, ours = [], []
    for seed in range(200):
        ids = torch.multinomial(probabilities, 64, replacement=True, generator=generator)
        independent.append(ce_sparse(student, SparseLogits(ids, torch.full(ids.shape, 1 / 64)), TEMPERATURE))
        ours.append(ce_sparse(student, sample(teacher, 64, seed=seed), TEMPERATURE))
    assert torch.stack(ours).std() < 0.9 * torch.stack(independent).std()


def test_the_gradient_approaches_that_of_all_logits_as_draws_grow(logits):
    teacher, student = logits
    full = gradient(student, all_tokens(teacher))
    errors = [((gradient(student, sample(teacher, n, seed=1)) - full).norm() / full.norm()).item()
              for n in (16, 256, 4096)]  # fmt: skip
    assert errors[0] > 4 * errors[1] > 16 * errors[2] and errors[2] < 0.02


def test_draws_are_ascending_and_a_token_without_probability_is_never_drawn():
    teacher = torch.tensor([[0.0, -1e9, 0.0, -1e9]])
    uniform = torch.tensor([[0.0, 0.999999, 0.0, 0.999999]], dtype=torch.float64)
    assert draw_tokens(teacher, uniform, 1.0).tolist() == [[0, 0, 2, 2]]


def test_top_k_keeps_the_likeliest_and_rescales_them():
    teacher = torch.tensor([[0.1, 0.6, 0.3]]).log()
    ids, weights = keep_likeliest(teacher, 2, 1.0)
    assert ids.tolist() == [[1, 2]]
    torch.testing.assert_close(weights, torch.tensor([[2 / 3, 1 / 3]]))


def test_no_masked_token_gives_no_draw():
    assert draw_tokens(torch.zeros(0, 5), torch.zeros(0, 3, dtype=torch.float64), 1.0).shape == (0, 3)


@pytest.mark.parametrize("masked", [[3, 1], [0, 0]])
def test_the_objective_takes_sparse_logits_through_textbrewer(masked):
    """Loss, term and gradients are those of `ce`; a batch without masked tokens has no loss, as there."""
    batch = make_batch([LENGTH, 9], masked)
    teacher = tiny_model(tiny_config(layers=3, width=32, heads=4, initializer_range=0.3), seed=1)
    with torch.no_grad():
        dense = encode(teacher, batch, Needs())
    probabilities = torch.softmax(dense.logits / 2.0, dim=-1)
    ids = torch.arange(probabilities.size(1)).expand_as(probabilities)
    sparse = Features((), (), None, sparse=SparseLogits(ids, probabilities))
    results = []
    for kd_loss, features in (("ce", dense), ("ce_sparse", sparse)):
        objective = Objective(tiny_model(tiny_config(), seed=2), temperature=2.0, kd_loss=kd_loss)
        loss, terms = objective(batch, features, {MASKED: 1.0})
        loss.backward()
        gradients = [p.grad for p in objective.parameters() if p.grad is not None]
        results.append((loss, terms["kd"], torch.cat([value.flatten() for value in gradients])))
    for dense_value, sparse_value in zip(*results, strict=True):
        torch.testing.assert_close(dense_value, sparse_value, rtol=1e-5, atol=1e-7)
    assert (results[0][2].abs().max() > 0) == (sum(masked) > 0)

"""The repaired losses are right, and TextBrewer's own entries are what TextBrewer put there."""

import ast
import subprocess
import warnings

import pytest
import textbrewer.losses
import torch
import torch.nn.functional as F
from textbrewer.presets import KD_LOSS_MAP, MATCH_LOSS_MAP

from distill.training.losses import (
    SEQUENCES,
    TOKENS,
    any_head_count,
    attention_ce_probs,
    loss_unit,
    mmd_fixed,
    needs_same_width,
    relation_heads,
)
from distill.training.sparse_logits import SPARSE_KD_LOSS

BATCH, LENGTH, HEADS = 3, 6, 2


def random_states(width, *, seed=0, length=LENGTH):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, length, width, generator=generator) for _ in range(2)]


def random_attention(*, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, HEADS, LENGTH, LENGTH, generator=generator).softmax(dim=-1)


def ones():
    return torch.ones(BATCH, LENGTH, dtype=torch.long)


def test_mmd_fixed_without_mask_is_textbrewers_mmd():
    student, teacher = random_states(4), random_states(8, seed=1)
    torch.testing.assert_close(mmd_fixed(student, teacher), textbrewer.losses.mmd_loss(student, teacher))


def test_mmd_fixed_with_a_mask_of_ones_is_mmd_fixed_without():
    student, teacher = random_states(4), random_states(8, seed=1)
    torch.testing.assert_close(mmd_fixed(student, teacher, ones()), mmd_fixed(student, teacher))


def test_textbrewers_mmd_with_a_mask_of_ones_is_wrong():
    """Why there is an mmd_fixed; when this fails, TextBrewer was repaired and ours can go."""
    student, teacher = random_states(16), random_states(32, seed=1)
    with_mask = textbrewer.losses.mmd_loss(student, teacher, ones())
    assert not torch.isclose(with_mask, textbrewer.losses.mmd_loss(student, teacher), rtol=0.1)


def test_mmd_fixed_of_padded_rows_is_the_loss_of_the_rows_cut_short():
    student, teacher = random_states(4), random_states(8, seed=1)
    short = [[state[:, :4] for state in states] for states in (student, teacher)]
    mask = (torch.arange(LENGTH) < 4).long().expand(BATCH, LENGTH)
    torch.testing.assert_close(mmd_fixed(student, teacher, mask), mmd_fixed(*short))


def test_mmd_fixed_by_hand():
    """One row of two tokens, width 2: the student's products are [[1, 0], [0, 1]] / 2, the teacher's all 0."""
    student, teacher = [torch.eye(2)[None]] * 2, [torch.zeros(1, 2, 2)] * 2
    assert float(mmd_fixed(student, teacher)) == pytest.approx(2 * 0.5**2 / 4)
    assert float(mmd_fixed(student, teacher, torch.tensor([[1, 0]]))) == pytest.approx(0.25)


@pytest.mark.parametrize("loss, arguments", [
    (mmd_fixed, (random_states(4), random_states(8))), (attention_ce_probs, (random_attention(), random_attention())),
])  # fmt: skip
def test_a_mask_of_zeros_gives_zero_and_not_nan(loss, arguments):
    assert float(loss(*arguments, torch.zeros(BATCH, LENGTH))) == 0.0


@pytest.mark.parametrize("mask", [None, torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])])
def test_attention_ce_probs_is_least_where_student_and_teacher_agree(mask):
    teacher = random_attention()
    logits = teacher.log().clone().requires_grad_()
    at_teacher = attention_ce_probs(logits.softmax(-1), teacher, mask)
    at_teacher.backward()
    assert float(logits.grad.abs().max()) < 1e-6
    others = [attention_ce_probs(random_attention(seed=seed), teacher, mask) for seed in range(1, 6)]
    assert float(at_teacher.detach()) < min(map(float, others)) - 0.01


def test_attention_ce_probs_where_they_agree_is_the_teachers_entropy():
    teacher = random_attention()
    entropy = -(teacher * teacher.log()).sum(-1)
    torch.testing.assert_close(attention_ce_probs(teacher, teacher), entropy.mean())
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])
    valid = entropy.transpose(1, 2)[mask.bool()]
    torch.testing.assert_close(attention_ce_probs(teacher, teacher, mask), valid.mean())


def test_textbrewers_attention_ce_hardly_sees_probabilities():
    """Why there is an attention_ce_probs: the softmax of a softmax is nearly ln(length) whatever the student does."""
    teacher, student = random_attention(), random_attention(seed=1)
    same = textbrewer.losses.att_ce_loss(teacher, teacher)
    other = textbrewer.losses.att_ce_loss(student, teacher)
    assert float(other - same) < 0.1 * float(
        attention_ce_probs(student, teacher) - attention_ce_probs(teacher, teacher)
    )


def test_attention_ce_probs_of_a_zero_probability_is_finite():
    teacher = F.one_hot(torch.zeros(1, 1, 2, dtype=torch.long), 2).float()
    student = F.one_hot(torch.ones(1, 1, 2, dtype=torch.long), 2).float().requires_grad_()
    loss = attention_ce_probs(student, teacher)
    loss.backward()
    assert bool(loss.isfinite()) and bool(student.grad.isfinite().all())


def test_textbrewers_own_entries_are_untouched(python):
    """Compared by name with the registry of a process that never imported distill."""
    code = "import sys; from textbrewer import presets as p; print({m: {k: f.__module__ + '.' + f.__name__ " \
           "for k, f in getattr(p, m).items()} for m in ('MATCH_LOSS_MAP', 'KD_LOSS_MAP')}); " \
           "assert 'distill' not in sys.modules"  # fmt: skip
    done = subprocess.run([python, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    plain = ast.literal_eval(done.stdout)
    matches, kd = ({name: f"{f.__module__}.{getattr(f, '__name__', '')}" for name, f in registry.items()}
                   for registry in (MATCH_LOSS_MAP, KD_LOSS_MAP))  # fmt: skip
    ours = {name for name in matches.keys() - plain["MATCH_LOSS_MAP"].keys() if relation_heads(name) is None}
    assert ours == {"mmd_fixed", "attention_ce_probs"}
    assert {name: matches[name] for name in plain["MATCH_LOSS_MAP"]} == plain["MATCH_LOSS_MAP"]
    assert {name: kd[name] for name in plain["KD_LOSS_MAP"]} == plain["KD_LOSS_MAP"]
    assert kd.keys() - plain["KD_LOSS_MAP"].keys() <= {SPARSE_KD_LOSS}, "registered where the teacher cache is imported"
    assert MATCH_LOSS_MAP["mmd"] is textbrewer.losses.mmd_loss


@pytest.mark.parametrize("loss", sorted(name for name in MATCH_LOSS_MAP if relation_heads(name) is None))
def test_every_loss_of_the_registry_has_a_unit_of_its_own(loss):
    from distill.training import losses

    assert loss in losses._UNITS


def test_a_loss_we_do_not_know_is_a_mean_over_tokens_unless_it_says_otherwise(monkeypatch):
    monkeypatch.setitem(MATCH_LOSS_MAP, "of_a_user", lambda S, T, mask=None: S.mean())
    assert loss_unit("of_a_user") == TOKENS and not needs_same_width("of_a_user")
    MATCH_LOSS_MAP["of_a_user"].unit = SEQUENCES
    MATCH_LOSS_MAP["of_a_user"].same_width = True
    assert loss_unit("of_a_user") == SEQUENCES and needs_same_width("of_a_user")


@pytest.mark.parametrize("loss, free", [
    ("attention_mse_sum", True), ("attention_ce_mean", True), ("attention_mse", False), ("attention_ce_probs", False),
])  # fmt: skip
def test_which_attention_losses_allow_other_head_counts(loss, free):
    assert any_head_count(loss) is free
    student, teacher = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4)
    if free:
        assert bool(MATCH_LOSS_MAP[loss](student, teacher, mask=torch.ones(1, 4)).isfinite())
    else:
        with pytest.raises(RuntimeError), warnings.catch_warnings(action="ignore"):
            MATCH_LOSS_MAP[loss](student, teacher, mask=torch.ones(1, 4))

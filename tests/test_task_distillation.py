"""Distilling on a task: the loss is TextBrewer's, every kind learns from its teacher, bad teachers are refused."""

import json
import math

import pytest
import torch
from fixtures_cli import complaint, run
from test_finetune import HAN, KINDS, make_task, train, write_encoder

from distill.downstream.augmentation import augment_texts
from distill.downstream.distillation import TaskObjective, check_teacher, find_matches, task_logits
from distill.downstream.finetune import finetune
from distill.downstream.run import Distillation, run_folder, with_defaults
from distill.downstream.sharing import deal
from distill.downstream.task_data import load_task_data
from distill.downstream.task_model import load_for_finetuning
from distill.errors import InputError


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("models") / "small", seed=3, width=16)


@pytest.fixture(scope="module")
def teacher(encoder, tmp_path_factory):
    """A classifier, and the folder of its task."""
    folder = tmp_path_factory.mktemp("teacher")
    task = make_task(folder)
    train(encoder, folder, task)
    return folder / "run-0" / "model", folder, task


def batch(num_rows=4, labels=(0, 1, 1, 0)):
    torch.manual_seed(0)
    input_ids = torch.randint(5, 5 + len(HAN), (num_rows, 12))
    mask = torch.ones_like(input_ids)
    mask[1, 8:] = 0
    return deal({"input_ids": input_ids * mask, "attention_mask": mask, "labels": torch.tensor(labels)}, 0, 1)


def objective(small, teacher, **settings):
    folder, _, task = teacher
    distillation = Distillation(folder, **settings)
    student, _ = load_for_finetuning(small, task, ("bad", "good"), max_length=32, seed=0)
    return TaskObjective(student, task, distillation, find_matches(distillation, small)).train(), student


def test_the_loss_is_labels_and_soft_scores_of_the_teacher(small, teacher):
    from distill.downstream.task_model import load_finetuned

    made, student = objective(small, teacher, temperature=3.0, kd_weight=0.7, hard_weight=0.2)
    inputs = batch()
    loss = made(**inputs).loss
    texts = {key: value for key, value in inputs.items() if key not in ("labels", "shares")}
    ours, theirs = student(**texts).logits, load_finetuned(teacher[0])[0].eval()(**texts).logits
    soft = -(torch.softmax(theirs / 3, -1) * torch.log_softmax(ours / 3, -1)).sum(-1).mean()
    hard = torch.nn.functional.cross_entropy(ours, inputs["labels"])
    assert loss.item() == pytest.approx((0.7 * 9 * soft + 0.2 * hard).item(), rel=1e-5)


def test_matches_add_their_losses_through_projections_that_are_trained(small, teacher):
    made, student = objective(small, teacher, kd_weight=0.0, hard_weight=0.0, matches=("last:hidden_mse",))
    inputs = batch()
    texts = {key: value for key, value in inputs.items() if key not in ("labels", "shares")}
    loss = made(**inputs).loss
    ours = made.projections[0](student(**texts, output_hidden_states=True).hidden_states[-1])
    theirs = made._teacher[0](**texts, output_hidden_states=True).hidden_states[-1]
    real = inputs["attention_mask"].bool()
    assert loss.item() == pytest.approx((ours - theirs)[real].square().mean().item(), rel=1e-4)
    loss.backward()
    assert made.projections[0].weight.grad.abs().sum() > 0
    assert not any(parameter.grad is not None for parameter in made._teacher[0].parameters())


def test_rows_without_label_count_for_the_teacher_alone(small, teacher):
    made, _ = objective(small, teacher, hard_weight=1.0)
    without, _ = objective(small, teacher, hard_weight=0.0)
    inputs = batch(labels=[-100] * 4)
    assert made(**inputs).loss.item() == pytest.approx(without(**inputs).loss.item(), rel=1e-6)
    assert math.isfinite(made(**inputs).loss.item())


def test_padding_has_no_part_in_the_scores_of_a_span():
    class Outputs:
        start_logits, end_logits = torch.zeros(1, 4), torch.ones(1, 4)

    for scores in task_logits("span", Outputs(), {"attention_mask": torch.tensor([[1, 1, 0, 0]])}):
        assert torch.softmax(scores, -1).tolist() == [[0.5, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize(
    "kind", [kind if kind == "classification" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_every_kind_of_task_learns_from_the_teachers_scores_alone(encoder, small, tmp_path, kind):
    """Without labels: hard_weight 0."""
    task = make_task(tmp_path, kind)
    data = load_task_data(task, str(tmp_path), ["train", "dev"])
    values = with_defaults(task, 0)
    finetune(encoder, data, values, tmp_path / "teacher", show=print)
    distillation = Distillation(tmp_path / "teacher" / "model", temperature=2.0, hard_weight=0.0)
    results = finetune(small, data, with_defaults(task, 0, epochs=10), tmp_path / "student", show=print,
                       distillation=distillation)  # fmt: skip
    assert all(value > 75 for value in results["dev"]["metrics"].values()), results["epochs"]
    assert results["distillation"]["hard_weight"] == 0.0


def test_augmented_texts_differ_in_a_third_of_their_tokens_and_have_no_label(encoder, tmp_path):
    task = make_task(tmp_path, train=64)
    examples = load_task_data(task, str(tmp_path), ["train"]).splits["train"].examples
    made = augment_texts(examples, encoder, copies=2, seed=0, max_length=32)
    assert len(made) == 128 and len({example.id for example in made}) == 128
    assert made == augment_texts(examples, encoder, copies=2, seed=0, max_length=32)
    assert made != augment_texts(examples, encoder, copies=2, seed=1, max_length=32)
    for before, after in zip([*examples, *examples], made, strict=True):
        assert after.label is None and len(after.texts[0]) == len(before.texts[0])
        assert sum(a != b for a, b in zip(before.texts[0], after.texts[0], strict=True)) <= round(0.3 * 8)
        assert set(after.texts[0]) <= set(HAN)
    assert sum(a.texts != b.texts for a, b in zip([*examples, *examples], made, strict=True)) > 100


def test_a_run_with_a_teacher_is_another_run(encoder, small, teacher, tmp_path, capsys):
    folder, data, task = teacher
    plain = run_folder(tmp_path, "small", small, task, str(data), with_defaults(task))
    taught = [run_folder(tmp_path, "small", small, task, str(data), with_defaults(task), Distillation(folder, t))
              for t in (2.0, 4.0)]  # fmt: skip
    assert len({plain, *taught}) == 3
    arguments = ["finetune", str(small), "--task", str(data / "task.json"), "--data", str(data),
                 "--output", str(tmp_path), "--epochs", "1", "--teacher", str(folder), "--match", "uniform",
                 "--augment", "1"]  # fmt: skip
    assert run(*arguments) == 0
    assert "dev: accuracy " in capsys.readouterr().out
    (found,) = (tmp_path / "small" / "tiny-classification").glob("*/metrics.json")
    metrics = json.loads(found.read_text("utf-8"))
    assert metrics["num_train_features"] == 2 * metrics["num_train_examples"]


def test_a_teacher_that_cannot_teach_is_refused(encoder, small, teacher, tmp_path, capsys):
    folder, data, task = teacher
    tags = make_task(tmp_path, "tags", train=8)
    with pytest.raises(InputError, match="was fine-tuned on tiny-classification, not on tiny-tags"):
        check_teacher(Distillation(folder), small, tags)
    with pytest.raises(
        InputError, match=r"its labels \(bad, good\) are not the task's in the same order \(good, bad\)"
    ):
        check_teacher(Distillation(folder), small, task, ("good", "bad"))
    with pytest.raises(InputError, match="unknown match 'unifrom'; did you mean 'uniform'"):
        check_teacher(Distillation(folder, matches=("unifrom",)), small, task)
    arguments = ["finetune", str(small), "--task", str(data / "task.json"), "--data", str(data), "--output", "x"]
    assert "no task.json there" in complaint(capsys, *arguments, "--teacher", str(encoder))
    for option, value in (("--temperature", "2"), ("--kd-weight", "0"), ("--hard-weight", "0"), ("--augment", "1")):
        assert f"{option} needs a --teacher" in complaint(capsys, *arguments, option, value)
    assert "--match needs a --teacher" in complaint(capsys, *arguments, "--match", "uniform")

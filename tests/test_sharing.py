"""A batch dealt to several processes has the gradient that it has in one, for every kind of task and loss."""

import pytest
import torch
from test_finetune import KINDS, make_task, write_encoder

from distill.downstream import trainer
from distill.downstream.distillation import TaskObjective, find_matches, needs_eager
from distill.downstream.encoding import encode_split
from distill.downstream.finetune import finetune
from distill.downstream.run import Distillation, with_defaults
from distill.downstream.sharing import LabelObjective, deal
from distill.downstream.task_data import load_task_data
from distill.downstream.task_model import collator, load_for_finetuning
from distill.downstream.trainer import mean_loss

MATCHES = ("last:hidden_mse", "last:attention_mse", "last:relation", "uniform:cos", "uniform:pkd", "uniform:mmd")


@pytest.fixture(scope="module", params=KINDS)
def world(request, tmp_path_factory):
    """A task of a kind, a model, a teacher of the task, and rows of it as the model reads them."""
    folder = tmp_path_factory.mktemp(request.param)
    task = make_task(folder, request.param, train=16)
    encoder = write_encoder(folder / "encoder", width=16)
    data = load_task_data(task, str(folder), ["train", "dev"])
    larger = write_encoder(folder / "larger", seed=1)
    finetune(larger, data, with_defaults(task, 0, epochs=1), folder / "teacher", show=print)
    _, tokenizer = load_for_finetuning(encoder, task, data.labels, max_length=32, seed=0)
    features = encode_split(task, data.splits["train"].examples, data.labels, tokenizer, 32).features
    shorter = features[1]
    for name, values in shorter.items():  # lengths differ, so that tokens and pairs of tokens do, too
        if task.kind in ("classification", "regression", "tags") and isinstance(values, list):
            shorter[name] = values[:4]
    if task.kind == "tags":
        features[0]["labels"] = [-100] * len(features[0]["labels"])
    return task, data, encoder, folder / "teacher" / "model", features, collator(task, tokenizer)


def gradients(world, num_rows, num_processes, distillation=None):
    """Name -> the mean over processes of the gradient of one batch, which is what DistributedDataParallel makes."""
    task, data, encoder, teacher, features, collate = world
    matches = find_matches(distillation, encoder) if distillation else []
    eager = needs_eager(matches)
    student, _ = load_for_finetuning(encoder, task, data.labels, max_length=32, seed=0, eager=eager)
    made = TaskObjective(student, task, distillation, matches) if distillation else LabelObjective(student)
    made.train()
    loss = 0.0
    for rank in range(num_processes):
        share = made(**deal(collate(features[:num_rows]), rank, num_processes)).loss / num_processes
        share.backward()
        loss += share.item()
    return loss, {name: p.grad for name, p in made.named_parameters() if p.grad is not None}


def assert_same(world, distillation=None):
    # 7 rows: some get more than others. 2 rows: some get none. The first row of a tags task has no label.
    for num_rows, num_processes in ((7, 3), (2, 4)):
        loss, expected = gradients(world, num_rows, 1, distillation)
        dealt_loss, found = gradients(world, num_rows, num_processes, distillation)
        assert dealt_loss == pytest.approx(loss, rel=1e-5) and loss > 0
        assert max(gradient.abs().max() for gradient in expected.values()) > 1e-4
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda m, name=name: name + m)


def test_the_labels_gradient_does_not_depend_on_the_processes(world):
    assert_same(world)


def test_a_distillations_gradient_does_not_depend_on_the_processes(world):
    """Rows that `--augment` adds have no label, and a process may have no others."""
    task, _, _, teacher, features, _ = world
    if task.kind == "classification":
        features = [{**feature, "labels": -100} if n in (0, 1, 4) else feature for n, feature in enumerate(features)]
    distillation = Distillation(teacher, temperature=2.0, kd_weight=0.7, hard_weight=0.3, matches=MATCHES)
    assert_same((*world[:4], features, world[5]), distillation)


def test_the_loss_on_dev_is_the_mean_over_all_rows(world):
    task, data, encoder, _, features, collate = world
    model, _ = load_for_finetuning(encoder, task, data.labels, max_length=32, seed=0)
    batch = collate(features)
    outputs = model.eval()(**batch)
    names = ["start_positions", "end_positions"] if task.kind == "span" else ["labels"]
    scores = [value.detach().numpy() for name, value in outputs.items() if name.endswith("logits")]
    labels = [batch[name].numpy() for name in names]
    found = mean_loss(task.kind, *((scores, labels) if task.kind == "span" else (scores[0], labels[0])))
    assert found == pytest.approx(outputs.loss.item(), rel=1e-5)


def test_every_epoch_has_all_rows_in_an_order_of_its_own(tmp_path, monkeypatch):
    seen = []

    def listen(batch, rank, num_processes):
        seen.extend(batch["input_ids"].tolist())
        return deal(batch, rank, num_processes)

    monkeypatch.setattr(trainer, "deal", listen)
    task = make_task(tmp_path, train=21)
    data = load_task_data(task, str(tmp_path), ["train", "dev"])
    values = with_defaults(task, 0, epochs=2, batch_size=8)
    finetune(write_encoder(tmp_path / "encoder", width=16), data, values, tmp_path / "run", show=print)
    first, second = seen[:21], seen[21:]
    assert sorted(first) == sorted(second) and first != second

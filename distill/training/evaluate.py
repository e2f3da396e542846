"""Dev evaluation: how well a model fills masks, on the same rows and masks every time."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from transformers import BertForMaskedLM

from distill.corpus.batches import MicroBatch
from distill.training.encoder import Needs, encode
from distill.training.precision import Autocast
from distill.training.processes import Processes, sum_over_processes
from distill.training.signals import StopRequest


@torch.no_grad()
def evaluate_masked_lm(
    model: BertForMaskedLM,
    batches: Iterable[MicroBatch],
    processes: Processes,
    autocast: Autocast,
    stop: StopRequest,
) -> dict[str, float] | None:
    """Mean cross-entropy to the true tokens (nats) and share of masked tokens guessed right, over all processes.

    Args:
        batches: this process's part of the dev rows.
    Returns: None, in all processes, if one of them was asked to stop meanwhile.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        if stop.interrupts():
            break
        batch = batch.to(processes.device)
        with autocast():
            logits = encode(model, batch, Needs()).logits
        assert logits is not None
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        right = (logits.argmax(dim=-1) == batch.labels).sum()
        sums += torch.stack([loss.double().cpu(), right.double().cpu(), torch.tensor(float(len(batch.labels)))])
    model.train(was_training)
    mine = torch.cat([sums, torch.tensor([float(stop.interrupts())])])
    loss_sum, right_sum, count, stopping = sum_over_processes(mine, processes).tolist()
    if stopping:
        return None
    return {"mlm_loss": loss_sum / max(count, 1), "accuracy": right_sum / max(count, 1), "masked_tokens": int(count)}

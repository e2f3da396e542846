"""Items of a dataset in a given order, prepared ahead by processes of their own where a GPU would wait for them."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from distill.training.signals import SIGNALS

Item = TypeVar("Item")


def load_ahead(source: Dataset[Item], order: range, device: torch.device) -> Iterator[Item]:
    """The items `order` of `source`, one after the other, in page-locked memory if they go to a GPU."""
    return iter(
        DataLoader(
            source, batch_size=None, sampler=order, num_workers=_num_workers(device),
            pin_memory=device.type == "cuda", worker_init_fn=_leave_signals_to_the_parent,
        )
    )  # fmt: skip


def _num_workers(device: torch.device) -> int:
    return 2 if device.type == "cuda" else 0


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Lets a worker obey its parent's signals alone.

    torchrun and job schedulers signal a whole process group. A worker that ended by it would take down the step that
    its parent wants to end in good order.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def obey(parent: int) -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=obey, args=(os.getppid(),), daemon=True, name="signals").start()

"""What prepares batches ahead: in order, untouched by signals to the group, and with errors that say what is wrong."""

import multiprocessing
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import Dataset

from distill.training import loading
from distill.training.loading import load_ahead
from distill.training.teacher_shards import DamagedShard
from distill.worker import _explain

CPU = torch.device("cpu")


class Numbers(Dataset[int]):
    """n is n; two of them cannot be read."""

    def __getitem__(self, number: int) -> int:
        if number == 9:
            raise DamagedShard("samples-9.npz: cut short; the same command makes it again")
        if number == 8:
            raise OSError(5, "Input/output error", "rows.arrow")
        return number


@pytest.fixture(autouse=True)
def two_workers(monkeypatch):
    """As on a GPU machine."""
    monkeypatch.setattr(loading, "_num_workers", lambda _: 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_is_left_to_the_parent(number):
    before = set(multiprocessing.active_children())
    numbers = load_ahead(Numbers(), range(7), CPU)
    found = [next(numbers), next(numbers)]  # one of each worker
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    stranger = "import os, sys; [os.kill(int(pid), int(sys.argv[1])) for pid in sys.argv[2:]]"
    subprocess.run([sys.executable, "-c", stranger, *map(str, [int(number), *(w.pid for w in workers)])], check=True)
    assert found + list(numbers) == list(range(7))


def test_a_worker_obeys_its_parent():
    """Else a process that ends with workers would wait for them forever."""
    before = set(multiprocessing.active_children())
    numbers = load_ahead(Numbers(), range(7), CPU)
    assert [next(numbers), next(numbers)] == [0, 1]
    for worker in set(multiprocessing.active_children()) - before:
        worker.terminate()
        worker.join(timeout=30)
        assert worker.exitcode == 0


@pytest.mark.parametrize("number, message", [
    (9, "stage 'one': DamagedShard: samples-9.npz: cut short; the same command makes it again"),
    (8, "stage 'one': [Errno 5] Input/output error: 'rows.arrow'; the same command goes on when that is mended"),
])  # fmt: skip
def test_an_error_of_a_worker_is_told_in_its_own_words(number, message):
    with pytest.raises((DamagedShard, OSError)) as caught:
        next(load_ahead(Numbers(), range(number, number + 1), CPU))
    assert "Traceback" in str(caught.value)
    assert _explain(caught.value, "one") == message

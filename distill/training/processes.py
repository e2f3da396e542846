"""The processes of one stage: who am I, which device, and the sums that they share.

Counts and the wish to stop travel on the CPU (gloo), gradients on the device (nccl, or gloo), each once a step.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, which may be saving or compiling."""


@dataclass(frozen=True)
class Processes:
    """This process among all of a stage."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def join_processes() -> Processes:
    """Joins the group that torchrun's environment names, or stands alone without one."""
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_own_store(), rank=rank, world_size=world_size, timeout=PATIENCE)
    return Processes(rank, world_size, device)


def _own_store() -> dist.Store:
    """Where these processes find each other: torchrun's store, but not what an earlier start has left in it.

    torchrun keeps one store over its restarts, with the addresses of the processes that died
    (https://github.com/pytorch/pytorch/issues/135712).
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and os.environ["RANK"] == "0"
    store = dist.TCPStore(host, port, int(os.environ["WORLD_SIZE"]), is_ours, PATIENCE)
    return dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def leave_processes(processes: Processes) -> None:
    """Leaves the group, if there is one."""
    if processes.world_size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def sum_over_processes(values: Tensor, processes: Processes) -> Tensor:
    """The sum of a tensor over all processes, in place; the tensor may be on the CPU or the device."""
    if processes.world_size > 1:
        dist.all_reduce(values)
    return values


def largest_over_processes(value: float, processes: Processes) -> float:
    """The largest of a number that each process has."""
    values = torch.tensor([value], dtype=torch.float64)
    if processes.world_size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values.item()


def wait_for_all(processes: Processes) -> None:
    """Returns when every process has come here."""
    sum_over_processes(torch.zeros(1), processes)


def do_on_first(work: Callable[[], None], processes: Processes) -> None:
    """The first process does `work`, which may take days; the others return when it is done."""
    if processes.world_size == 1:
        return work()
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    if processes.is_first:
        work()
    dist.barrier(patient)
    dist.destroy_process_group(patient)


def is_same_everywhere(text: str, processes: Processes) -> bool:
    """Whether all processes have the same text; the same answer in all of them."""
    number = float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))
    return largest_over_processes(number, processes) == -largest_over_processes(-number, processes)


def share_from_first(number: int, processes: Processes) -> int:
    """The first process's `number`, in all processes."""
    return int(numbers_from_first([number], processes)[0])


def numbers_from_first(numbers: Sequence[float], processes: Processes) -> list[float]:
    """The first process's numbers, in all processes."""
    mine = [number if processes.is_first else 0.0 for number in numbers]
    return sum_over_processes(torch.tensor(mine, dtype=torch.float64), processes).tolist()


def copy_from_first(parameters: Iterable[nn.Parameter], processes: Processes) -> None:
    """Gives parameters the first process's values, in all processes."""
    if processes.world_size > 1:
        for parameter in parameters:
            dist.broadcast(parameter.data, src=0)


def sum_gradients(parameters: Iterable[nn.Parameter], processes: Processes) -> None:
    """Adds up the gradients of all processes in one flat all-reduce.

    One buffer instead of DistributedDataParallel's buckets: those are rebuilt after the first step, so that a resumed
    run adds in another order and is not equal bit for bit at 3 and more processes (measured).
    """
    if processes.world_size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out, in whichever words: Python's, CUDA's, or torch's on the CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def is_lost_connection(error: Exception) -> bool:
    """Whether an error means that another process of the stage is gone: what gloo, nccl and the store say then."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection", "NCCL"))

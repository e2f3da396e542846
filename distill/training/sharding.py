"""A teacher that one device cannot hold: each process keeps a part of every layer, and gathers a layer when it runs.

Only the encoder's layers are spread; embeddings and prediction head, which share their largest matrix, stay whole.
A forward is then work of all processes together, so all must run the teacher equally often.
"""

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BertForMaskedLM

from distill.errors import InputError
from distill.training.processes import Processes


def shard_layers(model: BertForMaskedLM, processes: Processes) -> None:
    """Spreads the layers of a frozen model over the processes, one after the other; the rest moves to the device.

    The memory of the device never holds more than this process's part, embeddings, head, and one layer.
    """
    model.requires_grad_(False)
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model.bert.encoder, mesh=mesh)  # no parameters of its own: one schedule for the gathering of all layers
    model.bert.embeddings.to(processes.device)
    model.cls.to(processes.device)


def check_equal_forwards(global_batch_size: int, micro_batch_size: int, world_size: int) -> None:
    """InputError if some process would have fewer micro-batches a step than the others (see StepBatches)."""
    smallest, largest = global_batch_size // world_size, -(-global_batch_size // world_size)
    if smallest < -(-largest // micro_batch_size):
        raise InputError(
            f"shard_teacher: {global_batch_size} sequences a step in micro-batches of {micro_batch_size} are not the "
            f"same number of forwards for {world_size} processes; raise micro_batch_size, or take a global_batch_size "
            f"that {world_size} divides"
        )

"""What of a model folder is exported: the head of a fine-tuned model, a masked-LM model, or an encoder alone; each as a
module that takes and gives plain tensors, beside the model as transformers runs it.
"""

# B sequences, L tokens, H width, C labels or choices, V vocabulary

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BertTokenizer, PreTrainedModel

from distill.downstream.onnx_model import Inputs, Outputs
from distill.downstream.run import TASK_FILE, read_task_file
from distill.downstream.task import Task
from distill.downstream.task_model import check_model, load_finetuned
from distill.errors import InputError
from distill.modeling.inference import Pooling
from distill.modeling.models import load_masked_lm

Part = Literal["encoder", "masked-lm"]
OUTPUTS = {
    "encoder": ("last_hidden_state", "pooled"),
    "masked-lm": ("logits",),
    "classification": ("logits",),
    "regression": ("logits",),
    "choice": ("logits",),
    "tags": ("logits",),
    "span": ("start_logits", "end_logits"),
}
"""Kind -> the outputs: [B, L, H] and [B, H]; [B, L, V]; [B, C]; [B, 1]; [B, C]; [B, L, C]; twice [B, L]."""
_TOKEN_KINDS = ("encoder", "masked-lm", "tags", "span")


@dataclass(frozen=True)
class Exportable:
    """A model that can be exported, and what a user of the export must know about it."""

    folder: Path
    kind: str
    """A key of OUTPUTS."""
    model: PreTrainedModel
    tokenizer: BertTokenizer
    max_length: int
    """Tokens that texts are cut to."""
    pooling: Pooling | None = None
    """Of an encoder: how its hidden states become one vector."""
    task: Task | None = None
    labels: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        return OUTPUTS[self.kind]

    def is_per_token(self, output: str) -> bool:
        """Whether the second dimension of an output is that of the tokens."""
        return self.kind in _TOKEN_KINDS and output != "pooled"

    @torch.inference_mode()
    def run(self, inputs: Inputs) -> Outputs:
        """The outputs as transformers computes them: the reference of every export."""
        tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
        found = self.model(**tensors)
        if self.kind == "encoder":
            states = found.last_hidden_state
            made = (states, pool(states, tensors["attention_mask"], self.pooling or "mean"))
        else:
            made = tuple(getattr(found, name) for name in self.outputs)
        return tuple(tensor.numpy() for tensor in made)


def load_exportable(folder: Path, *, part: Part | None = None, pooling: Pooling = "mean") -> Exportable:
    """The model of a folder on the CPU in float32: with the head of its task if it is fine-tuned, else its encoder.

    Args:
        part: the encoder or the masked-LM model, whatever the folder holds.
    Raises:
        InputError: see load_finetuned and load_masked_lm.
    """
    if part is None and (folder / TASK_FILE).is_file():
        task, labels, max_length = read_task_file(folder)
        model, tokenizer = load_finetuned(folder)
        return Exportable(folder, task.kind, model.eval(), tokenizer, max_length, task=task, labels=labels)
    tokenizer = check_model(folder, 2)
    masked_lm = load_masked_lm(folder, need_head=part == "masked-lm").eval()
    positions = masked_lm.config.max_position_embeddings
    if part == "masked-lm":
        return Exportable(folder, "masked-lm", masked_lm, tokenizer, positions)
    return Exportable(folder, "encoder", masked_lm.bert, tokenizer, positions, pooling=pooling)


def load_like(exportable: Exportable, folder: Path) -> Exportable:
    """Another model as the same kind of export; InputError if it is none."""
    part: Any = exportable.kind if exportable.task is None else None
    other = load_exportable(folder, part=part, pooling=exportable.pooling or "mean")
    if other.kind != exportable.kind:
        raise InputError(f"{folder}: of kind {other.kind}, but {exportable.folder} is {exportable.kind}; name a model "
                         f"that does the same")  # fmt: skip
    return other


def pool(states: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Hidden states [B, L, H] as [B, H]; see inference.text_features. Padding ([B, L], 0) does not count."""
    if pooling == "cls":
        return states[:, 0]
    mask = attention_mask[:, :, None].to(states.dtype)
    if pooling == "mean":
        return (states * mask).sum(1) / mask.sum(1)
    return (states + (1 - mask) * torch.finfo(states.dtype).min).amax(1)


class GraphModule(nn.Module):
    """The model as a graph is made of it: attention by plain matrix products, the padding mask as numbers to add.

    Given a mask of four dimensions, transformers adds it as it is; its own ways to one look at the values of the mask,
    which a graph for every batch cannot.
    """

    def __init__(self, exportable: Exportable) -> None:
        super().__init__()
        self.model: Any = exportable.model
        self.kind, self.pooling = exportable.kind, exportable.pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        if self.kind == "choice":
            return (self._choices(input_ids, attention_mask, token_type_ids),)
        found = self.model(input_ids, attention_mask=_to_add(attention_mask), token_type_ids=token_type_ids)
        if self.kind == "encoder":
            states = found.last_hidden_state
            return states, pool(states, attention_mask, self.pooling or "mean")
        return tuple(getattr(found, name) for name in OUTPUTS[self.kind])

    def _choices(self, *inputs: Tensor) -> Tensor:
        """[B, C] of inputs [B, C, L]: BertForMultipleChoice, which would flatten the mask with the rest."""
        batch, choices, length = inputs[0].shape
        input_ids, attention_mask, token_type_ids = (values.reshape(batch * choices, length) for values in inputs)
        found = self.model.bert(input_ids, attention_mask=_to_add(attention_mask), token_type_ids=token_type_ids)
        logits: Tensor = self.model.classifier(found.pooler_output)
        return logits.reshape(batch, choices)


@contextmanager
def plain_attention(exportable: Exportable) -> Iterator[None]:
    """Attention without a fused kernel, which has no counterpart in older ONNX."""
    before = exportable.model.config._attn_implementation
    exportable.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        exportable.model.set_attn_implementation(before)


def _to_add(attention_mask: Tensor) -> Tensor:
    """[B, L] of 1 and 0 as [B, 1, 1, L] of 0 and the smallest number there is."""
    return (1 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min

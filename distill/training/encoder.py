"""Running an encoder on a micro-batch: what is needed of it, and what it gave.

`encode` keeps only the hidden states, attentions, queries, keys and values that a match needs, and applies the
prediction head to the masked positions alone, [N, H] -> [N, V], not to all B x L positions.
"""

# B sequences, L tokens, N masked positions, H width, V vocabulary

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, PreTrainedModel

from distill.corpus.batches import MicroBatch
from distill.training.losses import VECTORS
from distill.training.matches import Match
from distill.training.sparse_logits import SparseLogits


@dataclass(frozen=True)
class Needs:
    """What must be computed of an encoder."""

    hidden: frozenset[int] = frozenset()
    attention: bool = False
    logits: bool = True
    vectors: frozenset[tuple[str, int]] = frozenset()
    """("query", "key" or "value", attention layer)."""
    layers: int = 0
    """Encoder layers that must run for the matches, counted from the first; logits need all of them."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.hidden | other.hidden,
            self.attention or other.attention,
            self.logits or other.logits,
            self.vectors | other.vectors,
            max(self.layers, other.layers),
        )


@dataclass(frozen=True)
class Features:
    """What an encoder gave: hidden states (None where not needed), attentions, logits [N, V] of masked positions."""

    hidden: tuple[Tensor | None, ...]
    attention: tuple[Tensor, ...]
    logits: Tensor | None
    vectors: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    """"query", "key", "value" -> attention layer -> [B, L, H], those that are needed."""
    sparse: SparseLogits | None = None  # in place of logits, from a teacher cache

    def by_name(self) -> dict[str, Any]:
        """Matchable features under TextBrewer's names."""
        return {"hidden": self.hidden, "attention": self.attention, **self.vectors}


def needs_of(matches: Iterable[Match], side: str, *, logits: bool) -> Needs:
    """What the matches need of one side ("T" or "S")."""
    needs = Needs(logits=logits)
    for match in matches:
        feature, layers = match["feature"], match[f"layer_{side}"]
        layers = layers if isinstance(layers, list) else [layers]
        # Hidden state n is the output of n layers, 0 that of the embeddings; all else of layer n is made inside it.
        last = max(layers) + (feature != "hidden")
        if feature == "attention":
            needs |= Needs(attention=True, logits=False, layers=last)
        elif feature == "hidden":
            needs |= Needs(hidden=frozenset(layers), logits=False, layers=last)
        else:
            vectors = frozenset((feature, layer) for layer in layers)
            needs |= Needs(vectors=vectors, logits=False, layers=last)
    return needs


def needs_by_attention(needs: Iterable[Needs]) -> dict[bool, Needs]:
    """What each of the teacher's forward passes must give: one with attention matrices, one without, or both."""
    merged: dict[bool, Needs] = {}
    for need in needs:
        merged[need.attention] = merged.get(need.attention, need) | need
    return merged


def encode(model: BertForMaskedLM, batch: MicroBatch, needs: Needs) -> Features:
    """Runs an encoder on a micro-batch; the prediction head sees the masked positions only."""
    with capture_vectors(model, needs.vectors) as vectors:
        outputs = model.bert(
            batch.input_ids,
            attention_mask=_attention_mask(model, batch),
            position_ids=batch.position_ids,
            output_hidden_states=sorted(needs.hidden) if needs.hidden else False,
            output_attentions=needs.attention,
        )
    logits = None
    if needs.logits:
        states = outputs.last_hidden_state
        logits = model.cls(states.reshape(-1, states.size(-1)).index_select(0, batch.masked_positions)).float()
    hidden = tuple(None if state is None else state.float() for state in outputs.hidden_states or ())
    attention = tuple(matrix.float() for matrix in outputs.attentions or ())
    if needs.attention and not attention:
        raise RuntimeError("attention matrices are missing; the model must be loaded with attention='eager'")
    return Features(hidden, attention, logits, vectors)


@contextmanager
def capture_vectors(
    model: PreTrainedModel, wanted: Iterable[tuple[str, int]]
) -> Iterator[Mapping[str, Mapping[int, Tensor]]]:
    """Fills a mapping with the queries, keys and values of a BERT's forward, whichever attention kernel it uses."""
    found: dict[str, dict[int, Tensor]] = {feature: {} for feature in VECTORS}
    hooks = []
    for feature, layer in sorted(wanted):
        projection = model.get_submodule(f"bert.encoder.layer.{layer}.attention.self.{feature}")

        def keep(_module: nn.Module, _inputs: Any, output: Tensor, feature: str = feature, layer: int = layer) -> None:
            found[feature][layer] = output.float()

        hooks.append(projection.register_forward_hook(keep))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _attention_mask(model: BertForMaskedLM, batch: MicroBatch) -> Tensor | None:
    """Who sees whom, [B, 1, 1 or L, L], or None for everybody; padding, as a query, sees its row's last document.

    Ready-made, because of a [B, L] mask transformers asks whether it is all ones, for which the host waits for the
    device; we know it from the lengths.
    """
    ids, sees = batch.document_ids, None
    if batch.attention_mask is not None:
        sees = batch.attention_mask[:, None, None, :].bool()
    if ids is not None:
        same = ids[:, None, :, None] == ids[:, None, None, :]
        sees = same if sees is None else same & sees
    if sees is None or model.config._attn_implementation != "eager":
        return sees
    # transformers' eager attention adds a ready-made mask as it is, so that True would count as 1.
    nothing = torch.zeros(sees.shape, device=sees.device, dtype=model.dtype)
    return nothing.masked_fill_(~sees, torch.finfo(torch.float16).min)

"""Entities as BIO tags of tokens and back, and their F1.

Entities are characters of the text, both ends included; tokens know their characters by offsets. A text's score is over
exact entities: type, first and last character, as CLUENER's script counts.
"""

from collections.abc import Iterable, Sequence

from distill.downstream.examples import Entity
from distill.downstream.metrics import percent

OUTSIDE = "O"
Offset = tuple[int, int]
"""First character of a token and the one after its last; equal for [CLS], [SEP] and padding."""


def tag_names(types: Sequence[str]) -> tuple[str, ...]:
    """The tags for these entity types: O, then B- and I- of each."""
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def encode_tags(entities: Iterable[Entity], offsets: Sequence[Offset]) -> list[str]:
    """The tag of every token. Where entities overlap, the longest keeps its tokens."""
    tags = [OUTSIDE] * len(offsets)
    for entity in sorted(entities, key=lambda entity: (entity.start - entity.end, entity)):
        inside = [
            i for i, (start, end) in enumerate(offsets) if start <= entity.end and end > entity.start and start < end
        ]
        if any(tags[i] != OUTSIDE for i in inside):
            continue
        for number, i in enumerate(inside):
            tags[i] = f"{'I' if number else 'B'}-{entity.type}"
    return tags


def decode_tags(tags: Sequence[str], offsets: Sequence[Offset]) -> set[Entity]:
    """The entities that tags of tokens say. An I- without its B- before it begins one, as in CoNLL's script."""
    found: set[Entity] = set()
    kind, first, last = "", 0, 0
    for tag, (start, end) in [*zip(tags, offsets, strict=True), (OUTSIDE, (0, 0))]:
        tag = tag if start < end else OUTSIDE
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            found.add(Entity(first, last, kind))
            kind = ""
        if prefix != OUTSIDE:
            kind, first = (kind, first) if kind else (name, start)
            last = end - 1
    return found


def entity_metrics(gold: Sequence[set[Entity]], predicted: Sequence[set[Entity]]) -> dict[str, float]:
    """Micro F1, precision and recall of exact entities over all texts, in percent."""
    right = sum(len(ours & theirs) for ours, theirs in zip(predicted, gold, strict=True))
    num_predicted, num_gold = sum(map(len, predicted)), sum(map(len, gold))
    shares = {
        "entity_f1": 2 * right / max(1, num_predicted + num_gold),
        "entity_precision": right / max(1, num_predicted),
        "entity_recall": right / max(1, num_gold),
    }
    return {name: percent(share) for name, share in shares.items()}

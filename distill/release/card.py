"""The README.md of a model folder: what the model is and how to load it."""

from collections.abc import Mapping
from typing import Any


def model_card(name: str, stage: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Markdown with Hub metadata for the student `name` of a resolved stage of a resolved recipe."""
    student = stage["students"][name]
    teacher = stage["teacher"]
    origin = f"distilled from `{teacher}`" if teacher else "pre-trained by masked-language modelling, without a teacher"
    length = f"{stage['steps']:,} steps" if stage["steps"] else f"{stage['epochs']:g} epochs"
    rows = [
        ("stage", stage["name"]),
        ("training", f"{length} of {stage['global_batch_size']:,} sequences of {stage['max_seq_length']} tokens"),
        ("learning rate", f"{student['learning_rate']:g}, {student['scheduler']}, warm-up {student['warmup_ratio']:g}"),
        ("masking", _describe_masking(stage["data"])),
        ("seed", stage["seed"]),
    ]
    if teacher:
        matches = student["matches"]
        named = (
            ", ".join(m if isinstance(m, str) else "a match given as object" for m in matches) or "none (logits only)"
        )
        if student["method"]:
            rows.append(("method", student["method"]))
        rows += [("temperature", f"{student['temperature']:g}"), ("layer matches", named)]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    return f"""---
language: zh
library_name: transformers
pipeline_tag: fill-mask
tags:
- bert
- knowledge-distillation
---
# {name}

A Chinese BERT encoder, {origin}.

| | |
|---|---|
{table}

```python
from transformers import BertForMaskedLM, BertTokenizer, pipeline

tokenizer = BertTokenizer.from_pretrained("{name}")
model = BertForMaskedLM.from_pretrained("{name}")
pipeline("fill-mask", model=model, tokenizer=tokenizer)
```
"""


def _describe_masking(data: Mapping[str, Any]) -> str:
    share = data["mask_probability"]
    if isinstance(share, Mapping):
        return f"{data['mask']}, {share['start']:g} to {share['end']:g} of the tokens ({share['schedule']})"
    copies = f", {data['static_masks']} fixed masks a row" if data["static_masks"] else ""
    return f"{data['mask']}, {share:g} of the tokens{copies}"

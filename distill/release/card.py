"""The README.md of a model folder: what the model is and how to load it."""

import re
from collections.abc import Mapping
from typing import Any


def model_card(name: str, stage: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Markdown with Hub metadata for the student `name` of a resolved stage of a resolved recipe."""
    student = stage["students"][name]
    teacher = stage["teacher"]
    origin = (
        f"distilled from {_code(teacher)}" if teacher else "pre-trained by masked-language modelling, without a teacher"
    )
    length = f"{stage['steps']:,} steps" if stage["steps"] else f"{stage['epochs']:g} epochs"
    rows = [
        ("stage", stage["name"]),
        ("training", f"{length} of {stage['global_batch_size']:,} sequences of {stage['max_seq_length']} tokens"),
        ("learning rate", f"{student['learning_rate']:g}, {student['scheduler']}, warm-up {student['warmup_ratio']:g}"),
        *([("optimiser", "Muon")] if student["optimizer"] == "muon" else []),
        *([("weights", f"moving average of the steps', decay {student['ema']:g}")] if student["ema"] else []),
        ("masking", _describe_masking(stage["data"])),
        ("seed", stage["seed"]),
    ]
    if teacher:
        matches = student["matches"]
        named = (
            ", ".join(_code(m) if isinstance(m, str) else "a match given as object" for m in matches)
            or "none (logits only)"
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


def _code(text: str) -> str:
    """A name or path as Markdown shows it: nothing in it ends the code span, the table's cell or the line."""
    line = "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def _describe_masking(data: Mapping[str, Any]) -> str:
    share = data["mask_probability"]
    if isinstance(share, Mapping):
        return f"{data['mask']}, {share['start']:g} to {share['end']:g} of the tokens ({share['schedule']})"
    copies = f", {data['static_masks']} fixed masks a row" if data["static_masks"] else ""
    return f"{data['mask']}, {share:g} of the tokens{copies}"

"""More texts for a teacher to judge: copies of a task's texts in which a masked-LM model replaced some tokens.

TinyBERT's augmentation (https://arxiv.org/abs/1909.10351, section 4.2) without its word vectors: tokens are masked, and
each is drawn from the model's likeliest ones. The copies have no label; only the teacher says what they are.
"""

# B texts, L tokens, M masked tokens, V vocabulary

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from distill.downstream.examples import TextExample
from distill.modeling.models import load_masked_lm, load_tokenizer

SHARE = 0.3
"""Of a text's tokens that are replaced, at least one."""
LIKELIEST = 15
"""Tokens among which one is drawn, as in TinyBERT."""
_BATCH_SIZE = 64


def augment_texts(
    examples: Sequence[TextExample], folder: Path, *, copies: int, seed: int, max_length: int
) -> list[TextExample]:
    """`copies` changed versions of each example, without labels; of a pair, both texts are changed.

    Args:
        folder: masked-LM model with its prediction head.
        seed: decides which tokens, and what stands in their place.
        max_length: tokens of a text that the model is shown; what is beyond stays.
    Raises:
        InputError: a model without prediction head.
    """
    tokenizer, model = load_tokenizer(folder), load_masked_lm(folder).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    rng, generator = random.Random(f"augment:{seed}"), torch.Generator().manual_seed(seed)
    special = torch.tensor(tokenizer.all_special_ids, device=device)
    width = min(max_length, model.config.max_position_embeddings)

    def changed(texts: Sequence[str]) -> Iterator[str]:
        encoded = tokenizer(list(texts), truncation=True, max_length=width, padding=True, return_tensors="pt",
                            return_offsets_mapping=True)  # fmt: skip
        offsets, input_ids = encoded.pop("offset_mapping"), encoded["input_ids"]
        masked = torch.zeros_like(input_ids, dtype=torch.bool)
        for row, spans in enumerate(offsets.tolist()):
            real = [i for i, (start, end) in enumerate(spans) if start < end]
            masked[row, rng.sample(real, max(1, round(SHARE * len(real))) if real else 0)] = True
        encoded["input_ids"] = input_ids.masked_fill(masked, tokenizer.mask_token_id)
        with torch.no_grad():
            logits_MV = model(**encoded.to(device)).logits[masked.to(device)].float()
        logits_MV[:, special] = -torch.inf
        scores, likeliest = (found.cpu() for found in logits_MV.topk(min(LIKELIEST, logits_MV.size(-1)), dim=-1))
        drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)
        chosen = iter(likeliest.gather(-1, drawn).flatten().tolist())
        for row, text in enumerate(texts):
            spans = [tuple(offsets[row, i].tolist()) for i in masked[row].nonzero().flatten().tolist()]
            tokens = tokenizer.convert_ids_to_tokens([next(chosen) for _ in spans])
            for (start, end), token in sorted(zip(spans, tokens, strict=True), reverse=True):
                text = text[:start] + str(token).removeprefix("##") + text[end:]
            yield text

    made: list[TextExample] = []
    for copy in range(copies):
        for begin in range(0, len(examples), _BATCH_SIZE):
            some = examples[begin : begin + _BATCH_SIZE]
            columns = [list(changed(texts)) for texts in zip(*(example.texts for example in some), strict=True)]
            made += [replace(example, id=f"{example.id}+{copy}", texts=texts, label=None)
                     for example, texts in zip(some, zip(*columns, strict=True), strict=True)]  # fmt: skip
    return made

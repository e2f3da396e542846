"""A model folder in use: the words that fit a [MASK], and the features of lines of text.

N texts, L tokens, H width.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertForMaskedLM, BertTokenizer

from distill.errors import InputError
from distill.modeling.models import check_vocabulary, load_masked_lm, load_tokenizer

Pooling = Literal["cls", "mean", "max"]
BATCH_SIZE = 32


@torch.no_grad()
def fill_mask(folder: Path, texts: Sequence[str], *, top_k: int = 5) -> list[list[list[dict[str, Any]]]]:
    """The likeliest tokens for every [MASK] of every text, as transformers' fill-mask pipeline gives them.

    Returns: text -> mask -> answers with score (probability), token (id), token_str and sequence; with several masks a
        sequence keeps the other ones, and shows [CLS] and [SEP].
    Raises:
        InputError: no prediction head, a text without [MASK] or longer than the model's positions.
    """
    model, tokenizer = _load(folder, need_head=True)
    if top_k > model.config.vocab_size:
        raise InputError(f"--top-k {top_k}: {folder} has only {model.config.vocab_size} tokens")
    answers = []
    encoded = _encode(tokenizer, texts, model.config.max_position_embeddings)
    for number, input_ids in enumerate(map(torch.tensor, encoded), start=1):
        places = (input_ids == tokenizer.mask_token_id).nonzero().flatten().tolist()
        if not places:
            raise InputError(f"text {number}: no {tokenizer.mask_token} in it; put one where a word is to be found")
        states = model.bert(input_ids[None]).last_hidden_state[0, places]
        best = model.cls(states).softmax(-1).topk(top_k)
        answers.append([
            [_answer(tokenizer, input_ids, place, score, token, only=len(places) == 1)
             for score, token in zip(scores, tokens, strict=True)]
            for place, scores, tokens in zip(places, best.values.tolist(), best.indices.tolist(), strict=True)
        ])  # fmt: skip
    return answers


def _answer(
    tokenizer: BertTokenizer, input_ids: Tensor, place: int, score: float, token: int, *, only: bool
) -> dict[str, Any]:
    filled = input_ids.clone()
    filled[place] = token
    return {"score": score, "token": token, "token_str": tokenizer.decode([token]),
            "sequence": tokenizer.decode(filled, skip_special_tokens=only)}  # fmt: skip


@torch.no_grad()
def text_features(
    folder: Path, texts: Sequence[str], *, pooling: Pooling, places: Sequence[str] | None = None,
    max_length: int | None = None, progress: Callable[[int], object] = lambda done: None,
) -> NDArray[np.float32]:  # fmt: skip
    """The last hidden states of texts as one vector each, [N, H].

    Args:
        pooling: "cls" takes that of [CLS]; "mean" and "max" go over all tokens, [CLS] and [SEP] too.
        places: what an error calls each text; None: "text 1", "text 2", ...
        max_length: longer texts are cut to so many tokens, [CLS] and [SEP] among them.
        progress: is told after each batch how many texts it had.
    Raises:
        InputError: a text, or `max_length`, longer than the model's positions.
    """
    model, tokenizer = _load(folder, need_head=False)
    positions = model.config.max_position_embeddings
    if max_length is not None and max_length > positions:
        raise InputError(f"--max-length {max_length}: {folder} has only {positions} positions")
    encoded = _encode(tokenizer, texts, positions, places, max_length=max_length)
    features = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    for numbers in _batches([len(ids) for ids in encoded]):
        states = model.bert(torch.tensor([encoded[number] for number in numbers])).last_hidden_state
        features[numbers] = _POOLINGS[pooling](states).numpy()
        progress(len(numbers))
    return features


_POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda states: states[:, 0], "mean": lambda states: states.mean(1), "max": lambda states: states.amax(1),
}  # fmt: skip
"""[B, L, H] -> [B, H]."""


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts that go together. They are equally long: padding would change the last bits of the result."""
    by_length = sorted(range(len(lengths)), key=lambda number: lengths[number])
    for _, group in itertools.groupby(by_length, key=lambda number: lengths[number]):
        numbers = list(group)
        yield from (numbers[start : start + BATCH_SIZE] for start in range(0, len(numbers), BATCH_SIZE))


def _load(folder: Path, *, need_head: bool) -> tuple[BertForMaskedLM, BertTokenizer]:
    tokenizer = load_tokenizer(folder)
    model = load_masked_lm(folder, need_head=need_head).eval()
    check_vocabulary(tokenizer, model.config, tokens_from=str(folder), model=str(folder))
    return model, tokenizer


def _encode(
    tokenizer: BertTokenizer, texts: Sequence[str], positions: int, places: Sequence[str] | None = None,
    *, max_length: int | None = None,
) -> list[list[int]]:  # fmt: skip
    """input_ids of each text, cut only to a `max_length`; one that is too long else is an error."""
    cut = {"truncation": True, "max_length": max_length} if max_length is not None else {}
    encoded: list[list[int]] = tokenizer(list(texts), verbose=False, **cut)["input_ids"] if texts else []
    for number, input_ids in enumerate(encoded):
        if len(input_ids) > positions:
            place = places[number] if places else f"text {number + 1}"
            raise InputError(f"{place}: {len(input_ids)} tokens, but the model has {positions} positions; "
                             "split the text, or cut it (features: --max-length)")  # fmt: skip
    return encoded

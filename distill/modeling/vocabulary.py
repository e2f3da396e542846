"""Another vocabulary for a model: pruned to what a text uses, or replaced, with the rows of shared tokens untouched.

Word embeddings, the decoder (tied to them) and its bias change together with the tokenizer. Rows of tokens that both
vocabularies have are carried over bit for bit. Finding and mending mismatches is in vocabulary_check.py.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.corpus.tokenizing import load_tokenizer
from distill.corpus.vocabulary import (
    SPECIAL_TOKENS,
    is_placeholder,
    read_vocabulary,
    refuse_existing,
    special_tokens_of,
    tokenizer_settings,
    tokens_by_id,
)
from distill.errors import InputError
from distill.modeling.weights import ModelFiles, read_model, write_model

if TYPE_CHECKING:
    from transformers import BertTokenizer

NewRows = Literal["mean", "random"]
_NO_LIMIT = 10**6  # transformers writes a tokenizer without limit as one of 10**30 tokens


@dataclass(frozen=True)
class RowPlan:
    """Where the row of each token comes from."""

    tokens: list[str]
    sources: list[int | None]
    """Row of the old model, None for a new token."""
    pieces: dict[int, list[int]]
    """For new tokens whose row is a mean: the old rows it is the mean of."""

    @property
    def num_shared(self) -> int:
        """Tokens that keep their row."""
        return sum(source is not None for source in self.sources)

    @property
    def num_random(self) -> int:
        """Tokens whose row is drawn at random."""
        return len(self.tokens) - self.num_shared - len(self.pieces)

    def map_rows(self, old: Tensor, *, initializer_range: float, seed: int) -> Tensor:
        """The tensor with a row for each token: old rows as they are, means, else N(0, initializer_range), biases 0."""
        generator = torch.Generator().manual_seed(seed)
        new = torch.zeros((len(self.tokens), *old.shape[1:]), dtype=old.dtype)
        shared = [(i, source) for i, source in enumerate(self.sources) if source is not None and source < len(old)]
        if shared:
            places, sources = map(torch.tensor, zip(*shared, strict=True))
            new[places] = old[sources]
        for i in sorted(set(range(len(self.tokens))) - {place for place, _ in shared}):
            if i in self.pieces:
                new[i] = old[torch.tensor(self.pieces[i])].float().mean(dim=0).to(old.dtype)
            elif old.dim() > 1:
                new[i] = (torch.randn(old.shape[1:], generator=generator) * initializer_range).to(old.dtype)
        return new


def prune_vocabulary(
    folder: Path,
    output: Path,
    *,
    counts: NDArray[Any] | None = None,
    listed: Collection[str] = (),
    min_count: int = 1,
    size: int | None = None,
) -> dict[str, float]:
    """Writes the model with fewer tokens: the special ones, the listed ones, and those that the text uses most.

    Args:
        counts: how often each id occurs in the text, [highest id + 1] (corpus.vocabulary.count_tokens).
        min_count: tokens that occur less often go.
        size: at most this many tokens; of equally frequent ones the lower id stays.
    Returns: tokens_before, tokens_after, unknown_listed, and with counts `kept_share`, the share of the text's tokens
        that stay tokens.
    Raises:
        InputError: sizes that do not match, or `size` too small for what must stay.
    """
    refuse_existing(output)
    model = read_consistent(folder)
    ids = _choose_ids(model, counts=counts, listed=listed, min_count=min_count, size=size)
    plan = RowPlan(tokens=[model.tokens[i] or "" for i in ids], sources=list(ids), pieces={})
    write_planned(model, output, plan, tokenizer=model.tokenizer, what="pruned to the tokens that are used")
    result: dict[str, float] = {
        "tokens_before": len(model.tokens),
        "tokens_after": len(ids),
        "unknown_listed": len(set(listed) - set(model.tokens)),
    }
    if counts is not None:
        result["kept_share"] = float(counts[ids].sum() / max(counts.sum(), 1))
    return result


def _choose_ids(
    model: ModelFiles, *, counts: NDArray[Any] | None, listed: Collection[str], min_count: int, size: int | None
) -> list[int]:
    special = special_tokens_of(model.tokenizer)
    must_stay = {*special, *listed}
    chosen = {i for i, token in enumerate(model.tokens) if token in must_stay}
    room = len(model.tokens) if size is None else size - len(chosen)
    if room < 0:
        raise InputError(f"--size: {size} is too small, {len(chosen)} special and listed tokens stay in any case")
    if counts is not None:
        used = [i for i, token in enumerate(model.tokens) if token is not None and counts[i] >= max(min_count, 1)]
        used = sorted(set(used) - chosen, key=lambda i: (-counts[i], i))
        chosen.update(used[:room])
    if all(model.tokens[i] in special for i in chosen):
        raise InputError(f"{model.folder}: nothing but its special tokens would stay; check --text and --keep")
    return sorted(chosen)


def replace_vocabulary(
    folder: Path, vocabulary: Path, output: Path, *, new_rows: NewRows = "mean", seed: int = 0
) -> dict[str, int]:
    """Writes the model with the tokens of a vocab.txt or tokenizer folder; rows go by the token's string.

    A new token's row is the mean of the rows of the pieces that the old tokenizer makes of it ("mean"), so are its
    decoder row and bias. If a piece is [UNK], for special tokens and [unusedN], and with "random", it is drawn from
    N(0, initializer_range) with bias 0.

    Args:
        vocabulary: a file keeps the model's lower-casing, a folder brings its own.
    Returns: counts of shared, mean, random and dropped tokens.
    Raises:
        InputError: sizes that do not match, a vocabulary with duplicates or without the special tokens.
    """
    refuse_existing(output)
    model = read_consistent(folder)
    tokens, tokenizer = _read_target(vocabulary, model)
    rows = {token: i for i, token in enumerate(model.tokens) if token is not None}
    plan = RowPlan(tokens, [rows.get(token) for token in tokens], {})
    if new_rows == "mean":
        plan = plan_means(model, plan)
    what = f"with another vocabulary: {plan.num_shared} tokens kept their rows, {len(plan.pieces)} got the mean of "
    what += f"their pieces, {plan.num_random} random rows"
    write_planned(model, output, plan, tokenizer=tokenizer, what=what, seed=seed)
    return {
        "shared": plan.num_shared,
        "mean": len(plan.pieces),
        "random": plan.num_random,
        "dropped": len(rows.keys() - set(tokens)),
    }


def _read_target(vocabulary: Path, model: ModelFiles) -> tuple[list[str], "BertTokenizer"]:
    """Tokens of a vocab.txt or tokenizer folder, and the tokenizer whose settings they get."""
    if vocabulary.is_dir():
        tokenizer = load_tokenizer(vocabulary)
        named = tokens_by_id(tokenizer)
        tokens = [token for token in named if token is not None]
        num_lines = len(named)
    else:
        tokens, tokenizer = read_vocabulary(vocabulary), model.tokenizer
        num_lines = len(tokens)
    if len(set(tokens)) != num_lines:
        raise InputError(f"{vocabulary}: {num_lines - len(set(tokens))} of {num_lines} tokens occur twice; remove them")
    for token in SPECIAL_TOKENS:
        if token not in tokens:
            raise InputError(f"{vocabulary}: the vocabulary has no {token}")
    return tokens, tokenizer


def plan_means(model: ModelFiles, plan: RowPlan) -> RowPlan:
    """The plan with pieces for every new token that the old tokenizer can make up of known ones."""
    pieces: dict[int, list[int]] = {}
    skip = {*SPECIAL_TOKENS, *special_tokens_of(model.tokenizer)}
    for i, (token, source) in enumerate(zip(plan.tokens, plan.sources, strict=True)):
        if source is None and token not in skip and not is_placeholder(token):
            found = _piece_ids(token, model)
            if found:
                pieces[i] = found
    return RowPlan(plan.tokens, plan.sources, pieces)


def _piece_ids(token: str, model: ModelFiles) -> list[int]:
    """Old ids that make up a token, [] if one of them is [UNK]. '##xy' is tried as '##x' '##y' before 'x' 'y'."""
    vocabulary, rows = model.tokenizer.get_vocab(), len(model.embeddings)
    inside = token.startswith("##") and len(token) > 2
    ids = _longest_matches(token[2:], vocabulary) if inside else []
    ids = ids or model.tokenizer.encode(token[2:] if inside else token, add_special_tokens=False)
    unknown = model.tokenizer.unk_token_id in ids or any(i >= rows for i in ids)
    return [] if unknown else ids


def _longest_matches(text: str, vocabulary: dict[str, int]) -> list[int]:
    """WordPiece within a word: ids of the longest '##' pieces from the left, [] if they do not reach the end."""
    ids, start = [], 0
    while start < len(text):
        ends = range(len(text), start, -1)
        end = next((end for end in ends if f"##{text[start:end]}" in vocabulary), None)
        if end is None:
            return []
        ids.append(vocabulary[f"##{text[start:end]}"])
        start = end
    return ids


def read_consistent(folder: Path) -> ModelFiles:
    """A model folder whose tokens and rows are equally many.

    Raises:
        InputError: see `read_model`; or another number of rows.
    """
    model = read_model(folder)
    for name, tensor in model.token_rows().items():
        if len(tensor) != len(model.tokens):
            raise InputError(
                f"{folder}: {name} has {len(tensor)} rows for {len(model.tokens)} tokens; mend it with "
                "`distill vocab repair` first"
            )
    return model


def write_planned(
    model: ModelFiles,
    output: Path,
    plan: RowPlan,
    *,
    tokenizer: "BertTokenizer",
    what: str,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> None:
    """Writes the model with the rows of the plan and the settings of `tokenizer`."""
    initializer_range = float(model.config.get("initializer_range", 0.02))
    card = f"# {output.name}\n\nMade by MiniDistill from `{model.folder.name}`, {what}.\n"
    write_model(
        model, output, tokens=plan.tokens, card=card,
        map_rows=lambda old: plan.map_rows(old, initializer_range=initializer_range, seed=seed),
        settings=carried_settings(tokenizer, plan.tokens, where=str(model.folder)) | (settings or {}),
    )  # fmt: skip


def carried_settings(tokenizer: "BertTokenizer", tokens: Sequence[str], *, where: str) -> dict[str, Any]:
    """What a new tokenizer_config.json takes over: how text is normalised, the length limit, further special tokens."""
    settings = tokenizer_settings(tokenizer, where=where)
    if tokenizer.model_max_length < _NO_LIMIT:
        settings["model_max_length"] = tokenizer.model_max_length
    known = set(tokens)
    further = [t for t in special_tokens_of(tokenizer) if t not in SPECIAL_TOKENS and t in known]
    return settings | ({"extra_special_tokens": further} if further else {})

"""Do a model's tokens, embedding rows and config agree? Finding what does not, and mending it.

A model whose tokenizer has fewer tokens than it has rows (CLUE's large model: 8,021 and 21,128) trains and answers with
rows that no text reaches; one with more tokens than rows fails in the middle of a batch.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.corpus.tokenizing import forgets_case, tokens_in_capitals
from distill.corpus.vocabulary import (
    SPECIAL_TOKENS,
    read_vocabulary,
    refuse_existing,
    special_tokens_of,
    tokenizer_settings,
)
from distill.errors import InputError
from distill.json_file import read_json
from distill.modeling.vocabulary import RowPlan, plan_means, write_planned
from distill.modeling.weights import ModelFiles, read_model

_BOM = "\ufeff"


@dataclass(frozen=True)
class Findings:
    """What is wrong with a model's vocabulary, and what is only worth knowing."""

    problems: list[str]
    notes: list[str]


def check_vocabulary_files(folder: Path) -> Findings:
    """Compares tokens, rows and config of a model folder.

    Raises:
        InputError: the folder has no readable config, tokenizer or weights.
    """
    return find_mismatches(read_model(folder))


def find_mismatches(model: ModelFiles) -> Findings:
    """As `check_vocabulary_files`, for a model that was read."""
    problems, notes = _size_problems(model), []
    lines = _vocabulary_lines(model)
    if lines is not None:
        repeated = [token for token, count in Counter(lines).items() if count > 1]
        if repeated:
            problems.append(f"vocab.txt: {len(repeated)} tokens occur twice, such as {repeated[0]!r}")
        blank = [number for number, token in enumerate(lines, start=1) if not token]
        if blank:
            notes.append(f"vocab.txt: line {blank[0]} is blank, its row is never used")
        if lines[0].startswith(_BOM):
            problems.append("vocab.txt: begins with a byte-order mark, which makes its first token another one")
    for token in missing_specials(model):
        problems.append(f"the vocabulary has no {token}")
    if _json_disagrees(model):
        problems.append("tokenizer.json and vocab.txt give tokens different ids")
    capitals = _tokens_in_capitals(model)
    if forgets_case(model.folder):
        problems.append(
            f"{len(capitals)} tokens hold capitals, such as {capitals[0]!r}, but text is lower-cased outside this "
            "package, since no do_lower_case is set; they are never used"
        )
    elif capitals and tokenizer_settings(model.tokenizer, where=str(model.folder))["do_lower_case"]:
        example = f"{len(capitals)} tokens hold capitals, such as {capitals[0]!r}"
        notes.append(f"{example}, but text is lower-cased; they are never used")
    return Findings(problems, notes)


def _size_problems(model: ModelFiles) -> list[str]:
    problems = []
    num_tokens, num_rows = len(model.tokens), len(model.embeddings)
    if num_rows != num_tokens:
        problems.append(f"{num_rows:,} embedding rows for {num_tokens:,} tokens")
    if model.config["vocab_size"] != num_rows:
        problems.append(
            f"config.json says vocab_size {model.config['vocab_size']:,}, the weights have {num_rows:,} rows"
        )
    for name, tensor in model.token_rows().items():
        if len(tensor) != num_rows:
            problems.append(f"{name} has {len(tensor):,} rows, the word embeddings {num_rows:,}")
    pad = model.config.get("pad_token_id", 0)
    if pad != model.tokenizer.pad_token_id:
        problems.append(f"config.json says pad_token_id {pad}, [PAD] is token {model.tokenizer.pad_token_id}")
    return problems


def missing_specials(model: ModelFiles) -> list[str]:
    """Special tokens without a row of their own. transformers silently gives them the ids behind the vocabulary."""
    lines = _vocabulary_lines(model)
    if lines is None or len(model.embeddings) == len(model.tokens):
        known = {token for token in model.tokens[: len(model.embeddings)] if token}
    else:
        known = set(lines)
    return [token for token in SPECIAL_TOKENS if token not in known]


def repair_vocabulary(folder: Path, output: Path, *, seed: int = 0) -> list[str]:
    """Writes the model with exactly one row for every token, and returns what was done; nothing to do writes nothing.

    Rows that no token leads to go; tokens without row get the mean of their pieces' rows, or a random one. A row
    belongs to the token of its number: that vocab.txt is in another order than in training cannot be noticed.

    Raises:
        InputError: unreadable parts, or something is at the output.
    """
    refuse_existing(output)
    model = read_model(folder)
    if not find_mismatches(model).problems:
        return []
    plan = _plan_repair(model)
    settings: dict[str, Any] = {}
    actions = _describe_repair(model, plan)
    capitals = _tokens_in_capitals(model)
    if forgets_case(model.folder):
        settings = {"do_lower_case": False}
        actions.append(f"set do_lower_case to false, since {len(capitals)} tokens hold capitals")
    actions.append("wrote vocab.txt, tokenizer_config.json and config.json anew, all for the same tokens")
    write_planned(
        model, output, plan, tokenizer=model.tokenizer, what=f"repaired: {'; '.join(actions)}", seed=seed,
        settings=settings,
    )  # fmt: skip
    return actions


def _plan_repair(model: ModelFiles) -> RowPlan:
    without_row = set(missing_specials(model))
    rows: dict[str, int | None] = {}
    for number, token in enumerate(model.tokens):
        name = None if token is None else token.removeprefix(_BOM)
        if name is None or name in rows:
            continue
        known = number < len(model.embeddings) and (name not in without_row or name != token)
        rows[name] = number if known else None
    return plan_means(model, RowPlan(list(rows), list(rows.values()), {}))


def _describe_repair(model: ModelFiles, plan: RowPlan) -> list[str]:
    num_rows = len(model.embeddings)
    actions = []
    if num_rows > plan.num_shared:
        actions.append(
            f"kept the rows of {plan.num_shared:,} token ids, dropped {num_rows - plan.num_shared:,} that no token has"
        )
    if plan.pieces:
        first = plan.tokens[next(iter(plan.pieces))]
        actions.append(f"added {len(plan.pieces):,} rows as the mean of their pieces, such as {first!r}")
    if plan.num_random:
        new = (i for i, source in enumerate(plan.sources) if source is None and i not in plan.pieces)
        actions.append(
            f"added {plan.num_random:,} random rows, such as {plan.tokens[next(new)]!r}, which need training"
        )
    return actions


def _vocabulary_lines(model: ModelFiles) -> list[str] | None:
    file = model.folder / "vocab.txt"
    if not file.is_file():
        return None
    lines = read_vocabulary(file)
    if file.read_bytes().startswith(_BOM.encode()):
        lines[0] = _BOM + lines[0]
    return lines


def _json_disagrees(model: ModelFiles) -> bool:
    file = model.folder / "tokenizer.json"
    lines = _vocabulary_lines(model)
    if lines is None or not file.is_file():
        return False
    vocabulary = (read_json(file).get("model") or {}).get("vocab")
    if not isinstance(vocabulary, dict):
        raise InputError(f"{file}: has no model.vocab; remove it, vocab.txt is enough")
    return vocabulary != {token: number for number, token in enumerate(lines)}


def _tokens_in_capitals(model: ModelFiles) -> list[str]:
    """Tokens with A-Z, without the special ones."""
    special = set(special_tokens_of(model.tokenizer))
    return tokens_in_capitals([token for token in model.tokens if token not in special])

"""What a report shows of the models themselves: masked words filled in side by side, and how alike layers are.

The answers go to report/examples.json, which release/ reads; they are computed again only when a model has changed.
n tokens, H width, K sentences.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertForMaskedLM

from distill.corpus.order import permuted_row, sample_key
from distill.corpus.rows import PackedRows
from distill.corpus.statistics import SCRIPTS, TokenTable
from distill.corpus.tokenizing import load_tokenizer
from distill.downstream.run import digest_model
from distill.durable import write_json
from distill.errors import InputError
from distill.json_file import read_object
from distill.modeling.models import load_masked_lm
from distill.modeling.weight_files import has_head
from distill.release.run_folder import EXAMPLES_FILE, RunFolder
from distill.training.matches import resolve_matches

NUM_SENTENCES = 6
MOST_TOKENS = 2048
"""Of the rows whose hidden states are compared."""
MOST_COMPARED = 1024
"""Tokens whose hidden states are compared: the similarity takes an n x n matrix a layer."""
TOP_K = 3
SENTENCE_ENDS = "\u3002\uff01\uff1f!?"
SHORTEST, LONGEST = 8, 32
"""Tokens of a sentence to fill in."""


@dataclass(frozen=True)
class Sentence:
    """A sentence with one word to guess."""

    input_ids: list[int]
    """With [CLS], [SEP] and the masks."""
    places: list[int]
    """Of the masks."""
    before: str
    word: list[str]
    """The true tokens, without '##'."""
    after: str


def examine_models(run: RunFolder) -> None:
    """Asks the models of a run that are finished, and their teachers; writes EXAMPLES_FILE.

    What cannot be examined becomes a line of `run.problems`.
    """
    folders = _find_models(run)
    datasets = [dataset.name if (dataset := run.dataset(stage)) else None for stage in run.stages]
    digests: dict[str, str] = {}
    for name, folder in folders.items():
        with run.noting():
            digests[name] = digest_model(folder)
    folders = {name: folders[name] for name in digests}
    key = {"models": digests, "datasets": datasets}
    if not folders or _is_known(key, run):
        return
    load = lru_cache(maxsize=4)(_load)
    similarities: list[dict[str, Any]] = []
    found = {"key": key, "fill_mask": _fill_masks(run, folders, load), "similarity": similarities}
    for stage in run.stages:
        for name in stage["students"]:
            if stage["teacher"] in folders and name in folders:
                with run.noting():
                    similarities += _compare_layers(run, stage, name, folders, load)
    with run.noting():
        write_json(run.path / EXAMPLES_FILE, found)


def _is_known(key: Mapping[str, Any], run: RunFolder) -> bool:
    """Whether the answers there are from these models and data; what is not at hand now, but was, is not missed."""
    names = {name for stage in run.stages for name in (stage["teacher"], *stage["students"])}
    # A damaged file is made again, which is no problem of the run's.
    with contextlib.suppress(InputError, OSError, AttributeError, TypeError, KeyError):
        known = read_object(run.path / EXAMPLES_FILE, what="the models' answers")["key"]
        return (
            key["models"].items() <= known["models"].items() and known["models"].keys() <= names
            and len(known["datasets"]) == len(key["datasets"])
            and all(now in (None, was) for now, was in zip(key["datasets"], known["datasets"], strict=True))
        )  # fmt: skip
    return False


def _find_models(run: RunFolder) -> dict[str, Path]:
    """Name in the recipe -> folder, in the order of the chain; teachers from elsewhere too."""
    names = [name for stage in run.stages for name in (stage["teacher"], *stage["students"]) if name]
    folders = {name: folder for name in names if (folder := run.model(name))}
    available = psutil.virtual_memory().available
    for name, folder in list(folders.items()):
        size = sum(path.stat().st_size for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")))
        if 2 * size > available:  # weights may be stored in half of the four bytes that they take in memory
            run.problems.append(f"{folder}: too large for {available >> 20:,} MB of free memory; not examined")
            del folders[name]
    return folders


def _load(folder: Path, need_head: bool) -> BertForMaskedLM:
    return load_masked_lm(folder, need_head=need_head).eval()


def _open_rows(run: RunFolder, stage: Mapping[str, Any]) -> tuple[PackedRows, TokenTable] | None:
    """The dev rows of a stage, or its train rows without dev, and its tokens; None if they are not there."""
    dataset, tokenizer = run.dataset(stage), run.tokenizer(stage)
    if dataset is None or tokenizer is None:
        return None
    split = next((dataset / name for name in ("dev", "train") if (dataset / name / "state.json").is_file()), None)
    return (PackedRows(split), TokenTable(load_tokenizer(tokenizer))) if split else None


def _shuffled(packed: PackedRows, number: int) -> NDArray[np.int64]:
    positions = np.arange(min(number, len(packed)))
    return permuted_row(positions, rows=len(packed), key=sample_key(0, "examples"))


def _fill_masks(run: RunFolder, folders: Mapping[str, Path], load: Any) -> dict[str, Any]:
    """The same sentences for every model that knows the tokens of the first stage's dataset."""
    opened = None
    with run.noting():
        opened = next((found for stage in run.stages if (found := _open_rows(run, stage))), None)
    if opened is None:
        return {"sentences": [], "answers": {}}
    sentences, table = choose_sentences(*opened), opened[1]
    answers: dict[str, Any] = {}
    for name, folder in folders.items() if sentences else ():
        with run.noting():
            if TokenTable(load_tokenizer(folder)).tokens != table.tokens or not has_head(folder):
                continue
            model = load(folder, True)
            if max(len(sentence.input_ids) for sentence in sentences) <= model.config.max_position_embeddings:
                answers[name] = [_fill(model, sentence, table) for sentence in sentences]
    return {"sentences": [asdict(sentence) for sentence in sentences], "answers": answers}


def choose_sentences(packed: PackedRows, table: TokenTable) -> list[Sentence]:
    """At most NUM_SENTENCES, one a row, each with a word of one to four tokens masked; always the same ones."""
    random = np.random.default_rng(0)
    found: list[Sentence] = []
    for number in _shuffled(packed, 20 * NUM_SENTENCES):
        input_ids, continuation, length = packed.rows(np.array([number]))
        ids, joined = input_ids[0, : length[0]].tolist(), continuation[0, : length[0]].tolist()
        words = _words(ids, joined)
        spans = [span for span in _sentence_spans(words, table) if any(_can_be_guessed(word, table) for word in span)]
        if spans:
            found.append(_mask_word(spans[random.integers(len(spans))], table, random))
        if len(found) == NUM_SENTENCES:
            break
    return found


def _words(ids: Sequence[int], joined: Sequence[bool]) -> list[list[int]]:
    """The words of a row; [CLS] and [SEP] are words of their own."""
    words: list[list[int]] = []
    for token, continues in zip(ids, joined, strict=True):
        if continues and words:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _sentence_spans(words: Sequence[list[int]], table: TokenTable) -> list[list[list[int]]]:
    """Whole sentences of a fit length: words between two ends; what a row's borders cut is left out."""
    spans: list[list[list[int]]] = []
    current: list[list[int]] = []
    is_whole = False
    for word in words:
        if not table.is_text_V[word[0]]:
            current, is_whole = [], False
            continue
        current.append(word)
        if table.texts[word[-1]] in SENTENCE_ENDS:
            if is_whole and SHORTEST <= sum(map(len, current)) <= LONGEST:
                spans.append(current)
            current, is_whole = [], True
    return spans


def _can_be_guessed(word: Sequence[int], table: TokenTable) -> bool:
    named = ("Han", "Latin")
    return len(word) <= 4 and all(SCRIPTS[table.script_V[token]] in named for token in word)


def _mask_word(words: Sequence[list[int]], table: TokenTable, random: np.random.Generator) -> Sentence:
    choices = [i for i, word in enumerate(words) if _can_be_guessed(word, table)]
    # Two characters are most of Chinese words; longer ones are often names, which nobody can guess.
    common = [i for i in choices if len(words[i]) == 2] or choices
    chosen = common[random.integers(len(common))]
    before, after = sum(words[:chosen], []), sum(words[chosen + 1 :], [])
    places = list(range(1 + len(before), 1 + len(before) + len(words[chosen])))
    cls, sep = table.tokens.index("[CLS]"), table.tokens.index("[SEP]")
    input_ids = [cls, *before, *[table.masks.mask_id] * len(places), *after, sep]
    return Sentence(
        input_ids, places, _text(before, table), [table.texts[t] for t in words[chosen]], _text(after, table)
    )


def _text(ids: Sequence[int], table: TokenTable) -> str:
    """Tokens as text; Latin words keep their spaces."""
    text = ""
    for token in ids:
        word = table.texts[token]
        needs_space = text[-1:].isascii() and text[-1:].isalnum() and word[:1].isascii() and word[:1].isalnum()
        text += (" " if needs_space and not table.tokens[token].startswith("##") else "") + word
    return text


@torch.inference_mode()
def _fill(model: BertForMaskedLM, sentence: Sentence, table: TokenTable) -> list[list[dict[str, Any]]]:
    """The TOP_K likeliest tokens of each mask, with their probabilities."""
    states = model.bert(torch.tensor([sentence.input_ids])).last_hidden_state[0, sentence.places]
    best = model.cls(states).softmax(-1).topk(min(TOP_K, len(table.tokens)))
    return [
        [{"token": table.texts[token], "score": round(score, 4)} for score, token in zip(scores, tokens, strict=True)]
        for scores, tokens in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _compare_layers(
    run: RunFolder, stage: Mapping[str, Any], student: str, folders: Mapping[str, Path], load: Any
) -> list[dict[str, Any]]:
    """CKA of every hidden state of a student with every one of its teacher, and which pairs were matched."""
    opened = _open_rows(run, stage)
    if opened is None:
        return []
    teacher, settings = stage["teacher"], stage["students"][student]
    a, b = load(folders[student], False), load(folders[teacher], False)
    matches = resolve_matches(settings["matches"], b.config, a.config, where=f"student '{student}'")
    pairs = sorted({(m["layer_S"], m["layer_T"]) for m in matches
                    if m["feature"] == "hidden" and isinstance(m["layer_S"], int)})  # fmt: skip
    own, taught = (gram_matrices(hidden_states(model, opened[0])) for model in (a, b))
    found = [[similarity(x, y) for y in taught] for x in own]
    values = [[round(value, 4) if math.isfinite(value) else None for value in row] for row in found]
    return [{"stage": stage["name"], "student": student, "teacher": teacher, "pairs": pairs, "cka": values,
             "tokens": len(own[0])}]  # fmt: skip


@torch.inference_mode()
def hidden_states(model: BertForMaskedLM, packed: PackedRows) -> list[Tensor]:
    """[n, H] of every hidden state (embeddings first), at evenly spread tokens of some rows without masks."""
    rows = _shuffled(packed, max(1, MOST_TOKENS // packed.max_seq_length))
    input_ids, _, length = packed.rows(rows)
    is_filled = torch.from_numpy(np.arange(input_ids.shape[1]) < length[:, None])
    output = model.bert(
        torch.from_numpy(input_ids), attention_mask=is_filled.long(), output_hidden_states=True
    ).hidden_states
    places = is_filled.flatten().nonzero().flatten()
    places = places[torch.linspace(0, len(places) - 1, min(len(places), MOST_COMPARED)).long()]
    return [layer.flatten(0, 1)[places].float() for layer in output]


def gram_matrices(layers: Sequence[Tensor]) -> list[Tensor]:
    """[n, n] inner products of centred states, of Frobenius norm 1."""
    centred = [layer - layer.mean(0) for layer in layers]
    grams = [layer @ layer.T for layer in centred]
    return [gram / gram.norm().clamp_min(1e-12) for gram in grams]


def similarity(a: Tensor, b: Tensor) -> float:
    """Linear CKA of two layers from their normed Gram matrices: 1 = alike up to rotation and scale, 0 = unrelated.

    Kornblith et al. 2019, https://arxiv.org/abs/1905.00414, equation 3 with linear kernels; widths may differ.
    """
    return float((a * b).sum())

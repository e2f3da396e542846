"""Questions about long contexts: sliding windows of tokens, and answers from the scores of their tokens.

1. A context that does not fit is cut into windows that overlap; each holds the whole question before it.
2. A model scores every token as first and as last of the answer.
3. The best pairs of all windows of a question compete; the answer is the context's own text from the first character of
   the first token to the last of the last one, so it always stands in the context.
"""

# W windows, L tokens of the longest window

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.downstream.examples import Question

if TYPE_CHECKING:
    from transformers import BertTokenizer

MAX_QUESTION_LENGTH = 64
"""Tokens of a question that are kept, as in BERT's SQuAD script."""
MAX_OVERLAP = 128
"""Tokens that two neighbouring windows share at most."""
_QUESTIONS_AT_ONCE = 1_000


@dataclass(frozen=True)
class Window:
    """One window of one question."""

    question: int
    """Number of its question."""
    input_ids: list[int]
    token_type_ids: list[int]
    offsets: np.ndarray
    """[tokens, 2]: first character in the context and the one after the last; -1 where no token of the context is."""
    positions: tuple[int, int]
    """First and last token of the answer; (0, 0), which is [CLS], if it is not whole in this window or not known."""


@dataclass(frozen=True)
class Candidate:
    """A possible answer: characters `start` to `end` (not included) of the context; a higher score is better."""

    text: str
    start: int
    end: int
    score: float


def make_windows(questions: Sequence[Question], tokenizer: "BertTokenizer", max_length: int) -> Iterator[Window]:
    """The windows of each question in order, of at most `max_length` tokens, special ones included (at least 16)."""
    question_length = min(MAX_QUESTION_LENGTH, max_length // 2 - 3)
    overlap = min(MAX_OVERLAP, (max_length - question_length - 3) // 2)
    for begin in range(0, len(questions), _QUESTIONS_AT_ONCE):
        some = questions[begin : begin + _QUESTIONS_AT_ONCE]
        encoded: Any = tokenizer(
            _shortened([question.question for question in some], tokenizer, question_length),
            [question.context for question in some],
            truncation="only_second", max_length=max_length, stride=overlap,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        for number, place in enumerate(encoded["overflow_to_sample_mapping"]):
            token_type_ids = encoded["token_type_ids"][number]
            offsets = np.asarray(encoded["offset_mapping"][number], dtype=np.int32)
            in_context = (np.asarray(token_type_ids) == 1) & (offsets[:, 1] > offsets[:, 0])  # [SEP] has no characters
            offsets[~in_context] = -1
            position = _answer_in_window(some[place], offsets)
            yield Window(begin + place, encoded["input_ids"][number], token_type_ids, offsets, position)


def _shortened(texts: list[str], tokenizer: "BertTokenizer", length: int) -> list[str]:
    """The texts, cut after `length` tokens, of which one character may be several: Hangul, which is taken apart."""
    offsets: Any = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        text if len(own) <= length else text[: own[length - 1][1]] for text, own in zip(texts, offsets, strict=True)
    ]


def _answer_in_window(question: Question, offsets: np.ndarray) -> tuple[int, int]:
    """The tokens of a gold answer that stands whole in a window: what a model learns.

    Of several, the first whose borders are borders of tokens: "4" inside the token "34" cannot be said.
    """
    found = []
    for answer in question.answers:
        if answer.start is not None and (position := answer_position(offsets, answer.start, answer.text)) != (0, 0):
            start, end = offsets[position[0], 0], offsets[position[1], 1]
            if question.context[start:end] == answer.text.strip():
                return position
            found.append(position)
    return found[0] if found else (0, 0)


def answer_position(offsets: np.ndarray, start: int, text: str) -> tuple[int, int]:
    """The first and last token that hold characters of an answer; (0, 0) unless all of it is in the window.

    Args:
        offsets: [tokens, 2], those of a Window.
        start: where `text` begins in the context.
    """
    stripped = text.strip()
    first_character = start + text.index(stripped)
    end = first_character + len(stripped)
    context = np.flatnonzero(offsets[:, 0] >= 0)
    if not stripped or not context.size:
        return (0, 0)
    inside = context[(offsets[context, 1] > first_character) & (offsets[context, 0] < end)]
    if not inside.size or offsets[context[0], 0] > first_character or offsets[context[-1], 1] < end:
        return (0, 0)
    return int(inside[0]), int(inside[-1])


def find_candidates(
    questions: Sequence[Question],
    windows: Sequence[Window],
    start_scores: np.ndarray,
    end_scores: np.ndarray,
    *,
    max_answer_length: int,
    num_best: int = 20,
) -> list[list[Candidate]]:
    """The best answers of each question, best first, at most `num_best`; empty where a question has no window.

    Args:
        start_scores, end_scores: [W, L], a model's logits; what stands beyond a window's tokens is not looked at.
        max_answer_length: tokens.
    """
    found: list[list[Candidate]] = [[] for _ in questions]
    for window, starts, ends in zip(windows, start_scores, end_scores, strict=True):
        context = questions[window.question].context
        found[window.question] += _window_candidates(window, context, starts, ends, max_answer_length, num_best)
    return [_best_texts(candidates, num_best) for candidates in found]


def _window_candidates(
    window: Window, context: str, starts: np.ndarray, ends: np.ndarray, max_answer_length: int, num_best: int
) -> Iterator[Candidate]:
    tokens = np.flatnonzero(window.offsets[:, 0] >= 0)
    firsts = tokens[np.argsort(-starts[tokens], kind="stable")[:num_best]]
    lasts = tokens[np.argsort(-ends[tokens], kind="stable")[:num_best]]
    scores = starts[firsts][:, None].astype(np.float64) + ends[lasts][None, :]
    lengths = lasts[None, :] - firsts[:, None] + 1
    scores[(lengths < 1) | (lengths > max_answer_length)] = -np.inf
    for flat in np.argsort(-scores, axis=None, kind="stable")[:num_best]:
        i, j = np.unravel_index(flat, scores.shape)
        if np.isneginf(scores[i, j]):
            return
        start, end = int(window.offsets[firsts[i], 0]), int(window.offsets[lasts[j], 1])
        yield Candidate(context[start:end], start, end, float(scores[i, j]))


def _best_texts(candidates: list[Candidate], num_best: int) -> list[Candidate]:
    """The best candidate of each text, best first."""
    best: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=lambda candidate: -candidate.score):
        best.setdefault(candidate.text, candidate)
    return list(best.values())[:num_best]

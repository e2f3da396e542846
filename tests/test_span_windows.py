"""Sliding windows: a model that marks the right tokens gets every answer, however long the context."""

import random

import numpy as np
import pytest
from transformers import BertTokenizer

from distill.corpus.tokenizing import load_tokenizer
from distill.downstream.examples import Answer, Question
from distill.downstream.span_metrics import segments, span_metrics
from distill.downstream.span_windows import MAX_QUESTION_LENGTH, answer_position, find_candidates, make_windows

HAN = [chr(0x4E00 + i) for i in range(60)]
WORDS = ["nexon", "2008", "##年", "csol", "3", "##d"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *HAN, "，", "。", "《", "》", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return load_tokenizer(folder)


def context(rng, length):
    pieces = [*HAN, "，", "。", "《", "》", "“", " Nexon ", "2008", " 3D ", "\n"]
    text = ""
    while len(text) < length:
        text += rng.choice(pieces)
    return text


def questions(count=60, seed=0):
    """Questions about contexts of 5 to 900 characters, with two answers each, of which one may be long."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        text = context(rng, rng.choice([5, 40, 300, 900]))
        answers = []
        while len(answers) < 2:
            length = rng.randint(1, min(30, len(text)))  # fewer than windows of 128 tokens share
            start = rng.randint(0, len(text) - length)
            piece = text[start : start + length]
            # Latin words are one token: an answer does not begin or end inside one.
            inside = any(0 < i < len(text) and text[i - 1].isalnum() and text[i].isascii() and text[i].isalnum()
                         and text[i - 1].isascii() for i in (start, start + length))  # fmt: skip
            if piece.strip() == piece and segments(piece) and not inside:  # punctuation alone has no F1
                answers.append(Answer(piece, start))
        made.append(Question(f"Q{number}", text, "".join(rng.choices(HAN, k=rng.choice([4, 90]))), tuple(answers)))
    return made


def marks(windows, number_of_tokens, which):
    """Scores of a model that knows the gold tokens of an answer."""
    scores = np.zeros((len(windows), number_of_tokens))
    for row, window in zip(scores, windows, strict=True):
        row[window.positions[which]] = 9 if window.positions != (0, 0) else 0
    return scores


@pytest.mark.parametrize("max_length", [128, 256, 512])
def test_a_model_that_marks_the_right_tokens_gets_every_answer(tokenizer, max_length):
    asked = questions()
    windows = list(make_windows(asked, tokenizer, max_length))
    length = max(len(window.input_ids) for window in windows)
    assert length == max_length
    found = find_candidates(asked, windows, marks(windows, length, 0), marks(windows, length, 1), max_answer_length=60)
    predicted = {question.id: candidates[0].text for question, candidates in zip(asked, found, strict=True)}
    gold = {question.id: [answer.text for answer in question.answers] for question in asked}
    assert span_metrics(gold, predicted) == {"span_f1": 100.0, "exact_match": 100.0}
    for question, candidates in zip(asked, found, strict=True):
        assert all(question.context[c.start : c.end] == c.text for c in candidates)


def test_windows_cover_every_token_of_the_context_and_hold_the_question(tokenizer):
    question = Question("Q", "".join(HAN) * 10, "".join(HAN[:5]), ())
    windows = list(make_windows([question], tokenizer, 100))
    covered = {int(start) for window in windows for start in window.offsets[:, 0] if start >= 0}
    assert covered == set(range(600))
    assert all(window.input_ids[1:6] == windows[0].input_ids[1:6] for window in windows)
    assert all(sum(window.token_type_ids) == len(window.input_ids) - 7 for window in windows)
    assert all(window.positions == (0, 0) for window in windows)


def test_a_long_question_is_cut(tokenizer):
    question = Question("Q", "".join(HAN), "".join(HAN) * 3, ())
    (window,) = make_windows([question], tokenizer, 256)
    assert len(window.input_ids) == MAX_QUESTION_LENGTH + len(HAN) + 3


def test_a_question_of_characters_that_are_several_tokens_is_cut():
    """BERT's tokenizer takes Hangul apart: of 20 characters it made 60 tokens, for which a window of 64 has no room."""
    pieces = [*"\u1112\u1161\u11ab", *(f"##{part}" for part in "\u1112\u1161\u11ab")]
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *HAN, *pieces])}
    question = Question("Q", "".join(HAN), "\ud55c" * 20, ())
    windows = list(make_windows([question], BertTokenizer(vocab=vocabulary), 64))
    assert all(len(window.input_ids) <= 64 for window in windows)
    assert {int(token) for window in windows for token in window.offsets[:, 0]} >= set(range(len(HAN)))


OFFSETS = np.array([[-1, -1], [-1, -1], [10, 11], [11, 15], [15, 16], [16, 17], [-1, -1]])


@pytest.mark.parametrize(
    ("start", "text", "expected"),
    [
        (10, "甲", (2, 2)),
        (11, "2008", (3, 3)),
        (12, "08", (3, 3)),  # the token that holds it
        (11, "2008年", (3, 4)),
        (14, " 年 ", (4, 4)),
        (16, "乙丙", (0, 0)),  # goes on beyond the window
        (9, "子甲", (0, 0)),
        (40, "丁", (0, 0)),
    ],
)
def test_position_of_an_answer(start, text, expected):
    assert answer_position(OFFSETS, start, text) == expected


def test_of_several_answers_one_is_learned_that_tokens_can_say(tokenizer):
    text = HAN[0] + "2008" + HAN[1] * 3
    question = Question("Q", text, HAN[7], (Answer("08", 3), Answer(HAN[1] * 2, 5)))
    (window,) = make_windows([question], tokenizer, 32)
    first, last = window.positions
    assert text[window.offsets[first, 0] : window.offsets[last, 1]] == HAN[1] * 2


def test_answers_run_forward_within_their_length_and_the_context(tokenizer):
    question = Question("Q", "".join(HAN[:6]), HAN[7], ())
    (window,) = make_windows([question], tokenizer, 32)
    starts, ends = np.zeros((1, 40)), np.zeros((1, 40))
    starts[0, [0, 1, 6]] = [50, 40, 3]  # [CLS], the question, the fourth character of the context
    ends[0, [0, 4, 5, 8, 20]] = [50, 9, 2, 1, 60]  # before the start, after it, padding
    (candidates,) = find_candidates([question], [window], starts, ends, max_answer_length=2)
    assert candidates[0].text == HAN[0] + HAN[1]  # 9 + 0: the end that scores most has only starts of 0 before it
    best_from_fourth = next(candidate for candidate in candidates if candidate.start == 3)
    assert best_from_fourth.score == 3 and best_from_fourth.end - best_from_fourth.start <= 2
    assert [c.score for c in candidates] == sorted((c.score for c in candidates), reverse=True)
    assert len({c.text for c in candidates}) == len(candidates)

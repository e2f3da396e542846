"""Exact match and F1 of answers, by the rules of CMRC 2018's evaluation script, which also serves DRCD.

Texts are lower-cased and stripped of the script's list of punctuation (mostly Chinese; ASCII's stops, brackets and
quotes stay). For F1 a text is cut into single Chinese characters and Latin words, and the overlap of two texts is their
longest common run of segments, not their common bag of words as in SQuAD's script. Of several gold answers the best
counts. Source: https://github.com/ymcui/cmrc2018, squad-style-data/cmrc2018_evaluate.py, version v5.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from distill.downstream.metrics import percent

PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""What the script takes for punctuation. Its list has the six-dot ellipsis as one entry, which no character equals."""
_HAN = re.compile("[\u4e00-\u9fa5]")
_APART = r'()\[\]{}<>"?!;@#$%&'
# As nltk.word_tokenize cuts: brackets, quotes and marks by themselves, a comma before a digit and a stop before the end
# inside a word. (It would also split contractions such as "it's".)
_WORDS = re.compile(rf"\.{{3,}}|[{_APART}]|(?:[^{_APART},.\s]|,(?=\d)|\.(?!\.\.|\s*$))+|[.,]")


def span_metrics(answers: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> dict[str, float]:
    """`span_f1` and `exact_match` in percent over all questions; an unanswered one counts 0.

    Args:
        answers: question id -> gold answers, at least one each.
        predictions: question id -> predicted answer.
    """
    f1 = sum(answer_f1(gold, predictions.get(key, "")) for key, gold in answers.items())
    matches = sum(answer_matches(gold, predictions.get(key, "")) for key, gold in answers.items())
    return {"span_f1": percent(f1 / len(answers)), "exact_match": percent(matches / len(answers))}


def answer_f1(gold: Iterable[str], predicted: str) -> float:
    """F1 of the segments of an answer, 0 to 1, against the closest gold answer."""
    ours = segments(predicted)
    return max(_run_f1(segments(answer), ours) for answer in gold)


def answer_matches(gold: Iterable[str], predicted: str) -> bool:
    """Whether an answer is one of the gold answers, case and punctuation set aside."""
    return _without_punctuation(predicted) in map(_without_punctuation, gold)


def segments(text: str) -> list[str]:
    """A text as single Chinese characters and Latin words, punctuation left out."""
    found: list[str] = []
    for piece in re.split("([\u4e00-\u9fa5])", _without_punctuation(text)):
        found += [piece] if _HAN.fullmatch(piece) else _WORDS.findall(piece)
    return found


def _without_punctuation(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in PUNCTUATION)


def _run_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    common = _longest_common_run(gold, predicted)
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _longest_common_run(a: Sequence[str], b: Sequence[str]) -> int:
    """How many segments in a row both have."""
    best, above = 0, [0] * (len(b) + 1)
    for segment in a:
        row = [0] * (len(b) + 1)
        for j, other in enumerate(b, start=1):
            if segment == other:
                row[j] = above[j - 1] + 1
                best = max(best, row[j])
        above = row
    return best

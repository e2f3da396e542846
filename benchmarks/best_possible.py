"""What a model that marks the right tokens would score: how much of a task's answers windows and tokens lose.

    python benchmarks/best_possible.py cmrc2018 --data dataset/tasks --tokenizer hfl/chinese-roberta-wwm-ext

For reading comprehension and tags. Scores come from the labels of the features, not from a model; everything after
them is as in fine-tuning. Prints the notes of the split, and one JSON line.
"""

import argparse
import json
from typing import Any

import numpy as np

from distill.corpus.tokenizing import load_tokenizer
from distill.downstream.encoding import IGNORE_INDEX, encode_split, measure
from distill.downstream.tags import tag_names
from distill.downstream.task import load_task
from distill.downstream.task_data import load_task_data
from distill.modeling.models import find_model

SURE = 9.0
"""The score of a right token or tag; all others have 0."""


def perfect_scores(kind: str, features: list[dict[str, Any]], num_tags: int) -> Any:
    """Scores as a model gives them: [F, L] of first and of last tokens, or [F, L, C] of tags."""
    length = max(len(feature["input_ids"]) for feature in features)
    if kind == "span":
        scores = np.zeros((2, len(features), length))
        for row, feature in enumerate(features):
            if feature["end_positions"]:  # 0 is [CLS]: the answer is not in this window
                scores[0, row, feature["start_positions"]] = scores[1, row, feature["end_positions"]] = SURE
        return scores[0], scores[1]
    tags = np.zeros((len(features), length, num_tags))
    for row, feature in enumerate(features):
        for place, tag in enumerate(feature["labels"]):
            if tag != IGNORE_INDEX:
                tags[row, place, tag] = SURE
    return tags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", help="a task of the kinds span and tags, such as cmrc2018, drcd or cluener")
    parser.add_argument("--data", default="dataset/tasks", help="as for distill finetune")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--tokenizer", required=True, help="folder with vocab.txt, or hub id")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a window or text")
    arguments = parser.parse_args()
    task = load_task(arguments.task)
    data = load_task_data(task, arguments.data, [arguments.split])
    split = data.splits[arguments.split]
    tokenizer = load_tokenizer(find_model(arguments.tokenizer, weights=False))
    encoded = encode_split(task, split.examples, data.labels, tokenizer, arguments.max_length)
    answers = encoded.answers(perfect_scores(task.kind, encoded.features, len(tag_names(data.labels))))
    for what, places in split.noted.items():
        print(f"{len(places):,} {what}: {', '.join(places)}")
    print(json.dumps({
        "benchmark": "best_possible", "task": task.name, "split": split.name, "examples": len(split.examples),
        "features": len(encoded.features), "max_length": arguments.max_length,
        "metrics": measure(task, split.examples, data.labels, answers),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

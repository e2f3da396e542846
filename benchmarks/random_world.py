"""A teacher with random weights, its tokenizer and packed random rows: all that a stage reads, to measure its speed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from distill_step import CONFIGS

from distill.corpus.rows import RowWriter
from distill.modeling.models import build_model, load_config, save_model
from distill.recipe import Stage
from distill.training.metrics import StatusFile, read_metrics
from distill.training.processes import Processes
from distill.training.stage import StagePaths, train_stage

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLS, SEP = 2, 3


class NeverStop:
    """A stage asks it between its steps."""

    signum = 0

    def listen(self) -> None: ...

    def interrupts(self) -> bool:
        return False


def write_random_teacher(folder: Path, config: str) -> Path:
    """The model of a config of distill_configs with random weights and a vocabulary of made-up tokens."""
    loaded = load_config(CONFIGS / f"{config}.json")
    tokenizer = folder.parent / "tokenizer"
    tokenizer.mkdir(parents=True)
    tokens = [*SPECIAL, *(chr(0x3400 + i) for i in range(loaded.vocab_size - len(SPECIAL)))]
    (tokenizer / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 512}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_model(build_model(loaded, seed=1), folder, tokenizer=tokenizer, card="random weights\n")
    return folder


def write_random_rows(folder: Path, *, rows: int, length: int, vocab_size: int) -> Path:
    """A packed dataset of full rows, without dev part."""
    input_ids = np.random.default_rng(0).integers(len(SPECIAL), vocab_size, (rows, length))
    input_ids[:, 0], input_ids[:, -1] = CLS, SEP
    flags = np.zeros(input_ids.shape, dtype=bool)
    writer = RowWriter(folder / "train", max_seq_length=length, vocab_size=vocab_size)
    writer.write(input_ids, flags, flags, np.full(rows, length))
    writer.close()
    return folder


def make_stage(teacher: Path, students: Mapping[str, Any], **fields: Any) -> Stage:
    """A stage of token masking that logs every step and saves at its end only."""
    fields = {"log_every": 1, "save_every": 10**9, "eval_every": 10**9, **fields}
    data = {"text": ["packed already"], "mask": "token"}
    return Stage(name="stage", teacher=str(teacher), students=dict(students), data=data, **fields)


def run_stage(
    stage: Stage, output: Path, processes: Processes, *, teacher: Path, dataset: Path
) -> dict[str, list[dict[str, Any]]]:
    """Trains a stage as `distill train` does. Returns each student's records of its steps."""
    paths = StagePaths(
        dataset=dataset, tokenizer=teacher, teacher=teacher, inits={}, stage=output / "stages" / stage.name,
        models=output / "models",
    )  # fmt: skip
    names = list(stage.students)
    train_stage(stage, names, paths, dict.fromkeys(names, ""), processes, NeverStop(), StatusFile(paths.status))
    records = read_metrics(paths.stage / "metrics.jsonl")
    return {name: [r for r in records if (r["student"], r["split"]) == (name, "train")] for name in names}

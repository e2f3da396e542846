"""Fine-tuning one model on one task with one seed, by transformers.Trainer.

1. Train with linear warm-up and decay, batches padded to their longest row, dev measured after every epoch.
2. The epoch with the best dev score (the mean of the task's metrics) is kept.
3. Its answers for dev, and for test, go into predictions files; metrics.json is written last, so a run is finished or
   it is repeated.

Under torchrun the processes share every batch (sharing.py) and the rows of dev and test; the first one writes.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BertTokenizer, EvalPrediction, PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from distill.downstream.augmentation import augment_texts
from distill.downstream.distillation import TaskObjective, check_teacher, find_matches, needs_eager
from distill.downstream.encoding import (
    IGNORE_INDEX,
    Encoded,
    Features,
    answer_record,
    encode_split,
    measure,
    score_record,
)
from distill.downstream.examples import texts_of
from distill.downstream.metrics import mean_score
from distill.downstream.run import METRICS_FILE, Distillation, Hyperparameters, read_task_file, write_task_file
from distill.downstream.sharing import LabelObjective
from distill.downstream.task import SCORED_KINDS, Task
from distill.downstream.task_data import TaskData, can_score, require_labels
from distill.downstream.task_model import collator, load_finetuned, load_for_finetuning, save_finetuned
from distill.downstream.trainer import (
    EVAL_BATCH_SIZE,
    LOSS,
    SCORE,
    AdvanceBar,
    SharingTrainer,
    TellProgress,
    computes_in_bf16,
    make_arguments,
    mean_loss,
    on_one_gpu,
)
from distill.durable import place_folder, write_json, write_whole
from distill.modeling.models import quiet_transformers
from distill.progress import show_progress

CHECKPOINTS = "checkpoints"
"""Of the epochs of a run that is under way, in its folder."""


def finetune(
    model_folder: Path,
    data: TaskData,
    hyperparameters: Hyperparameters,
    folder: Path,
    *,
    show: Callable[[str], None],
    keep_model: bool = True,
    distillation: Distillation | None = None,
) -> dict[str, Any]:
    """Trains on `train`, measures `dev`, and leaves metrics.json, predictions and model/ in `folder`.

    Args:
        data: with splits train and dev, and test if its answers are wanted.
        show: is given a line at the start, twice a minute and an epoch, in the first process.
        keep_model: whether the fine-tuned weights stay.
        distillation: learn from a teacher, too.
    Returns: what metrics.json holds; metrics are percents.
    Raises:
        InputError: splits without labels, or a model that does not fit; see load_for_finetuning.
    """
    is_first = int(os.environ.get("RANK", 0)) == 0
    try:
        if is_first:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # of a run that was killed
        return _finetune(model_folder, data, hyperparameters, folder, show, keep_model, distillation)
    finally:
        if is_first:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _finetune(
    model_folder: Path, data: TaskData, hyperparameters: Hyperparameters, folder: Path, show: Callable[[str], None],
    keep_model: bool, distillation: Distillation | None,
) -> dict[str, Any]:  # fmt: skip
    task, train, dev = data.task, data.splits["train"], data.splits["dev"]
    for split in (train, dev):
        require_labels(task, split)
    matches = []
    if distillation:
        check_teacher(distillation, model_folder, task, data.labels)
        matches = find_matches(distillation, model_folder)
    student, tokenizer = load_for_finetuning(
        model_folder, task, data.labels, max_length=hyperparameters.max_length, seed=hyperparameters.seed,
        eager=needs_eager(matches),
    )  # fmt: skip
    encoded = {name: encode_split(task, split.examples, data.labels, tokenizer, hyperparameters.max_length)
               for name, split in data.splits.items()}  # fmt: skip

    features = encoded["train"].features
    if distillation and distillation.augment:
        features = features + _augmented(model_folder, data, hyperparameters, distillation.augment, tokenizer)

    def dev_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        found = measure(task, dev.examples, data.labels, encoded["dev"].answers(evaluated.predictions))
        loss = mean_loss(task.kind, evaluated.predictions, evaluated.label_ids)
        return {**found, SCORE: mean_score(found, task.metrics), LOSS: loss}

    trainer = SharingTrainer(
        TaskObjective(student, task, distillation, matches) if distillation else LabelObjective(student),
        make_arguments(folder / CHECKPOINTS, hyperparameters, task, has_teacher=distillation is not None),
        collator(task, tokenizer), train_dataset=features, eval_dataset=encoded["dev"].features,
        compute_metrics=dev_metrics, callbacks=[TellProgress(task, show)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    if trainer.args.process_index:
        torch.manual_seed(hyperparameters.seed + trainer.args.process_index)  # other dropout than the first process
    start = time.monotonic()
    with quiet_transformers():
        trainer.train()
    seconds = time.monotonic() - start
    trainer.compute_metrics = None  # it knows dev alone
    epochs = [_epoch(task, record) for record in trainer.state.log_history if f"eval_{SCORE}" in record]
    measured = {name: _finish_split(data, name, encoded[name], trainer, folder)
                for name in data.splits if name != "train"}  # fmt: skip
    results = {
        "task": task.name, "kind": task.kind, "texts": task.describe_texts(), "metric_names": task.metrics,
        "model": str(model_folder), "hyperparameters": asdict(hyperparameters), "epochs": epochs,
        "distillation": {**asdict(distillation), "teacher": str(distillation.teacher)} if distillation else None,
        "best_epoch": max(epochs, key=lambda epoch: epoch[SCORE])["epoch"],
        **measured,
        "num_train_examples": len(train.examples), "num_train_features": len(features),
        "labels": list(data.labels), "files": {name: list(split.files) for name, split in data.splits.items()},
        "notes": {name: split.noted for name, split in data.splits.items()},
        "train_seconds": round(seconds, 2), "device": str(trainer.args.device),
        "num_processes": trainer.args.world_size,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip
    if trainer.is_world_process_zero():
        if keep_model:
            _keep(student, tokenizer, data, hyperparameters, folder)
        write_json(folder / METRICS_FILE, results)
    return results


def predict(
    folder: Path, data: TaskData, split: str, *, with_scores: bool = False
) -> tuple[list[dict[str, Any]], dict[str, float] | None]:
    """A fine-tuned model's answers for a split as records, and its metrics, None if the labels are not known.

    Args:
        with_scores: records hold logits, and probabilities by label, too (classification and choice).
    """
    task, labels, max_length = read_task_file(folder)
    model, tokenizer = load_finetuned(folder)
    found = data.splits[split]
    encoded = encode_split(task, found.examples, labels, tokenizer, max_length)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_eval_batch_size=EVAL_BATCH_SIZE, report_to="none", disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(), remove_unused_columns=False, bf16=computes_in_bf16(),
    )  # fmt: skip
    trainer = Trainer(model, on_one_gpu(arguments), collator(task, tokenizer))
    with show_progress(f"{task.name}, {split}", math.ceil(len(encoded.features) / EVAL_BATCH_SIZE), "batch") as advance:
        trainer.add_callback(AdvanceBar(advance))
        scores: Any = trainer.predict(encoded.features).predictions  # type: ignore[arg-type]
    answers = encoded.answers(scores)
    records = [answer_record(example, answer) for example, answer in zip(found.examples, answers, strict=True)]
    if with_scores and task.kind in SCORED_KINDS:
        for record, example, row in zip(records, found.examples, scores, strict=True):
            record |= score_record(example, labels, row)
    return records, measure(task, found.examples, labels, answers) if can_score(task, found) else None


def _augmented(
    folder: Path, data: TaskData, hyperparameters: Hyperparameters, copies: int, tokenizer: BertTokenizer
) -> Features:
    """Features of changed copies of train, which only the teacher judges."""
    examples: Any = data.splits["train"].examples
    length = hyperparameters.max_length
    made = augment_texts(examples, folder, copies=copies, seed=hyperparameters.seed, max_length=length)
    features = encode_split(data.task, made, data.labels, tokenizer, length).features
    return [{**feature, "labels": IGNORE_INDEX} for feature in features]


def _keep(
    student: PreTrainedModel, tokenizer: BertTokenizer, data: TaskData, hyperparameters: Hyperparameters, folder: Path
) -> None:
    """Places the fine-tuned model in a run's folder as a whole."""
    partial = folder / CHECKPOINTS / "model"
    with quiet_transformers():
        save_finetuned(student, tokenizer, partial)
    write_task_file(partial, data.task, data.labels, hyperparameters.max_length)
    place_folder(partial, folder / "model")


def _epoch(task: Task, record: dict[str, Any]) -> dict[str, Any]:
    loss = record[f"eval_{LOSS}"] if math.isfinite(record[f"eval_{LOSS}"]) else None  # JSON knows no NaN
    metrics = {name: record[f"eval_{name}"] for name in (*task.metrics, SCORE)}
    return {"epoch": record["epoch"], "loss": loss, **metrics}


def _finish_split(data: TaskData, name: str, encoded: Encoded, trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Writes the best epoch's answers for a split; returns its size and its metrics, None where it has no labels.

    Where rows of it stand in train, too, `unseen` has the metrics of the others.
    """
    task, split = data.task, data.splits[name]
    answers = encoded.answers(trainer.predict(encoded.features).predictions)  # type: ignore[arg-type]
    records = (answer_record(example, answer) for example, answer in zip(split.examples, answers, strict=True))
    if trainer.is_world_process_zero():
        write_records(folder / f"predictions-{name}.jsonl", records)
    found: dict[str, Any] = {"metrics": None, "num_examples": len(split.examples)}
    if can_score(task, split):
        found["metrics"] = measure(task, split.examples, data.labels, answers)
        seen = {texts_of(example) for example in data.splits["train"].examples}
        unseen = [i for i, example in enumerate(split.examples) if texts_of(example) not in seen]
        if 0 < len(unseen) < len(split.examples):
            rest = measure(task, [split.examples[i] for i in unseen], data.labels, [answers[i] for i in unseen])
            found["unseen"] = {"metrics": rest, "num_examples": len(unseen)}
    return found


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    write_whole(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

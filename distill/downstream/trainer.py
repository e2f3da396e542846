"""transformers.Trainer as a fine-tuning run uses it: its arguments, batches that processes share, the loss on dev."""

# N rows, L tokens, C labels

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from distill.downstream.encoding import IGNORE_INDEX
from distill.downstream.run import Hyperparameters
from distill.downstream.sharing import deal
from distill.downstream.task import Task

WARMUP_RATIO = 0.1
WEIGHT_DECAY = 0.01
EVAL_BATCH_SIZE = 64
PROGRESS_SECONDS = 30
SCORE, LOSS = "score", "mean_loss"


def computes_in_bf16() -> bool:
    """Whether fine-tuned models train and answer under bf16 autocast."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def make_arguments(
    folder: Path, hyperparameters: Hyperparameters, task: Task, *, has_teacher: bool
) -> TrainingArguments:
    """How a run trains, in each of the processes that torchrun's environment names.

    Args:
        folder: for checkpoints.
    """
    num_processes, has_gpu = int(os.environ.get("WORLD_SIZE", 1)), torch.cuda.is_available()
    on_cpus = num_processes > 1 and not has_gpu
    arguments = TrainingArguments(
        output_dir=str(folder),
        learning_rate=hyperparameters.learning_rate,
        num_train_epochs=hyperparameters.epochs,
        per_device_train_batch_size=hyperparameters.batch_size // num_processes,
        per_device_eval_batch_size=EVAL_BATCH_SIZE,
        warmup_steps=WARMUP_RATIO,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="linear",
        seed=hyperparameters.seed,
        bf16=computes_in_bf16(),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model=SCORE,
        greater_is_better=True,
        logging_strategy="epoch",
        label_names=["start_positions", "end_positions"] if task.kind == "span" else ["labels"],
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=has_gpu,
        remove_unused_columns=False,
        use_cpu=on_cpus,  # without it Accelerate takes processes without a GPU for single ones
        ddp_backend="gloo" if on_cpus else None,
        ddp_find_unused_parameters=has_teacher,  # matches may leave upper layers without gradient
    )
    return on_one_gpu(arguments)


def on_one_gpu(arguments: TrainingArguments) -> TrainingArguments:
    """The same arguments for a process that uses one GPU, however many it sees; Trainer would cut batches over all."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


class SharingTrainer(Trainer):
    """Trainer whose processes share every batch of one process.

    Its own loader fills the last batch of an epoch with rows from the first one, which changes the gradient.
    """

    def get_train_dataloader(self) -> DataLoader:
        rank, num_processes = self.args.process_index, self.args.world_size
        collate: Any = self.data_collator
        loader: DataLoader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=self.args.per_device_train_batch_size * num_processes,
            shuffle=True,
            collate_fn=lambda rows: deal(collate(rows), rank, num_processes),
            pin_memory=self.args.dataloader_pin_memory,
        )
        # As for one process, in each of them: every epoch has an order of its own, which the seed decides.
        return prepare_data_loader(
            loader, num_processes=1, process_index=0, use_seedable_sampler=True, data_seed=self.args.seed
        )


class TellProgress(TrainerCallback):
    """Says how many steps there are, twice a minute how far they are, and what dev gave after an epoch."""

    def __init__(self, task: Task, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.task, self.show, self.clock = task, show, clock
        self.start = self.told = clock()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = self.told = self.clock()
        if state.is_world_process_zero:
            self.show(f"{self.task.name}: {state.max_steps:,} steps in {args.num_train_epochs:g} epoch(s)")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = self.clock()
        if now - self.told < PROGRESS_SECONDS or not state.is_world_process_zero:
            return
        self.told = now
        left = (now - self.start) / state.global_step * (state.max_steps - state.global_step)
        self.show(
            f"{self.task.name}: step {state.global_step:,} of {state.max_steps:,}, about {left / 60:.0f} min left"
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        told = ", ".join(f"{name} {kwargs['metrics'][f'eval_{name}']:.2f}" for name in self.task.metrics)
        self.show(f"{self.task.name}: epoch {state.epoch:g}: dev {told}")


class AdvanceBar(TrainerCallback):
    """Moves a progress bar on by a batch of rows that were answered."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1)


def mean_loss(kind: str, scores: Any, labels: Any) -> float:
    """The loss of the labels over all rows of a split, each row (of tags: each tag) counted once.

    Trainer's is a mean of the means of batches, and with several processes counts some rows twice.

    Args:
        scores: [N, C], of tags [N, L, C], of spans two of [N, L], of numbers [N, 1] or [N].
        labels: [N], of tags [N, L], of spans two of [N].
    """
    if kind == "regression":
        return float(np.square(np.reshape(scores, -1) - np.reshape(labels, -1)).mean())
    pairs = list(zip(scores[:2], labels, strict=True)) if kind == "span" else [(scores, labels)]
    losses = [
        torch.nn.functional.cross_entropy(
            torch.from_numpy(rows).flatten(0, -2).float(), torch.from_numpy(gold).flatten(), ignore_index=IGNORE_INDEX
        ).item()
        for rows, gold in pairs
    ]
    return sum(losses) / len(losses)

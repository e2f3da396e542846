"""Models with the head of a task: a pre-trained encoder and a new head, or a fine-tuned model to be used.

The encoder's weights must all be there; the head is always new, so that a model fine-tuned on another task (MNLI before
RTE) gives its encoder and pooler alone.
"""

from pathlib import Path
from typing import Any

from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizer,
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    set_seed,
)

from distill.corpus.tokenizing import save_tokenizer
from distill.downstream.run import read_task_file
from distill.downstream.tags import tag_names
from distill.downstream.task import Task
from distill.errors import InputError, first_line
from distill.modeling.config import load_config
from distill.modeling.models import check_finite, load_tokenizer, quiet_transformers
from distill.modeling.weight_files import UNREADABLE, check_shapes

_HEADS = ("classifier", "qa_outputs")
_POOLER = "bert.pooler."
_CLASSES: dict[str, Any] = {
    "classification": BertForSequenceClassification,
    "regression": BertForSequenceClassification,
    "span": BertForQuestionAnswering,
    "tags": BertForTokenClassification,
    "choice": BertForMultipleChoice,
}


def load_for_finetuning(
    folder: Path, task: Task, labels: tuple[str, ...], *, max_length: int, seed: int, eager: bool = False
) -> tuple[PreTrainedModel, BertTokenizer]:
    """The encoder of `folder` in float32 with a new head for the task, and its tokenizer.

    Weights that are not in the folder (the head; the pooler, which masked-LM models lack) depend on `seed` alone.

    Args:
        eager: attention by plain matrix products, where its matrices are needed.
    Raises:
        InputError: no model there, weights missing, a vocabulary that does not fit, texts longer than its positions.
    """
    tokenizer = check_model(folder, max_length)
    set_seed(seed)
    model = _load(folder, task, labels, may_miss=(*_HEADS, _POOLER), eager=eager)
    for name in _HEADS:
        if (head := getattr(model, name, None)) is not None:
            set_seed(seed)
            head.weight.data.normal_(0.0, model.config.initializer_range)
            head.bias.data.zero_()
    return model, tokenizer


def load_finetuned(folder: Path, *, eager: bool = False) -> tuple[PreTrainedModel, BertTokenizer]:
    """A fine-tuned model and its tokenizer; run.read_task_file tells its task."""
    task, labels, max_length = read_task_file(folder)
    tokenizer = check_model(folder, max_length)
    return _load(folder, task, labels, may_miss=(), eager=eager), tokenizer


def save_finetuned(model: PreTrainedModel, tokenizer: BertTokenizer, folder: Path) -> None:
    """Writes a folder that opens with transformers alone."""
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def check_model(folder: Path, max_length: int) -> BertTokenizer:
    """The tokenizer of a model folder whose config, weights and vocabulary fit each other and the length.

    The weights themselves are not loaded.
    """
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    check_shapes(folder, config)
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{folder}: the vocabulary has {len(tokenizer)} tokens, the model {config.vocab_size} rows for them; see "
            f"`distill vocab check {folder}`"
        )
    if max_length > config.max_position_embeddings:
        raise InputError(
            f"{folder}: --max-length {max_length} (in a grid, max_length), but the model has "
            f"{config.max_position_embeddings} positions; give at most that many"
        )
    return tokenizer


def collator(task: Task, tokenizer: BertTokenizer) -> Any:
    """What pads a batch to its longest row."""
    kinds: dict[str, Any] = {"tags": DataCollatorForTokenClassification, "choice": DataCollatorForMultipleChoice}
    return kinds.get(task.kind, DataCollatorWithPadding)(tokenizer)


def _load(
    folder: Path, task: Task, labels: tuple[str, ...], *, may_miss: tuple[str, ...], eager: bool
) -> PreTrainedModel:
    """The model of a folder for a task; InputError if weights are missing or misshapen, but for `may_miss`."""
    config = BertConfig(**{**load_config(folder).to_diff_dict(), **_head_fields(task, labels)})
    try:
        with quiet_transformers():
            model, info = _CLASSES[task.kind].from_pretrained(
                folder, config=config, dtype="float32", local_files_only=True, output_loading_info=True,
                weights_only=True, ignore_mismatched_sizes=True, attn_implementation="eager" if eager else "sdpa",
            )  # fmt: skip
    except UNREADABLE as error:
        raise InputError(f"{folder}: weights cannot be loaded ({first_line(error)})") from None
    misshapen = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    wrong = sorted(key for key in {*info["missing_keys"], *misshapen} if not key.startswith(may_miss))
    if wrong:
        raise InputError(f"{folder}: {len(wrong)} weights are missing or misshapen, the first is {wrong[0]}")
    check_finite(model, folder)
    return model


def _head_fields(task: Task, labels: tuple[str, ...]) -> dict[str, Any]:
    """What a config says about a head: its labels, and whether it is a number that is predicted."""
    names = tag_names(labels) if task.kind == "tags" else ("score",) if task.kind == "regression" else labels
    fields: dict[str, Any] = {"problem_type": "regression"} if task.kind == "regression" else {}
    if names:
        fields |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return fields

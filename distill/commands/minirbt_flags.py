"""MiniRBT's own command line (pretraining/config.py) as a recipe of one stage, so that its users can move over."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.launch.processes import Cluster, is_worker
from distill.recipe import Recipe
from distill.recipe_file import resolve_recipe

# Read by nothing in MiniRBT's training: accepted, with a warning, so that old scripts run.
DEAD_WITH_VALUE = (
    "vocab_file", "train_file", "predict_file", "predict_batch_size", "num_train_epochs", "load_model_type",
    "PRINT_EVERY", "weight", "ckpt_frequency", "tuned_checkpoint_T", "tuned_checkpoint_S", "bert_config_file_T",
    "schedule", "output_encoded_layers", "output_attention_layers", "lr_decay",
)  # fmt: skip
DEAD_SWITCHES = ("do_lower_case", "do_predict", "do_eval", "verbose_logging", "teacher_cached", "no_inputs_mask",
                 "no_logits")  # fmt: skip
SCHEDULES = {"const": "constant_with_warmup"}
"""MiniRBT's name -> transformers'; "linear" is the same in both."""
WITHOUT_EFFECT_HERE = {
    "local_rank": "the launcher says which process this is",
    "preprocessing_num_workers": "all cores prepare the data",
    "data_cache_dir": "packed data lies below output_dir, named by its content",
}


def looks_like_minirbt(arguments: Sequence[str]) -> bool:
    """Whether these arguments are MiniRBT's flags and not a recipe."""
    required = ("--teacher_name_or_path", "--student_config", "--data_files_json")
    return any(argument.partition("=")[0] in required for argument in arguments)


def read_minirbt_flags(arguments: Sequence[str]) -> tuple[Recipe, str | None]:
    """The recipe that MiniRBT's flags describe, and its stage if this process is a worker. Notes go to stderr.

    Raises:
        InputError: an unknown flag or an impossible value.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if is_worker() else Cluster.from_environment().world_size
    raw, notes = recipe_of_flags(arguments, world_size=world_size)
    if int(os.environ.get("RANK", 0)) == 0:
        for note in notes:
            print(note, file=sys.stderr)
    return resolve_recipe(raw, where="command line"), raw["stages"][0]["name"] if is_worker() else None


def recipe_of_flags(arguments: Sequence[str], *, world_size: int) -> tuple[dict[str, Any], list[str]]:
    """A recipe's JSON value from MiniRBT's flags, and what the user should know about them.

    `--train_batch_size` means what it meant there: sequences a process and optimiser step, cut into
    `--gradient_accumulation_steps` micro-batches.

    Raises:
        InputError: an unknown flag or an impossible value.
    """
    flags = _parser().parse_args(list(arguments))
    notes = [f"warning: --{name} never had an effect in MiniRBT and has none here"
             for name in (*DEAD_WITH_VALUE, *DEAD_SWITCHES) if getattr(flags, name) not in (None, False)]  # fmt: skip
    for name, reason in WITHOUT_EFFECT_HERE.items():
        if getattr(flags, name) is not None:
            notes.append(f"warning: --{name} has no effect here: {reason}")
    per_process, accumulation = flags.train_batch_size, flags.gradient_accumulation_steps
    if per_process < 1 or accumulation < 1 or per_process % accumulation:
        raise InputError(
            f"command line: --train_batch_size {per_process} must be a multiple of --gradient_accumulation_steps "
            f"{accumulation}: it is cut into that many micro-batches"
        )
    total = per_process * world_size
    notes.append(
        f"--train_batch_size {per_process} on {world_size} process(es) makes {total:,} sequences an optimiser step"
        + (" (the published models have 4,096; MiniRBT's script on 8 GPUs makes 2,048)" if total != 4096 else "")
    )
    name = Path(flags.student_config).stem
    student: dict[str, Any] = {
        "config": flags.student_config, "matches": flags.matches or [], "temperature": flags.temperature,
        "learning_rate": flags.learning_rate, "warmup_ratio": flags.warmup_proportion,
        "weight_decay": flags.weight_decay_rate,
        "scheduler": SCHEDULES.get(flags.official_schedule, flags.official_schedule),
    }  # fmt: skip
    if flags.init_checkpoint_S:
        student["init"] = flags.init_checkpoint_S
    stage: dict[str, Any] = {
        "name": "distill", "teacher": flags.teacher_name_or_path, "students": {name: student},
        "data": {"files": flags.data_files_json, "mask_probability": flags.mlm_probability},
        "max_seq_length": flags.max_seq_length, "steps": flags.num_train_steps, "global_batch_size": total,
        "micro_batch_size": per_process // accumulation, "save_every": flags.ckpt_steps, "seed": flags.random_seed,
        "precision": "auto" if flags.fp16 else "fp32",
    }  # fmt: skip
    if flags.no_cuda:
        notes.append("warning: --no_cuda has no effect here: CUDA_VISIBLE_DEVICES= before the command hides the GPUs")
    if flags.fp16:
        notes.append("--fp16 is taken as precision auto: bf16 where the hardware has it, else float32")
    return {"output_dir": flags.output_dir, "stages": [stage]}, notes


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(f"command line: {message}; `python train.py RECIPE` takes recipes instead of flags")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(description="MiniRBT's flags. A recipe can say more: python train.py RECIPE.", allow_abbrev=False)
    add = parser.add_argument
    add("--teacher_name_or_path", required=True, help="teacher folder or hub id")
    add("--student_config", required=True, help="BertConfig JSON of the student")
    add("--data_files_json", required=True, help="training-data JSON")
    add("--output_dir", required=True, help="folder of the run")
    add("--num_train_steps", type=int, required=True, help="optimiser steps")
    add("--max_seq_length", type=int, default=416, help="tokens a row")
    add("--train_batch_size", type=int, default=32, help="sequences a process and optimiser step")
    add("--gradient_accumulation_steps", type=int, default=1, help="micro-batches a process and optimiser step")
    add("--learning_rate", type=float, default=3e-5, help="peak learning rate")
    add("--warmup_proportion", type=float, default=0.1, help="share of the steps to warm up")
    add("--weight_decay_rate", type=float, default=0.01, help="AdamW's weight decay")
    add("--official_schedule", default="linear", help="learning-rate schedule: linear, const or transformers' names")
    add("--ckpt_steps", type=int, default=50000, help="steps between checkpoints")
    add("--random_seed", type=int, default=10236797)
    add("--temperature", type=float, default=1.0)
    add("--mlm_probability", type=float, default=0.15)
    add("--matches", nargs="*", help="preset names or other entries of `matches`, see docs/methods.md")
    add("--init_checkpoint_S", "--student_pretrained_weights", help="model folder the student starts from")
    add("--fp16", action="store_true")
    add("--no_cuda", action="store_true")
    add("--do_train", action="store_true", help="always on")
    add("--local-rank", dest="local_rank", help=argparse.SUPPRESS)  # as newer launchers spell it
    for name in (*WITHOUT_EFFECT_HERE, *DEAD_WITH_VALUE):
        add(f"--{name}", help=argparse.SUPPRESS)
    for name in DEAD_SWITCHES:
        add(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    return parser

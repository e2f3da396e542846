"""A run of every kind of task, for test_shared_run.py, which does them in one process, and under torchrun in two.

PYTEST_DONT_REWRITE: torchrun's processes import it without pytest.
"""

import sys
from pathlib import Path
from unittest import mock

from transformers.training_args import OptimizerNames

from distill.downstream import finetune as finetuning
from distill.downstream import trainer
from distill.downstream.run import Distillation, Hyperparameters
from distill.downstream.task import load_task
from distill.downstream.task_data import load_task_data

MATCHES = ("last:hidden_mse", "last:relation")


def do_runs(root: Path, output: str) -> None:
    """ROOT/KIND has a task, its data and encoder/; a run goes into KIND/OUTPUT, one with teacher/ into KIND/OUTPUT-kd.

    Plain SGD shows the scale of a gradient, which Adam hides; small batches on dev end in an uneven one.
    """
    make_arguments = trainer.make_arguments

    def with_sgd(*args, **kwargs):
        arguments = make_arguments(*args, **kwargs)
        arguments.optim, arguments.max_grad_norm, arguments.weight_decay = OptimizerNames.SGD, 0.0, 0.0
        return arguments

    with (
        mock.patch.object(finetuning, "make_arguments", with_sgd),
        mock.patch.object(trainer, "EVAL_BATCH_SIZE", 7),
    ):
        for folder in sorted(path.parent for path in root.glob("*/task.json")):
            data = load_task_data(load_task(str(folder / "task.json")), str(folder), ["train", "dev", "test"])
            rate = 0.01 if data.task.kind == "regression" else 0.1  # its squared errors are large
            values = Hyperparameters(learning_rate=rate, epochs=2, batch_size=8, max_length=32)
            teacher = folder / "teacher" / "model"
            distillations = {output: None, f"{output}-kd": Distillation(teacher, matches=MATCHES)}
            for name, distillation in distillations.items():
                if distillation is None or teacher.exists():
                    finetuning.finetune(folder / "encoder", data, values, folder / name, show=lambda line: None,
                                        distillation=distillation)  # fmt: skip


if __name__ == "__main__":
    do_runs(Path(sys.argv[1]), sys.argv[2])

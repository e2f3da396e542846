"""Trains students with stock TextBrewer and transformers and writes what came out. Never imports `distill`.

    python reference.py FOLDER...

Each folder has teacher/ and student/ (save_pretrained), settings.json, batches.safetensors (input_ids_K,
attention_mask_K and labels_K of step K; -100 = not masked) and projections.safetensors (the initial weights of match
I as I.weight and I.bias). After training it has final.safetensors (student.NAME, projections.I.NAME) and losses.json.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from transformers import BertForMaskedLM


class Recorder:
    """Stands where the SummaryWriter stands."""

    def __init__(self):
        self.records = []

    def add_scalar(self, name, value, step):
        self.records.append([step, name.removeprefix("scalar/"), value])


def adaptor(batch, outputs):
    """MiniRBT's adaptor with `inputs_mask`, attentions and the model's own loss as hard loss."""
    results = {
        "logits": (outputs.logits,),
        "logits_mask": (batch["labels"] != -100,),
        "inputs_mask": batch["attention_mask"],
        "hidden": outputs.hidden_states,
        "losses": (outputs.loss,),
    }
    if outputs.attentions:
        results["attention"] = outputs.attentions
    return results


def train(folder):
    settings = json.loads((folder / "settings.json").read_text())
    teacher, student = (
        BertForMaskedLM.from_pretrained(folder / name, dtype=torch.float32, attn_implementation=settings["attention"])
        for name in ("teacher", "student")
    )
    tensors = load_file(folder / "batches.safetensors")
    batches = [
        {name: tensors[f"{name}_{step}"] for name in ("input_ids", "attention_mask", "labels")}
        for step in range(settings["steps"])
    ]
    config = DistillationConfig(
        temperature=settings["temperature"], kd_loss_weight=settings["kd_weight"], kd_loss_type=settings["kd_loss"],
        hard_label_weight=settings["mlm_weight"], intermediate_matches=settings["matches"],
    )  # fmt: skip
    training = TrainingConfig(device="cpu", output_dir=str(folder), ckpt_steps=settings["steps"])
    distiller = GeneralDistiller(training, config, teacher, student, adaptor, adaptor)
    initial = load_file(folder / "projections.safetensors")
    for number, projection in enumerate(distiller.projs):
        if projection is not None:
            prefix = f"{number}."
            projection.load_state_dict({k.removeprefix(prefix): v for k, v in initial.items() if k.startswith(prefix)})
    distiller.tb_writer = recorder = Recorder()
    optimizer = torch.optim.SGD(student.parameters(), lr=settings["learning_rate"])
    with distiller:
        distiller.train(
            optimizer, batches, num_epochs=None, num_steps=settings["steps"], output_hidden_states=True,
            output_attentions=settings["attention"] == "eager",
        )  # fmt: skip
    final = {f"student.{name}": value.detach().clone() for name, value in student.named_parameters()}
    for number, projection in enumerate(distiller.projs):
        if projection is not None:
            final |= {f"projections.{number}.{name}": value.detach() for name, value in projection.named_parameters()}
    save_file({name: value.contiguous() for name, value in final.items()}, folder / "final.safetensors")
    (folder / "losses.json").write_text(json.dumps(recorder.records))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        train(Path(argument))
    assert "distill" not in sys.modules, "the reference must not know our code"
    print("reference done without distill")

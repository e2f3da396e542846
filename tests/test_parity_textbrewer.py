"""Our loop takes a student to the weights that stock TextBrewer takes it to.

The reference values come from another process (parity/reference.py), which never imports `distill` and computes full
logits, selects them by mask, and runs GeneralDistiller's own loop. SGD, because Adam would hide a wrong scale.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ALONE, LENGTH, NeverStop, make_batch, tiny_config, write_model
from transformers import get_scheduler

from distill.modeling.models import load_config, load_masked_lm
from distill.recipe import Student
from distill.training.loop import TeacherPass, run_steps
from distill.training.matches import resolve_matches
from distill.training.optimizer import parameter_groups
from distill.training.student import StudentRun

REFERENCE = Path(__file__).parent / "parity" / "reference.py"
STEPS = 5
WIDE = tiny_config(layers=4, width=32, heads=4, initializer_range=0.2)
NARROW = tiny_config(layers=2, width=16, heads=4)
# The shapes of MiniRBT's RoBERTa and RBT6, but for the width: its presets of equal width fit.
TWELVE = tiny_config(layers=12, width=16, heads=2, initializer_range=0.2)
SIX = tiny_config(layers=6, width=16, heads=2)


@dataclass(frozen=True)
class Case:
    matches: tuple = ()
    shapes: tuple = (WIDE, NARROW)
    learning_rate: float = 0.05
    kd_weight: float = 1.0
    mlm_weight: float = 0.0
    kd_loss: str = "ce"

    @property
    def attention(self):
        return "eager" if any("attention" in str(match) for match in self.matches) else "sdpa"


OWN_RATE = {"layer_T": 3, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 0.5,
            "proj": ["tanh", 16, 32, {"lr": 0.5}]}  # fmt: skip
CASES = {
    "logits": Case(learning_rate=2.0),
    "logits_mse_and_labels": Case(learning_rate=0.5, kd_weight=0.7, mlm_weight=0.3, kd_loss="mse"),
    "hidden_mse": Case(("uniform",)),
    "mmd": Case(("uniform:mmd",), learning_rate=0.2),
    "cos": Case(("uniform:cos",), learning_rate=0.2),
    "pkd": Case(("uniform:pkd",), learning_rate=0.2),
    "gram": Case(("uniform:gram",), learning_rate=0.2),
    "attention_mse": Case(("uniform:attention_mse",), learning_rate=2.0),
    "attention_mse_sum": Case(("uniform:attention_mse_sum", "uniform"), learning_rate=0.2),
    "two_presets": Case(("L6_hidden_mse", "L6_hidden_smmd"), (TWELVE, SIX)),
    "own_rate_of_a_projection": Case((OWN_RATE, "uniform:cos"), learning_rate=0.1, mlm_weight=0.2),
}
BATCHES = [
    ([LENGTH, 9, 12, LENGTH], [3, 1, 2, 1]),
    ([LENGTH, LENGTH, LENGTH, LENGTH], [2, 2, 5, 1]),
    ([5, 7, LENGTH, 11], [1, 2, 4, 3]),
    ([LENGTH, 6, 6, 14], [4, 1, 1, 2]),
    ([LENGTH, LENGTH, LENGTH, LENGTH], [1, 3, 2, 2]),
]


def our_batches():
    return [make_batch(lengths, masked, seed=10 + step) for step, (lengths, masked) in enumerate(BATCHES)]


def start_run(folder: Path, case: Case) -> StudentRun:
    """Our student at step 0, with SGD in place of AdamW."""
    student = load_masked_lm(folder / "student")
    student.set_attn_implementation(case.attention)
    settings = Student(
        config="student", temperature=3.0, kd_loss=case.kd_loss, kd_weight=case.kd_weight, mlm_weight=case.mlm_weight,
        max_grad_norm=0, scheduler="constant", learning_rate=case.learning_rate,
    )  # fmt: skip
    matches = resolve_matches(list(case.matches), load_config(folder / "teacher"), student.config)
    run = StudentRun(
        "student", student, settings, matches=matches, distilled=True, steps=STEPS, seed_parts=(0, "parity"),
        device=ALONE.device, dtype=torch.float32,
    )  # fmt: skip
    run.optimizer = torch.optim.SGD(parameter_groups(run.objective, 0.0), lr=case.learning_rate)
    run.scheduler = get_scheduler("constant", run.optimizer)
    return run


def write_case(folder: Path, case: Case) -> None:
    """Everything that the reference needs, in files."""
    write_model(folder / "teacher", case.shapes[0], seed=1)
    write_model(folder / "student", case.shapes[1], seed=2)
    run = start_run(folder, case)
    settings = {
        "attention": case.attention, "steps": STEPS, "temperature": 3.0, "kd_weight": case.kd_weight,
        "kd_loss": case.kd_loss, "mlm_weight": case.mlm_weight, "learning_rate": case.learning_rate,
        "matches": run.objective.matches,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    save_file(dict(run.objective.projections.state_dict()), folder / "projections.safetensors")
    tensors = {}
    for step, batch in enumerate(our_batches()):
        labels = torch.full_like(batch.input_ids, -100)
        labels.view(-1)[batch.masked_positions] = batch.labels
        mask = torch.arange(LENGTH) < batch.lengths[:, None]
        tensors |= {f"input_ids_{step}": batch.input_ids, f"attention_mask_{step}": mask.long(),
                    f"labels_{step}": labels}  # fmt: skip
    save_file(tensors, folder / "batches.safetensors")


@pytest.fixture(scope="module")
def references(tmp_path_factory, python):
    """A folder with stock TextBrewer's result for each case; one process for all."""
    root = tmp_path_factory.mktemp("parity")
    for name, case in CASES.items():
        write_case(root / name, case)
    command = [python, str(REFERENCE), *(str(root / name) for name in CASES)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reference done without distill" in done.stdout
    return root


@pytest.fixture(scope="module", params=CASES)
def result(request, references):
    """Our final weights and losses beside the reference's."""
    folder, case = references / request.param, CASES[request.param]
    run = start_run(folder, case)
    before = {name: value.detach().clone() for name, value in run.objective.named_parameters()}
    teacher = TeacherPass(load_masked_lm(folder / "teacher"), [run.objective.teacher_needs], run.objective.autocast)
    reports = list(run_steps(
        [run], teacher, ([batch] for batch in our_batches()), first_step=0, tokens=0, log_every=1, last_step=STEPS,
        processes=ALONE, stop=NeverStop(),
    ))  # fmt: skip
    after = {name: value.detach() for name, value in run.objective.named_parameters()}
    losses = [report.values["student"]["loss"] for report in reports]
    return folder, before, after, losses


def test_final_weights_equal_stock_textbrewers(result):
    folder, before, after, _ = result
    expected = load_file(folder / "final.safetensors")
    assert expected.keys() == after.keys()
    for name, value in after.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_training_moved_the_weights_far_more_than_the_tolerance(result):
    folder, before, after, _ = result
    expected = load_file(folder / "final.safetensors")
    moved = max(float((expected[name] - value).abs().max()) for name, value in before.items())
    error = max(float((expected[name] - value).abs().max()) for name, value in after.items())
    assert moved > 5e-3
    assert error < 1e-3 * moved
    for name in before:
        if name.startswith("projections."):
            assert float((expected[name] - before[name]).abs().max()) > 1e-4, f"{name} did not move"


def test_losses_of_every_step_equal_stock_textbrewers(result):
    folder, _, _, losses = result
    records = json.loads((folder / "losses.json").read_text())
    expected = [value for _, name, value in records if name == "total_loss"]
    assert losses == pytest.approx(expected, rel=1e-5)

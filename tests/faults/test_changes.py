"""A stage that has begun takes no silent change of the files it was made from."""

import json
from pathlib import Path

import pytest
from faults.launcher import Run, goes_on_to, stop_in_the_middle
from tiny import tiny_config, write_model

pytestmark = pytest.mark.slow


def test_changed_files_are_listed_refused_and_taken_on_demand(chain, undisturbed):
    stop_in_the_middle()
    before = {name: Path(name).read_bytes() for name in ("student.json", "text.txt", "teacher/model.safetensors")}
    config = json.loads(before["student.json"])
    Path("student.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.2}))
    with Path("text.txt").open("a", encoding="utf-8") as text:
        text.write(chr(0x4E00) * 9 + "\n")
    write_model(Path("teacher"), tiny_config(layers=4, width=32, heads=4, initializer_range=0.2), seed=7)
    code, output = Run(1).finish()
    assert code == 2 and output.count("\n") == 1 and "--allow-changes" in output, output
    lines = [
        "stage 'one', data contains something else now",
        "stage 'one', student 'a', config hidden_dropout_prob was 0.1 and is now 0.2",
        "stage 'one', student 'b', config hidden_dropout_prob was 0.1 and is now 0.2",
        "stage 'one', teacher, model.safetensors contains something else now",
    ]
    assert f": this folder was made by another recipe: {'; '.join(lines)}; choose another output_dir" in output
    for name, content in before.items():
        Path(name).write_bytes(content)
    goes_on_to(undisturbed)


def test_a_change_that_is_allowed_is_written_down_with_the_step(chain):
    stop_in_the_middle()
    config = json.loads(Path("student.json").read_text())
    Path("student.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.2}))
    code, output = Run(1, "--allow-changes", "--learning-rate", "1e-4").finish()
    assert code == 0, output
    (record,) = [json.loads(line) for line in Path("out/changes.jsonl").read_text().splitlines()]
    assert record["stage"] == "one" and 0 < record["step"] < 30
    assert "stage 'one', student 'a', learning_rate was 0.001 and is now 0.0001" in record["differences"]
    assert "stage 'one', student 'b', config hidden_dropout_prob was 0.1 and is now 0.2" in record["differences"]

"""Answers: scores by label, tables of labels, files from outside, and the submissions of CLUE and GLUE."""

import io
import json
import zipfile

import numpy as np
import pytest
from fixtures_cli import complaint, run
from test_finetune import GOOD, make_task, train, write_encoder

from distill.downstream.encoding import answer_record, score_record
from distill.downstream.examples import ChoiceQuestion, Entity, TaggedText, TextExample
from distill.downstream.grid import Run
from distill.downstream.label_report import confusion_table, label_reports, label_table
from distill.downstream.run import write_task_file
from distill.downstream.submission import CLUE_FILES, GLUE_FILES, check_submission, submit_best, write_submission
from distill.downstream.task import load_task, task_names
from distill.errors import InputError

IDS = ["7", "3", "9"]
RECORDS = [{"id": key, "label": label} for key, label in zip(IDS, ["100", "101", "116"], strict=True)]


def test_every_benchmark_task_ships():
    assert {*CLUE_FILES, *GLUE_FILES} <= set(task_names())


def test_clues_form_keeps_ids_and_order(tmp_path):
    task = load_task("tnews")
    path = write_submission(tmp_path, task, RECORDS, IDS, task.labels)
    assert path.name == "tnews11_predict.json"
    assert path.read_text("utf-8").splitlines()[0] == '{"id": 7, "label": "100"}'


def test_files_have_the_names_that_clue_asks_for_with_its_new_test_sets():
    """Its rules of September 2021: the task and `_predict.json`, with 11 where version 1.1 has another test set."""
    others = {task: name for task, name in CLUE_FILES.items() if name != f"{task}_predict.json"}
    expected = {"tnews": "tnews11", "cluewsc": "cluewsc11", "c3": "c311", "ocnli": "ocnli_50k"}
    assert others == {task: f"{name}_predict.json" for task, name in expected.items()}


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("sts-b", float("nan"), "id '0': nan is no number"),
        ("c3", -1, "id 'Q': -1 is not the number of a choice"),
        ("c3", "2", "id 'Q': \"2\" is not the number of a choice"),
        ("cluener", {"planet": {"x": [[0, 0]]}}, "id 'Q': \"planet\" is no entity type of cluener"),
    ],
)
def test_an_answer_of_the_wrong_kind_is_refused(tmp_path, name, label, message):
    task = load_task(name)
    labels = task.labels if task.kind == "tags" else ()
    with pytest.raises(InputError, match=message):
        write_submission(tmp_path, task, [{"id": "Q", "label": label}], ["Q"], labels)


def test_glues_form_counts_rows_from_0(tmp_path):
    task = load_task("rte")
    records = [{"id": key, "label": "entailment"} for key in IDS]
    path = write_submission(tmp_path, task, records, IDS, task.labels)
    assert path.read_text("utf-8") == "index\tprediction\n0\tentailment\n1\tentailment\n2\tentailment\n"
    path = write_submission(tmp_path, load_task("sts-b"), [{"id": "0", "label": 3.14159}], ["0"], ())
    assert path.read_text("utf-8").splitlines() == ["index\tprediction", "0\t3.142"]


def test_answers_of_reading_are_one_object(tmp_path):
    records = [{"id": "Q1", "answer": GOOD[0]}]
    path = write_submission(tmp_path, load_task("cmrc2018"), records, ["Q1"], ())
    assert json.loads(path.read_text("utf-8")) == {"Q1": GOOD[0]}


@pytest.mark.parametrize(
    ("records", "ids", "message"),
    [
        (RECORDS[:2], IDS, "2 answers for 3 rows of tnews: no answer for the id '9'"),
        (RECORDS, IDS[:2], "3 answers for 2 rows of tnews: an answer for '9', which is no row"),
        ([*RECORDS, RECORDS[0]], IDS, "the id '7' stands twice"),
        ([*RECORDS[:2], {"id": "9", "label": "105"}], IDS, "id '9': \"105\" is no label of tnews"),
    ],
)
def test_a_submission_that_would_score_zero_is_refused(tmp_path, records, ids, message):
    task = load_task("tnews")
    with pytest.raises(InputError, match=message):
        write_submission(tmp_path, task, records, ids, task.labels)
    assert not list(tmp_path.iterdir())


def test_an_id_with_leading_zeros_is_no_number(tmp_path):
    task = load_task("tnews")
    path = write_submission(tmp_path, task, [{"id": "007", "label": "100"}], ["007"], task.labels)
    assert json.loads(path.read_text("utf-8")) == {"id": "007", "label": "100"}


def test_a_line_separator_inside_an_answer_ends_no_line(tmp_path):
    """Entities and answers are pieces of the users' texts."""
    (tmp_path / "cluener").mkdir()
    (tmp_path / "cluener" / "test.json").write_text('{"id": 0, "text": "x"}\n', "utf-8")
    answer = {"id": "0", "label": {"name": {"a\u2028b\x85c": [[0, 4]]}}}
    (tmp_path / "predictions-test.jsonl").write_text(json.dumps(answer, ensure_ascii=False) + "\n", "utf-8")
    runs = [Run("m", tmp_path, load_task("cluener"), str(tmp_path), None, tmp_path)]
    assert "cluener_predict.json: checked, 1 rows" in submit_best(runs, tmp_path / "out")[0]


def test_a_task_of_no_benchmark_has_no_submission(tmp_path):
    with pytest.raises(InputError, match="lcqmc: neither CLUE nor GLUE takes answers for it"):
        write_submission(tmp_path, load_task("lcqmc"), RECORDS, IDS, ("0", "1"))


@pytest.mark.parametrize(("task", "arguments", "words"), [
    ("lcqmc", ["--output", "a.jsonl", "--submission", "s"], "lcqmc: neither CLUE nor GLUE takes answers for it"),
    ("tnews", ["--output", "."], ".: a folder is there; name a file"),
    ("cluener", ["--output", "a.jsonl", "--scores"], "--scores writes the scores of labels and choices, but cluener"),
])  # fmt: skip
def test_what_cannot_be_written_is_said_before_the_model_is_read(task, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_task_file(tmp_path, load_task(task), load_task(task).labels, 32)  # there is no model
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"sentence": "a"}\n')))
    assert words in complaint(capsys, "predict", str(tmp_path), "--input", "-", *arguments)


def test_probabilities_are_the_softmax_of_the_logits():
    example = TextExample("0", ("a",), None)
    found = score_record(example, ("x", "y"), np.log(np.array([1.0, 3.0])))
    assert found["probabilities"] == {"x": 0.25, "y": 0.75} and found["logits"] == [0.0, 1.098612]
    question = ChoiceQuestion("0", "c", "q", ("one", "two"), None)
    assert score_record(question, (), np.array([0.0, 0.0, 9.0]))["probabilities"] == {"0": 0.5, "1": 0.5}


def test_labels_against_counts_by_hand():
    """Three rows of a, of which one is taken for b; one of b, found; none of c."""
    gold, told = ["a", "a", "a", "b"], ["a", "a", "b", "b"]
    assert label_table("abc", gold, told).rows == (
        ("a", "100.00", "66.67", "80.00", "3"),
        ("b", "50.00", "100.00", "66.67", "1"),
        ("c", "0.00", "0.00", "0.00", "0"),
    )
    assert confusion_table("abc", gold, told).rows == (("a", "2", "1", "0"), ("b", "0", "1", "0"), ("c", "0", "0", "0"))


def test_entity_types_against_counts_by_hand():
    """Two names, of which one is found, and one that is none; of a game the end is wrong; nobody has an address."""
    examples = [TaggedText("0", "甲乙丙丁戊", (Entity(0, 1, "name"), Entity(2, 4, "game"))),
                TaggedText("1", "甲乙", (Entity(0, 0, "name"),))]  # fmt: skip
    told = [{Entity(0, 1, "name"), Entity(2, 3, "game"), Entity(4, 4, "name")}, set()]
    records = [answer_record(example, answer) for example, answer in zip(examples, told, strict=True)]
    (table,) = label_reports("tags", ("name", "game", "address"), examples, records)
    assert table.columns == ("Label", "Precision", "Recall", "F1", "Entities")
    assert table.rows == (
        ("name", "50.00", "50.00", "50.00", "2"),
        ("game", "0.00", "0.00", "0.00", "1"),
        ("address", "0.00", "0.00", "0.00", "0"),
    )
    assert label_reports("span", (), examples, records) == []


def test_many_labels_have_no_confusion_matrix():
    labels = [str(number) for number in range(21)]
    examples = [TextExample(label, ("x",), label) for label in labels]
    records = [{"label": label} for label in labels]
    assert [table.columns[0] for table in label_reports("classification", labels, examples, records)] == ["Label"]
    assert len(label_reports("classification", labels[:20], examples[:20], records[:20])) == 2


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    encoder = write_encoder(tmp_path_factory.mktemp("models") / "encoder")
    train(encoder, folder, make_task(folder, train=64), epochs=2)
    return folder, folder / "run-0" / "model"


def test_rows_from_a_file_and_from_stdin_are_answered_in_order(finetuned, tmp_path, monkeypatch, capsys):
    folder, model = finetuned
    answers = tmp_path / "answers.jsonl"
    assert run("predict", str(model), "--input", str(folder / "dev.jsonl"), "--output", str(answers), "--scores") == 0
    told = capsys.readouterr().out
    assert "| Label | Precision | Recall | F1" in told and "| True \\ predicted | bad | good |" in told
    records = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    assert len(records) == 40 and all(sum(r["probabilities"].values()) == pytest.approx(1, abs=1e-5) for r in records)
    assert all(r["label"] == max(r["probabilities"], key=r["probabilities"].get) for r in records)
    rows = (folder / "dev.jsonl").read_bytes().splitlines()[:3]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(rows))))
    assert run("predict", str(model), "--input", "-", "--output", str(answers)) == 0
    again = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    assert [r["label"] for r in again] == [r["label"] for r in records[:3]]


def test_bad_input_rows_name_their_line(finetuned, tmp_path, monkeypatch, capsys):
    _, model = finetuned
    arguments = ["predict", str(model), "--output", str(tmp_path / "x"), "--input"]
    assert "nowhere.tsv: no such file; give rows in the form" in complaint(capsys, *arguments, "nowhere.tsv")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"txt": "b"}\n', "utf-8")
    assert "rows.jsonl, line 2: no column 'text'; there are: txt" in complaint(capsys, *arguments, str(rows))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"{")))
    assert "stdin.jsonl" in complaint(capsys, *arguments, "-")


def test_the_best_run_on_dev_is_submitted(tmp_path):
    task = load_task("afqmc")
    data = tmp_path / "afqmc"
    data.mkdir()
    rows = [{"sentence1": "a", "sentence2": "b", "id": i} for i in range(2)]
    (data / "test.json").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    runs = []
    for name, score, label in (("worse", 60.0, "0"), ("best", 70.0, "1"), ("open", None, "0")):
        folder = tmp_path / name
        folder.mkdir()
        lines = [json.dumps({"id": str(i), "label": label}) for i in range(2)]
        (folder / "predictions-test.jsonl").write_text("\n".join(lines), "utf-8")
        if score is not None:
            (folder / "metrics.json").write_text(json.dumps({"dev": {"metrics": {"accuracy": score}}}), "utf-8")
        runs.append(Run("m", tmp_path, task, str(tmp_path), None, folder))
    assert submit_best(runs, tmp_path / "out") == [
        f"{tmp_path / 'out' / 'afqmc_predict.json'}: checked, 2 rows",
        f"{tmp_path / 'out' / 'submission.zip'}: 1 of them, to upload",
    ]
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        answers = (tmp_path / "out" / "afqmc_predict.json").read_bytes()
        assert [archive.read(name) for name in archive.namelist()] == [answers]
    written = (tmp_path / "out" / "afqmc_predict.json").read_text("utf-8")
    assert [json.loads(line)["label"] for line in written.splitlines()] == ["1", "1"]
    check_submission(tmp_path / "out" / "afqmc_predict.json", task, ["0", "1"], task.labels)

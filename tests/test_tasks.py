"""Tasks as data: every published format, what is left out and counted, and one clear line for every mistake."""

import json

import pytest

from distill.downstream.examples import Answer, ChoiceQuestion, Entity, TextExample
from distill.downstream.task import load_task, task_names
from distill.downstream.task_data import (
    _labels_of,
    can_score,
    has_split,
    load_input,
    load_task_data,
    name_hub,
    require_labels,
)
from distill.errors import InputError


def write(folder, files):
    """Writes bytes, text, or anything else as JSON; a list becomes JSON lines."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        elif not isinstance(content, (str, bytes)):
            content = json.dumps(content, ensure_ascii=False)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(folder, name, split="dev", **labels):
    return load_task_data(load_task(name), str(folder), [split], **labels).splits[split]


def texts(folder, name, split="dev"):
    return [(example.texts, example.label) for example in read(folder, name, split).examples]


@pytest.mark.parametrize("name", task_names())
def test_shipped_task_is_named_as_its_file_and_says_where_its_data_is_from(name):
    task = load_task(name)
    assert task.name == name and task.title and task.source


def test_the_tasks_of_the_three_papers_are_there():
    minirbt = {"cmrc2018", "drcd", "ocnli", "lcqmc", "bq", "tnews", "chnsenticorp"}
    uer, clue = {"book_review", "iflytek"}, {"afqmc", "cmnli", "csl", "cluewsc", "c3", "cluener"}
    glue = {"cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli-m", "mnli-mm", "qnli", "rte", "wnli"}
    assert minirbt | uer | clue | glue <= set(task_names())


PAIR = {"sentence1": "甲", "sentence2": "乙"}


@pytest.mark.parametrize(
    ("name", "file", "content", "expected"),
    [
        ("ocnli", "ocnli/dev.json", [{**PAIR, "label": "neutral"}], (("甲", "乙"), "neutral")),
        ("cmnli", "CMNLI/dev.json", [{**PAIR, "gold_label": "neutral"}], (("甲", "乙"), "neutral")),
        ("afqmc", "afqmc/dev.txt", "甲\t乙\t1\n", (("甲", "乙"), "1")),
        ("afqmc", "afqmc/dev.json", [{**PAIR, "label": "0"}], (("甲", "乙"), "0")),
        ("lcqmc", "dev.tsv", "text_a\ttext_b\tlabel\n甲\t乙\t1\n", (("甲", "乙"), "1")),
        ("lcqmc", "lcqmc/dev.tsv", "label\ttext_a\ttext_b\n1\t甲\t乙\n", (("甲", "乙"), "1")),
        ("bq", "bq_corpus/dev.tsv", "甲\t乙\t0\n", (("甲", "乙"), "0")),
        ("bq", "bq/dev.csv", 'sentence1,sentence2,label\n"甲,""丙""",乙,0\n', (('甲,"丙"', "乙"), "0")),
        ("tnews", "tnews/dev.json", [{"label": 104, "sentence": "题", "keywords": "词"}], (("题",), "104")),
        ("tnews-keywords", "tnews/dev.json", [{"label": "104", "sentence": "题", "keywords": "词,二"}],
         (("题 词,二",), "104")),
        ("tnews-keywords", "tnews/dev.json", [{"label": "104", "sentence": "题", "keywords": ""}], (("题",), "104")),
        ("chnsenticorp", "dev.tsv", b"\xef\xbb\xbflabel\ttext_a\r\n1\t\xe5\xa5\xbd\r\n", (("好",), "1")),
        ("csl", "csl/dev.json", [{"keyword": ["一", "二"], "abst": "文", "label": "1"}], (("一 二", "文"), "1")),
        ("cola", "CoLA/dev.tsv", 'gj04\t1\t\tShe "ran.\n', (('She "ran.',), "1")),
        ("cola", "CoLA/dev.tsv", "index\tsentence\n0\tIt.\n", (("It.",), None)),
        ("mrpc", "MRPC/dev.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n",
         (("a", "b"), "1")),
        ("sts-b", "STS-B/dev.tsv", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t2.5\n", (("a", "b"), 2.5)),
        ("mnli-mm", "MNLI/dev_mismatched.tsv",
         "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tentailment\n", (("a", "b"), "entailment")),
        ("qnli", "QNLI/dev.tsv", "index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment\n",
         (("a", "b"), "not_entailment")),
    ],
)  # fmt: skip
def test_published_formats_of_texts(tmp_path, name, file, content, expected):
    write(tmp_path, {file: content})
    assert texts(tmp_path, name) == [expected]


def test_cluewsc_marks_noun_and_pronoun_in_either_order(tmp_path):
    target = {"span1_text": "小明", "span1_index": 0, "span2_text": "他", "span2_index": 3}
    other = {"span1_text": "小明", "span1_index": 2, "span2_text": "他", "span2_index": 0}
    write(tmp_path, {"dev.json": [{"text": "小明说他来", "target": target, "label": "true"},
                                  {"text": "他说小明来", "target": other, "label": "false"}]})  # fmt: skip
    assert texts(tmp_path, "cluewsc") == [(("_小明_说[他]来",), "true"), (("[他]说_小明_来",), "false")]


def test_c3_joins_the_lines_and_counts_the_right_choice(tmp_path):
    entry = [["甲：来吗？", "乙：来。"], [{"question": "谁来？", "choice": ["甲", "乙"], "answer": "乙"}], "7-1"]
    write(tmp_path, {"c3/m-dev.json": json.dumps([entry]), "c3/d-dev.json": json.dumps([[*entry[:2], "8-1"]])})
    examples = read(tmp_path, "c3").examples
    assert examples[0] == ChoiceQuestion("7-1-0", "甲：来吗？\n乙：来。", "谁来？", ("甲", "乙"), 1)
    assert [example.id for example in examples] == ["7-1-0", "8-1-0"]


def test_cluener_entities_have_inclusive_ends(tmp_path):
    label = {"name": {"小明": [[0, 1], [5, 6]]}, "address": {"北京": [[3, 4]]}}
    write(tmp_path, {"dev.json": [{"text": "小明北京x小明", "label": label}]})
    with pytest.raises(InputError, match='dev.json, line 1: characters 3 to 4 are "京x", not "北京"'):
        read(tmp_path, "cluener")
    label["address"] = {"北京": [[2, 3]]}
    write(tmp_path, {"dev.json": [{"text": "小明北京x小明", "label": label}]})
    assert read(tmp_path, "cluener").examples[0].entities == (
        Entity(0, 1, "name"), Entity(2, 3, "address"), Entity(5, 6, "name")
    )  # fmt: skip


def squad(*questions, context="小明在北京，小红在北京。"):
    qas = [{"id": f"Q{i}", "question": "在哪？", "answers": [{"text": text, "answer_start": start}]}
           for i, (text, start) in enumerate(questions)]  # fmt: skip
    return {"version": "v1.0", "data": [{"id": "A", "paragraphs": [{"id": "P", "context": context, "qas": qas}]}]}


@pytest.mark.parametrize("indent", [None, 1])
def test_answers_are_searched_again_where_the_offset_is_wrong(tmp_path, indent):
    data = squad(("北京", 3), ("北京", 8), ("上海", 3))
    write(tmp_path, {"cmrc2018_dev.json": json.dumps(data, ensure_ascii=False, indent=indent)})
    split = read(tmp_path, "cmrc2018")
    assert [example.answers for example in split.examples] == [
        (Answer("北京", 3),), (Answer("北京", 9),), (Answer("上海", None),)
    ]  # fmt: skip
    assert split.notes == (
        "1 answers searched again because their offset was wrong (Q1)",
        "1 answers that do not stand in their context (Q2)",
    )


def test_train_questions_without_an_answer_in_the_context_are_left_out_and_named(tmp_path):
    write(tmp_path, {"DRCD/DRCD_training.json": squad(("北京", 3), ("上海", 3))})
    split = read(tmp_path, "drcd", "train")
    assert [example.id for example in split.examples] == ["Q0"]
    assert split.notes[-1] == "1 questions left out of train: no answer stands in the context (Q1)"


def test_cmrc_in_its_own_form(tmp_path):
    qa = {"query_id": "Q", "query_text": "在哪？", "answers": ["北京", "在北京"]}
    article = {"context_id": "C", "context_text": "小明在北京。", "title": "t", "qas": [qa]}
    write(tmp_path, {"cmrc2018_dev.json": json.dumps([article])})
    assert read(tmp_path, "cmrc2018").examples[0].answers == (Answer("北京", 3), Answer("在北京", 2))


def test_rows_without_agreed_label_are_left_out_and_counted(tmp_path):
    rows = [{**PAIR, "label": label, "id": i} for i, label in enumerate(["-", "neutral", "-"])]
    write(tmp_path, {"dev.json": rows})
    split = read(tmp_path, "ocnli")
    assert [example.id for example in split.examples] == ["1"]
    assert split.notes == ("2 rows labelled '-' left out (line 1, line 3)",)


def test_every_row_of_a_users_file_is_answered(tmp_path):
    """Those without agreed label, too, so that answers stand in the order of the rows; they cannot be scored then."""
    rows = [{**PAIR, "label": label, "id": i} for i, label in enumerate(["-", "neutral"])]
    write(tmp_path, {"dev.json": rows})
    task = load_task("ocnli")
    split = load_input(task, str(tmp_path / "dev.json"), task.labels).splits["input"]
    assert [(example.id, example.label) for example in split.examples] == [("0", None), ("1", "neutral")]
    assert not can_score(task, split)


def test_broken_rows_of_qqp_are_left_out_and_counted(tmp_path):
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    write(tmp_path, {"dev.tsv": head + "0\t1\t2\ta\tb\t1\n1\t2\t3\ta\n"})
    assert read(tmp_path, "qqp").notes == ("1 rows with too few cells left out (line 3)",)


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path):
    write(tmp_path, {"dev.tsv": "label\ttext_a\n1\t一\u2028二\n"})
    assert texts(tmp_path, "chnsenticorp") == [(("一\u2028二",), "1")]


OWN = {
    "name": "mine", "kind": "classification", "metrics": ["macro_f1", "accuracy"], "texts": ["title", "body"],
    "label": "class", "files": {"train": ["train.csv"], "dev": ["dev.csv"]},
}  # fmt: skip


def test_half_a_character_is_replaced_and_counted(tmp_path):
    """No tokenizer takes it and no file can hold it; what stands behind it keeps its place."""
    row = '{"text": "\\ud83d甲\\ud83d\\ude00", "label": {"name": {"甲": [[1, 1]]}}}\n'
    write(tmp_path, {"dev.json": row})
    split = read(tmp_path, "cluener")
    assert split.examples[0].text == "\ufffd甲\U0001f600" and split.examples[0].entities == (Entity(1, 1, "name"),)
    assert split.notes == (
        "1 places with halves of characters (\\ud800 to \\udfff alone), which became U+FFFD (line 1)",
    )


def test_a_choice_may_have_spaces_around_it(tmp_path):
    row = {"context": "甲", "question": "乙", "choice": ["一", "二 "], "answer": "二 "}
    write(tmp_path, {"dev.json": [row]})
    assert read(tmp_path, "c3").examples[0].label == 1


def test_one_answer_may_stand_without_lists(tmp_path):
    row = {"id": "Q", "context": "甲乙甲", "question": "丙", "answers": {"text": "甲", "answer_start": 2}}
    write(tmp_path, {"dev.json": [row]})
    assert read(tmp_path, "cmrc2018").examples[0].answers == (Answer("甲", 2),)


def test_labels_that_are_one_number_have_one_order():
    """Every process of a run numbers them by itself, and a set of strings has another order in each."""
    names = ["1", "01", "001", "0001", "00001", "10", "2"]
    examples = [TextExample(str(i), ("甲",), name) for i, name in enumerate(names)]
    assert _labels_of(iter(examples)) == ("00001", "0001", "001", "01", "1", "2", "10")


def test_a_classification_with_one_label_is_refused(tmp_path):
    """transformers takes a head of one output for a regression: all would be right, at 100 %."""
    task = {"name": "own", "kind": "classification", "metrics": ["accuracy"], "texts": ["sentence"],
            "files": {"train": ["train.jsonl"], "dev": ["dev.jsonl"]}}  # fmt: skip
    rows = [{"sentence": "甲", "label": "good"}, {"sentence": "乙", "label": "good"}]
    write(tmp_path, {"own.json": task, "train.jsonl": rows, "dev.jsonl": rows})
    with pytest.raises(InputError, match="own: 'good' is the only label"):
        load_task_data(load_task(str(tmp_path / "own.json")), str(tmp_path), ["train", "dev"])


def test_own_task_from_a_json_file_collects_labels_from_train(tmp_path):
    rows = "title,body,class\na,b,10\nc,d,9\ne,f,10\n"
    write(tmp_path, {"mine.json": OWN, "data/train.csv": rows, "data/dev.csv": rows})
    data = load_task_data(load_task(str(tmp_path / "mine.json")), str(tmp_path / "data"), ["dev"])
    assert data.labels == ("9", "10")
    assert data.splits["dev"].examples[0] == TextExample("0", ("a", "b"), "10")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "ranking"}, r"mine.json: kind: input should be 'classification', .*, found \"ranking\""),
        ({"metrics": ["acuracy"]}, "metrics: a classification task has no metric 'acuracy'; did you mean 'accuracy'"),
        ({"texts": ["a", "b", "c"]}, "texts: a classification task has 1 or 2 of them, found 3"),
        ({"files": {"train": ["t.tsv"]}}, "files: no 'dev'; there are: train"),
        ({"labels": ["a", "a"]}, "labels: one stands twice"),
        ({"colums": ["a"]}, "unknown key 'colums'; did you mean 'columns'"),
        ({"defaults": {"epoch": 3}}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"defaults": {"epochs": -1}}, "defaults.epochs: input should be greater than 0, found -1"),
    ],
)
def test_a_wrong_description_is_one_line(tmp_path, change, message):
    write(tmp_path, {"mine.json": {**OWN, **change}})
    with pytest.raises(InputError, match=message):
        load_task(str(tmp_path / "mine.json"))


def test_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match="task 'tnew': not known; did you mean 'tnews'"):
        load_task("tnew")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("ocnli", "dev.json", [{**PAIR, "label": "maybe"}], "dev.json, line 1: label 'maybe' is not one of the task's"),
        ("ocnli", "dev.json", [{"sentence1": "甲", "label": "neutral"}],
         "dev.json, line 1: no column 'sentence2'; there are: sentence1, label"),
        ("ocnli", "dev.json", [{**PAIR, "sentence2": 7, "label": "neutral"}], "column 'sentence2' is 7, not a text"),
        ("ocnli", "dev.json", '{"a": 1}\n{"a": 1,}\n', "dev.json, line 1: no column 'sentence1'; there are: a"),
        ("ocnli", "dev.json", '{"sentence1": "a", "sentence2": "b", "label": "neutral"}\n{"a": 1,}\n',
         "dev.json, line 2: not valid JSON"),
        ("ocnli", "dev.json", "", "dev.json: no usable rows for split 'dev'; the file is empty"),
        ("ocnli", "dev.json", [{**PAIR, "label": "-"}], "no usable rows for split 'dev'; 1 rows labelled '-' left out"),
        ("ocnli", "dev.json", [{**PAIR, "label": "neutral", "id": 3}, {**PAIR, "label": "neutral", "id": 3}],
         "dev.json, line 2: the id '3' stands at .*dev.json, line 1, too"),
        ("ocnli", "dev.json", [{**PAIR, "label": "neutral"}, PAIR], "dev.json, line 2: no label .column 'label'."),
        ("ocnli", "dev.json", b"\xff\xfe", "dev.json, line 1: not UTF-8 .byte 0xff."),
        ("lcqmc", "dev.tsv", "甲\t乙\t1\n甲\t1\n", r"dev.tsv, line 2: 2 cells, expected 3 \(text_a, text_b, label\)"),
        ("lcqmc", "dev.tsv", "a\tb\tc\td\n", "line 1: 4 cells; expected a header that names text_a and text_b"),
        ("sst-2", "dev.tsv", "text\tlabel\na\t1\n", "dev.tsv, line 2: no column 'sentence'; there are: text, label"),
        ("sts-b", "dev.tsv", "sentence1\tsentence2\tscore\na\tb\tgood\n", "column 'score' is \"good\", not a number"),
        ("cmrc2018", "dev.json", {"data": [{"paragraphs": [{"context": "甲", "qas": [{"id": "Q"}]}]}]},
         "entry 1, question Q: no column 'question'; there are: id, context"),
        ("cmrc2018", "dev.json", {"version": "v1"}, "no column 'context'; there are: version"),
        ("cluener", "dev.json", [{"text": "甲", "label": {"animal": {"甲": [[0, 0]]}}}],
         "dev.json, line 1: entity type 'animal' is not one of the task's"),
        ("cluener", "dev.json", [{"text": "甲", "label": {"name": ["甲"]}}], "column 'label' is .*, not {\"TYPE\""),
        ("c3", "dev.json", [{"context": "甲", "question": "乙", "choice": ["一"], "answer": "二"}],
         "line 1: the answer \"二\" is none of the choices"),
        ("cluewsc", "dev.json", [{"text": "他", "label": "true", "target": {"span1_text": "我", "span1_index": 0}}],
         'span1 ."我" at 0. does not stand in the text'),
        ("ocnli", "dev.json", [{**PAIR, "label": "neutral", "id": 1}, {**PAIR, "label": "neutral"}],
         "line 2: the id '1' .the number of this row, which has none. stands at .*dev.json, line 1, too"),
        ("sts-b", "dev.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\n", "column 'score' is \"nan\", not a number"),
        ("sts-b", "dev.tsv", "sentence1\tsentence2\tscore\na\tb\t1e999\n", "column 'score' is \"1e999\", not a number"),
        ("bq", "dev.csv", "sentence1,sentence2,label\n甲,乙,0\n\"丙,丁,1\n" + "甲,乙,0\n" * 30_000,
         "dev.csv, line 3: field larger than field limit .*; is a quote open that nothing closes?"),
        ("bq", "dev.csv", "sentence1,sentence2,label\n甲,\"乙\n乙\",0\n丙,1\n", "dev.csv, line 4: 2 cells, expected 3"),
        ("tnews", "dev.json", '{"sentence": "甲", "label": ' + "1" * 5000 + "}\n",
         "line 1: not valid JSON .a number of thousands of digits."),
        ("cmrc2018", "dev.json", {"data": [{"paragraphs": 5}]}, "entry 1: 'paragraphs' is 5, not a list"),
        ("cmrc2018", "dev.json", {"data": [{"paragraphs": [{"context": "甲", "qas": 5}]}]}, "entry 1: 'qas' is 5, not"),
        ("cmrc2018", "dev.json", {"data": [{"context_text": "甲", "qas": ["乙"]}]}, "entry 1: expected an object"),
        ("cmrc2018", "dev.json", [{"context": "甲", "question": "乙", "id": "Q", "answers": {"text": 5}}],
         "column 'answers' holds {\"text\": 5}, not an answer with a text"),
        ("cluener", "dev.json", [{"text": "甲", "label": {"name": {"甲": [[0.7, 0.2]]}}}], "column 'label' is .*, not"),
        ("cluener", "dev.json", [{"text": "甲", "label": {"name": {"甲": [[1e999, 0]]}}}], "column 'label' is .*, not"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_data_is_one_line_with_its_place(tmp_path, name, file, content, message):
    write(tmp_path, {file: content})
    with pytest.raises(InputError, match=message) as raised:
        read(tmp_path, name)
    assert "\n" not in str(raised.value)


def test_missing_data_names_what_was_looked_for_and_the_source(tmp_path):
    with pytest.raises(InputError) as raised:
        read(tmp_path, "ocnli", "train")
    message = str(raised.value)
    assert f"{tmp_path}/ocnli, {tmp_path}/OCNLI and {tmp_path} for train.50k.json or train.json" in message
    assert "https://github.com/CLUEbenchmark/OCNLI" in message and "hf:clue/clue:ocnli" in message


def test_unknown_split_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match="ocnli: no split 'tes'; did you mean 'test'"):
        read(tmp_path, "ocnli", "tes")


def test_a_test_set_without_labels_is_not_scored(tmp_path):
    write(tmp_path, {"test.json": [PAIR], "cmrc/test.json": squad(("FAKE", 0))})
    with pytest.raises(
        InputError, match="'test': .* has no labels .column 'label'; there are: sentence1, sentence2., so"
    ):
        require_labels(load_task("ocnli"), read(tmp_path, "ocnli", "test"))
    with pytest.raises(InputError, match="cmrc2018, split 'test': the answers of .* are made up"):
        require_labels(load_task("cmrc2018"), read(tmp_path, "cmrc2018", "test"))


def test_datasets_of_the_hub_come_with_class_numbers(tmp_path, monkeypatch):
    """A local folder stands for the hub's: the loading code is the same."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features({
        "premise": datasets.Value("string"), "hypothesis": datasets.Value("string"), "idx": datasets.Value("int32"),
        "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
    })  # fmt: skip
    rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, -1], "idx": [5, 6]}
    folder = tmp_path / "hub"
    folder.mkdir()
    datasets.Dataset.from_dict({key: value[:1] for key, value in rows.items()}, features).to_parquet(
        folder / "validation_matched.parquet"
    )
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: validation_matched\n"
        "    path: validation_matched.parquet\n---\n", "utf-8"
    )  # fmt: skip
    split = load_task_data(load_task("mnli-m"), f"hf:{folder}", ["dev"]).splits["dev"]
    assert split.examples == (TextExample("5", ("a", "c"), "contradiction"),)


def write_hub(folder, **splits):
    """A folder that `datasets` reads as it reads the hub's."""
    datasets = pytest.importorskip("datasets")
    folder.mkdir()
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for name, rows in splits.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
        lines += [f"  - split: {name}", f"    path: {name}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), "utf-8")
    return f"hf:{folder}"


def test_a_dataset_of_the_hub_without_a_split_is_asked_first(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = write_hub(tmp_path / "hub", train=[{**PAIR, "label": "neutral"}], validation=[{**PAIR, "label": "neutral"}])
    assert [has_split(load_task("ocnli"), data, split) for split in ("train", "dev", "test")] == [True, True, False]
    own = load_task("ocnli").model_copy(update={"files": {"train": ["a"], "dev": ["b"]}})
    assert not has_split(own, "hf:never/asked", "test")


def test_questions_of_one_text_share_its_id_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    row = {"id": 7, "context": ["甲"], "choice": ["乙", "丙"], "answer": "丙"}
    data = write_hub(tmp_path / "hub", validation=[{**row, "question": "一"}, {**row, "question": "二"}])
    examples = load_task_data(load_task("c3"), data, ["dev"]).splits["dev"].examples
    assert [(example.id, example.question, example.label) for example in examples] == [("0", "一", 1), ("1", "二", 1)]


def test_the_hub_alone_is_each_tasks_own_dataset():
    assert name_hub(load_task("tnews"), "hf:") == "hf:clue/clue:tnews"
    assert name_hub(load_task("tnews"), "hf:other/name") == "hf:other/name"
    with pytest.raises(InputError, match="mine: no dataset of the hub is known; name one, --data hf:OWNER/NAME"):
        name_hub(load_task("tnews").model_copy(update={"name": "mine", "hub": ""}), "hf:")


def test_made_up_scores_of_the_hubs_test_split_are_not_scored(tmp_path):
    rows = "index\tsentence1\tsentence2\tscore\n0\ta\tb\t-1.0\n"
    write(tmp_path, {"test.tsv": rows})
    assert not can_score(load_task("sts-b"), read(tmp_path, "sts-b", "test"))


def test_a_dataset_that_is_not_on_the_hub_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="hf:nobody/nothing, split 'validation': cannot be loaded .*HF_ENDPOINT"):
        load_task_data(load_task("tnews"), "hf:nobody/nothing", ["dev"])

"""ONNX exports: every kind of model gives the numbers that transformers gives, int8 is small and close, and what is not
is refused with nothing left."""

import json
import runpy
import shutil
import subprocess
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from fixtures_cli import ROOT, complaint, run
from test_finetune import KINDS, make_task, write_encoder
from tokenizers import Tokenizer
from transformers import BertModel, BertTokenizer

from distill.downstream.export import write_graph, write_tokenizer
from distill.downstream.exportable import load_exportable, pool
from distill.downstream.finetune import predict
from distill.downstream.onnx_model import open_onnx, quantize_rows, write_int4, write_int8
from distill.downstream.parity import Bounds, Difference, Parity, check_exact, check_kept, join
from distill.downstream.run import write_task_file
from distill.downstream.task_data import load_task_data
from distill.downstream.task_model import load_for_finetuning, save_finetuned
from distill.errors import InputError
from distill.modeling.inference import text_features
from distill.sample.texts import sample_texts

SERVE = ROOT / "scripts" / "serve_onnx.py"
TEXTS = ["".join(chr(0x4E00 + (7 * i + j) % 30) for j in range(length)) for i, length in enumerate((3, 30, 12, 1, 8))]


def write_finetuned(folder, task_folder, kind):
    """A fine-tuned model of that kind with a random head, and its task."""
    task = make_task(task_folder, kind, train=8)
    data = load_task_data(task, str(task_folder), ["dev"])
    encoder = write_encoder(folder.with_name("encoder"), layers=1)
    model, tokenizer = load_for_finetuning(encoder, task, data.labels, max_length=64, seed=1)
    torch.manual_seed(1)
    for weight in model.parameters():  # a new head's weights are small, its biases 0
        weight.data.add_(torch.randn_like(weight) * 0.1)
    save_finetuned(model, tokenizer, folder)
    write_task_file(folder, task, data.labels, 64)  # a server reads no windows of longer contexts
    return task


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    output = tmp_path_factory.mktemp("exports") / "encoder"
    assert run("export", str(encoder), "--output", str(output), "--int8", "--seconds", "0") == 0
    return output


def about(folder):
    return json.loads((folder / "export.json").read_text(encoding="utf-8"))


def by_onnx(folder, texts, file="model.onnx"):
    """The outputs for texts, encoded by the export's own tokenizer."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=0)
    encoded = tokenizer.encode_batch(texts)
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    inputs = {name: np.array([getattr(e, field) for e in encoded]) for name, field in fields.items()}
    return open_onnx(folder / file, threads=1)(inputs), inputs["attention_mask"]


@pytest.mark.slow
def test_an_encoder_gives_the_same_states_in_any_batch(encoder, exported):
    (states, pooled), mask = by_onnx(exported, TEXTS)
    tokenizer, model = BertTokenizer.from_pretrained(encoder), BertModel.from_pretrained(encoder).eval()
    for text, ours, kept in zip(TEXTS, states, mask, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        np.testing.assert_allclose(ours[kept == 1], expected, atol=1e-5)
    np.testing.assert_allclose(pooled, text_features(encoder, TEXTS, pooling="mean"), atol=1e-5)
    (alone, _), _ = by_onnx(exported, TEXTS[3:4])
    np.testing.assert_allclose(alone[0], states[3, : alone.shape[1]], atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_pooling_leaves_out_padding(pooling):
    states = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [9.0, 9.0]]])
    expected = {"cls": [1.0, -4.0], "mean": [2.0, -3.0], "max": [3.0, -2.0]}
    assert pool(states, torch.tensor([[1, 1, 0]]), pooling).tolist() == [expected[pooling]]


@pytest.mark.slow
def test_the_folder_has_all_that_a_server_needs(exported, encoder):
    names = {path.name for path in exported.iterdir()}
    assert names >= {"model.onnx", "model_int8.onnx", "tokenizer.json", "vocab.txt", "config.json", "export.json"}
    found = about(exported)
    assert (found["kind"], found["max_length"], found["pooling"]) == ("encoder", 64, "mean")
    assert found["outputs"] == ["last_hidden_state", "pooled"]
    assert found["forms"]["onnx"]["max_abs_difference"] < 1e-4
    assert found["forms"]["int8"]["bytes"] == (exported / "model_int8.onnx").stat().st_size
    assert {timing["model"] for timing in found["timings"]} == {"PyTorch", "ONNX", "ONNX int8"}
    assert not list(exported.parent.glob(".*"))


@pytest.mark.slow
def test_int8_is_smaller_and_close(exported):
    found = about(exported)["forms"]
    assert 0.99 < found["int8"]["cosine"] < 0.9999 and found["onnx"]["cosine"] == pytest.approx(1)
    assert found["int8"]["max_abs_difference"] > 100 * found["onnx"]["max_abs_difference"]
    (states, _), _ = by_onnx(exported, TEXTS, "model_int8.onnx")
    assert np.isfinite(states).all()


def test_rows_are_quantised_by_themselves():
    """One large row does not make the others coarse."""
    table = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    table[3] *= 1000
    table[7] = 0
    rows, scales = quantize_rows(table)
    assert rows.dtype == np.int8 and scales.shape == (50, 1)
    assert (np.abs(rows * scales - table) <= scales / 2 + 1e-6).all()
    assert scales[0] < 0.05 and not rows[7].any()


@pytest.mark.slow
def test_nothing_large_stays_in_floats(exported):
    import onnx

    graph = onnx.load(exported / "model_int8.onnx").graph
    large = [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 200]
    assert large == []


@pytest.mark.slow
def test_a_student_of_4_x_312_with_8000_tokens_is_small(tmp_path):
    """7.3 million parameters: a byte each, or less than six megabytes with four bits where the products are."""
    folder = write_encoder(tmp_path / "m", width=312, vocabulary=8021, layers=4, heads=12, inner=1248, positions=512)
    files = {name: tmp_path / f"{name}.onnx" for name in ("float", "int8", "int4")}
    write_graph(load_exportable(folder), files["float"])
    write_int8(files["float"], files["int8"])
    write_int4(files["float"], files["int4"])
    sizes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
    assert 29.2 < sizes["float"] < 29.5 and 7.3 < sizes["int8"] < 7.6 and sizes["int4"] < 6, sizes


# ---- scripts/serve_onnx.py

BLOCKED = """
import runpy, sys
class Blocked:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("torch", "transformers", "distill", "onnx", "onnxscript"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
script = sys.argv.pop(1)
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture
def server(exported, python, clean_environment):
    """The address of a server that cannot import torch or transformers."""
    command = [python, "-c", BLOCKED, str(SERVE), str(exported), "0"]
    with subprocess.Popen(command, env=clean_environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        yield process.stdout.readline().decode().strip()
        process.terminate()


def post(address, body):
    """Status and JSON answer; nothing on the way but this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(address, data=body, method="POST"), timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_a_server_needs_no_torch_and_answers_wrong_requests(server, exported):
    status, answers = post(server, json.dumps(TEXTS).encode())
    (_, pooled), _ = by_onnx(exported, TEXTS, "model_int8.onnx")
    assert status == 200 and len(answers) == len(TEXTS)
    np.testing.assert_allclose([answer["vector"] for answer in answers], pooled, atol=1e-5)
    wrong = (
        b"{",
        b"",
        b"\xff",
        b"[]",
        b'"text"',
        b"[1]",
        b'[["a", "b"]]',
        b'["a", null]',
        rb'["\ud800"]',
        b"[" * 10**5,
    )
    for body in wrong:
        status, answer = post(server, body)
        assert status == 400 and answer.keys() == {"error"} and "\n" not in answer["error"], body
    assert post(server, json.dumps(TEXTS[:1]).encode())[0] == 200


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(server, exported, python):
    done = subprocess.run(
        [python, str(SERVE), str(exported), server.rpartition(":")[2]], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: port ")


@pytest.mark.parametrize("arguments", [[], ["no/such", "0"], [".", "0"], [".", "x"]])
def test_a_server_without_an_export_is_one_line(arguments, python, tmp_path):
    done = subprocess.run([python, str(SERVE), *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and done.stderr.count("\n") == 1 and done.stderr.startswith("error: expected a folder")


def served(folder, examples, kind):
    """What the script answers for examples, in the form of predictions files."""
    model = runpy.run_path(str(SERVE))["Model"](folder)
    if kind == "span":
        return [answer["answer"] for answer in model([[e.question, e.context] for e in examples])]
    if kind == "choice":
        rows = [[e.context, [f"{e.question} {choice}" for choice in e.choices]] for e in examples]
        return [answer["label"] for answer in model(rows)]
    answers = model([e.text if kind == "tags" else e.texts[0] for e in examples])
    if kind == "tags":
        return [{(start, tag[2:]) for tag, start, _ in a["tags"] if tag[:2] == "B-"} for a in answers]
    return [answer["score" if kind == "regression" else "label"] for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_head_answers_as_with_transformers(kind, tmp_path, capsys):
    """Labels are random here, so the loss in points says nothing; what each row is answered does."""
    task = write_finetuned(tmp_path / "model", tmp_path / "data", kind)
    output, data = tmp_path / "out", str(tmp_path / "data")
    command = ["export", str(tmp_path / "model"), "--output", str(output), "--data", data, "--seconds", "0", "--int8"]
    assert run(*command, "--max-loss", "100", "--min-cosine", "0.9") == 0
    found = about(output)
    dev = load_task_data(task, data, ["dev"])
    records, metrics = predict(tmp_path / "model", dev, "dev")
    assert found["forms"]["torch"]["metrics"] == found["forms"]["onnx"]["metrics"] == metrics
    assert set(found["forms"]["int8"]["metrics"]) == set(task.metrics)
    assert found["kind"] == kind and found["rows"]["count"] == 40
    assert f"{kind}, checked on 40 rows of dev of tiny-{kind}" in capsys.readouterr().out
    (output / "model_int8.onnx").unlink()
    answers = served(output, dev.splits["dev"].examples, kind)
    if kind == "regression":
        assert answers == pytest.approx([record["label"] for record in records], abs=1e-4)
    elif kind == "tags":
        told = [{(start, name) for name, found in r["label"].items() for spans in found.values() for start, _ in spans}
                for r in records]  # fmt: skip
        assert all(begun <= entities for begun, entities in zip(answers, told, strict=True)) and any(answers)
    else:
        assert answers == [record["answer" if kind == "span" else "label"] for record in records]


@pytest.mark.slow
def test_a_masked_lm_and_its_teacher(tmp_path, encoder, capsys):
    teacher = write_encoder(tmp_path / "teacher", width=64)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    command = ["export", str(encoder), "--as", "masked-lm", "--output", str(tmp_path / "out"), "--seconds", "0"]
    assert run(*command, "--text", str(tmp_path / "a.txt"), "--teacher", str(teacher)) == 0
    found = about(tmp_path / "out")
    assert found["outputs"] == ["logits"] and found["rows"]["count"] == len(TEXTS)
    assert found["forms"]["teacher"]["bytes"] > found["forms"]["torch"]["bytes"]
    (logits,), _ = by_onnx(tmp_path / "out", TEXTS)
    np.testing.assert_allclose(logits[0], load_exportable(encoder, part="masked-lm").run(
        {name: values for name, values in encode(encoder, TEXTS).items()})[0][0], atol=1e-4)  # fmt: skip
    assert "teacher, PyTorch" in capsys.readouterr().out


def encode(folder, texts):
    encoded = BertTokenizer.from_pretrained(folder)(list(texts), padding=True, return_tensors="np")
    return {name: encoded[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


# ---- what is refused


def difference(reference, found):
    reference, found = (np.asarray(values, dtype=np.float32) for values in (reference, found))
    made = Difference([reference])
    made.add(reference, found)
    return made


def test_the_cosine_is_that_of_what_rows_do_not_share():
    same = difference([[101.0], [99.0]], [[103.0], [97.0]])
    assert same.cosine == pytest.approx(1) and same.max_abs == 2 and same.largest == 101
    assert difference([[101.0], [99.0]], [[99.0], [101.0]]).cosine == pytest.approx(-1)
    assert difference([[1.0], [1.0]], [[1.0], [1.0]]).cosine == 1


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_float_export_that_differs_is_refused(wrong):
    parity = Parity({"logits": difference([[1.0], [2.0]], [[1.0], [2.0 + wrong]])}, None)
    with pytest.raises(InputError, match="logits differs from the model's by .*, allowed are 2.0e-04; not exported"):
        check_exact("here", parity)


@pytest.mark.parametrize(
    ("found", "metrics", "message"),
    [
        ([[1.0], [1.9]], {"a": 50.0, "b": 60.0}, None),
        ([[2.0], [1.0]], None, "cosine -1.0000 .* below 0.9; not exported: leave that form out"),
        ([[1.0], [float("nan")]], None, "cosine nan"),
        ([[1.0], [2.0]], {"a": 50.0, "b": 58.0}, "loses 2.00 points of the task's score, allowed are 1.5"),
    ],
)
def test_an_int8_export_out_of_bounds_is_refused(found, metrics, message):
    parity = Parity({"logits": difference([[1.0], [2.0]], found)}, metrics)
    bounds, before = Bounds(0.9, 1.5), {"a": 52.0, "b": 60.0}
    if message is None:
        check_kept("here", parity, before, bounds)
        return
    with pytest.raises(InputError, match=message):
        check_kept("here", parity, before, bounds)


@pytest.mark.slow
def test_what_is_refused_leaves_nothing(encoder, exported, capsys, monkeypatch):
    """And an export that was there before stays."""
    monkeypatch.setattr("distill.downstream.export.write_onnx",
                        lambda *arguments: shutil.copyfile(exported / "model.onnx", arguments[-1]))  # fmt: skip
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    command = ["export", str(encoder), "--output", str(exported), "--int8", "--seconds", "0", "--min-cosine", "1"]
    assert "below 1; not exported" in complaint_after(capsys, *command)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def complaint_after(capsys, *command):
    """The last line on stderr of a command that fails after it has said something."""
    assert run(*command) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "a", "--data", "b"], "--data and --text both name rows"),
        (["--data", "b"], "--data needs a fine-tuned model"),
        (["--teacher", "../no/such"], "no/such: no such model folder"),
    ],
)
def test_wrong_options_are_one_line(options, message, encoder, tmp_path, capsys):
    assert message in complaint(capsys, "export", str(encoder), "--output", str(tmp_path / "out"), *options)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_something_else_is_kept(encoder, tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert "no export (no export.json)" in complaint(capsys, "export", str(encoder), "--output", str(tmp_path))


def test_an_encoder_without_head_is_no_masked_lm(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = write_encoder(tmp_path / "m")
    weights = {name: t for name, t in load_file(folder / "model.safetensors").items() if name.startswith("bert.")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    command = ["export", str(folder), "--as", "masked-lm", "--output", str(tmp_path / "out")]
    assert "no masked-language-model head" in complaint(capsys, *command)


def test_the_extra_is_asked_for(encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("distill.downstream.onnx_model.find_spec", lambda name: None if name == "onnxscript" else name)
    message = complaint(capsys, "export", str(encoder), "--output", str(tmp_path / "out"))
    assert "onnxscript not installed; pip install onnx onnxruntime onnxscript" in message


def test_a_teacher_of_another_kind_is_refused(encoder, tmp_path, capsys):
    write_finetuned(tmp_path / "model", tmp_path / "data", "classification")
    command = ["export", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--teacher", str(encoder)]
    assert "of kind encoder, but" in complaint(capsys, *command)


def test_batches_of_several_lengths_are_joined(tmp_path):
    write_finetuned(tmp_path / "model", tmp_path / "data", "tags")
    made = load_exportable(tmp_path / "model")
    (joined,) = join(made, [(np.ones((2, 3, 5), np.float32),), (np.ones((1, 4, 5), np.float32),)])
    assert joined.shape == (3, 4, 5) and (joined[:2, 3] == -100).all() and joined[:2, :3].all()


def test_a_cased_vocabulary_keeps_its_case_in_the_export(tmp_path):
    """Its folder forgets to say so, as haisongzhang/roberta-tiny-cased does; tokenizer.json has to know."""
    folder = write_encoder(tmp_path / "m", vocabulary=45)
    (folder / "tokenizer_config.json").unlink()
    vocabulary = (
        (folder / "vocab.txt").read_text(encoding="utf-8").replace("[unused0]", "Hello").replace("[unused1]", "hello")
    )
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    made = load_exportable(folder)
    write_tokenizer(made, tmp_path)
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("Hello hello").ids
    assert ids == made.tokenizer("Hello hello")["input_ids"] == [2, 35, 36, 3]


def test_the_tokens_of_a_fine_tuned_model_are_in_vocab_txt_too(tmp_path):
    """Its own folder has tokenizer.json alone, which servers in other languages cannot read."""
    folder = write_encoder(tmp_path / "m")
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split()
    made = load_exportable(folder)
    (folder / "vocab.txt").unlink()
    (tmp_path / "out").mkdir()
    write_tokenizer(made, tmp_path / "out")
    assert (tmp_path / "out/vocab.txt").read_text(encoding="utf-8").split() == tokens


def test_sample_texts_are_sentences_and_documents():
    texts = sample_texts(10)
    assert len(set(texts)) == 10 and sample_texts(10) == texts != sample_texts(10, seed=1)
    assert all("一" <= max(text) for text in texts) and max(map(len, texts)) > 2 * min(map(len, texts))


def test_help_imports_no_torch(python, command_environment):
    code = "import sys; from distill.cli import main\ntry: main(['export', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'onnx', 'numpy')))"
    assert subprocess.run([python, "-c", code], env=command_environment, capture_output=True).returncode == 0

"""Serves a folder of `distill export` by onnxruntime and tokenizers alone: python scripts/serve_onnx.py FOLDER PORT

POST a JSON list of rows, get a list of answers. A row is a text; where the model takes two, ["one", "other"];
questions: ["question", "context"]; multiple choice: ["context", ["question and choice", "question and other choice"]].
"""

import json
import sys
from pathlib import Path
from wsgiref.simple_server import make_server

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Model:
    def __init__(self, folder):
        self.about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.kind, self.labels = self.about["kind"], self.about["labels"]
        file = min(folder.glob("*.onnx"), key=lambda path: path.stat().st_size)
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.about["max_length"])
        self.tokenizer.enable_padding(pad_id=self.tokenizer.token_to_id("[PAD]"))

    def __call__(self, rows):
        """An answer for each row; ValueError for anything but a list of rows of the model's form."""
        form = [str, list] if self.kind == "choice" else [str] * self.about["num_texts"]
        for row in rows if isinstance(rows, list) and rows else [None]:
            parts = row if isinstance(row, list) and len(form) > 1 else [row]
            if list(map(type, parts)) != form or not parts[-1] or not all(isinstance(text, str) for text in parts[-1]):
                raise ValueError(f"expected a list of {[p.__name__ for p in form]}, found {json.dumps(rows)[:80]}")
        if self.kind == "choice":
            return [self.run([(context, choice) for choice in choices])[0] for context, choices in rows]
        return self.run(rows)

    def run(self, texts):
        encoded = self.tokenizer.encode_batch(texts)
        found = np.array([[e.ids, e.attention_mask, e.type_ids] for e in encoded]).swapaxes(0, 1)
        found = found[:, None] if self.kind == "choice" else found  # the choices of one question
        outputs = self.session.run(None, dict(zip(self.about["inputs"], found, strict=True)))
        return [self.read(texts[i], encoded[i], *(output[i] for output in outputs)) for i in range(len(outputs[0]))]

    def read(self, text, encoded, scores, other=None):
        if self.kind in ("encoder", "regression"):
            return {"vector": other.tolist()} if self.kind == "encoder" else {"score": float(scores[0])}
        if self.kind in ("classification", "choice"):
            shares, names = np.exp(scores - scores.max()), self.labels or range(len(scores))
            return {"label": names[shares.argmax()], "probabilities": (shares / shares.sum()).tolist()}
        if self.kind == "masked-lm":
            best = [row.argmax() for row, token in zip(scores, encoded.tokens, strict=True) if token == "[MASK]"]
            return {"tokens": [self.tokenizer.id_to_token(int(token)) for token in best]}
        if self.kind == "tags":
            spans = zip(scores.argmax(-1), encoded.offsets, strict=True)
            return {"tags": [[self.labels[tag], start, end] for tag, (start, end) in spans if start < end]}
        tokens = np.array([i for i, part in enumerate(encoded.sequence_ids) if part == 1])
        sums, lengths = scores[tokens][:, None] + other[tokens], tokens - tokens[:, None] + 1
        sums[(lengths < 1) | (lengths > self.about["max_answer_length"])] = -np.inf
        first, last = tokens[list(np.unravel_index(sums.argmax(), sums.shape))]
        return {"answer": text[1][encoded.offsets[first][0] : encoded.offsets[last][1]]}


if __name__ == "__main__":
    if len(sys.argv) != 3 or not (Path(sys.argv[1]) / "export.json").is_file() or not sys.argv[2].isdecimal():
        sys.exit("error: expected a folder that `distill export` wrote, and a port: serve_onnx.py FOLDER PORT")
    model = Model(Path(sys.argv[1]))

    def app(environ, start_response):
        try:
            body = environ["wsgi.input"].read(max(0, int(environ.get("CONTENT_LENGTH") or 0)))
            status, answer = "200 OK", model(json.loads(body))
        except (ValueError, TypeError, RecursionError) as error:  # no JSON, no UTF-8, half a character
            status, answer = "400 Bad Request", {"error": str(error)}
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    try:
        with make_server("127.0.0.1", int(sys.argv[2]), app) as server:
            print(f"http://127.0.0.1:{server.server_port}", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, OverflowError) as error:  # a port that is taken, or none
        sys.exit(f"error: port {sys.argv[2]}: {error}")

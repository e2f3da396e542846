"""Writes the sample world to a folder: corpus, segmented text, vocabulary and four labelled tasks.

1. The corpus world's documents, from train skeletons, become `train/*.txt` and `segmented.txt`.
2. Documents with held-out skeletons become `dev/dev.txt`; sentences of the corpus are left out.
3. The tasks come from worlds of their own (`tasks.py`), the vocabulary from all text (`vocabulary.py`).
4. Everything is written next to the output and renamed, so that the folder is whole or absent.
"""

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.durable import write_json
from distill.errors import InputError
from distill.json_file import read_object
from distill.sample.documents import Document, Writer
from distill.sample.skeletons import Topic, load_common, load_lists, load_topics
from distill.sample.tasks import write_tasks
from distill.sample.vocabulary import build_vocabulary
from distill.sample.world import build_world

SAMPLE_VERSION = 1
_NUM_TRAIN_DOCUMENTS = 11000
_NUM_DEV_DOCUMENTS = 700
_NUM_TRAIN_FILES = 3
_MIN_SENTENCES = 3


def write_sample_world(output: Path, *, seed: int = 0) -> dict[str, int]:
    """Writes the sample world of `seed` to `output` and returns its counts.

    A folder that already holds the world of this seed and version is left as it is.

    Raises:
        InputError: if `output` holds something else.
    """
    output = Path(output)
    manifest = output / "manifest.json"
    if manifest.exists():
        found = read_object(manifest, what="the manifest of a sample world")
        if (found.get("version"), found.get("seed")) == (SAMPLE_VERSION, seed):
            return found["counts"]
        raise InputError(
            f"{output}: holds the sample world of seed {found.get('seed')}, version {found.get('version')}; "
            f"seed {seed}, version {SAMPLE_VERSION} was asked for: choose another folder or delete this one"
        )
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output}: not empty and no sample world (no manifest.json); choose another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        folder = Path(scratch) / "world"
        folder.mkdir()
        counts = _write_all(folder, seed)
        write_json(folder / "manifest.json", {"version": SAMPLE_VERSION, "seed": seed, "counts": counts})
        if output.exists():
            output.rmdir()
        shutil.move(folder, output)
    return counts


def _write_all(folder: Path, seed: int) -> dict[str, int]:
    topics, lists = load_topics(), load_lists()
    corpus = build_world(seed, "corpus", lists)
    writer = Writer(random.Random(f"train:{seed}"), corpus, lists, ("train",))
    documents = [writer.document(topic) for topic in _topic_cycle(topics, writer.rng, _NUM_TRAIN_DOCUMENTS)]
    seen = {sentence.told for document in documents for sentence in document.sentences}
    dev_writer = Writer(random.Random(f"dev:{seed}"), corpus, lists, ("train", "dev"), forbidden=seen)
    dev = [dev_writer.document(topic) for topic in _topic_cycle(topics, dev_writer.rng, _NUM_DEV_DOCUMENTS)]
    dev = [document for document in dev if len(document.sentences) >= _MIN_SENTENCES and document.is_opened]
    size = -(-len(documents) // _NUM_TRAIN_FILES)
    for i in range(_NUM_TRAIN_FILES):
        _write_documents(folder / "train" / f"train-{i}.txt", documents[i * size : (i + 1) * size], writer.rng)
    _write_documents(folder / "dev" / "dev.txt", dev, dev_writer.rng)
    lines = [" ".join(sentence.words) for document in documents for sentence in document.sentences]
    (folder / "segmented.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = write_tasks(folder / "tasks", topics, lists, seed=seed)
    prose = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*/*.txt"))]
    labelled = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("tasks/*/*"))]
    vocabulary = build_vocabulary(prose, labelled)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "tokenizer_class": "BertTokenizer"})
    uses = Counter(sentence.key for document in documents for sentence in document.sentences)
    return {
        "documents": len(documents),
        "dev_documents": len(dev),
        "sentences": len(lines),
        "distinct_sentences": len(set(lines)),
        "characters": sum(len(s.text) for document in documents for s in document.sentences),
        "train_skeletons": len(uses),
        "skeletons": sum(len(lines) for topic in (*topics, load_common()) for lines in topic.sections.values()),
        "most_common_skeleton": max(uses.values()),
        "vocabulary": len(vocabulary),
        **rows,
    }


def _topic_cycle(topics: Sequence[Topic], rng: random.Random, count: int) -> Iterator[Topic]:
    """`count` topics, each as often as the number of free sentences it has."""
    yield from rng.choices(topics, [len(topic.sections["body"]) for topic in topics], k=count)


def _write_documents(path: Path, documents: Sequence[Document], rng: random.Random) -> None:
    """One passage a line, documents separated by a blank line; a long document may be two passages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = []
    for document in documents:
        texts = [sentence.text for sentence in document.sentences]
        cut = rng.randint(3, len(texts) - 2) if len(texts) > 5 and rng.random() < 0.5 else len(texts)
        blocks.append("\n".join("".join(part) for part in (texts[:cut], texts[cut:]) if part))
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")

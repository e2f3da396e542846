"""The sample world: deterministic, varied, consistent, and tasks whose held-out splits share nothing with train."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from distill.downstream.task import load_task
from distill.downstream.task_data import load_task_data
from distill.errors import InputError
from distill.sample import write_sample_world
from distill.sample.skeletons import SPLITS, load_common, load_lists, load_topics
from distill.sample.template import parse_skeleton
from distill.sample.world import build_world

TSV_TASKS = ("topic", "similarity")


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def _tsv(folder: Path, task: str, split: str) -> list[list[str]]:
    lines = (folder / "tasks" / task / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines[1:]]


def _inference(folder: Path, split: str) -> list[dict[str, str]]:
    lines = (folder / "tasks" / "inference" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _reading(folder: Path, split: str) -> list[dict]:
    data = json.loads((folder / "tasks" / "reading" / f"{split}.json").read_text(encoding="utf-8"))["data"]
    return [paragraph for article in data for paragraph in article["paragraphs"]]


def _task_texts(folder: Path, split: str) -> set[str]:
    texts = {text for task in TSV_TASKS for row in _tsv(folder, task, split) for text in row[1:]}
    texts |= {row[key] for row in _inference(folder, split) for key in ("sentence1", "sentence2")}
    for paragraph in _reading(folder, split):
        texts |= {paragraph["context"]} | {qa["question"] for qa in paragraph["qas"]}
    return texts


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("sample") / "world"
    return folder, write_sample_world(folder, seed=0)


@pytest.mark.slow
def test_same_bytes_whatever_the_hash_seed(world: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    code = "import sys; from distill.sample import write_sample_world; write_sample_world(sys.argv[1])"
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], env=environment, check=True)
    assert _digest(tmp_path / "again") == _digest(world[0])


def test_counts_meet_the_promises(world: tuple[Path, dict[str, int]]) -> None:
    counts = world[1]
    assert counts["train_skeletons"] >= 300
    assert counts["distinct_sentences"] >= 20_000
    assert 1_000_000 <= counts["characters"] <= 2_000_000
    assert counts["most_common_skeleton"] <= 0.01 * counts["sentences"]


def test_segmented_text_joined_is_the_raw_text(world: tuple[Path, dict[str, int]]) -> None:
    folder, counts = world
    raw = "".join(path.read_text(encoding="utf-8") for path in sorted((folder / "train").glob("*.txt")))
    lines = (folder / "segmented.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == counts["sentences"] >= 8_000
    assert "".join(lines).replace(" ", "") == raw.replace("\n", "")
    assert all(all(line.split(" ")) for line in lines)


def test_no_train_sentence_stands_in_dev(world: tuple[Path, dict[str, int]]) -> None:
    folder = world[0]
    train = (folder / "segmented.txt").read_text(encoding="utf-8").replace(" ", "").splitlines()
    dev = (folder / "dev" / "dev.txt").read_text(encoding="utf-8")
    # Dialogues hold several full stops, so sentences are looked up whole rather than split again.
    assert not [sentence for sentence in set(train) if sentence in dev and len(sentence) > 8]


def test_documents_have_three_to_eight_sentences(world: tuple[Path, dict[str, int]]) -> None:
    folder, counts = world
    text = (folder / "train" / "train-0.txt").read_text(encoding="utf-8")
    documents = text.strip().split("\n\n")
    assert all(1 <= len(document.split("\n")) <= 2 for document in documents)
    assert 3 <= counts["sentences"] / counts["documents"] <= 8


def test_an_existing_world_is_left_alone_and_another_seed_refused(world: tuple[Path, dict[str, int]]) -> None:
    folder, counts = world
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert write_sample_world(folder, seed=0) == counts
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="seed 1"):
        write_sample_world(folder, seed=1)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="no sample world"):
        write_sample_world(tmp_path)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TSV_TASKS)
def test_tsv_labels_are_balanced(world: tuple[Path, dict[str, int]], task: str, split: str) -> None:
    rows = _tsv(world[0], task, split)
    counts = Counter(row[0] for row in rows)
    assert len(rows) == (2000 if split == "train" else 500)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_inference_labels_are_balanced(world: tuple[Path, dict[str, int]], split: str) -> None:
    counts = Counter(row["label"] for row in _inference(world[0], split))
    assert sorted(counts) == ["contradiction", "entailment", "neutral"]
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_answers_stand_at_their_offsets(world: tuple[Path, dict[str, int]], split: str) -> None:
    for paragraph in _reading(world[0], split):
        for qa in paragraph["qas"]:
            for answer in qa["answers"]:
                start = answer["answer_start"]
                assert paragraph["context"][start : start + len(answer["text"])] == answer["text"] != ""


def test_task_splits_share_no_text(world: tuple[Path, dict[str, int]]) -> None:
    train, dev, test = (_task_texts(world[0], split) for split in SPLITS)
    assert not train & dev and not train & test and not dev & test


def test_worlds_share_no_focal_entity_and_no_person() -> None:
    """Then no pair of entities of a held-out split occurs in train either."""
    worlds = [build_world(0, part, load_lists()) for part in ("corpus", *SPLITS)]
    names = []
    for one in worlds:
        focal = {entity.name for entities in one.focal.values() for entity in entities}
        names.append(focal | {person.name for people in one.neighbours.values() for person in people})
    assert sum(map(len, names)) == len(set().union(*names))


@pytest.mark.parametrize("topic", load_topics(), ids=lambda topic: topic.focus)
def test_every_split_has_skeletons_and_every_statement_its_slot(topic) -> None:
    for name, lines in topic.sections.items():
        assert {line.split for line in lines} == set(SPLITS), name
        kind, *rest = name.split()
        if kind in ("relation", "negation"):
            assert all(f"s.{rest[0]}" in line.paths for line in lines)
            assert all("s" in line.paths for line in lines)
    relations = [lines for name, lines in topic.sections.items() if name.startswith("relation")]
    assert all(sum(line.split == split for line in lines) >= 2 for lines in relations for split in SPLITS)


def test_skeletons_are_all_different() -> None:
    lines = [line for topic in (*load_topics(), load_common()) for group in topic.sections.values() for line in group]
    assert len(lines) >= 300
    assert len({line.line for line in lines}) == len(lines)


def test_facts_are_the_same_wherever_they_are_stated(world: tuple[Path, dict[str, int]]) -> None:
    """Every statement of an entity's fact in the corpus carries the world's value."""
    text = (world[0] / "segmented.txt").read_text(encoding="utf-8")
    shops = {shop.name: shop for shop in build_world(0, "corpus", load_lists()).focal["shop"]}
    found = re.findall(r"(\S+ \S+) 的 老板 叫 (\S+) 。", text)
    assert len(found) > 20
    assert all(shops[name].attributes["owner"].name == owner for name, owner in found)
    schools = {school.name: school for school in build_world(0, "corpus", load_lists()).focal["school"]}
    found = re.findall(r"(\S+ \S+) 建校 于 (\S+) 。", text)
    assert len(found) > 20
    assert all(schools[name].attributes["year"] == year for name, year in found)


def test_no_character_is_unknown_to_the_vocabulary(world: tuple[Path, dict[str, int]]) -> None:
    folder = world[0]
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(set(tokens)) == len(tokens)
    texts = set().union(*(_task_texts(folder, split) for split in SPLITS))
    texts |= {path.read_text(encoding="utf-8") for path in folder.glob("*/*.txt")}
    characters = set().union(*texts) - {"\n"}
    assert {character.lower() for character in characters} <= set(tokens)


def test_an_unmatched_bracket_is_refused_with_its_place() -> None:
    with pytest.raises(ValueError, match="food/body/3"):
        parse_skeleton("他 [ 来 | 去 。", key="food/body/3", split="train")


@pytest.mark.parametrize("name", ["sample-topic", "sample-similarity", "sample-inference", "sample-reading"])
def test_every_task_is_described_and_opens(world: tuple[Path, dict[str, int]], name: str) -> None:
    data = load_task_data(load_task(name), str(world[0] / "tasks"), ["train", "dev", "test"])
    assert [len(split.examples) for split in data.splits.values()] == [2000, 500, 500]
    assert not any(split.notes for split in data.splits.values())

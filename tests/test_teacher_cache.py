"""The teacher's logits on disk: read back what was written, made once, gone on with, repaired, and trained from."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.disturbance import end, fork
from fixtures_cli import VOCAB, nothing_written, run
from test_stage import make_paths, make_stage, metrics, stop_before, train, weights
from tiny import ALONE, LENGTH, VOCABULARY, NeverStop, write_world

from distill.corpus.batches import StepBatches
from distill.corpus.masking import MaskVocabulary
from distill.errors import InputError
from distill.modeling.models import load_tokenizer
from distill.recipe import Stage
from distill.training import fill_cache, teacher_cache
from distill.training.fill_cache import check_space, draw_uniform, find_missing
from distill.training.loop import TeacherPass
from distill.training.metrics import StatusFile
from distill.training.stage import train_stage
from distill.training.teacher_cache import CachedSteps, CacheFiles, cache_facts, cache_files
from distill.training.teacher_shards import DamagedShard, join_shards, load_shard, save_draws, save_likeliest

pytest_plugins = ["fixtures_cli"]
LOGITS = {"config": "student.json", "temperature": 2.0, "max_grad_norm": 1.0, "dropout": 0.0}
SURE = {**LOGITS, "temperature": 0.3, "learning_rate": 1e-2}
"""At this temperature the untrained teacher of the tests is sure of something that can be learned."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """A run of 32 samples has seven shards of five."""
    monkeypatch.setattr(teacher_cache, "SHARD_SAMPLES", 5)


def cached_stage(students=None, *, size=64, method="sample", **fields) -> Stage:
    """32 samples of 10 rows, with a cache; two micro-batches of two a step."""
    fields = {"teacher_cache": {"method": method, "size": size}, **fields}
    return make_stage(students or {"a": LOGITS}, **fields)


def shards(world, output) -> dict[str, bytes]:
    """The content of every shard of the one cache there is."""
    (folder,) = (world / output / "teacher_cache").iterdir()
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


def forget_students(world, output) -> None:
    """Leaves of a run what it shares with others."""
    shutil.rmtree(world / output / "models")
    shutil.rmtree(world / output / "stages")


@pytest.fixture
def forwards(monkeypatch):
    """The samples of each teacher forward from here on."""
    seen = []
    call = TeacherPass.__call__

    def counted(teacher, batch):
        seen.append(batch.samples)
        return call(teacher, batch)

    monkeypatch.setattr(TeacherPass, "__call__", counted)
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The shards and the weights of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    write_world(folder)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_cache, "SHARD_SAMPLES", 5)
        paths = train(folder, cached_stage(), "out")
    return shards(folder, "out"), weights(paths, "a")


# ---- one shard


def test_a_shard_gives_back_each_tokens_share_of_the_draws(tmp_path):
    draws = np.array([[3, 3, 3, 70_000], [1, 2, 3, 4], [9, 9, 9, 9]])
    save_draws(tmp_path / "x.npz", num_masked=np.array([2, 0, 1]), positions=np.array([4, 7, 1]), draws=draws,
               vocab_size=80_000)  # fmt: skip
    shard = load_shard(tmp_path / "x.npz", size=4)
    assert shard.num_masked.tolist() == [2, 0, 1] and shard.positions.tolist() == [4, 7, 1]
    assert shard.num_entries.tolist() == [2, 4, 1]
    assert shard.ids.tolist() == [3, 70_000, 1, 2, 3, 4, 9]
    assert shard.weights.tolist() == [0.75, 0.25, 0.25, 0.25, 0.25, 0.25, 1.0]


def test_a_shard_of_likeliest_tokens_gives_back_weights_to_half_precision(tmp_path):
    weights = np.array([[0.7, 0.2, 0.1], [0.6, 0.39999, 0.00001]], dtype=np.float32)
    save_likeliest(tmp_path / "x.npz", num_masked=np.array([2]), positions=np.array([1, 2]),
                   ids=np.array([[5, 1, 0], [7, 8, 9]]), weights=weights, vocab_size=100)  # fmt: skip
    shard = load_shard(tmp_path / "x.npz", size=3)
    assert shard.ids.tolist() == [5, 1, 0, 7, 8, 9]
    np.testing.assert_allclose(shard.weights, weights.reshape(-1), rtol=2e-3, atol=1e-7)
    assert shard.weights.reshape(2, 3).sum(axis=1) == pytest.approx([1, 1])


def test_parts_joined_again_are_the_whole(tmp_path):
    random = np.random.default_rng(0)
    num_masked = np.array([2, 0, 3, 1])
    draws = np.sort(random.integers(0, 6, (6, 8)), axis=1)
    save_draws(tmp_path / "x.npz", num_masked=num_masked, positions=np.arange(6), draws=draws, vocab_size=6)
    whole = load_shard(tmp_path / "x.npz", size=8)
    for cut in range(5):
        again = join_shards([whole.part(0, cut), whole.part(cut, 4)])
        for one, other in zip(dataclasses.astuple(whole), dataclasses.astuple(again), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_shard_without_masked_tokens(tmp_path):
    save_draws(tmp_path / "x.npz", num_masked=np.array([0, 0]), positions=np.empty(0, np.int64),
               draws=np.empty((0, 4), np.int64), vocab_size=6)  # fmt: skip
    assert load_shard(tmp_path / "x.npz", size=4).num_masked.tolist() == [0, 0]


def test_a_changed_bit_is_found_wherever_it_changes_what_is_read(tmp_path):
    path = tmp_path / "x.npz"
    random = np.random.default_rng(0)
    save_draws(path, num_masked=np.array([5, 4]), positions=np.arange(9),
               draws=np.sort(random.integers(0, 50, (9, 16)), axis=1), vocab_size=50)  # fmt: skip
    content, whole, found = path.read_bytes(), load_shard(path, size=16), 0
    for place in range(0, 8 * len(content), 37):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            again = load_shard(path, size=16)
        except DamagedShard:
            found += 1
            continue
        for one, other in zip(dataclasses.astuple(whole), dataclasses.astuple(again), strict=True):
            np.testing.assert_array_equal(one, other)
    assert found > len(content) // 10, "most bytes of a shard are what it holds"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedShard, match="x.npz"):
        load_shard(path, size=16)


def test_draws_of_a_sample_depend_on_its_number_alone():
    together = draw_uniform(7, range(10, 14), np.array([2, 0, 3, 1]), 4)
    alone = draw_uniform(7, range(12, 13), np.array([3]), 4)
    np.testing.assert_array_equal(together[2:5], alone)
    more = draw_uniform(7, range(12, 13), np.array([3]), 4)
    np.testing.assert_array_equal(alone, more)
    assert not np.array_equal(alone, draw_uniform(8, range(12, 13), np.array([3]), 4))
    assert (0 <= together).all() and (together < 1).all()


# ---- a stage with a cache


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The KD term of 20 steps, and dev at their end, of a stage that runs its teacher."""
    folder = tmp_path_factory.mktemp("plain")
    write_world(folder)
    with contextlib.chdir(folder):
        return losses(train(folder, make_stage({"a": SURE}, steps=20), "out"))


def losses(paths) -> list[float]:
    kd = [line["kd"] for line in metrics(paths, split="train")]
    return [*kd, metrics(paths, split="dev", student="a")[-1]["mlm_loss"]]


# The teacher of 85 tokens is nearly known by 2048 draws, and all but for the rounding by 85 tokens.
@pytest.mark.parametrize("method, size, tolerance", [("sample", 2048, 3e-3), ("top_k", len(VOCABULARY), 1e-4)])
def test_a_cached_stage_has_the_losses_of_one_that_runs_the_teacher(world, plain, method, size, tolerance):
    cached = losses(train(world, cached_stage({"a": SURE}, size=size, method=method, steps=20), "out"))
    assert cached == pytest.approx(plain, rel=tolerance)
    assert plain[19] < 0.5 * plain[0], "nothing was learned"


def test_few_kept_tokens_give_other_losses(world, plain):
    """The control: a loss that is biased would be seen above."""
    cached = losses(train(world, cached_stage({"a": SURE}, size=4, method="top_k", steps=20), "out"))
    assert cached[19] < 0.9 * plain[19]


def test_the_teacher_runs_once_for_each_sample_and_not_while_students_train(world, forwards):
    train(world, cached_stage(), "out")
    assert sorted(n for samples in forwards for n in samples) == list(range(35))
    assert max(len(samples) for samples in forwards) == 2
    forwards.clear()
    forget_students(world, "out")
    changed = {"b": {**LOGITS, "learning_rate": 1e-2, "mlm_weight": 1.0}}
    train(world, cached_stage(changed, micro_batch_size=4, global_batch_size=8, steps=3), "out")
    assert forwards == []


def test_a_stopped_run_needs_no_shard_of_its_first_steps_but_the_first(world, forwards):
    """The gradients of the terms are measured on the first sequences throughout; nobody makes the others again."""
    stage = cached_stage(global_batch_size=16, steps=3, eval_every=1)
    stop_before(world, stage, "out", 3)
    (folder,) = (world / "out" / "teacher_cache").iterdir()
    for path in sorted(folder.glob("*.npz"))[1:6]:
        path.unlink()
    forwards.clear()
    train(world, stage, "out")
    assert forwards == []


def test_a_longer_run_makes_only_what_it_lacks(world, forwards):
    train(world, cached_stage(), "out")
    forwards.clear()
    forget_students(world, "out")
    train(world, cached_stage(steps=10), "out")
    assert sorted(n for samples in forwards for n in samples) == list(range(35, 40))


def test_a_stopped_run_with_a_cache_goes_on_to_the_same_weights(world):
    stage = cached_stage({"a": {**LOGITS, "dropout": 0.1}, "b": LOGITS})
    whole = train(world, stage, "whole")
    stop_before(world, stage, "stopped", 5)
    train(world, stage, "stopped")
    for name in stage.students:
        assert weights(whole, name) == weights(make_paths(world, "stopped"), name)
    assert metrics(whole) == metrics(make_paths(world, "stopped"))


class Killed(BaseException):
    """A process that ends where it is."""


@pytest.mark.parametrize("left, done", [(0, 0), (8, 2), (20, 6)])
def test_a_run_killed_while_the_cache_is_made_loses_no_finished_shard(world, whole, forwards, left, done):
    call = TeacherPass.__call__

    def dying(teacher, batch):
        if len(forwards) == left:
            raise Killed
        return call(teacher, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TeacherPass, "__call__", dying)
        train(world, cached_stage(), "killed")
    (folder,) = (world / "killed" / "teacher_cache").iterdir()
    assert len(list(folder.glob("*.npz"))) == done
    forwards.clear()
    paths = train(world, cached_stage(), "killed")
    assert sorted(n for samples in forwards for n in samples) == list(range(5 * done, 35))
    assert (shards(world, "killed"), weights(paths, "a")) == whole


@pytest.mark.slow
def test_a_kill_while_the_cache_is_made_and_the_same_command_again(world, whole, forwards, monkeypatch):
    call = TeacherPass.__call__

    def killing(teacher, batch):
        if len(forwards) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(teacher, batch)

    def run():
        monkeypatch.setattr(TeacherPass, "__call__", killing)
        train(world, cached_stage(), "killed")

    assert end(fork(run, world / "log.txt")) == -signal.SIGKILL
    assert 0 < len(shards(world, "killed")) < 7
    paths = train(world, cached_stage(), "killed")
    assert (shards(world, "killed"), weights(paths, "a")) == whole


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_shard_is_found_and_made_again(world, forwards, caplog):
    train(world, cached_stage(), "out")
    before = shards(world, "out")
    (folder,) = (world / "out" / "teacher_cache").iterdir()
    damage(folder / "samples-0000000010-0000000014.npz")
    (folder / "samples-0000000025-0000000029.npz").unlink()
    forwards.clear()
    forget_students(world, "out")
    train(world, cached_stage(), "out")
    assert sorted(n for samples in forwards for n in samples) == [*range(10, 15), *range(25, 30)]
    assert shards(world, "out") == before
    assert "samples-0000000010-0000000014.npz" in caplog.text and "made again" in caplog.text


def open_cache(world, output, **stage_fields) -> tuple[StepBatches, CacheFiles]:
    """The batches of a stage and the cache that a run of it left."""
    caught = {}
    fill = fill_cache.fill_cache

    def catch(files, missing, batches, *args, **kwargs):
        caught.update(files=files, batches=batches)
        return fill(files, missing, batches, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill_cache, "fill_cache", catch)
        train(world, cached_stage(**stage_fields), output)
    return caught["batches"], caught["files"]


def test_a_shard_damaged_while_training_ends_the_run_with_a_remedy(world):
    batches, files = open_cache(world, "out")
    damage(files.path(range(10, 15)))
    steps = CachedSteps(batches, files)
    assert len(steps[0]) == 2
    with pytest.raises(DamagedShard, match="0000000010-0000000014.npz: .*; the same command makes it again"):
        steps[2]


def test_a_cache_for_other_masks_is_refused_where_it_is_read(world):
    batches, files = open_cache(world, "out")
    shutil.copy(files.path(range(0, 5)), files.path(range(5, 10)))
    with pytest.raises(RuntimeError, match="made for other masked positions than samples"):
        CachedSteps(batches, files)[1]


def test_a_batch_that_spans_two_shards_has_the_targets_of_each_sample(world):
    batches, files = open_cache(world, "out")
    one, two = CachedSteps(batches, files)[1]
    for batch in (one, two):
        parts = []
        for sample in batch.samples:
            shard = files.load(files.shard(sample // 5))
            parts.append(shard.part(sample % 5, sample % 5 + 1))
        expected = join_shards(parts)
        assert batch.teacher_weights.sum(dim=1).tolist() == pytest.approx([1.0] * len(batch.labels))
        assert batch.teacher_ids[batch.teacher_weights > 0].tolist() == expected.ids.tolist()
        assert torch.equal(batch.teacher_weights[batch.teacher_weights > 0], torch.from_numpy(expected.weights))


def folder_of(world, stage) -> Path:
    vocabulary = MaskVocabulary.from_tokenizer(load_tokenizer(world / "teacher"))
    facts = cache_facts(stage, stage.steps, teacher=world / "teacher", dataset=world / "data", vocabulary=vocabulary,
                        dtype=torch.float32)  # fmt: skip
    return cache_files(Path("root"), stage, stage.steps, facts).folder


SCHEDULE = {"text": ["text.txt"], "mask": "token", "mask_probability": {"start": 0.5, "end": 0.1}}


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"name": "two"}, {"size": 32}, {"method": "top_k"}, {"data": {"text": ["text.txt"], "mask": "span"}},
    {"students": {"a": {**LOGITS, "temperature": 3.0}}},
    {"data": {"text": ["text.txt"], "mask": "token", "mask_probability": 0.3}},
])  # fmt: skip
def test_what_changes_the_targets_makes_another_cache(world, change):
    assert folder_of(world, cached_stage(**change)) != folder_of(world, cached_stage())


@pytest.mark.parametrize("file", ["teacher/model.safetensors", "teacher/config.json", "data/train/state.json"])
def test_another_teacher_and_other_rows_make_another_cache(world, file):
    before = folder_of(world, cached_stage())
    content = (world / file).read_bytes()
    fingerprint = json.loads((world / "data/train/state.json").read_text())["_fingerprint"].encode()
    (world / file).write_bytes(content.replace(fingerprint, fingerprint[::-1]) + b" ")
    assert folder_of(world, cached_stage()) != before


def test_steps_and_batches_change_the_cache_of_a_schedule_alone(world):
    assert folder_of(world, cached_stage(steps=9, global_batch_size=6)) == folder_of(world, cached_stage())
    assert folder_of(world, cached_stage(steps=9, data=SCHEDULE)) != folder_of(world, cached_stage(data=SCHEDULE))


def test_a_mask_schedule_and_static_masks_are_cached_as_they_are_trained(world):
    """The positions are checked on every read, so that training at all is the proof."""
    train(world, cached_stage(data=SCHEDULE), "schedule")
    train(world, cached_stage(data={"text": ["text.txt"], "mask": "token", "static_masks": 2}), "static")


def test_the_folder_says_what_it_was_made_of(world):
    train(world, cached_stage(), "out")
    (folder,) = (world / "out" / "teacher_cache").iterdir()
    facts = json.loads((folder / "cache.json").read_text())
    assert facts["temperature"] == 2.0 and facts["size"] == 64 and facts["stage"] == "one"


@pytest.mark.parametrize("temperature, limit", [(50.0, 64 * 2 + 8 + 2), (0.05, 2 * 8 + 8 + 2)])
def test_bytes_a_masked_token_are_two_a_different_draw_and_a_bit_a_draw(world, monkeypatch, temperature, limit):
    """A teacher that is sure of few tokens takes little; the vocabulary of the tests has 85 tokens."""
    monkeypatch.setattr(teacher_cache, "SHARD_SAMPLES", 256)
    students = {"a": {**LOGITS, "temperature": temperature}}
    batches, files = open_cache(world, "out", students=students, global_batch_size=64, micro_batch_size=32, steps=4)
    shard = files.load(range(0, 256))
    content = files.path(range(0, 256)).stat().st_size
    overhead = 4 * 300 + 2 * 256  # names and headers of four arrays, and the number of masked tokens of each sample
    assert len(shard.positions) > 400
    assert content - overhead < limit * len(shard.positions)


# ---- what is refused


def test_more_kept_tokens_than_the_vocabulary_has_are_refused_in_planning(project, capsys):
    student = {"config": "student.json", "matches": []}
    project.recipe(stage={"students": {"small": student}, "teacher_cache": {"method": "top_k", "size": 4096}})
    with nothing_written(project):
        assert run("train", "recipe.json") == 2
    assert f"keeps 4096 tokens, but the vocabulary of teacher has {len(VOCAB)}" in capsys.readouterr().err


@pytest.mark.parametrize("fields, message", [
    ({"students": {"a": {**LOGITS, "matches": ["uniform"]}}}, "student 'a' has 'matches'"),
    ({"students": {"a": {**LOGITS, "kd_loss": "mse"}}}, "kd_loss 'mse' needs all logits"),
    ({"students": {"a": {**LOGITS, "kd_weight": 0.0, "mlm_weight": 1.0}}}, "kd_weight 0 uses no logits"),
    ({"students": {"a": {**LOGITS, "temperature_end": 1.0}}}, "'temperature_end', but a teacher_cache is made at one"),
    ({"students": {"a": LOGITS, "b": {**LOGITS, "temperature": 4.0}}}, "temperatures 2, 4"),
    ({"students": {"a": LOGITS}, "teacher": None}, "has no 'teacher'"),
    ({"students": {"a": LOGITS}, "teacher_cache": {"method": "topk"}}, "method"),
    ({"students": {"a": LOGITS}, "teacher_cache": {"size": 0}}, "size"),
])  # fmt: skip
def test_a_cache_where_logits_do_not_suffice_is_refused(fields, message):
    students = fields.pop("students")
    with pytest.raises(ValueError, match=message):
        make_stage(students, **{"teacher_cache": {}, **fields})


def test_a_disk_that_is_too_small_is_said_before_the_teacher_runs(world, forwards, monkeypatch):
    usage = shutil.disk_usage(world)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"takes up to 0.0 GB and the disk has 0.0 GB left; lower teacher_cache.size"):
        train(world, cached_stage(), "out")
    assert forwards == []


def test_the_estimate_of_the_size_is_no_less_than_what_is_written(world, monkeypatch):
    batches, files = open_cache(world, "out", size=256)
    written = sum(len(content) for content in shards(world, "out").values())
    headers = 4 * 300 * len(files.shards())
    usage = shutil.disk_usage(world)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=written - headers))
    with pytest.raises(InputError):
        check_space(files, files.shards(), masked_per_row=round(0.15 * LENGTH))


def test_find_missing_looks_at_the_shards_it_is_asked_for(world):
    _, files = open_cache(world, "out")
    shutil.rmtree(files.folder)
    missing = find_missing(files, files.shards(range(12, 35)), ALONE)
    assert [samples.start for samples in missing] == [10, 15, 20, 25, 30]


def test_progress_is_told(world):
    paths = make_paths(world, "out")
    status = StatusFile(paths.status)
    train_stage(cached_stage(), ["a"], paths, {"a": ""}, ALONE, NeverStop(), status)
    status.write("finished")
    messages = [line for line in json.loads(paths.status.read_text())["messages"] if line.startswith("teacher cache: ")]
    assert "35 samples are to be made in out" in messages[0].replace(str(world) + os.sep, "")
    assert messages[-1].startswith("teacher cache: 100 % in") and 5 < len(messages) < 13

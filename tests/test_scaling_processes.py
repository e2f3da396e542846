"""Two processes: a teacher that is spread over them, a cache that both make, a micro-batch size that both take."""

import json
from pathlib import Path

import pytest
from test_exactness import in_processes
from test_stage import ATTENTION, HIDDEN, make_paths, make_stage, metrics, train
from test_teacher_cache import LOGITS, cached_stage, shards
from tiny import NeverStop
from torch.distributed.tensor import DTensor

from distill.errors import InputError
from distill.training import sharding, teacher_cache
from distill.training import stage as stage_module
from distill.training.metrics import StatusFile
from distill.training.sharding import check_equal_forwards
from distill.training.stage import train_stage

STAGES = {
    "whole": {"students": {"a": HIDDEN, "b": ATTENTION}},
    "spread": {"students": {"a": HIDDEN, "b": ATTENTION}, "shard_teacher": True},
    "spread-cache": {"students": {"a": LOGITS}, "shard_teacher": True, "teacher_cache": {}},
    "cache": {"students": {"a": LOGITS}, "teacher_cache": {}},
    "auto": {"students": {"a": HIDDEN}, "micro_batch_size": "auto"},
}


def train_all(processes):
    """All stages; those that spread their teacher hold less than 60 % of its layers in a process."""
    spread, shard_layers = [], sharding.shard_layers

    def counted(model, processes):
        shard_layers(model, processes)
        layers = list(model.bert.encoder.parameters())
        local = sum(parameter.to_local().numel() for parameter in layers)
        spread.append((all(isinstance(parameter, DTensor) for parameter in layers),
                       local / sum(parameter.numel() for parameter in layers)))  # fmt: skip

    stage_module.shard_layers = counted  # for this process, which ends
    teacher_cache.SHARD_SAMPLES = 5
    for output, fields in STAGES.items():
        stage, paths = make_stage(**fields), make_paths(Path.cwd(), output)
        names = list(stage.students)
        train_stage(stage, names, paths, dict.fromkeys(names, ""), processes, NeverStop(), StatusFile(paths.status))
    assert len(spread) == 2 and all(whole and share < 0.6 for whole, share in spread), spread


@pytest.fixture
def two_processes(world):
    """The world after two processes trained all stages."""
    in_processes(2, world, train_all)
    return world


@pytest.mark.slow
def test_two_processes_share_a_teacher_a_cache_and_a_size(two_processes, monkeypatch):
    world = two_processes
    whole, spread = (metrics(make_paths(world, name)) for name in ("whole", "spread"))
    assert len(whole) == len(spread) > 16
    for a, b in zip(whole, spread, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"split", "student"}:
            assert a[key] == pytest.approx(b[key], rel=1e-5), (a["step"], a["student"], key)
    monkeypatch.setattr(teacher_cache, "SHARD_SAMPLES", 5)
    train(world, cached_stage(), "alone")
    assert shards(world, "cache") == shards(world, "spread-cache") == shards(world, "alone")
    rows = json.loads((world / "auto/stages/one/micro_batch_size.json").read_text())["micro_batch_size"]
    assert rows in (1, 2)  # two processes share four sequences


def test_one_process_holds_the_whole_teacher_and_says_so(world):
    paths = train(world, make_stage({"a": HIDDEN}, shard_teacher=True, steps=2), "out")
    plain = train(world, make_stage({"a": HIDDEN}, steps=2), "plain")
    assert metrics(paths) == metrics(plain)


@pytest.mark.parametrize(
    "global_batch_size, micro_batch_size, world_size", [(4, 1, 2), (7, 2, 2), (3, 8, 2), (9, 3, 4)]
)
def test_steps_of_which_all_processes_make_the_same_number_of_forwards(global_batch_size, micro_batch_size, world_size):
    check_equal_forwards(global_batch_size, micro_batch_size, world_size)


def test_steps_of_which_they_do_not_are_refused():
    with pytest.raises(InputError, match="7 sequences a step in micro-batches of 1 .* raise micro_batch_size"):
        check_equal_forwards(7, 1, 2)

"""Two processes: a teacher that is spread over them, a cache that both make, a micro-batch size that both take."""

import json

import pytest
from test_processes import run_ranks
from test_stage import ATTENTION, HIDDEN, make_paths, make_stage, metrics, train
from test_teacher_cache import LOGITS, cached_stage, shards

from distill.errors import InputError
from distill.training import teacher_cache
from distill.training.sharding import check_equal_forwards

STAGES = {
    "whole": {"students": {"a": HIDDEN, "b": ATTENTION}},
    "spread": {"students": {"a": HIDDEN, "b": ATTENTION}, "shard_teacher": True},
    "spread-cache": {"students": {"a": LOGITS}, "shard_teacher": True, "teacher_cache": {}},
    "cache": {"students": {"a": LOGITS}, "teacher_cache": {}},
    "auto": {"students": {"a": HIDDEN}, "micro_batch_size": "auto"},
}
SCRIPT = """
    import sys
    from pathlib import Path

    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    import test_scaling_processes as here
    from test_stage import make_paths, make_stage
    from tiny import NeverStop
    from distill.training import teacher_cache
    from distill.training.metrics import StatusFile
    from distill.training.processes import join_processes, leave_processes
    from distill.training.stage import train_stage
    from torch.distributed.tensor import DTensor
    from distill.training import sharding, stage as stage_module

    spread = []
    shard_layers = sharding.shard_layers

    def counted(model, processes):
        shard_layers(model, processes)
        kinds = [isinstance(p, DTensor) for p in model.bert.encoder.parameters()]
        local = sum(p.to_local().numel() for p in model.bert.encoder.parameters())
        spread.append((all(kinds), local / sum(p.numel() for p in model.bert.encoder.parameters())))

    stage_module.shard_layers = counted
    teacher_cache.SHARD_SAMPLES = 5
    processes = join_processes()
    for output, fields in here.STAGES.items():
        stage = make_stage(**fields)
        paths = make_paths(Path.cwd(), output)
        names = list(stage.students)
        train_stage(stage, names, paths, dict.fromkeys(names, ""), processes, NeverStop(), StatusFile(paths.status))
    assert len(spread) == 2 and all(whole and share < 0.6 for whole, share in spread), spread
    leave_processes(processes)
"""


@pytest.fixture
def two_processes(world, python, command_environment):
    """The world after two processes trained all stages."""
    run_ranks(SCRIPT, 2, world, python, command_environment)
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

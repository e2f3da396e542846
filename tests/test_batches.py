"""Samples and masks are the same however they are dealt to processes, micro-batches and workers."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from distill.corpus.batches import DevBatches, MicroBatch, StepBatches
from distill.corpus.masking import MaskVocabulary
from distill.corpus.rows import PackedRows, RowWriter
from distill.errors import InputError

NUM_ROWS, ROW_LENGTH = 37, 16
VOCABULARY = MaskVocabulary(mask_id=4, ordinary_ids=np.arange(10, 500), special_ids=np.arange(5), vocab_size=500)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """37 rows, of which the last is padded; token 10 + i marks row i, so that a batch shows where it comes from."""
    folder = tmp_path_factory.mktemp("packed") / "train"
    writer = RowWriter(folder, max_seq_length=ROW_LENGTH, vocab_size=500)
    rng = np.random.default_rng(0)
    input_ids = rng.integers(100, 500, (NUM_ROWS, ROW_LENGTH))
    input_ids[:, 0], input_ids[:, -1] = 2, 3
    length = np.full(NUM_ROWS, ROW_LENGTH)
    input_ids[-1, 9], input_ids[-1, 10:], length[-1] = 3, 0, 10
    continuation = rng.random(input_ids.shape) < 0.4
    continuation[:, [0, 1, -1]] = False
    continuation[-1, 9:] = False
    writer.write(input_ids, continuation, np.zeros_like(continuation), length)
    writer.close()
    return PackedRows(folder)


def make_steps(rows, *, global_batch_size=12, micro_batch_size=4, rank=0, world_size=1, seed=5, stage="a"):
    return StepBatches(
        rows,
        seed=seed,
        stage=stage,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
        vocabulary=VOCABULARY,
        probability=0.15,
        mask="whole_word",
    )


def make_dev(rows, *, batch_size=5, rank=0, world_size=1, seed=5):
    return DevBatches(
        rows,
        seed=seed,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        vocabulary=VOCABULARY,
        probability=0.15,
        mask="whole_word",
    )


def unmasked(batch):
    """The rows before masking."""
    restored = batch.input_ids.clone().reshape(-1)
    restored[batch.masked_positions] = batch.labels
    return restored.reshape(batch.input_ids.shape)


def samples_of(batches):
    """Masked row, positions and labels by sample number."""
    found = {}
    for batch in batches:
        for i, number in enumerate(batch.samples):
            own = batch.masked_positions // ROW_LENGTH == i
            positions = (batch.masked_positions[own] - i * ROW_LENGTH).tolist()
            assert number not in found
            found[number] = (batch.input_ids[i].tolist(), positions, batch.labels[own].tolist())
    return found


def equal(a, b):
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_step_takes_its_samples(rows):
    steps = make_steps(rows)
    assert [batch.samples for batch in steps[3]] == [range(36, 40), range(40, 44), range(44, 48)]


@pytest.mark.parametrize("global_batch_size, micro_batch_size, world_size", [
    (12, 12, 1), (12, 5, 1), (12, 4, 3), (12, 1, 2), (12, 2, 5), (12, 3, 7),
])  # fmt: skip
def test_cutting_changes_neither_samples_nor_masks(rows, global_batch_size, micro_batch_size, world_size):
    for step in (0, 3, 1000):  # step 3 crosses an epoch's end
        expected = samples_of(make_steps(rows, micro_batch_size=12)[step])
        parts = [
            make_steps(
                rows,
                global_batch_size=global_batch_size,
                micro_batch_size=micro_batch_size,
                rank=rank,
                world_size=world_size,
            )[step]
            for rank in range(world_size)
        ]
        assert samples_of(batch for part in parts for batch in part) == expected
        sizes = [sum(len(batch.samples) for batch in part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert all(1 <= len(batch.samples) <= micro_batch_size for part in parts for batch in part)


def test_processes_make_equally_many_micro_batches(rows):
    counts = [len(make_steps(rows, global_batch_size=9, world_size=2, rank=rank)[0]) for rank in (0, 1)]
    assert counts == [2, 2]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(rows, num_workers):
    steps = make_steps(rows)
    loader = DataLoader(steps, batch_size=None, sampler=range(2, 8), num_workers=num_workers)
    for step, batches in zip(range(2, 8), loader, strict=True):
        assert all(equal(a, b) for a, b in zip(batches, steps[step], strict=True))


def test_an_epoch_takes_every_row_once_and_the_next_in_another_order(rows):
    steps = make_steps(rows, global_batch_size=NUM_ROWS, micro_batch_size=NUM_ROWS)
    every = sorted(rows.rows(np.arange(NUM_ROWS))[0].tolist())
    epochs = [unmasked(steps[epoch][0]).tolist() for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == every
    assert epochs[0] != epochs[1]


def test_corpus_smaller_than_a_batch_repeats(rows):
    (batch,) = make_steps(rows, global_batch_size=2 * NUM_ROWS, micro_batch_size=100)[0]
    originals = unmasked(batch).tolist()
    assert sorted(originals[:NUM_ROWS]) == sorted(originals[NUM_ROWS:])


def test_masks_differ_by_epoch_seed_and_stage(rows):
    draws = [samples_of(make_steps(rows, seed=seed, stage=stage)[0]) for seed, stage in [(5, "a"), (6, "a"), (5, "b")]]
    assert draws[0] != draws[1] and draws[0] != draws[2]
    steps = make_steps(rows, global_batch_size=NUM_ROWS, micro_batch_size=NUM_ROWS)
    by_row = [
        {tuple(row): tuple(mask) for row, mask in zip(unmasked(b).tolist(), b.input_ids.tolist(), strict=True)}
        for b in (steps[0][0], steps[1][0])
    ]
    assert sum(by_row[0][row] != by_row[1][row] for row in by_row[0]) > NUM_ROWS / 2


def test_attention_mask_only_where_there_is_padding(rows):
    seen = {True: 0, False: 0}
    for step in range(7):
        for batch in make_steps(rows)[step]:
            padded = bool((batch.lengths < ROW_LENGTH).any())
            seen[padded] += 1
            assert (batch.attention_mask is not None) == padded
            assert batch.num_tokens == int(batch.lengths.sum())
            if padded:
                assert torch.equal(batch.attention_mask.sum(1), batch.lengths)
                assert torch.equal(batch.attention_mask == 0, batch.input_ids == 0)
    assert seen[True] and seen[False]


def test_dev_rows_come_in_order_with_fixed_masks(rows):
    first, again = list(make_dev(rows)), list(make_dev(rows))
    assert torch.equal(torch.cat([unmasked(b) for b in first]), torch.from_numpy(rows.rows(np.arange(NUM_ROWS))[0]))
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    other_size = samples_of(make_dev(rows, batch_size=NUM_ROWS))
    assert samples_of(first) == other_size
    assert other_size != samples_of(make_dev(rows, seed=6))


@pytest.mark.parametrize("world_size", [2, 3, 11])
def test_dev_batches_are_the_same_for_any_number_of_processes(rows, world_size):
    whole = list(make_dev(rows))
    parts = [make_dev(rows, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sum(map(len, parts)) == len(whole)
    for i, batch in enumerate(whole):
        assert equal(parts[i % world_size][i // world_size], batch)


def test_batch_moves_to_a_device_with_everything(rows):
    batch = make_steps(rows)[0][0]
    moved = batch.to("meta", non_blocking=True)
    assert isinstance(moved, MicroBatch) and moved.samples == batch.samples
    assert all(x.device.type == "meta" for x in vars(moved).values() if isinstance(x, torch.Tensor))


def test_fewer_sequences_than_processes_are_refused(rows):
    with pytest.raises(InputError, match="global_batch_size: 2 sequences cannot be dealt to 3 processes"):
        make_steps(rows, global_batch_size=2, world_size=3)

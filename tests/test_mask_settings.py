"""Schedules and static masks: fields of the recipe, and what they do to batches."""

import functools
import pickle

import numpy as np
import pytest

from distill.corpus.batches import DevBatches, StepBatches
from distill.corpus.masking import MaskVocabulary
from distill.corpus.rows import PackedRows, RowWriter
from distill.corpus.schedule import scheduled_value
from distill.errors import InputError
from distill.recipe import MaskSchedule
from distill.recipe_file import check_data_fields

NUM_ROWS, LENGTH = 20, 102
VOCABULARY = MaskVocabulary(mask_id=4, ordinary_ids=np.arange(10, 500), special_ids=np.arange(5), vocab_size=500)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "train"
    writer = RowWriter(folder, max_seq_length=LENGTH, vocab_size=500)
    input_ids = np.random.default_rng(0).integers(10, 500, (NUM_ROWS, LENGTH))
    input_ids[:, 0], input_ids[:, -1] = 2, 3
    flags = np.zeros(input_ids.shape, dtype=bool)
    writer.write(input_ids, flags, flags, np.full(NUM_ROWS, LENGTH))
    writer.close()
    return PackedRows(folder)


def make_steps(rows, *, micro_batch_size=NUM_ROWS, rank=0, world_size=1, global_batch_size=NUM_ROWS, **options):
    options = {"probability": 0.15, "mask": "whole_word", **options}
    return StepBatches(
        rows, seed=5, stage="a", global_batch_size=global_batch_size, micro_batch_size=micro_batch_size, rank=rank,
        world_size=world_size, vocabulary=VOCABULARY, **options,
    )  # fmt: skip


def masks_by_row(batches):
    """The row before masking -> its masked positions and what stands there."""
    found = {}
    for batch in batches:
        restored = batch.input_ids.clone().reshape(-1)
        restored[batch.masked_positions] = batch.labels
        for before, after in zip(restored.reshape(-1, LENGTH).tolist(), batch.input_ids.tolist(), strict=True):
            found[tuple(before)] = tuple(after)
    return found


@pytest.mark.parametrize("shape, middle", [("linear", 0.225), ("cosine", 0.225)])
def test_schedule_goes_from_start_to_end(shape, middle):
    at = functools.partial(scheduled_value, steps=101, start=0.3, end=0.15, shape=shape)
    values = [at(step) for step in range(101)]
    assert (values[0], values[-1]) == (0.3, pytest.approx(0.15)) and values[50] == pytest.approx(middle)
    assert values == sorted(values, reverse=True)
    assert at(500) == pytest.approx(0.15)
    assert (values[0] - values[10] < 0.005) == (shape == "cosine")


def test_schedule_of_one_step_is_its_start():
    assert scheduled_value(0, steps=1, start=0.3, end=0.15, shape="linear") == 0.3


@pytest.mark.parametrize("mask", ["whole_word", "token", "span"])
def test_batches_follow_the_schedule(rows, mask):
    at = functools.partial(scheduled_value, steps=11, start=0.3, end=0.15, shape="linear")
    steps = pickle.loads(pickle.dumps(make_steps(rows, probability=at, mask=mask)))
    counts = [len(steps[step][0].labels) / NUM_ROWS for step in (0, 5, 10)]
    assert counts == [30, 22, 15]


@pytest.mark.parametrize("mask", ["whole_word", "token", "span"])
@pytest.mark.parametrize("static_masks", [None, 3])
def test_cutting_and_starting_anywhere_change_no_mask(rows, mask, static_masks):
    at = functools.partial(scheduled_value, steps=7, start=0.3, end=0.15, shape="cosine")
    options = {"probability": 0.15 if static_masks else at, "mask": mask, "static_masks": static_masks}
    options["global_batch_size"] = 12
    whole = make_steps(rows, **options)
    for step in (6, 2, 5, 0):
        expected = masks_by_row(whole[step])
        for world_size, micro_batch_size in ((1, 5), (3, 2)):
            parts = [
                make_steps(rows, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size, **options)[step]
                for rank in range(world_size)
            ]
            assert masks_by_row(batch for part in parts for batch in part) == expected


def test_static_masks_come_back_in_turn(rows):
    """One step is one epoch here."""
    steps = make_steps(rows, static_masks=2, mask="span")
    epochs = [masks_by_row(steps[epoch]) for epoch in range(5)]
    assert epochs[0] == epochs[2] == epochs[4] and epochs[1] == epochs[3]
    assert sum(epochs[0][row] != epochs[1][row] for row in epochs[0]) == NUM_ROWS
    assert epochs[0] != masks_by_row(make_steps(rows, mask="span")[0])


def test_rows_have_different_static_masks(rows):
    (batch,) = make_steps(rows, static_masks=1)[0]
    positions = batch.masked_positions.reshape(NUM_ROWS, -1) % LENGTH
    assert len({tuple(row) for row in positions.tolist()}) == NUM_ROWS


def test_samples_are_located_alike_beyond_what_was_located_ahead(rows):
    ahead, jumping = make_steps(rows, global_batch_size=1500), make_steps(rows, global_batch_size=1500)
    for step in range(8):
        ahead[step]
    assert masks_by_row(ahead[7]) == masks_by_row(jumping[7])


def test_dev_is_masked_by_the_end_of_the_schedule(rows):
    data = check_data_fields(
        "test", text=["a"], mask="token", mask_probability={"start": 0.3, "end": 0.2, "schedule": "cosine"}
    )
    dev = DevBatches(rows, seed=0, batch_size=8, rank=0, world_size=1, vocabulary=VOCABULARY, mask=data.mask,
                     probability=data.final_mask_probability())  # fmt: skip
    assert [len(batch.labels) / len(batch.lengths) for batch in dev] == [20, 20, 20]


def test_recipe_takes_a_number_or_a_schedule():
    assert check_data_fields("test", text=["a"], mask="span", mask_probability=0.2).final_mask_probability() == 0.2
    data = check_data_fields("test", text=["a"], mask="span", mask_probability={"start": 0.3, "end": 0.15})
    assert data.mask_probability == MaskSchedule(start=0.3, end=0.15, schedule="linear")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mask_probability": 1.5}, "mask_probability: .*less than 1, found 1.5"),
        ({"mask_probability": "much"}, 'mask_probability: .*number.*, found "much"'),
        ({"mask_probability": {"start": 0.3}}, "mask_probability, end: field required"),
        ({"mask_probability": {"start": 0.3, "end": 2}}, "mask_probability, end: .*less than 1, found 2"),
        ({"mask_probability": {"start": 0.3, "end": 0.1, "shape": "x"}}, "mask_probability, shape: unknown key"),
        ({"mask_probability": {"start": 0.3, "end": 0.1}, "static_masks": 2}, "static_masks.*cannot change"),
        ({"static_masks": 0}, "static_masks: .*greater than 0, found 0"),
        ({"mask": "spans"}, "mask: .*'span'.*found \"spans\""),
        ({"packing": "chunk"}, "packing: .*'full_sentences'.*found \"chunk\""),
    ],
)
def test_bad_fields_are_one_clear_line(fields, message):
    with pytest.raises(InputError, match=message) as error:
        check_data_fields("test", **{"text": ["a"], "mask": "token", **fields})
    assert "\n" not in str(error.value) and "(" not in str(error.value).split(":")[1]

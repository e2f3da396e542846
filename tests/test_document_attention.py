"""Documents that share a row but do not see each other give what each gives alone."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from distill.corpus.batches import DevBatches, StepBatches
from distill.corpus.masking import MaskVocabulary
from distill.corpus.packer import Packer
from distill.corpus.rows import PackedRows, RowWriter
from distill.training.encoder import Needs, encode

PAD, CLS, SEP, LENGTH = 0, 2, 3, 24
VOCABULARY = MaskVocabulary(mask_id=4, ordinary_ids=np.arange(10, 60), special_ids=np.arange(5), vocab_size=60)


def pack(folder, document_sizes, kind="chunks", max_seq_length=LENGTH):
    """Packed rows of documents of random tokens, each one line."""
    writer = RowWriter(folder, max_seq_length=max_seq_length, vocab_size=60)
    packer = Packer(writer, packing=kind, frame_ids=(CLS, SEP, PAD))
    total = sum(document_sizes)
    documents = np.repeat(np.arange(len(document_sizes)), document_sizes)
    starts = np.diff(documents, prepend=-1) > 0
    ids = np.random.default_rng(0).integers(10, 60, total).astype(np.int32)
    packer.add(ids, np.zeros(total, dtype=bool), documents, line_start=starts, num_characters=total)
    packer.finish()
    return PackedRows(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed") / "train", [5, 3, 20, 1, 9, 4, 17, 2])


def make_dev(rows, **options):
    return DevBatches(
        rows, seed=0, batch_size=4, rank=0, world_size=1, vocabulary=VOCABULARY, probability=0.2, mask="token",
        **options,
    )  # fmt: skip


def tiny_model(attention, seed=0):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=LENGTH, attn_implementation=attention, initializer_range=0.5,
    )  # fmt: skip
    return BertForMaskedLM._from_config(config, attn_implementation=attention).eval()


def test_cls_goes_with_the_first_sep_and_padding_with_the_last_document(rows):
    assert rows.document_ids(np.array([0]))[0].tolist() == [0] * 6 + [1] * 3 + [2] * 15
    assert rows.document_ids(np.array([1]))[0].tolist() == [0] * 7 + [1] + [2] * 9 + [3] * 4 + [4] * 3
    assert rows.document_ids(np.array([2]))[0].tolist() == [0] * 16 + [1] * 8  # padded after 19


def test_positions_restart_at_each_document(rows):
    batch = make_dev(rows, document_attention=True)[0]
    assert batch.position_ids[0].tolist() == [*range(6), *range(3), *range(15)]
    assert batch.position_ids[1].tolist() == [*range(7), 0, *range(9), *range(4), *range(3)]


def test_full_sentences_opens_a_document_with_its_extra_separator(tmp_path):
    rows = pack(tmp_path / "rows", [3, 4, 2], kind="full_sentences")
    input_ids, _, length = rows.rows(np.array([0]))
    assert np.flatnonzero(input_ids[0, : length[0]] == SEP).tolist() == [4, 5, 10, 11, 14]
    assert rows.document_ids(np.array([0]))[0, : length[0]].tolist() == [0] * 5 + [1] * 6 + [2] * 4


def test_without_the_setting_the_row_is_one_whole(rows):
    batch = make_dev(rows)[0]
    assert batch.document_ids is None and batch.position_ids is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_hidden_states_equal_those_of_each_document_alone(rows, attention):
    model = tiny_model(attention)
    batch = make_dev(rows, document_attention=True)[0]
    needs = Needs(hidden=frozenset({0, 1, 2}), attention=attention == "eager")
    features = encode(model, batch, needs)
    seen = 0
    for row in range(len(batch.lengths)):
        for document in range(int(batch.document_ids[row].max()) + 1):
            own = torch.nonzero(batch.document_ids[row] == document).flatten()
            own = own[own < batch.lengths[row]]
            alone = model.bert(batch.input_ids[row, own][None], output_hidden_states=True).hidden_states
            for packed, expected in zip(features.hidden, alone, strict=True):
                torch.testing.assert_close(packed[row, own], expected[0], rtol=1e-5, atol=1e-5)
            for matrix in features.attention:
                inside = matrix[row][:, own][:, :, own].sum(-1)
                torch.testing.assert_close(inside, torch.ones_like(inside))
            seen += len(own)
    assert seen == batch.num_tokens
    mixed = encode(model, dataclasses.replace(batch, document_ids=None, position_ids=None), needs)
    assert (mixed.hidden[2] - features.hidden[2]).abs().max() > 0.1


@torch.no_grad()
def test_logits_of_masked_positions_equal_those_of_each_document_alone(rows):
    model = tiny_model("sdpa")
    batch = make_dev(rows, document_attention=True)[0]
    logits = encode(model, batch, Needs()).logits
    for i, position in enumerate(batch.masked_positions.tolist()):
        row, column = divmod(position, LENGTH)
        own = torch.nonzero(batch.document_ids[row] == batch.document_ids[row, column]).flatten()
        own = own[own < batch.lengths[row]]
        alone = model(batch.input_ids[row, own][None]).logits[0, (own == column).nonzero().item()]
        torch.testing.assert_close(logits[i], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gradients_of_padding_are_finite_under_autocast(rows):
    model = tiny_model("sdpa")
    batch = make_dev(rows, document_attention=True)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        states = encode(model, batch, Needs(hidden=frozenset({2}))).hidden[2]
        states.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_documents_and_positions_travel_with_the_batch(rows):
    steps = StepBatches(
        rows, seed=0, stage="a", global_batch_size=3, micro_batch_size=2, rank=0, world_size=1,
        vocabulary=VOCABULARY, probability=0.2, mask="token", document_attention=True,
    )  # fmt: skip
    for batch in steps[1]:
        moved = batch.to("meta")
        assert moved.document_ids.device.type == moved.position_ids.device.type == "meta"
        assert moved.document_ids.shape == batch.input_ids.shape

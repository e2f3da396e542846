"""UER's BERT written independently as modules: names of its state dict and outputs are what ours are held against."""

import math

import torch
from torch import nn


class Norm(nn.Module):
    """uer/layers/layer_norm.py: the unbiased deviation, with 1e-6 added to it."""

    def __init__(self, width):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return self.gamma * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.beta


class Table(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.embedding = nn.Embedding(rows, width)


class Embedding(nn.Module):
    def __init__(self, vocabulary, positions, width):
        super().__init__()
        self.word, self.pos, self.seg = Table(vocabulary, width), Table(positions, width), Table(3, width)
        self.layer_norm = Norm(width)

    def forward(self, ids, segments):
        places = torch.arange(ids.shape[1])
        parts = (self.word.embedding(ids), self.pos.embedding(places)[None], self.seg.embedding(segments))
        return self.layer_norm(sum(parts))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.linear_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.final_linear = nn.Linear(width, width)

    def forward(self, x):
        outputs = []
        for head in zip(*(layer(x).chunk(self.heads, -1) for layer in self.linear_layers), strict=True):
            query, key, value = head
            outputs.append((query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1) @ value)
        return self.final_linear(torch.cat(outputs, -1))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.self_attn, self.layer_norm_1, self.layer_norm_2 = Attention(width, heads), Norm(width), Norm(width)
        self.feed_forward = nn.Module()
        self.feed_forward.linear_1 = nn.Linear(width, 4 * width)
        self.feed_forward.linear_2 = nn.Linear(4 * width, width)

    def forward(self, x):
        x = self.layer_norm_1(x + self.self_attn(x))
        inner = self.feed_forward.linear_1(x)
        return self.layer_norm_2(x + self.feed_forward.linear_2(inner * 0.5 * (1 + torch.erf(inner / 1.41421))))


class UerModel(nn.Module):
    """Random weights; LayerNorms are not trivial, embeddings wide enough that 1e-6 more or less does not show."""

    def __init__(self, layers, width, *, heads, vocabulary=60, positions=64, next_sentence=False):
        super().__init__()
        torch.manual_seed(layers + width)
        self.embedding = Embedding(vocabulary, positions, width)
        self.encoder, self.target = nn.Module(), nn.Module()
        self.encoder.transformer = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.target.mlm = nn.Module()
        self.target.mlm.linear_1, self.target.mlm.layer_norm = nn.Linear(width, width), Norm(width)
        self.target.mlm.linear_2 = nn.Linear(width, vocabulary)
        self.target.mlm.linear_2.weight = self.embedding.word.embedding.weight
        if next_sentence:
            self.target.sp = nn.Module()
            self.target.sp.linear_1, self.target.sp.linear_2 = nn.Linear(width, width), nn.Linear(width, 2)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.normal_(1.0 if name.endswith("gamma") else 0.0, 0.5 if ".embedding." in name else 0.1)

    @torch.no_grad()
    def forward(self, ids):
        x = self.embedding(ids, torch.ones_like(ids))
        for layer in self.encoder.transformer:
            x = layer(x)
        inner = self.target.mlm.linear_1(x)
        inner = self.target.mlm.layer_norm(inner * 0.5 * (1 + torch.erf(inner / 1.41421)))
        return x, self.target.mlm.linear_2(inner)

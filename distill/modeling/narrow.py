"""A narrower student that starts from its teacher: what it keeps of each width, and the weights that follow from it.

 1. The teacher runs on some batches: means over their tokens say how large its units are.
 2. Bases say which of its units, or which mixtures of them, become the student's: [teacher's units, student's units].
 3. Every matrix is cut to the bases of its input and output. What a matrix took from the part of its input that is
    gone comes back as a constant, that part's mean, in the bias (FLAP, https://arxiv.org/abs/2312.11983).
 4. A LayerNorm over fewer units has another mean and variance: gain and bias are fitted again, by least squares, so
    that it gives on the same batches what the teacher's gave in the units that are kept.

BERT's residual stream passes through every LayerNorm, so one basis serves all layers, embeddings and prediction head.
"""

# H width, h the student's; I neurons, i the student's; N tokens

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from distill.corpus.batches import MicroBatch
from distill.errors import InputError
from distill.modeling.initialise import check_layer_numbers
from distill.modeling.measuring import Forward, Means, measure_units, watch_rows

_EQUAL = ("vocab_size", "type_vocab_size")
_AT_MOST = ("hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")


def spread_layers(teacher: int, student: int) -> list[int]:
    """The teacher's layers that a shallower student starts from: first, last, and evenly between, as in MiniRBT.

    The first is where a model finds the neighbours of a token; a start without it is hardly better than none.
    """
    steps = max(student - 1, 1)
    return [(2 * i * (teacher - 1) + steps) // (2 * steps) for i in range(student)]


def check_narrowing(layers: Sequence[int] | None, teacher: BertConfig, student: BertConfig, *, where: str) -> None:
    """InputError unless the student is no wider than the teacher in any way, and the layers are there."""
    for key, words in (*((key, "as many as") for key in _EQUAL), *((key, "at most") for key in _AT_MOST)):
        ours, theirs = getattr(student, key), getattr(teacher, key)
        if ours > theirs or words == "as many as" and ours != theirs:
            raise InputError(
                f"{where}: init_width: {key} is {ours} in the student, but must be {words} the {theirs} of the teacher"
            )
    for config, whose in ((student, "student"), (teacher, "teacher")):
        if not config.tie_word_embeddings:
            raise InputError(
                f"{where}: init_width: tie_word_embeddings is false in the {whose}, but only a decoder that is tied to "
                "the word embeddings can be cut"
            )
    if student.hidden_act != teacher.hidden_act:
        raise InputError(
            f"{where}: init_width: hidden_act is '{student.hidden_act}' in the student, '{teacher.hidden_act}' in the "
            "teacher; they must be equal"
        )
    sizes = [config.hidden_size // config.num_attention_heads for config in (student, teacher)]
    if sizes[0] > sizes[1]:
        heads = -(-student.hidden_size // sizes[1])
        raise InputError(
            f"{where}: init_width: the student's attention heads are {sizes[0]} wide and the teacher's {sizes[1]}, "
            f"which cannot be widened; give it {heads} heads or more"
        )
    if layers is None:
        if student.num_hidden_layers > teacher.num_hidden_layers:
            raise InputError(
                f"{where}: init_width: the student has {student.num_hidden_layers} layers, the teacher only "
                f"{teacher.num_hidden_layers}; name one for each of the student's in init_layers"
            )
        return
    check_layer_numbers(layers, teacher, student, where=where)


@dataclass(frozen=True)
class WayBack:
    """How the teacher's hidden states follow from those of a student that was cut from it: weight s + biases[n].

    What the student does not keep is taken to be its mean.
    """

    weight: Tensor
    """[H, h]"""
    biases: Sequence[Tensor]
    """[H] for hidden state n: 0 the embeddings, n the output of n layers."""


@torch.no_grad()
def narrow_teacher(
    teacher: BertForMaskedLM,
    student: BertForMaskedLM,
    batches: Sequence[MicroBatch],
    forward: Forward,
    *,
    method: str,
    layers: Sequence[int] | None = None,
) -> WayBack:
    """Gives the student, in place, the weights of the teacher cut to its widths.

    Args:
        batches: what the teacher's units are measured on.
        method: "importance": the units with the largest mean square (of the residual stream), or that move the residual
            stream most (neurons and heads). "pca": mixtures of residual units, the directions with the largest mean
            square; inner units as with importance.
        layers: the teacher's layer for each of the student's; None = `spread_layers`.
    Returns: what projections of the student's hidden states to the teacher's width start from.
    Raises:
        InputError: see `check_narrowing`.
    """
    check_narrowing(layers, teacher.config, student.config, where="narrow_teacher")
    if layers is None:
        layers = spread_layers(teacher.config.num_hidden_layers, student.config.num_hidden_layers)
    teacher.eval()
    means = measure_units(teacher, batches, forward)
    residual = _residual_basis(means.moment(), student.config.hidden_size, method)
    norms = _fit_norms(teacher, batches, forward, residual, student.config.layer_norm_eps)
    _Narrowing(teacher, student, means, norms, residual).fill(layers)
    outputs = [f"encoder.layer.{layer}.output" for layer in range(teacher.config.num_hidden_layers)]
    states = [means[f"bert.{module}.LayerNorm state"] for module in ("embeddings", *outputs)]
    return WayBack(residual, [_cut_away(state, residual) for state in states])


def _residual_basis(moment: Tensor, width: int, method: str) -> Tensor:
    """[H, h] from the residual stream's second moment [H, H]; B B^T projects onto what the student keeps."""
    if method == "importance":
        return _pick(_largest(moment.diagonal(), width), len(moment))
    # LayerNorm takes the mean of the student's units away. So one direction less is kept, and the others are turned,
    # by a reflection that takes the last axis to the diagonal, such that their units have no mean.
    directions = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, : width - 1]
    # Whether a direction or its opposite comes out depends on the library and its threads.
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    axis = torch.full((width,), -(width**-0.5), dtype=moment.dtype)
    axis[-1] += 1
    reflection = torch.eye(width, dtype=moment.dtype) - 2 * torch.outer(axis, axis) / axis.dot(axis)
    return directions @ reflection[: width - 1]


def _cut_away(mean: Tensor, basis: Tensor) -> Tensor:
    """The part of a mean [H] that a basis [H, h] does not keep."""
    return mean - basis @ (basis.T @ mean)


def _largest(values: Tensor, count: int) -> Tensor:
    """The places of the largest values, in order of their places; of equal ones the first."""
    return values.argsort(descending=True, stable=True)[:count].sort().values


def _pick(places: Tensor, size: int) -> Tensor:
    """The basis [size, places] that picks units."""
    return torch.eye(size, dtype=torch.float64)[:, places]


def _fit_norms(
    teacher: BertForMaskedLM, batches: Iterable[MicroBatch], forward: Forward, residual: Tensor, eps: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """LayerNorm -> gain and bias [h], by least squares; the teacher's own where all units are kept as they are."""
    if residual.size(0) == residual.size(1) and torch.equal(residual, torch.eye(len(residual), dtype=residual.dtype)):
        norms = {name: module for name, module in teacher.named_modules() if isinstance(module, nn.LayerNorm)}
        return {name: (norm.weight, norm.bias) for name, norm in norms.items()}
    means = Means()

    def watch(name: str, inputs: Tensor, outputs: Tensor) -> None:
        found = F.layer_norm(inputs.double() @ residual, residual.shape[1:], eps=eps)
        wanted = outputs.double() @ residual
        sums = torch.stack([value.sum(0) for value in (found, wanted, found.square(), found * wanted)])
        means.add(name, sums, len(inputs))

    watch_rows(teacher, batches, forward, (nn.LayerNorm,), watch)
    fitted = {}
    for name in means.sums:
        found, wanted, square, product = means[name]
        variance = square - found.square()
        # A unit that is nearly the same for all tokens has no slope to fit.
        gain = torch.where(variance > 1e-8, (product - found * wanted) / variance.clamp(min=1e-8), 0.0)
        fitted[name] = gain, wanted - gain * found
    return fitted


class _Narrowing:
    """The teacher's weights on their way into the student."""

    def __init__(
        self,
        teacher: BertForMaskedLM,
        student: BertForMaskedLM,
        means: Means,
        norms: dict[str, tuple[Tensor, Tensor]],
        residual: Tensor,
    ) -> None:
        self.teacher, self.student, self.means, self.norms, self.residual = teacher, student, means, norms, residual

    def fill(self, layers: Sequence[int]) -> None:
        """Sets all of the student's weights."""
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            source, target = (
                model.get_parameter(f"bert.embeddings.{name}.weight") for model in (self.teacher, self.student)
            )
            target.copy_(source[: len(target)].double() @ self.residual)
        self._norm("bert.embeddings.LayerNorm", "bert.embeddings.LayerNorm")
        for number, layer in enumerate(layers):
            self._layer(f"bert.encoder.layer.{layer}", f"bert.encoder.layer.{number}")
        head = "cls.predictions.transform"
        self._linear(f"{head}.dense", f"{head}.dense", self.residual, self.residual)
        self._norm(f"{head}.LayerNorm", f"{head}.LayerNorm")
        # The decoder's matrix is tied to the word embeddings.
        decoder, lost = "cls.predictions.decoder", self._lost("cls.predictions.decoder", self.residual)
        weight, bias = self._weight_and_bias(self.teacher, decoder)
        self.student.cls.predictions.bias.copy_(bias + weight @ lost)

    def _layer(self, source: str, target: str) -> None:
        vectors, values = self._head_bases(source)
        neurons = self._largest_movers(f"{source}.output.dense", self.student.config.intermediate_size)
        attention, own = "attention.self", "attention.output"
        for name in ("query", "key", "value"):
            rows = values if name == "value" else vectors
            self._linear(f"{source}.{attention}.{name}", f"{target}.{attention}.{name}", rows, self.residual)
        self._linear(f"{source}.{own}.dense", f"{target}.{own}.dense", self.residual, values)
        self._linear(f"{source}.intermediate.dense", f"{target}.intermediate.dense", neurons, self.residual)
        self._linear(f"{source}.output.dense", f"{target}.output.dense", self.residual, neurons)
        self._norm(f"{source}.{own}.LayerNorm", f"{target}.{own}.LayerNorm")
        self._norm(f"{source}.output.LayerNorm", f"{target}.output.LayerNorm")
        # Scores are divided by the root of the head's width, which is smaller now.
        scale = (self._head_size(self.student) / self._head_size(self.teacher)) ** 0.5
        for name in ("weight", "bias"):
            self.student.get_parameter(f"{target}.{attention}.query.{name}").mul_(scale)

    def _linear(self, source: str, target: str, rows: Tensor, columns: Tensor) -> None:
        """Cuts a matrix to the bases of its outputs and inputs."""
        weight, bias = self._weight_and_bias(self.teacher, source)
        self._set(target, rows.T @ weight @ columns, rows.T @ (bias + weight @ self._lost(source, columns)))

    @staticmethod
    def _weight_and_bias(model: BertForMaskedLM, name: str) -> tuple[Tensor, Tensor]:
        """In float64."""
        return model.get_parameter(f"{name}.weight").double(), model.get_parameter(f"{name}.bias").double()

    def _set(self, target: str, weight: Tensor, bias: Tensor) -> None:
        self.student.get_parameter(f"{target}.weight").copy_(weight)
        self.student.get_parameter(f"{target}.bias").copy_(bias)

    def _lost(self, name: str, columns: Tensor) -> Tensor:
        """The mean of the part of a matrix's input that its basis does not keep."""
        return _cut_away(self.means[f"{name} input"], columns)

    def _norm(self, source: str, target: str) -> None:
        self._set(target, *self.norms[source])

    def _movement(self, name: str) -> Tensor:
        """How much each input unit of a matrix moves its output: mean square times the squared norm of its weights.

        The activation criterion of Minitron (https://arxiv.org/abs/2407.14679), weighted as in Wanda
        (https://arxiv.org/abs/2306.11695).
        """
        weight, _ = self._weight_and_bias(self.teacher, name)
        return self.means[f"{name} square"] * weight.square().sum(dim=0)

    def _largest_movers(self, name: str, count: int) -> Tensor:
        movement = self._movement(name)
        return _pick(_largest(movement, count), len(movement))

    def _head_size(self, model: BertForMaskedLM) -> int:
        return model.config.hidden_size // model.config.num_attention_heads

    def _head_bases(self, layer: str) -> tuple[Tensor, Tensor]:
        """Bases [H, h] of queries and keys, and of values: the heads that move most, and the best units in each."""
        size, kept = self._head_size(self.teacher), self._head_size(self.student)
        movement = self._movement(f"{layer}.attention.output.dense").view(-1, size)
        query, key = (self.means[f"{layer}.attention.self.{name} output"].view(-1, size) for name in ("query", "key"))
        places: list[list[Tensor]] = [[], []]
        for head in _largest(movement.sum(dim=1), self.student.config.num_attention_heads).tolist():
            for found, values in zip(places, (query[head] * key[head], movement[head]), strict=True):
                found.append(head * size + _largest(values, kept))
        vectors, values = (_pick(torch.cat(found), movement.numel()) for found in places)
        return vectors, values

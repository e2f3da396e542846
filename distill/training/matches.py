"""Layer matches: from a short word to TextBrewer's list of dicts, checked against both configs.

A match says which teacher layer a student layer learns from, by which loss, through which projection.
`hidden` layer 0 is the embedding output, so a model of N layers has hidden layers 0..N; `attention`, `query`, `key` and
`value` are those of attention layers 0..N-1.
No weights are needed here. The losses themselves are TextBrewer's registry plus `distill.training.losses`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textbrewer.presets import FEATURES, MATCH_LOSS_MAP, PROJ_MAP
from transformers import BertConfig

from distill.errors import InputError
from distill.json_file import nearest, read_json, short
from distill.training.losses import (
    PAIR_LOSSES,
    STATES,
    any_head_count,
    is_match_loss,
    loss_features,
    needs_same_width,
    published_heads,
    relation_heads,
)

Match = dict[str, Any]
MATCH_KEYS = {"layer_T", "layer_S", "feature", "loss", "weight", "proj"}
WORDS = ("uniform", "inner", "last")
"""Which pairs of layers: spread evenly over the teacher; the same without embeddings and last layer; the last ones."""

# MiniRBT's presets (pretraining/matches.py): feature, loss, "teacher:student" pairs, student width projected to 768.
_EVEN = "0:0 2:1 4:2 6:3 8:4 10:5 12:6"
_EVERY_THIRD = "0:0 3:1 6:2 9:3 12:4"
_SAME = "0:0 1:1 2:2 3:3 4:4 5:5 6:6"
_SMALL = "0:0 2:2 4:4 6:6 8:8 10:10 12:12"
PRESETS: dict[str, tuple[str, str, str, int | None]] = {
    "L3_attention_mse": ("attention", "attention_mse", "4:1 8:2 12:3", None),
    "L3_attention_mse_sum": ("attention", "attention_mse_sum", "4:1 8:2 12:3", None),
    "L3_attention_ce": ("attention", "attention_ce", "4:1 8:2 12:3", None),
    "L3_attention_ce_mean": ("attention", "attention_ce_mean", "4:1 8:2 12:3", None),
    "L3n_hidden_mse": ("hidden", "hidden_mse", "0:0 4:1 8:2 12:3", 384),
    "L3_hidden_smmd": ("hidden", "mmd", "0:0 4:1 8:2 12:3", None),
    "L3_hidden_mse": ("hidden", "hidden_mse", "0:0 4:1 8:2 12:3", None),
    "L4_attention_mse": ("attention", "attention_mse", "2:0 5:1 8:2 11:3", None),
    "L4_attention_mse_sum": ("attention", "attention_mse_sum", "3:1 6:2 9:3 12:4", None),
    "L4_hidden_mse": ("hidden", "hidden_mse", "0:0 1:1 2:2 3:3 4:4", 312),
    "L4_attention_ce": ("attention", "attention_ce", "3:1 6:2 9:3 12:4", None),
    "L4_attention_ce_mean": ("attention", "attention_ce_mean", "3:1 6:2 9:3 12:4", None),
    "L4t_hidden_mse": ("hidden", "hidden_mse", _EVERY_THIRD, 312),
    "L4_hidden_smmd": ("hidden", "mmd", _EVERY_THIRD, None),
    "L4t_hidden_sgram": ("hidden", "gram", _EVERY_THIRD, 312),
    "L6_hidden_mse": ("hidden", "hidden_mse", _EVEN, None),
    "L6_hidden_smmd": ("hidden", "mmd", _EVEN, None),
    "small_hidden_mse": ("hidden", "hidden_mse", _SMALL, 256),
    "small_hidden_smmd": ("hidden", "mmd", _SMALL, None),
    "L6h288_rbt6_hidden_mse": ("hidden", "hidden_mse", _SAME, 288),
    "L6h256_rbt6_hidden_mse": ("hidden", "hidden_mse", _SAME, 256),
    "L6n0_hidden_mse": ("hidden", "hidden_mse", _EVEN, 288),
    "L6h256_roberta_hidden_mse": ("hidden", "hidden_mse", _EVEN, 256),
}


def resolve_matches(
    spec: Sequence[str | Match], teacher: BertConfig, student: BertConfig, *, where: str = "matches"
) -> list[Match]:
    """TextBrewer's `intermediate_matches` for a recipe's `matches`, checked against both configs.

    Args:
        spec: entries WORD or `WORD:<loss>` (see WORDS), a MiniRBT preset name, the path of a JSON list, one match
            as a dict, or {"match": any of these names, "weight": number}.
        where: begins each error message.
    Raises:
        InputError: an unknown name, key or loss; a layer out of range; widths or head counts that do not fit.
    """
    matches: list[Match] = []
    for entry in spec:
        if isinstance(entry, dict) and "match" in entry:
            weight = _check_weighted_word(entry, where)
            named = _named_matches(entry["match"], teacher, student, where)
            matches += [{**match, "weight": weight * match["weight"]} for match in named]
        elif isinstance(entry, dict):
            matches.append({"weight": 1, **entry})
        else:
            matches += _named_matches(entry, teacher, student, where)
    for match in matches:
        _check_match(match, teacher, student, where)
    return matches


def _check_weighted_word(entry: Match, where: str) -> float:
    """The weight in {"match": WORD, "weight": number}."""
    if entry.keys() != {"match", "weight"} or not isinstance(entry["match"], str):
        raise InputError(f'{where}: expected {{"match": WORD, "weight": number}}, found {short(entry)}')
    return _check_weight(entry["weight"], where)


def _named_matches(name: str, teacher: BertConfig, student: BertConfig, where: str) -> list[Match]:
    """The matches that a word, a preset name or a JSON path stands for."""
    word, _, loss = name.partition(":")
    if word in WORDS:
        return word_matches(word, loss or "hidden_mse", teacher, student, where=where)
    if name in PRESETS:
        return preset_matches(name)
    if name.endswith(".json"):
        loaded = read_json(Path(name))
        if not isinstance(loaded, list) or not all(isinstance(match, dict) for match in loaded):
            raise InputError(f"{name}: expected a JSON list of match objects")
        return [{"weight": 1, **match} for match in loaded]
    known = nearest(name, [*WORDS, *PRESETS])
    raise InputError(f"{where}: unknown match '{name}'{known} (or WORD:LOSS, a .json path, a match object)")


def word_matches(
    word: str, loss: str, teacher: BertConfig, student: BertConfig, *, where: str = "matches"
) -> list[Match]:
    """The matches of `uniform:LOSS`, `inner:LOSS` or `last:LOSS`, with the projections that the widths need.

    `uniform`: hidden layer i of S learns from floor(i * T / S + 1/2), attention layer i from
    floor((i + 1) * T / S + 1/2) - 1: the formula behind all of MiniRBT's presets, with halves rounded up.

    Args:
        loss: a name of the registry; "relation" or "sample_relation" take as many relation heads as MiniLMv2 published.
    """
    if loss in ("relation", "sample_relation"):
        loss = f"{loss}_{published_heads(student.hidden_size, teacher.hidden_size)}"
    if not is_match_loss(loss):
        raise InputError(f"{where}: unknown loss '{loss}' in '{word}:{loss}'{_nearest_loss(loss)}")
    S, T = student.num_hidden_layers, teacher.num_hidden_layers
    features = loss_features(loss)
    if features == ("hidden",):
        pairs = [((2 * i * T + S) // (2 * S), i) for i in range(S + 1)]
    else:
        pairs = [((2 * (i + 1) * T + S) // (2 * S) - 1, i) for i in range(S)]
    inner = slice(1 if features == ("hidden",) else 0, -1)
    chosen = {"uniform": pairs, "inner": pairs[inner], "last": pairs[-1:]}[word]
    if not chosen:
        raise InputError(f"{where}: '{word}:{loss}' finds no layer in a student of {S} layer(s)")
    project = needs_same_width(loss) and features != ("attention",) and student.hidden_size != teacher.hidden_size
    widths = (student.hidden_size, teacher.hidden_size) if project else None
    return [_match(feature, loss, t, s, widths) for t, s in chosen for feature in features]


def _nearest_loss(loss: str) -> str:
    named = [name for name in MATCH_LOSS_MAP if relation_heads(name) is None]
    return nearest(loss, [*named, "relation_<heads>", "sample_relation_<heads>"])


def preset_matches(name: str) -> list[Match]:
    """The entries of MiniRBT's preset `name`, as its matches.py lists them."""
    feature, loss, pairs, width = PRESETS[name]
    widths = (width, 768) if width else None
    layers = [pair.split(":") for pair in pairs.split()]
    return [_match(feature, loss, int(t), int(s), widths) for t, s in layers]


def _match(feature: str, loss: str, layer_t: int, layer_s: int, widths: tuple[int, int] | None) -> Match:
    paired = loss in PAIR_LOSSES
    match: Match = {
        "layer_T": [layer_t, layer_t] if paired else layer_t,
        "layer_S": [layer_s, layer_s] if paired else layer_s,
        "feature": feature,
        "loss": loss,
        "weight": 1,
    }
    if widths:
        match["proj"] = ["linear", *widths]
    return match


def _check_match(match: Match, teacher: BertConfig, student: BertConfig, where: str) -> None:
    for key in match:
        if key not in MATCH_KEYS:
            raise InputError(f"{where}: unknown key '{key}' in a match{nearest(key, MATCH_KEYS)}")
    for key in sorted(MATCH_KEYS - {"weight", "proj"}):
        if key not in match:
            raise InputError(f"{where}: a match lacks '{key}': {match}")
    feature, loss = match["feature"], match["loss"]
    if feature not in FEATURES:
        raise InputError(f"{where}: unknown feature '{feature}'; known: {', '.join(FEATURES)}")
    if not isinstance(loss, str) or not is_match_loss(loss):
        raise InputError(f"{where}: unknown loss '{loss}'{_nearest_loss(str(loss))}")
    if loss.startswith("attention") != (feature == "attention"):
        compared = "hidden states" if feature == "attention" else "attention matrices"
        raise InputError(f"{where}: '{loss}' compares {compared}, but the match has feature '{feature}'")
    _check_weight(match["weight"], where)
    for side, config in (("T", teacher), ("S", student)):
        _check_layers(match, side, config, where)
    if feature in STATES:
        _check_widths(match, teacher, student, where)
        _check_relation_heads(match, teacher, student, where)
    elif match.get("proj") is not None:
        raise InputError(f"{where}: an attention match takes no 'proj', found {match['proj']}")
    elif student.num_attention_heads != teacher.num_attention_heads and not any_head_count(loss):
        raise InputError(
            f"{where}: '{loss}' compares head by head, but the student has {student.num_attention_heads} heads and "
            f"the teacher {teacher.num_attention_heads}; use attention_mse_sum or attention_ce_mean"
        )


def _check_weight(weight: Any, where: str) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise InputError(f"{where}: match weight must be a number >= 0, found {weight!r}")
    return weight


def _check_relation_heads(match: Match, teacher: BertConfig, student: BertConfig, where: str) -> None:
    """Relation heads must divide what they cut; a projection makes the student's states as wide as the teacher's."""
    heads = relation_heads(match["loss"])
    widths = (teacher.hidden_size if match.get("proj") else student.hidden_size, teacher.hidden_size)
    if heads and any(width % heads for width in widths):
        common = math.gcd(*widths)
        possible = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise InputError(
            f"{where}: '{match['loss']}' cuts states into {heads} parts, but the student is {widths[0]} wide and the "
            f"teacher {widths[1]}; numbers that divide both: {possible}"
        )


def _check_layers(match: Match, side: str, config: BertConfig, where: str) -> None:
    """Layer numbers of one side: one int, or two for the losses that compare pairs of layers, all within the model."""
    layers, paired = match[f"layer_{side}"], match["loss"] in PAIR_LOSSES
    numbers = layers if paired else [layers]
    good = isinstance(numbers, list) and all(type(n) is int for n in numbers) and len(numbers) == (2 if paired else 1)
    if not good:
        wanted = "a list of two layer numbers" if paired else "one layer number"
        raise InputError(f"{where}: '{match['loss']}' takes {wanted} as layer_{side}, found {layers!r}")
    last = config.num_hidden_layers - (match["feature"] != "hidden")
    for number in numbers:
        if not 0 <= number <= last:
            who = "teacher" if side == "T" else "student"
            hint = ""
            if match["feature"] != "hidden" and number == last + 1:
                hint = "; attention layers count from 0, so the last one has the number of layers minus 1"
            raise InputError(
                f"{where}: {match['feature']} layer {number} of the {who} does not exist, it has 0..{last} "
                f"({config.num_hidden_layers} layers){hint}"
            )


def _check_widths(match: Match, teacher: BertConfig, student: BertConfig, where: str) -> None:
    proj, pair = match.get("proj"), f"{match['feature']} match {match['layer_T']}->{match['layer_S']}"
    widths = (student.hidden_size, teacher.hidden_size)
    facts = f"the student is {widths[0]} wide and the teacher {widths[1]}"
    if match["feature"] == "hidden":
        facts += f"; 'uniform:{match['loss']}' derives this"
    if proj is None:
        if needs_same_width(match["loss"]) and widths[0] != widths[1]:
            raise InputError(f"{where}: {pair} has no 'proj', but {facts}")
        return
    if not isinstance(proj, list) or len(proj) not in (3, 4) or str(proj[0]) not in PROJ_MAP:
        raise InputError(f"{where}: {pair}: proj is [KIND, student width, teacher width] with KIND one of "
                         f"{', '.join(PROJ_MAP)}, found {proj}")  # fmt: skip
    if len(proj) == 4 and not isinstance(proj[3], dict):
        raise InputError(f"{where}: {pair}: the fourth part of proj is an object of optimiser options, found {proj[3]}")
    if tuple(proj[1:3]) != widths:
        raise InputError(f"{where}: {pair} projects {proj[1]}->{proj[2]}, but {facts}")

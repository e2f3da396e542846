"""Sentence skeletons: the small language they are written in, and how one becomes words.

A skeleton is a line of words split by spaces:

    {S} [ 每天 | 几乎 天天 ] 清晨 都 在 {s.town.river} 边 散步 [ ， 风雨 无阻 | ] 。

- `[ a | b | ]` chooses one of its alternatives; groups nest, an empty alternative leaves nothing.
- `{s.town.river}` follows attributes from an entity of the environment; `{S}` is the focal entity by name or,
  where the document has just named it, by a pronoun or a short form.
- `{fruit}` draws from the list of that name, `{fruit2}` draws another member of it.
- `{n:3-9}` is a Chinese numeral, `{d:100-900:50}` an Arabic one in steps of 50.
- `<w.sky=rain,fog>` in front restricts the skeleton to environments where this holds.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_SLOT = re.compile(r"\{([^{}]+)\}")
_NUMBER = re.compile(r"([nd]):(\d+)-(\d+)(?::(\d+))?")
_CONDITION = re.compile(r"<([a-z_.]+)=([^>]+)>\s*")
_DIGITS = "零一二三四五六七八九"


@dataclass
class Entity:
    """A thing with a name (words split by spaces), attributes, and short forms that may stand for the name."""

    kind: str
    name: str
    attributes: dict[str, "Entity | str"] = field(default_factory=dict)
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skeleton:
    """One sentence skeleton: where it stands (`key`), which split owns it, its line, parsed body and condition."""

    key: str
    split: str
    line: str
    body: tuple
    paths: frozenset[str]
    condition: tuple[str, frozenset[str]] | None = None


@dataclass
class Sentence:
    """Rendered words; `marks` gives for each slot path the word range of its first occurrence."""

    words: list[str]
    marks: dict[str, tuple[int, int]]
    people: set[str]
    key: str
    frame_size: int = 0

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def told(self) -> str:
        """The text without the words in front that say who tells it."""
        return "".join(self.words[self.frame_size :])

    def offset(self, path: str) -> tuple[int, str]:
        """Character offset and string of the slot `path`."""
        start, end = self.marks[path]
        return len("".join(self.words[:start])), "".join(self.words[start:end])


def chinese_number(value: int) -> str:
    """The usual spoken form, 0..9999: 12 is shi er, 105 yi bai ling wu."""
    if value < 20 and value >= 10:
        return "十" + (_DIGITS[value - 10] if value > 10 else "")
    text, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = value // unit % 10
        if digit:
            text += ("零" if gap and text else "") + _DIGITS[digit] + name
            gap = False
        else:
            gap = True
    return text or _DIGITS[0]


def parse_skeleton(line: str, *, key: str, split: str) -> Skeleton:
    """The skeleton written in one line; ValueError names `key` if brackets do not match or stick to a word."""
    condition = None
    match = _CONDITION.match(line)
    if match:
        condition = (match[1], frozenset(match[2].split(",")))
        line = line[match.end() :]
    tokens = line.split()
    body, position = _parse_sequence(tokens, 0, key)
    if position != len(tokens) or any(len(t) > 1 and set(t) & set("[]|") for t in tokens):
        raise ValueError(f"skeleton {key}: unmatched or unspaced bracket in {line!r}; write '[ a | b ]'")
    return Skeleton(key, split, line, body, frozenset(_SLOT.findall(line)), condition)


def _parse_sequence(tokens: Sequence[str], position: int, key: str) -> tuple[tuple, int]:
    items: list = []
    while position < len(tokens) and tokens[position] not in ("|", "]"):
        if tokens[position] != "[":
            items.append(tokens[position])
            position += 1
            continue
        choices = []
        while True:
            choice, position = _parse_sequence(tokens, position + 1, key)
            choices.append(choice)
            if position >= len(tokens):
                raise ValueError(f"skeleton {key}: '[' without ']'")
            if tokens[position] == "]":
                break
        items.append(tuple(choices))
        position += 1
    return tuple(items), position


def resolve(environment: Mapping[str, Entity], path: str) -> "Entity | str":
    """The entity or words at `path`, such as `s.town.river`."""
    first, *rest = path.split(".")
    value: Entity | str = environment[first]
    for name in rest:
        if isinstance(value, str) or name not in value.attributes:
            known = sorted(getattr(value, "attributes", ()))
            raise ValueError(f"slot {{{path}}}: no attribute {name!r}; there are {known}")
        value = value.attributes[name]
    return value


def words_of(value: "Entity | str") -> str:
    """The words, split by spaces, by which a value is named."""
    return value.name if isinstance(value, Entity) else value


def holds(skeleton: Skeleton, environment: Mapping[str, Entity]) -> bool:
    """Whether the skeleton's condition holds in the environment."""
    if skeleton.condition is None:
        return True
    path, allowed = skeleton.condition
    return words_of(resolve(environment, path)).replace(" ", "") in allowed


class Renderer:
    """Turns skeletons into sentences with one random generator and the word lists."""

    def __init__(self, rng: random.Random, lists: Mapping[str, Sequence[str]]) -> None:
        self.rng = rng
        self.lists = lists

    def render(
        self,
        skeleton: Skeleton,
        environment: Mapping[str, Entity],
        *,
        short_focus: bool = False,
    ) -> Sentence:
        """One sentence. `short_focus` lets the first `{S}` be a short form."""
        sentence = Sentence([], {}, set(), skeleton.key)
        drawn: dict[str, str] = {}
        self._expand(skeleton.body, (environment, short_focus, drawn), sentence)
        return sentence

    def _expand(self, body: tuple, context: tuple, sentence: Sentence) -> None:
        for item in body:
            if isinstance(item, tuple):
                self._expand(self.rng.choice(item), context, sentence)
            elif "{" not in item:
                sentence.words.append(item)
            else:
                self._fill(item, context, sentence)

    def _fill(self, item: str, context: tuple, sentence: Sentence) -> None:
        slot = _SLOT.search(item)
        assert slot is not None
        value = self._value(slot[1], context, sentence)
        words = value.split()
        words[0] = item[: slot.start()] + words[0]
        words[-1] += item[slot.end() :]
        path = slot[1].replace("S", "s")
        start = len(sentence.words)
        sentence.words.extend(words)
        if item == slot[0]:
            sentence.marks.setdefault(path, (start, start + len(words)))

    def _value(self, slot: str, context: tuple, sentence: Sentence) -> str:
        environment, short_focus, drawn = context
        number = _NUMBER.fullmatch(slot)
        if number:
            value = self.rng.randrange(int(number[2]), int(number[3]) + 1, int(number[4] or 1))
            return str(value) if number[1] == "d" else chinese_number(value)
        if slot == "S":
            focus = environment["s"]
            if focus.kind == "person":
                sentence.people.add(focus.name)
            if short_focus and focus.references and "s" not in drawn and self.rng.random() < 0.75:
                return self.rng.choice(focus.references)
            return focus.name
        if slot.split(".")[0] in environment:
            found = resolve(environment, slot)
            if isinstance(found, Entity) and found.kind == "person":
                sentence.people.add(found.name)
            return words_of(found)
        if slot not in drawn:
            members = self.lists[slot.rstrip("0123456789")]
            drawn[slot] = self.rng.choice([m for m in members if m not in drawn.values()])
        return drawn[slot]

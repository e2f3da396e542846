"""Loads the skeletons and word lists from `text/*.txt` and says which split owns each skeleton.

A topic file starts with `@topic NAME FOCUS_KIND`; the sections `@open @body @close`, `@relation ATTRIBUTE`,
`@negation ATTRIBUTE` and `@question ATTRIBUTE` follow, one skeleton a line. Relation lines state one fact and
nothing else, so that any two of one relation are paraphrases.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

from distill.sample.template import Skeleton, parse_skeleton

TOPIC_FILES = ("food", "transport", "school", "weather", "animals", "history", "farming", "sports", "health", "arts")
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Topic:
    """One topic: its label, the kind of entity its documents are about, and its skeletons by section."""

    label: str
    focus: str
    sections: dict[str, tuple[Skeleton, ...]]

    def lines(self, section: str, *splits: str) -> list[Skeleton]:
        """Skeletons of a section (`body`, `relation dish`) that belong to one of the splits."""
        return [s for s in self.sections.get(section, ()) if s.split in splits]

    @property
    def relations(self) -> list[str]:
        """Attributes that have relation skeletons, in file order."""
        return [name.split()[1] for name in self.sections if name.startswith("relation ")]


def _split_of(section: str, index: int) -> str:
    """Held-out share: a fifth of the free skeletons, half of the relation ones (a paraphrase needs two)."""
    if section.startswith("relation"):
        return ("train", "dev", "train", "test")[index // 2 % 4] if index < 8 else "train"
    if section.startswith(("question", "negation")):
        return ("train", "dev", "test", "train", "train")[index % 5]
    if section in ("open", "close"):
        return ("train", "train", "dev", "train", "test", "train")[index % 6]
    return {3: "dev", 7: "test"}.get(index % 10, "train")


def _read(name: str) -> list[str]:
    text = resources.files("distill.sample").joinpath("text", name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@cache
def load_lists() -> dict[str, tuple[str, ...]]:
    """Word lists by name; members are words split by spaces."""
    lists = {}
    for line in _read("lists.txt") + _read("names.txt"):
        name, _, members = line.partition(":")
        lists[name.strip()] = tuple(member.strip() for member in members.split("/"))
    return lists


@cache
def load_frames() -> tuple[Skeleton, ...]:
    """Openings such as "so-and-so says that" that may stand before a plain statement."""
    lines = _read("frames.txt")
    return tuple(parse_skeleton(line, key=f"frames/{i}", split="train") for i, line in enumerate(lines))


def _load_topic(file: str) -> Topic:
    header, *lines = _read(f"{file}.txt")
    _, label, focus = header.split()
    sections: dict[str, list[Skeleton]] = {}
    section = ""
    for line in lines:
        if line.startswith("@"):
            section = line[1:]
            sections.setdefault(section, [])
            continue
        index = len(sections[section])
        key = f"{file}/{section}/{index}"
        sections[section].append(parse_skeleton(line, key=key, split=_split_of(section, index)))
    return Topic(label, focus, {name: tuple(members) for name, members in sections.items()})


@cache
def load_common() -> Topic:
    """Asides about a town and its people that fit a document on any topic; only the section `body` is filled."""
    return _load_topic("common")


@cache
def load_topics() -> tuple[Topic, ...]:
    """All topics, in a fixed order."""
    return tuple(_load_topic(file) for file in TOPIC_FILES)

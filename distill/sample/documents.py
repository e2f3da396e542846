"""Short documents of 3 to 8 sentences about one entity, for the corpus, the dev set and reading passages.

A document takes one focal entity, one season and one kind of weather, opens with a sentence that names the entity,
goes on with free sentences and a few that state facts, and may end with a closing one. No skeleton and no stated
fact occurs twice in it.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache

from distill.sample.skeletons import Topic, load_common, load_frames
from distill.sample.template import Entity, Renderer, Sentence, Skeleton, holds
from distill.sample.world import World, season_of

_MAX_SENTENCES = 8
_CLOSING_SHARE = 0.4
_RELATION_SHARE = 0.3
_ASIDE_SHARE = 0.15
_FRAMED_SHARE = 0.25
_RENDER_ATTEMPTS = 5
# A statement with one of these is not reported: it speaks to somebody, names another speaker or reports already.
_UNREPORTABLE = re.compile(
    r"[“？！：我你您咱请]|[{][qr]|s[.]ta[}]|听|据|别看|虽说|说|问|看来|也许|先|不要|后来|天黑|不管"
)


@dataclass
class Document:
    """Sentences about one focal entity; `relations[i]` is the attribute that sentence i states, if it states one."""

    topic: Topic
    focus: Entity
    sentences: list[Sentence]
    relations: list[str | None]

    @property
    def is_opened(self) -> bool:
        """Whether the opening sentence, which says what the entity is, was not left out."""
        return bool(self.sentences) and "/open/" in self.sentences[0].key


class Writer:
    """Writes documents about one world with the skeletons of some splits, all of them about equally often."""

    def __init__(
        self,
        rng: random.Random,
        world: World,
        lists: Mapping[str, Sequence[str]],
        splits: Sequence[str],
        *,
        forbidden: Set[str] = frozenset(),
    ) -> None:
        """`forbidden` sentences are not written in documents; what cannot be told otherwise is left out."""
        self.rng, self.world, self.splits, self.forbidden = rng, world, splits, forbidden
        self.renderer = Renderer(rng, lists)
        self.uses: Counter[str] = Counter()
        self.relation_share = _RELATION_SHARE
        self.aside_share = _ASIDE_SHARE
        self.frames = load_frames()
        self.asides = load_common().lines("body", *splits)
        self._lines: dict[str, dict[str, list[Skeleton]]] = {}

    def season(self) -> Entity:
        return season_of(self.rng, self.renderer.lists)

    def cast(self, focus: Entity) -> list[Entity]:
        """A few people of the entity's town who are not part of its own facts."""
        town = focus.attributes["town"]
        assert isinstance(town, Entity)
        known = {value.name for value in focus.attributes.values() if isinstance(value, Entity)} | {focus.name}
        people = [person for person in self.world.neighbours[town.name] if person.name not in known]
        return self.rng.sample(people, 4)

    def environment(self, focus: Entity, season: Entity, cast: Sequence[Entity] = ()) -> dict[str, Entity]:
        """What slots may name: the focal entity, two people of the cast, the season."""
        first, second = self.rng.sample(cast or self.cast(focus), 2)
        return {"s": focus, "q": first, "r": second, "w": season}

    def least_used(self, skeletons: Sequence[Skeleton]) -> Skeleton:
        """The least used of three skeletons drawn at random, so that all are used about equally often."""
        drawn = [skeletons[int(self.rng.random() * len(skeletons))] for _ in range(3)]
        return min(drawn, key=lambda skeleton: self.uses[skeleton.key])

    def sentence(self, skeleton: Skeleton, environment: Mapping[str, Entity], *, short_focus: bool = False) -> Sentence:
        """The skeleton filled for this environment."""
        self.uses[skeleton.key] += 1
        return self.renderer.render(skeleton, environment, short_focus=short_focus)

    def document(self, topic: Topic, focus: Entity | None = None, *, num_sentences: int = 0) -> Document:
        """One document on the topic; its length is drawn if `num_sentences` is 0."""
        focus = focus or self.rng.choice(self.world.focal[topic.focus])
        season = self.season()
        # The few held-out openings may all be about other weather.
        while not any(holds(line, {"s": focus, "w": season}) for line in self._usable(topic)["open"]):
            season = self.season()
        plan = self._plan(topic, focus, season, num_sentences or self.rng.randint(3, _MAX_SENTENCES))
        cast = self.cast(focus)
        document = Document(topic, focus, [], [])
        for skeleton, relation in plan:
            before = document.sentences[-1].people if document.sentences else None
            # A pronoun or short form needs the entity in plain view: named before, nobody else in between.
            short = before is not None and before <= {focus.name}
            for _ in range(_RENDER_ATTEMPTS):
                environment = self.environment(focus, season, cast)
                sentence = self._told(skeleton, environment, short and bool(document.sentences))
                if sentence.told not in self.forbidden:
                    document.sentences.append(sentence)
                    document.relations.append(relation)
                    break
        return document

    def _told(self, skeleton: Skeleton, environment: Mapping[str, Entity], short: bool) -> Sentence:
        """The sentence, now and then as something that somebody of the town says."""
        framed = _is_reportable(skeleton) and self.rng.random() < _FRAMED_SHARE
        sentence = self.sentence(skeleton, environment, short_focus=short and not framed)
        if not framed:
            return sentence
        frame = self.sentence(self.least_used(self.frames), environment)
        size = len(frame.words)
        marks = {path: (start + size, end + size) for path, (start, end) in sentence.marks.items()}
        return Sentence(frame.words + sentence.words, marks, frame.people | sentence.people, skeleton.key, size)

    def _usable(self, topic: Topic) -> dict[str, list[Skeleton]]:
        if topic.label not in self._lines:
            names = [name for name in topic.sections if not name.startswith(("question", "negation"))]
            self._lines[topic.label] = {name: topic.lines(name, *self.splits) for name in names}
        return self._lines[topic.label]

    def _plan(self, topic: Topic, focus: Entity, season: Entity, length: int) -> list[tuple[Skeleton, str | None]]:
        scene = {"s": focus, "w": season}
        fitting = {name: [line for line in lines if holds(line, scene)] for name, lines in self._usable(topic).items()}
        opening = self.least_used(fitting["open"])
        plan: list[tuple[Skeleton, str | None]] = [(opening, None)]
        paths = set(opening.paths)
        closing = self.rng.random() < _CLOSING_SHARE and fitting["close"]
        relations = [r for r in topic.relations if fitting[f"relation {r}"]]
        while len(plan) < length - bool(closing):
            used = {line.key for line, _ in plan}
            if self.rng.random() < self.aside_share and not any(line.key.startswith("common") for line, _ in plan):
                plan.append((self.least_used(self.asides), None))
                continue
            free = [line for line in fitting["body"] if line.key not in used]
            open_relations = [r for r in relations if not any(p.startswith(f"s.{r}") for p in paths)]
            if open_relations and (not free or self.rng.random() < self.relation_share):
                relation = self.rng.choice(open_relations)
                chosen = self.least_used(fitting[f"relation {relation}"])
                plan.append((chosen, relation))
            elif free:
                chosen = self.least_used(free)
                plan.append((chosen, None))
            else:
                break
            paths |= chosen.paths
        if closing:
            plan.append((self.least_used(closing), None))
        return plan


@cache
def _is_reportable(skeleton: Skeleton) -> bool:
    return not {"open", "close", "common"} & set(skeleton.key.split("/")) and not _UNREPORTABLE.search(skeleton.line)

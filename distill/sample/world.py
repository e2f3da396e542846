"""The invented county: its people, shops, schools and so on, with fixed facts.

One world is made for the corpus and one for each split of the tasks. They share streets, rivers and dishes, but
no towns, people, shops, lines, schools, pets or buildings, so every pair of entities of a split is its own.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.sample.template import Entity, words_of

# Where each part's slice of a shuffled name pool starts, in eighths, and how large its world is against the corpus's.
_SLICE = {"corpus": (0, 4), "train": (4, 6), "dev": (6, 7), "test": (7, 8)}
_SCALE = {"corpus": 1.0, "train": 0.8, "dev": 0.5, "test": 0.5}
_NUM_ENTITIES = 48  # focal entities a kind in the corpus world, where the names suffice
_PRONOUN = {"male": "他", "female": "她"}


@dataclass
class World:
    """All entities of one part; `focal[kind]` are those that documents are about, `neighbours[town]` everybody else."""

    focal: dict[str, list[Entity]]
    neighbours: dict[str, list[Entity]]


class _Maker:
    """Draws entities; names come from this part's slice of the shuffled pools."""

    def __init__(self, seed: int, part: str, lists: Mapping[str, Sequence[str]]) -> None:
        self.rng = random.Random(f"world:{seed}:{part}")
        self.seed, self.part, self.lists = seed, part, lists
        names = [(s + g, sex) for sex in _PRONOUN for s in lists["surname"] for g in lists[sex]]
        self.people = iter(self.slice("people", names))
        self.towns = [self.town(name) for name in self.slice("town", list(lists["town"]))]

    def slice(self, pool: str, names: list) -> list:
        """This part's share of a pool of names, in an order that the seed decides."""
        random.Random(f"pool:{self.seed}:{pool}").shuffle(names)
        start, end = (len(names) * eighth // 8 for eighth in _SLICE[self.part])
        return names[start:end]

    def count(self, available: int) -> int:
        return min(available, int(_NUM_ENTITIES * _SCALE[self.part]))

    def pick(self, name: str) -> str:
        return self.rng.choice(self.lists[name])

    def town(self, name: str) -> Entity:
        town = Entity("town", name, references=("小镇", "镇 上"))
        for attribute in ("river", "hill", "specialty", "wind", "rainmonth"):
            town.attributes[attribute] = self.pick(attribute)
        town.attributes["town"] = town
        return town

    def person(self, town: Entity, trade: str, **attributes: "Entity | str") -> Entity:
        name, sex = next(self.people)
        known: dict[str, Entity | str] = {"ta": _PRONOUN[sex], "surname": name[0], "town": town, "trade": trade}
        known["hobby"] = self.pick("hobby")
        return Entity("person", name, known | attributes, (_PRONOUN[sex],))


def build_world(seed: int, part: str, lists: Mapping[str, Sequence[str]]) -> World:
    """The entities of one part; the same for the same arguments."""
    maker = _Maker(seed, part, lists)
    neighbours = {town.name: [maker.person(town, maker.pick("trade")) for _ in range(7)] for town in maker.towns}
    focal = {"town": maker.towns}
    focal["shop"] = _shops(maker)
    focal["line"] = _lines(maker)
    focal["school"] = _schools(maker)
    focal["pet"] = _pets(maker, neighbours)
    focal["building"] = _buildings(maker)
    for kind, trade in (("athlete", "运动员"), ("doctor", "医生"), ("farmer", "农民"), ("artist", "乐手")):
        focal[kind] = [_professional(maker, kind, trade) for _ in range(maker.count(_NUM_ENTITIES))]
    return World(focal, neighbours)


def _shops(maker: _Maker) -> list[Entity]:
    kinds = ("面馆", "茶馆", "饺子馆", "包子铺", "饭馆", "点心铺")
    names = maker.slice("shop", [(name, kind) for name in maker.lists["shopname"] for kind in kinds])
    shops = []
    for name, kind in names[: maker.count(len(names))]:
        town = maker.rng.choice(maker.towns)
        shop = Entity("shop", f"{name} {kind}", {"kind": kind, "town": town}, ("这 家 店", "小店", f"这 家 {kind}"))
        shop.attributes |= {"dish": maker.pick(kind), "street": maker.pick("street"), "hour": maker.pick("hour")}
        shop.attributes |= {"owner": maker.person(town, "老板"), "year": f"{maker.rng.randrange(1978, 2019)}年"}
        shops.append(shop)
    return shops


def _lines(maker: _Maker) -> list[Entity]:
    numbers = maker.slice("line", list(range(3, 150)))
    lines = []
    for number in numbers[: maker.count(len(numbers))]:
        town = maker.rng.choice(maker.towns)
        line = Entity("line", f"{number}路 公交车", {"town": town, "number": f"{number}路"}, ("这 趟 车", "这 路 车"))
        line.attributes |= {name: maker.pick(name) for name in ("start", "end", "fare", "first")}
        line.attributes["driver"] = maker.person(town, "司机")
        lines.append(line)
    return lines


def _schools(maker: _Maker) -> list[Entity]:
    names = maker.slice("school", [(name, kind) for name in maker.lists["schoolname"] for kind in ("小学", "中学")])
    schools = []
    for name, kind in names[: maker.count(len(names))]:
        town = maker.rng.choice(maker.towns)
        school = Entity("school", f"{name} {kind}", {"kind": kind, "town": town}, ("学校", "这 所 学校"))
        school.attributes |= {"head": maker.person(town, "校长"), "teacher": maker.person(town, "老师")}
        school.attributes |= {"club": maker.pick("club"), "year": f"{maker.rng.randrange(1921, 2013)}年"}
        schools.append(school)
    return schools


def _pets(maker: _Maker, neighbours: Mapping[str, list[Entity]]) -> list[Entity]:
    pets = []
    names = maker.slice("pet", list(maker.lists["petname"]))
    for name in names[: maker.count(len(names))]:
        kind = maker.rng.choice(("猫", "猫", "狗", "狗", "兔子", "鹦鹉", "乌龟", "山羊"))
        town = maker.rng.choice(maker.towns)
        pet = Entity("pet", name, {"kind": kind, "town": town, "food": maker.pick(kind)}, ("它", "小家伙"))
        pet.attributes |= {"owner": maker.rng.choice(neighbours[town.name]), "found": maker.pick("found")}
        pet.attributes |= {"place": maker.pick(f"{kind}place"), "colour": maker.pick(f"{kind}colour")}
        pets.append(pet)
    return pets


def _buildings(maker: _Maker) -> list[Entity]:
    buildings = []
    groups = (("bridge", "桥"), ("tower", "塔"), ("hall", "楼"))
    names = maker.slice("building", [(name, kind) for pool, kind in groups for name in maker.lists[pool]])
    for name, kind in names[: maker.count(len(names))]:
        town = maker.rng.choice(maker.towns)
        short = {"桥": "这 座 桥", "塔": "这 座 塔", "楼": "这 座 老 建筑"}[kind]
        building = Entity("building", name, {"kind": kind, "town": town}, (short, short, "它"))
        building.attributes["builder"] = maker.person(town, maker.pick("role"))
        building.attributes["year"] = f"{maker.rng.randrange(1480, 1890)}年"
        building.attributes["rebuilt"] = f"{maker.rng.randrange(1953, 2016)}年"
        building.attributes["material"] = maker.pick(f"{kind}material")
        buildings.append(building)
    return buildings


def _professional(maker: _Maker, kind: str, trade: str) -> Entity:
    town = maker.rng.choice(maker.towns)
    known: dict[str, Entity | str] = {}
    if kind == "farmer":
        name, place, harvest, sow = maker.pick("crop").split()
        known["crop"] = Entity("crop", name, {"field": place, "harvest": harvest, "sow": sow})
        known |= {attribute: maker.pick(attribute) for attribute in ("village", "market")}
    elif kind == "doctor":
        known |= {attribute: maker.pick(attribute) for attribute in ("department", "hospital")}
        known["day"] = maker.pick("workday")
    elif kind == "athlete":
        known |= {attribute: maker.pick(attribute) for attribute in ("sport", "medal")}
        known |= {"meet": maker.pick("sportgame"), "coach": maker.person(town, "教练")}
    else:
        play, name = maker.pick("playing").split()
        known |= {"instrument": Entity("instrument", name, {"play": play}), "teacher": maker.person(town, "琴师")}
        known |= {attribute: maker.pick(attribute) for attribute in ("piece", "venue")}
    return maker.person(town, trade, **known)


def season_of(rng: random.Random, lists: Mapping[str, Sequence[str]]) -> Entity:
    """A season with one kind of weather (`sky`) and what goes with it, for the length of one document."""
    name = rng.choice(lists["season"])
    values: dict[str, Entity | str] = {"season": name}
    for attribute in ("month", "sky", "bloom", "wear", "food"):
        values[attribute] = rng.choice(lists[name + attribute])
    low, high = map(int, lists[name + "degrees"])
    cold = rng.randrange(low, (low + high) // 2)
    values |= {"low": _degrees(cold), "high": _degrees(cold + rng.randrange(5, 10))}
    return Entity("season", name, values)


def _degrees(value: int) -> str:
    return f"零下 {-value} 度" if value < 0 else f"{value} 度"


def changed(entity: Entity, attribute: str, value: "Entity | str") -> Entity:
    """A copy of the entity with another value of one attribute."""
    return Entity(entity.kind, entity.name, entity.attributes | {attribute: value}, entity.references)


def other_values(entity: Entity, attribute: str, others: Sequence[Entity]) -> "list[Entity | str]":
    """The values of the attribute among `others` that `entity` could have too, each once, its own left out.

    Things are only taken from entities of the same sort (a noodle shop is offered noodles), people from all.
    """
    sort, own = entity.attributes.get("kind"), entity.attributes[attribute]
    found: dict[str, Entity | str] = {}
    for other in others:
        value = other.attributes[attribute]
        personal = isinstance(value, Entity) and value.kind == "person"
        if words_of(value) != words_of(own) and (personal or other.attributes.get("kind") == sort):
            found.setdefault(words_of(value), value)
    return list(found.values())

"""Variations of one student, trained at equal tokens from one teacher, and the table that compares them.

1. A stage of a recipe and one of its students are chosen; every combination of the varied fields is a variation.
2. Models that the stage reads come from the recipe's output folder; those that are missing are made first.
3. The variations are the students of a stage of the same name in a recipe of its own. Hence they share the teacher's
   forward pass, the order and the masks, and each is the student that the recipe itself would have trained.
4. The ordinary pipeline trains that recipe, so that the same command continues it; the table is read from its files.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.durable import write_json, write_whole
from distill.errors import InputError
from distill.json_file import nearest, read_json, short
from distill.launch.processes import Cluster
from distill.pipeline import train_stages, unfinished_students
from distill.recipe import OPERATIONAL_FIELDS, Recipe, Stage
from distill.recipe_file import STAGE_FIELDS, STUDENT_FIELDS, load_recipe, parse_value, resolve_recipe, with_method
from distill.release.variations import collect_variations, format_variations
from distill.run.costs import describe_cost, describe_stage
from distill.run.planning import StagePlan, plan_recipe

Values = dict[str, Any]
"""Varied field -> value."""


@dataclass(frozen=True)
class Comparison:
    """What is compared, and what must be there before."""

    source: Recipe
    """The recipe as its file says it; stages before the compared one are trained from this."""
    earlier: list[str]
    """Stages of `source` whose models the compared stage reads."""
    plans: dict[str, StagePlan]
    recipe: Recipe
    """The variations as a recipe of one stage."""
    student: str
    variations: dict[str, Values]

    @property
    def stage(self) -> Stage:
        return self.recipe.stages[0]


def plan_comparison(
    path: Path,
    vary: Sequence[str],
    *,
    stage_name: str | None = None,
    student_name: str | None = None,
    output: Path | None = None,
    overrides: Mapping[str, Any] = {},
    settings: Sequence[str] = (),
) -> Comparison:
    """The variations of a stage of the recipe in `path`, all of them checked as a recipe's students are.

    Args:
        vary: "FIELD=V1,V2,...", values as JSON where they are JSON.
        overrides, settings: as for `load_recipe`; they reach the compared stage only.
    Raises:
        InputError: no stage with a teacher, fields or values that cannot be varied, variations that are the same, and
            all that is wrong with a student.
    """
    source = load_recipe(path, {key: overrides[key] for key in overrides if key == "output_dir"})
    stage = _choose_stage(load_recipe(path, overrides, settings), stage_name, path)
    for setting in settings:
        if not setting.startswith(f"stages.{stage.name}."):
            raise InputError(f"--set {setting}: only the compared stage '{stage.name}' can be changed here")
    name = student_name or next(iter(stage.students))
    if name not in stage.students:
        raise InputError(f"--student {name}: no such student in stage '{stage.name}'{nearest(name, stage.students)}")
    variations = _name_variations(parse_variations(vary))
    before = source.stages[: [s.name for s in source.stages].index(stage.name)]
    varied_stage = {**stage.model_dump(), "students": _make_students(stage, name, variations)}
    chain = _recipe(source.output_dir, *(s.model_dump() for s in before), varied_stage)
    plans = plan_recipe(chain)
    made = {student: earlier.name for earlier in before for student in earlier.students}
    own_stage = _with_folders(varied_stage, made, Path(source.output_dir))
    folder = output or Path(source.output_dir) / "compare" / f"{stage.name}-{_fingerprint(own_stage)}"
    recipe = _recipe(str(folder), own_stage)
    return Comparison(source, _stages_needed(chain.stages, made), plans, recipe, name, variations)


def _recipe(output_dir: str, *stages: Values) -> Recipe:
    return resolve_recipe({"output_dir": output_dir, "stages": list(stages)}, where="compare")


def parse_variations(vary: Sequence[str]) -> dict[str, list[Any]]:
    """Field -> values of each "FIELD=V1,V2,..."; commas in JSON lists, objects and quotes do not separate."""
    if not vary:
        raise InputError("compare: nothing to vary; give --vary FIELD=V1,V2,..., e.g. --vary method=minirbt,distilbert")
    found: dict[str, list[Any]] = {}
    for text in vary:
        field, equals, values = text.partition("=")
        field = field.strip().replace("-", "_")
        if not equals:
            raise InputError(f"--vary {text}: expected FIELD=V1,V2,..., e.g. seed=0,1,2")
        if field in STAGE_FIELDS - STUDENT_FIELDS:
            raise InputError(
                f"--vary {field}: a field of the stage, which all variations share (--{field} sets it); fields of a "
                f"student are {', '.join(sorted(STUDENT_FIELDS))}"
            )
        if field not in STUDENT_FIELDS:
            raise InputError(f"--vary {field}: no field of a student{nearest(field, STUDENT_FIELDS)}")
        if field in found:
            raise InputError(f"--vary {field}: given twice; put all its values into one")
        parts = _split_values(values)
        if not all(parts):
            raise InputError(f"--vary {text}: there is an empty value between commas")
        found[field] = [parse_value(part) for part in parts]
        for i, value in enumerate(found[field]):
            if value in found[field][:i]:
                raise InputError(f"--vary {field}: the value {short(value)} stands there twice")
    if all(len(values) == 1 for values in found.values()):
        raise InputError("compare: every varied field has one value, so there is nothing to compare")
    return found


def _split_values(text: str) -> list[str]:
    parts, depth, quoted = [""], 0, False
    for character in text:
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _name_variations(varied: Mapping[str, list[Any]]) -> dict[str, Values]:
    """A name for each combination, as readable as the values allow."""
    combinations = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    for readable in (True, False):
        names = ["-".join(_label(field, value, varied[field].index(value), readable) for field, value in one.items())
                 for one in combinations]  # fmt: skip
        if len(set(names)) == len(names) and max(map(len, names)) <= 100:
            break
    return dict(zip(names, combinations, strict=True))


def _label(field: str, value: Any, number: int, readable: bool) -> str:
    if readable and isinstance(value, str):
        word = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(value).stem if value.endswith(".json") else value).strip("-._")
        return word or f"{field}{number + 1}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = f"{value:g}"  # six digits, where they are all
        return f"{field}{text if float(text) == value else value}".replace("+", "")
    return f"{field}{number + 1}"


def _choose_stage(recipe: Recipe, name: str | None, path: Path) -> Stage:
    if name is not None:
        stage = recipe.stage(name)
        if stage.teacher is None:
            raise InputError(f"{path}: stage '{name}' has no teacher, so there are no methods to compare")
        return stage
    taught = [stage for stage in recipe.stages if stage.teacher is not None]
    if not taught:
        raise InputError(f"{path}: no stage has a teacher, so there are no methods to compare")
    return taught[-1]


def _make_students(stage: Stage, name: str, variations: Mapping[str, Values]) -> dict[str, Values]:
    """The variations' student fields; all start from one seed unless the seed itself is varied."""
    base = stage.students[name].model_dump()
    base["seed"] = stage.seed if base["seed"] is None else base["seed"]
    students: dict[str, Values] = {}
    for variation, values in variations.items():
        fields = {**base, **with_method(values, "--vary")}
        for other, its_fields in students.items():
            if {**fields, "method": None} == {**its_fields, "method": None}:
                raise InputError(f"compare: the variations '{other}' and '{variation}' are the same student")
        students[variation] = fields
    return students


def _stages_needed(stages: Sequence[Stage], made: Mapping[str, str]) -> list[str]:
    """The stages that the last one needs, in order: those of its teacher and inits, and what these need in turn."""
    needed = {stages[-1].name}
    for stage in reversed(stages):
        if stage.name in needed:
            models = [stage.teacher, *(student.init for student in stage.students.values())]
            needed |= {made[model] for model in models if model is not None and model in made}
    return [stage.name for stage in stages[:-1] if stage.name in needed]


def _with_folders(raw_stage: dict[str, Any], made: Mapping[str, str], output: Path) -> dict[str, Any]:
    """The stage with models of earlier stages named by their folders."""

    def folder(model: str | None) -> str | None:
        return str(output / "models" / model) if model is not None and model in made else model

    students = {name: {**fields, "init": folder(fields["init"])} for name, fields in raw_stage["students"].items()}
    return {**raw_stage, "teacher": folder(raw_stage["teacher"]), "students": students}


def _fingerprint(raw_stage: Mapping[str, Any]) -> str:
    told = {key: value for key, value in raw_stage.items() if key not in OPERATIONAL_FIELDS}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]


def describe_comparison(comparison: Comparison, cluster: Cluster) -> str:
    """What a run would do: for --dry-run."""
    plans = comparison.plans
    lines = [f"{name}: first, its models are missing" for name in comparison.earlier
             if unfinished_students(plans[name])]  # fmt: skip
    plan = plans[comparison.stage.name]
    lines.append(describe_stage(plan, list(plan.students), cluster))
    lines += [f"  {line}" for line in describe_cost(plan, list(plan.students))]
    return "\n".join([*lines, f"output: {comparison.recipe.output_dir}"])


def run_comparison(
    comparison: Comparison,
    *,
    cluster: Cluster,
    at_once: int | None,
    show: Callable[[str], None],
    **options: Any,
) -> None:
    """Trains what is missing, `at_once` variations a pass, and shows and writes the table.

    Args:
        options: of `train_stages`.
    Raises:
        InputError, launch.Interrupted, launch.StageFailed.
    """
    for name in comparison.earlier:
        if unfinished_students(comparison.plans[name]):
            train_stages(comparison.source, cluster=cluster, only_stage=name, show=show, **options)
    output = Path(comparison.recipe.output_dir)
    if cluster.node_rank == 0:
        _share_data(Path(comparison.source.output_dir) / "data", output / "data")
    for recipe in _passes(comparison, at_once):
        train_stages(recipe, cluster=cluster, only_stage=None, show=show, **options)
    if cluster.node_rank == 0:
        result = {
            "stage": comparison.stage.name, "student": comparison.student, "teacher": comparison.stage.teacher,
            **collect_variations(
                output / "stages" / comparison.stage.name, comparison.variations,
                {name: student.kd_weight > 0 or student.mlm_weight > 0
                 for name, student in comparison.stage.students.items()},
            ),
        }  # fmt: skip
        write_json(output / "comparison.json", result)
        write_whole(output / "comparison.md", format_variations(result) + "\n")
        show(format_variations(result))
        show(f"comparison: {output / 'comparison.md'}")


def _share_data(source: Path, link: Path) -> None:
    """Lets the comparison use the recipe's packed datasets; where links cannot be made it packs its own."""
    source.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        with contextlib.suppress(OSError):
            link.symlink_to(os.path.relpath(source.resolve(), link.parent.resolve()), target_is_directory=True)


def _passes(comparison: Comparison, at_once: int | None) -> list[Recipe]:
    """The recipe of each pass: those of before, then more and more students of the one stage, never fewer."""
    names = list(comparison.variations)
    record = Path(comparison.recipe.output_dir) / "recipe.json"
    recorded = read_json(record)["stages"][0]["students"] if record.exists() else {}
    chosen = [name for name in names if name in recorded]
    rest = [name for name in names if name not in recorded]
    size = at_once or len(names)
    groups = [chosen] if chosen else []
    groups += [chosen + rest[: start + size] for start in range(0, len(rest), size)]
    stage = comparison.stage.model_dump()
    return [
        _recipe(comparison.recipe.output_dir, {**stage, "students": {name: stage["students"][name] for name in group}})
        for group in groups
    ]

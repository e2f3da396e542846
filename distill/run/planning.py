"""A recipe checked against the world: every model, tokenizer, layer match and file, before anything slow starts.

The plan knows for each stage which folders it will read and which models it will make. Nothing is written here.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import BertConfig

from distill.corpus.prepare import check_data
from distill.errors import InputError
from distill.modeling.initialise import check_layers
from distill.modeling.models import (
    check_same_tokens,
    check_vocabulary,
    find_model,
    load_config,
    load_tokenizer,
    used_rows,
)  # fmt: skip
from distill.modeling.narrow import check_narrowing
from distill.modeling.neighbours import check_neighbours
from distill.modeling.weight_files import check_shapes, has_head
from distill.recipe import Recipe, Stage, Student
from distill.training.matches import Match, resolve_matches
from distill.training.objective import check_kd_loss
from distill.training.optimizer import check_scheduler
from distill.training.stage import needs_teacher_head
from distill.training.trackers import check_trackers


@dataclass(frozen=True)
class PlannedModel:
    """A model that a stage reads: a folder that is there, or one that an earlier stage will have made."""

    name: str
    folder: Path
    config: BertConfig
    tokenizer: Path


@dataclass(frozen=True)
class StagePlan:
    """One stage with everything found."""

    output: Path
    """The run's folder."""
    stage: Stage
    teacher: PlannedModel | None
    tokenizer: Path
    students: dict[str, PlannedModel]
    inits: dict[str, PlannedModel]
    matches: dict[str, list[Match]]

    @property
    def folder(self) -> Path:
        """The stage's."""
        return self.output / "stages" / self.stage.name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def plan_recipe(recipe: Recipe) -> dict[str, StagePlan]:
    """The plan of every stage, by name.

    Raises:
        InputError: the first thing that is wrong, with stage and student.
    """
    _check_order(recipe)
    made: dict[str, PlannedModel] = {}
    plans = {}
    for stage in recipe.stages:
        plan = _plan_stage(stage, made, Path(recipe.output_dir))
        plans[stage.name] = plan
        made.update(plan.students)
    return plans


def _check_order(recipe: Recipe) -> None:
    """InputError if a stage learns or starts from a model that only it or a later stage makes."""
    maker = {student: stage.name for stage in recipe.stages for student in stage.students}
    made: set[str] = set()
    for stage in recipe.stages:
        used = {"teacher": stage.teacher, **{f"student '{n}', init": s.init for n, s in stage.students.items()}}
        for what, name in used.items():
            if name in maker and name not in made and not Path(name).exists():
                by = "this stage itself" if maker[name] == stage.name else f"the later stage '{maker[name]}'"
                raise InputError(
                    f"stage '{stage.name}', {what}: '{name}' is made by {by}; a stage takes folders, hub ids and "
                    "models of the stages before it"
                )
        made |= stage.students.keys()


def _plan_stage(stage: Stage, made: dict[str, PlannedModel], output: Path) -> StagePlan:
    where = f"stage '{stage.name}'"
    check_data(stage.data, where=where)
    check_trackers(stage.report_to, where=f"{where}, report_to")
    head_for = "a student learns from its logits or copies it; set kd_weight to 0, or"
    teacher = None
    if stage.teacher:
        need = head_for if needs_teacher_head(stage.students.values()) else ""
        teacher = _find(stage.teacher, made, where=f"{where}, teacher", head_for=need)
    inits = {
        name: _find(student.init, made, where=f"{where}, student '{name}', init", head_for="a student starts from it;")
        for name, student in stage.students.items()
        if student.init
    }
    if teacher and stage.teacher_cache and stage.teacher_cache.method == "top_k":
        if stage.teacher_cache.size > teacher.config.vocab_size:
            raise InputError(f"{where}: teacher_cache keeps {stage.teacher_cache.size} tokens, but the vocabulary of "
                             f"{teacher.name} has {teacher.config.vocab_size}; lower teacher_cache.size")  # fmt: skip
    try:
        tokenizer_dir = _find_tokenizer(stage, teacher, inits)
        tokenizer = load_tokenizer(tokenizer_dir)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if teacher:
        _check_tokens(teacher, tokenizer_dir, where=f"{where}, teacher")
    students, matches = {}, {}
    for name, student in stage.students.items():
        place = f"{where}, student '{name}'"
        config = load_config(student.config) if student.config else inits[name].config
        check_vocabulary(
            tokenizer, config, tokens_from=str(tokenizer_dir), model=f"{place}: {student.config or student.init}"
        )
        _check_student(student, config, teacher, inits.get(name), tokenizer_dir, place)
        matches[name] = resolve_matches(student.matches, teacher.config, config, where=place) if teacher else []
        if any("sample_relation" in match["loss"] for match in matches[name]) and stage.micro_batch_size in ("auto", 1):
            raise InputError(f"{place}: sample_relation relates the sequences of a micro-batch, so micro_batch_size "
                             f"must be a number over 1, not {stage.micro_batch_size}")  # fmt: skip
        students[name] = PlannedModel(name, output / "models" / name, config, tokenizer_dir)
    for model in [*students.values(), *([teacher] if teacher else [])]:
        if stage.max_seq_length > model.config.max_position_embeddings:
            raise InputError(
                f"{where}: max_seq_length {stage.max_seq_length} is over the {model.config.max_position_embeddings} "
                f"positions of {model.name}"
            )
    return StagePlan(output, stage, teacher, tokenizer_dir, students, inits, matches)


def _find(name: str, made: dict[str, PlannedModel], *, where: str, head_for: str) -> PlannedModel:
    """A model by its earlier name, folder or hub id.

    Args:
        head_for: why its prediction head is needed and what to do without; "" if it is not.
    """
    if name in made:
        return made[name]
    try:
        folder = find_model(name)
        config = load_config(folder)
        load_tokenizer(folder)
        check_shapes(folder, config)
        config.vocab_size = used_rows(folder, config)
        if head_for and not has_head(folder):
            raise InputError(
                f"{folder}: no masked-language-model head, but {head_for} take a model saved with its head; see "
                "docs/faq.md"
            )
    except InputError as error:
        earlier = f" (students made earlier: {', '.join(made)})" if made else ""
        raise InputError(f"{where}: {error}{earlier}") from None
    return PlannedModel(name, folder, config, folder)


def _find_tokenizer(stage: Stage, teacher: PlannedModel | None, inits: dict[str, PlannedModel]) -> Path:
    if stage.data.tokenizer:
        return find_model(stage.data.tokenizer, weights=False)
    for model in [teacher, *inits.values()]:
        if model:
            return model.tokenizer
    raise InputError("no teacher to take the tokenizer from; name one in data.tokenizer")


def _check_tokens(model: PlannedModel, tokenizer: Path, *, where: str) -> None:
    """The model's rows and the data's tokens must be the same."""
    own = load_tokenizer(model.tokenizer)
    check_vocabulary(own, model.config, tokens_from=str(model.tokenizer), model=f"{where} {model.name}")
    if model.tokenizer != tokenizer:
        check_same_tokens(own, load_tokenizer(tokenizer), a_name=f"{where} {model.name}", b_name=str(tokenizer))


def _check_student(
    student: Student, config: BertConfig, teacher: PlannedModel | None, init: PlannedModel | None, tokenizer: Path,
    where: str,
) -> None:  # fmt: skip
    """Everything about one student but its matches."""
    check_kd_loss(student.kd_loss, where=where)
    check_scheduler(student.scheduler, where=where)
    if student.init_attention:
        check_neighbours(config, where=where)
    if teacher and student.init_width:
        check_narrowing(student.init_layers, teacher.config, config, where=where)
    elif teacher and student.init_layers:
        check_layers(student.init_layers, teacher.config, config, where=where)
    if teacher and not (student.kd_weight or student.mlm_weight or student.matches):
        raise InputError(f"{where}: kd_weight and mlm_weight are 0 and there are no matches, so nothing is learned")
    if init:
        _check_tokens(init, tokenizer, where=f"{where}, init")
        differing = [
            f"{key} {getattr(config, key)} against {getattr(init.config, key)}"
            for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
                        "max_position_embeddings", "type_vocab_size")
            if getattr(config, key) != getattr(init.config, key)
        ]  # fmt: skip
        if differing:
            raise InputError(f"{where}: config and init {init.name} have other shapes ({', '.join(differing)})")

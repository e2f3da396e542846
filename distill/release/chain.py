"""The models of a run and where each comes from: teacher, assistant, students."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from transformers import BertConfig

from distill.errors import InputError
from distill.modeling.config import load_config
from distill.modeling.counting import Parameters, count_parameters
from distill.release.run_folder import RunFolder


@dataclass
class Model:
    """A model of the chain. Sizes are None where no config is at hand."""

    name: str
    stage: str | None
    """None for a teacher from elsewhere."""
    teacher: "Model | None" = None
    init: str | None = None
    is_finished: bool = False
    config: BertConfig | None = None
    students: list["Model"] = field(default_factory=list)

    @cached_property
    def counts(self) -> Parameters | None:
        return count_parameters(self.config) if self.config else None

    def origin(self) -> list["Model"]:
        """This model, its teacher, its teacher's teacher, and so on."""
        return [self, *(self.teacher.origin() if self.teacher else [])]

    def shape(self) -> str:
        """`6 x 256`: layers and width; empty if unknown."""
        return f"{self.config.num_hidden_layers} x {self.config.hidden_size}" if self.config else ""


def read_chain(run: RunFolder) -> list[Model]:
    """Every model of the recipe, teachers before students."""
    models: dict[str, Model] = {}
    for stage in run.stages:
        teacher = stage["teacher"]
        if teacher and teacher not in models:
            models[teacher] = Model(teacher, None, is_finished=True, config=_config(run, teacher, None))
        for name, settings in stage["students"].items():
            parent = models[teacher] if teacher else None
            config = _config(run, name, settings["config"] or settings["init"])
            models[name] = Model(name, stage["name"], parent, settings["init"], run.model(name) is not None, config)
            if parent:
                parent.students.append(models[name])
    return list(models.values())


def roots(models: list[Model]) -> Iterator[Model]:
    """Those without a teacher, which head the trees."""
    return (model for model in models if model.teacher is None)


def _config(run: RunFolder, name: str, planned: str | None) -> BertConfig | None:
    """A model's config: its folder's, or the one that it is planned with; None if that is not at hand."""
    if folder := run.model(name):
        with run.noting():
            return load_config(folder)
    elif planned:
        with contextlib.suppress(InputError):  # a model of another run, or of the hub
            return load_config(run.model(planned) or planned)
    return None

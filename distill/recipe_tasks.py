"""The `finetune` section of a recipe: models, tasks, search, and how speed is measured.

What a task is, and whether its data is there, is checked by `distill.finetuning`.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from distill.recipe_types import NonNegative, Positive, Section, TaskSeed

Above0 = Annotated[float, Field(gt=0)]
MaxLength = Annotated[int, Field(ge=16, le=2**20)]


class GridValues(Section):
    """The values to try of each hyper-parameter; of one that is not named, the task's default."""

    learning_rate: Annotated[list[Above0], Field(min_length=1)] | None = Field(default=None, description="peak rates")
    epochs: Annotated[list[Above0], Field(min_length=1)] | None = Field(default=None, description="passes over train")
    batch_size: Annotated[list[Positive], Field(min_length=1)] | None = Field(
        default=None, description="examples a step"
    )
    max_length: Annotated[list[MaxLength], Field(min_length=1)] | None = Field(
        default=None, description="tokens of an example"
    )

    @model_validator(mode="after")
    def _no_value_twice(self) -> "GridValues":
        for name, values in self.model_dump().items():
            check_distinct(values, f"{name} ")
        return self


class Speed(Section):
    """What is timed of every model: every batch size with every length."""

    batch_sizes: list[Positive] = Field(default=[1, 32], min_length=1, description="sequences in one forward")
    lengths: list[Positive] | None = Field(
        default=None, min_length=1,
        description="tokens a sequence, none of them padding; default: 128, or what the shortest model can read",
    )  # fmt: skip
    threads: Positive | None = Field(default=None, description="threads of a forward on a CPU; default: all cores")


class Distil(Section):
    """How students learn a task from the teacher that was fine-tuned on it, besides the labels."""

    temperature: Above0 = Field(default=4.0, description="softens the scores of teacher and student")
    kd_weight: NonNegative = Field(
        default=1.0, description="weight of the KD term, which is multiplied by temperature^2"
    )
    hard_weight: NonNegative = Field(default=1.0, description="weight of the labels' loss")
    matches: list[str] = Field(default=[], description='layer matches: "uniform", "last:LOSS", a preset, a JSON path')
    augment: Annotated[int, Field(ge=0)] = Field(
        default=0, description="copies of each text with replaced tokens, labelled by the teacher; classification only"
    )


class FineTune(Section):
    """Models x tasks x hyper-parameters x seeds at the end of a recipe, and tables of the results."""

    data: str = Field(
        default="dataset/tasks",
        description="folder with a folder for each task, or hf:OWNER/NAME[:CONFIG]; hf: alone is each task's own "
        "dataset on the hub",
    )
    preset: str | None = Field(
        default=None, description="published grid whose tasks, values and seeds fill those not given here"
    )
    tasks: list[str] | None = Field(default=None, min_length=1, description="names, or JSON files that describe tasks")
    models: list[str] | None = Field(
        default=None,
        min_length=1,
        description="students, folders or hub ids; default: the first teacher and every student",
    )
    teacher: str | None = Field(default=None, description="model that the others are compared with; default: the first")
    compare: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        default=[], description="pairs of models to set side by side, e.g. two-stage and one-stage"
    )
    grid: GridValues = Field(default_factory=GridValues, description="values to try, for all tasks")
    distil: Distil | None = Field(
        default=None, description="also let every other model learn each task from the teacher: rows NAME+kd"
    )
    seeds: list[TaskSeed] | None = Field(default=None, min_length=1, description="default: the preset's, else 0")
    processes: Positive | None = Field(
        default=None, description="runs at a time; default: one for each visible GPU, or 1"
    )
    keep_models: bool = Field(default=False, description="keep the weights of every run")
    speed: Speed | None = Field(default_factory=Speed, description="how speed is measured; null: not at all")

    @model_validator(mode="after")
    def _some_tasks(self) -> "FineTune":
        if self.tasks is None and self.preset is None:
            raise ValueError("give 'tasks', or a 'preset' that has some")
        for names in (self.tasks, self.models, self.seeds):
            check_distinct(names)
        return self


def check_distinct(values: list[Any] | None, name: str = "") -> None:
    """ValueError if one stands twice: its runs would count twice in every mean."""
    if values is not None and len(set(values)) < len(values):
        raise ValueError(f"{name}{values} names one twice")

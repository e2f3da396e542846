"""Recipes: the stages of a run as data, with every field's default, unit and check.

How a file becomes a recipe is in recipe_file.py. What needs a model or a corpus (layer ranges, vocabularies, files) is
checked in `distill.run.planning`; nothing here imports torch.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from distill.errors import InputError
from distill.json_file import short
from distill.recipe_tasks import FineTune
from distill.recipe_types import Name, NonNegative, Positive, Section, Seed, whole

Packing = Literal["chunks", "documents", "full_sentences", "doc_sentences", "lines"]

# Two runs that differ only in these train the same models.
OPERATIONAL_FIELDS = {
    "micro_batch_size", "compile", "shard_teacher", "save_every", "eval_every", "log_every", "keep_checkpoints",
    "skip_bad_steps", "report_to",
}  # fmt: skip


TEACHER = "teacher"
"""What metrics.jsonl calls the teacher of a stage."""


class TrainSegmenter(Section):
    """A segmenter that does not exist yet: an LTP perceptron trained from segmented text."""

    train: str = Field(description="text whose words are split by spaces, one sentence a line")


Share = Annotated[float, Field(gt=0, lt=1)]


class MaskSchedule(Section):
    """A share of masked tokens that changes over the steps of a stage; dev is always masked by `end`."""

    start: Share = Field(description="share of a row's tokens at the first step")
    end: Share = Field(description="share at the last step, and for dev")
    schedule: Literal["linear", "cosine"] = Field("linear", description="how it gets there")


class Data(Section):
    """What a stage reads."""

    text: list[str] | None = Field(None, description="text files, folders or glob patterns; one passage a line")
    files: str | None = Field(None, description="JSON in MiniRBT's format, instead of `text`")
    dev: Annotated[float, Field(ge=0, lt=1)] | list[str] = Field(
        0.005, description="dev files, or the share of the documents to hold out"
    )
    segmenter: str | TrainSegmenter | None = Field(
        None, description='"ltp:DIR", "jieba", "words" or {"train": SEGMENTED_FILE}'
    )
    dictionary: str | None = Field(None, description="file of words to keep whole, one a line; for ltp and jieba")
    skip_bad: bool = Field(False, description="skip lines that are not UTF-8 and records without text, with a warning")
    tokenizer: str | None = Field(None, description="tokenizer folder or hub id; default: the teacher's")
    packing: Packing = Field(
        "chunks",
        description="chunks: all text joined and cut; documents: each by itself, cut every max_seq_length (UER); "
        "full_sentences: as many whole lines as fit (RoBERTa); doc_sentences: the same within a document; "
        "lines: a line a row",
    )
    document_attention: bool = Field(
        False, description="true: documents packed into one row do not see each other, and positions restart"
    )
    mask: Literal["whole_word", "token", "span"] = Field(
        "whole_word",
        description="what is masked together; span: 1 to 10 tokens (SpanBERT); token and span need no segmenter",
    )
    mask_probability: Annotated[
        Annotated[Share, Tag("(number)")] | Annotated[MaskSchedule, Tag("(schedule)")],
        Discriminator(lambda value: "(schedule)" if isinstance(value, (dict, MaskSchedule)) else "(number)"),
    ] = Field(0.15, description='share of a row\'s tokens to predict, or {"start": 0.3, "end": 0.15} over the steps')
    static_masks: Positive | None = Field(
        None,
        description="number of fixed masks a row, used in turn by epoch (BERT, UER); default: a new mask every time",
    )

    def final_mask_probability(self) -> float:
        """The share of masked tokens at the last step."""
        return self.mask_probability.end if isinstance(self.mask_probability, MaskSchedule) else self.mask_probability

    def mean_mask_probability(self) -> float:
        """The share of masked tokens over all steps; both schedules pass their middle halfway."""
        share = self.mask_probability
        return (share.start + share.end) / 2 if isinstance(share, MaskSchedule) else share

    @field_validator("segmenter", mode="before")
    @classmethod
    def _one_segmenter(cls, value: Any) -> Any:
        if isinstance(value, dict) and (list(value) != ["train"] or not isinstance(value["train"], str)):
            raise ValueError(f'an object here is {{"train": SEGMENTED_FILE}} and nothing else, found {short(value)}')
        return value

    @field_validator("dev", mode="before")
    @classmethod
    def _fraction_or_files(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1:
            return float(value)
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return value
        raise ValueError(f"give dev files, or the fraction of the documents from 0 to below 1, found {short(value)}")

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if (self.text is None) == (self.files is None):
            raise ValueError("give either 'text' (raw text) or 'files' (a JSON in MiniRBT's format)")
        if self.text is not None and self.mask == "whole_word" and self.segmenter is None:
            raise ValueError('whole_word masking of raw text needs a \'segmenter\' (or "mask": "token")')
        if self.dictionary is not None and self.segmenter in (None, "words"):
            raise ValueError("'dictionary' needs a 'segmenter' of ltp or jieba")
        if self.files is not None and "dev" in self.model_fields_set and self.dev != 0.005:
            raise ValueError("'dev' stands in the data JSON itself when 'files' is given")
        if self.static_masks and isinstance(self.mask_probability, MaskSchedule):
            raise ValueError("'static_masks' are fixed, so 'mask_probability' cannot change; give a number")
        return self


MicroBatchSize = Annotated[
    Annotated[Positive, Tag("(number)")] | Annotated[Literal["auto"], Tag("(word)")],
    Discriminator(lambda value: "(word)" if isinstance(value, str) else "(number)"),
]


class TeacherCache(Section):
    """The teacher's logits, made once and kept on disk; for stages whose students learn from logits alone."""

    method: Literal["sample", "top_k"] = Field(
        "sample",
        description="sample: draws from the teacher's probabilities (unbiased); top_k: the likeliest tokens (biased)",
    )
    size: Annotated[int, Field(ge=1, le=4096), BeforeValidator(whole)] = Field(
        64, description="draws, or tokens kept, for each masked token"
    )


class Student(Section):
    """One model to train: what it is, where its weights start, and what it learns from."""

    config: str | None = Field(None, description="BertConfig JSON; default: the config of `init`")
    init: str | None = Field(None, description="model folder, hub id or earlier name whose weights it starts from")
    init_layers: list[Annotated[int, Field(ge=0), BeforeValidator(whole)]] | None = Field(
        None, description="teacher layers to copy, with embeddings and prediction head"
    )
    init_width: Literal["importance", "pca"] | None = Field(
        None,
        description="start from a wider teacher, cut to the student's widths: keep the most important units, or (pca) "
        "the main directions; layers as in init_layers, else spread from the first to the last",
    )
    init_attention: Literal["neighbours"] | None = Field(
        None, description="random weights, but the first layer attends to the tokens before and after, which shortens "
        "the first plateau"
    )  # fmt: skip
    method: str | None = Field(
        None, description="name or JSON path of a distillation method: a set of student fields, which those written "
        "beside it override; see docs/methods.md"
    )  # fmt: skip
    seed: Seed | None = Field(
        None, description="decides initial weights, projections and dropout; default: made from the stage's seed and "
        "the names of stage and student"
    )  # fmt: skip
    matches: list[str | dict[str, Any]] = Field([], description="layer matches: names, TextBrewer dicts or JSON paths")
    temperature: Annotated[float, Field(gt=0)] = Field(8.0, description="softens both logits of the KD term")
    temperature_end: Annotated[float, Field(gt=0)] | None = Field(
        None, description="temperature at the last step, reached linearly from `temperature`; default: constant"
    )
    kd_loss: str = Field("ce", description="TextBrewer's KD loss: ce or mse")
    kd_weight: NonNegative = Field(1.0, description="weight of the KD term")
    kd_scale: Literal["none", "tau_squared"] = Field("none", description="tau_squared multiplies KD by temperature^2")
    mlm_weight: NonNegative = Field(0.0, description="weight of the cross-entropy to the true tokens")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the encoder's matrices, AdamW for the rest, with the same learning rate"
    )
    balance_every: Positive | None = Field(
        None,
        description="every so many steps rescale the loss terms so that each has its weight's share of the gradient; "
        "default: never",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(4e-4, description="peak learning rate")
    scheduler: str = Field("linear", description="any name of transformers.get_scheduler that needs no extra argument")
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="share of the steps to warm up")
    decay_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="last share of the steps, in which warmup_stable_decay lowers the rate to 0"
    )
    weight_decay: NonNegative = Field(0.01, description="weight decay of matrices; biases and LayerNorm have none")
    max_grad_norm: NonNegative = Field(1.0, description="clip the norm of all gradients of the student; 0 = never")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay of a moving average of the weights, which is then evaluated and published; default: off",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="replaces both dropouts of the config during training"
    )

    @model_validator(mode="after")
    def _has_shape(self) -> "Student":
        if self.config is None and self.init is None:
            raise ValueError("give 'config' (a BertConfig JSON) or 'init' (a model to start from)")
        starts = ("init", "init_attention", "init_width", "init_layers")
        given = [field for field in starts if getattr(self, field) is not None]
        if len(given) > 1 and given != ["init_width", "init_layers"]:
            raise ValueError(f"'{given[0]}' and '{given[-1]}' both set the starting weights; give one")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> "Student":
        if self.scheduler == "warmup_stable_decay" and self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"warmup_ratio {self.warmup_ratio:g} and decay_ratio {self.decay_ratio:g} are together more than the "
                f"whole run; lower one"
            )
        return self


class Stage(Section):
    """One or more students trained in one pass from one teacher, or without a teacher by masked-language modelling."""

    name: Name = Field(description="also the name of its folder below `stages/`")
    teacher: str | None = Field(None, description="model folder, hub id or earlier student; without it, plain MLM")
    students: dict[Name, Student] = Field(min_length=1, description="trained in one pass, each as if it were alone")
    data: Data = Field(description='the text to read; a path stands for {"files": PATH}')
    max_seq_length: Annotated[int, Field(ge=8, le=10**9), BeforeValidator(whole)] = Field(
        512, description="tokens a row, [CLS] and [SEP] included"
    )
    steps: Positive | None = Field(None, description="optimiser steps")
    epochs: Annotated[float, Field(gt=0, le=10**6)] | None = Field(
        None, description="passes over the rows, instead of steps"
    )
    global_batch_size: Positive = Field(256, description="sequences in one optimiser step over all processes")
    micro_batch_size: MicroBatchSize | None = Field(
        None,
        description="sequences in one forward of one process; default: 8192 tokens; auto: the most that fit, "
        "tried once at the start",
    )
    shard_teacher: bool = Field(
        False, description="spread the teacher's layers over the processes, if one device cannot hold it"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto = bf16 where hardware has it")
    compile: Literal["auto"] | bool = Field(
        "auto", description="torch.compile of teacher and students; auto = on GPUs, where it pays (docs/performance.md)"
    )
    teacher_cache: TeacherCache | None = Field(
        None, description='{"method": "sample", "size": 64}: the teacher runs once, then its sparse logits are read'
    )
    seed: Seed = Field(0, description="decides order, masks and the students' random weights")
    save_every: Positive | None = Field(None, description="steps between checkpoints; default: a tenth of the run")
    eval_every: Positive | None = Field(None, description="steps between dev evaluations; default: a tenth of the run")
    log_every: Positive = Field(10, description="steps between lines of the log")
    keep_checkpoints: Positive = Field(2, description="number of newest sound checkpoints to keep")
    skip_bad_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="updates that may be skipped because loss or gradient is not finite, before the run ends"
    )

    report_to: list[str] = Field(
        [],
        description="trackers of Accelerate besides TensorBoard: wandb, swanlab, mlflow, ...; a list, or with commas",
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("compile", mode="before")
    @classmethod
    def _auto_or_flag(cls, value: Any) -> Any:
        if isinstance(value, bool) or value == "auto":
            return value
        raise ValueError(f'give "auto", true or false, found {short(value)}')

    @model_validator(mode="after")
    def _length_of_run(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either 'steps' or 'epochs'")
        if self.shard_teacher and self.micro_batch_size == "auto":
            # A process that runs out of memory while sizes are tried would leave the others waiting for its part.
            raise ValueError("'shard_teacher' needs a number as 'micro_batch_size', not \"auto\"")
        for name, student in self.students.items():
            if name == TEACHER and self.teacher is not None:
                raise ValueError(f"student '{name}': the log calls the stage's own teacher so; take another name")
            if self.teacher is None:
                for field in ("matches", "init_layers", "init_width"):
                    if getattr(student, field):
                        raise ValueError(f"student '{name}' has '{field}', but the stage has no 'teacher'")
        return self

    @model_validator(mode="after")
    def _cache_holds_what_students_need(self) -> "Stage":
        if self.teacher_cache is None:
            return self
        if self.teacher is None:
            raise ValueError("'teacher_cache', but the stage has no 'teacher'")
        for name, student in self.students.items():
            if student.matches:
                raise ValueError(f"student '{name}' has 'matches', but a teacher_cache holds logits alone; "
                                 f'set "matches" to [] or leave the cache out')  # fmt: skip
            if student.kd_loss != "ce":
                raise ValueError(f"student '{name}': kd_loss '{student.kd_loss}' needs all logits; a teacher_cache "
                                 f"serves 'ce' alone")  # fmt: skip
            if student.temperature_end is not None:
                raise ValueError(f"student '{name}' has 'temperature_end', but a teacher_cache is made at one "
                                 f"temperature; leave one of them out")  # fmt: skip
            if not student.kd_weight:
                raise ValueError(f"student '{name}': kd_weight 0 uses no logits; leave 'teacher_cache' out")
        temperatures = sorted({student.temperature for student in self.students.values()})
        if len(temperatures) > 1:
            raise ValueError(f"students with temperatures {', '.join(f'{t:g}' for t in temperatures)}, but a "
                             f"teacher_cache is made at one; put them into stages of their own")  # fmt: skip
        return self

    def num_steps(self, num_rows: int) -> int:
        """Optimiser steps of this stage over a packed dataset of `num_rows` rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, -(-int(self.epochs * num_rows) // self.global_batch_size))

    def rows_per_forward(self) -> int:
        """`micro_batch_size`, or as many sequences as make 8192 tokens, which fits common machines.

        For "auto" this is what dev batches have; training/micro_batch.py finds the size for training.
        """
        if isinstance(self.micro_batch_size, int):
            return self.micro_batch_size
        return max(1, 8192 // self.max_seq_length)


class Recipe(Section):
    """A chain of stages, the folder it writes to, and what its models are compared on."""

    output_dir: str = Field(min_length=1, description="folder for everything that a run writes")
    stages: list[Stage] = Field(min_length=1, description="run in this order")
    finetune: FineTune | None = Field(None, description="tasks on which the models are compared at the end")
    report: bool = Field(True, description="write report/index.html at the end of the run")

    @model_validator(mode="after")
    def _unique_names(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        students = [student for stage in self.stages for student in stage.students]
        for kind, found in (("stage", names), ("student", students)):
            twice = sorted({name for name in found if found.count(name) > 1})
            if twice:
                raise ValueError(f"{kind} name '{twice[0]}' is used twice")
        return self

    def stage(self, name: str, *, where: str = "recipe") -> Stage:
        """The stage called `name`; InputError with the names there are if it does not exist."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise InputError(f"{where}: no stage '{name}'; there are: {', '.join(s.name for s in self.stages)}")

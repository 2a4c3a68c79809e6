"""What a grid job may say."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from loractl.ranges import numbers
from loractl.sections.memory import PictureMemorySection, PictureSpec
from loractl.sections.schedules import Schedule
from loractl.specs import SIDES, AdapterUse, Finite, InputPath, Model, Positive, Section, Sides, Weight
from loractl_grid.checkpoints import written

T = TypeVar("T")
STRENGTHS = {"weight", "schedule"}  # the axes that say how adapters are used
FILES = {"adapter", "checkpoint"}  # the axes whose values are adapters' files


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("an axis needs at least one value")
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice")
    return values


def _expanded(value: Any) -> Any:
    """A text as the numbers it stands for; a list as a tuple, since from here on nothing counts as JSON."""
    return numbers(value) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _parted(value: Any) -> Any:
    """Schedules in one text, which have commas and colons themselves."""
    return tuple(value.split("/") if isinstance(value, str) else value) if isinstance(value, str | list) else value


def _written(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Of a folder all that its run wrote."""
    return tuple(file for path in paths for file in (written(path) if path.is_dir() else (path,)))


Distinct = Annotated[tuple[T, ...], AfterValidator(_distinct)]
Numbers = Annotated[Distinct[T], BeforeValidator(_expanded, json_schema_input_type=str | tuple[float, ...])]
Schedules = Annotated[Distinct[Schedule], BeforeValidator(_parted, json_schema_input_type=str | tuple[Schedule, ...])]
Checkpoints = Annotated[tuple[InputPath, ...], AfterValidator(_written), AfterValidator(_distinct)]


class Choice(NamedTuple):
    """What varies along an axis, and its values."""

    kind: str
    values: tuple[Any, ...]


class AxisSection(Section):
    """One key, named after what varies."""

    weight: Numbers[Finite] | None = Field(
        None,
        description='of the files on another axis, or else of all adapters; like all numbers here a list, or "1..4", '
        '"0:1:0.25" (from, to, step), "1,5"',
    )
    schedule: Schedules | None = Field(
        None,
        description="of the same adapters, what the weight is multiplied by along the run: a list of tables as "
        'adapters have them in a job of infer, or of texts such as "0:1,0.5:0" (1 in the first half, then 0), '
        '"linear:0:1,1:0" and "1"; or all in one text with / between them',
    )
    seed: Numbers[Annotated[int, Field(ge=0)]] | None = Field(None, description="seeds of the pictures")
    prompt: Distinct[str] | None = Field(None, description="what the pictures show")
    steps: Numbers[Positive] | None = Field(None, description="denoising steps")
    guidance: Numbers[Weight] | None = Field(None, description="classifier-free guidance scales")
    adapter: Distinct[InputPath] | None = Field(None, description="files, each added to adapters in its turn")
    checkpoint: Checkpoints | None = Field(
        None,
        description="the same under another name, for the adapters that a run wrote on its way; its folder stands for "
        "all of them in their order",
    )

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if len(self.said) != 1:
            known, said = ", ".join(type(self).model_fields), " and ".join(self.said) or "nothing"
            raise ValueError(f"an axis is one of {known}; this one says {said}")
        return self

    @property
    def said(self) -> dict[str, tuple[Any, ...]]:
        return {name: values for name, values in self if values is not None}

    @property
    def choice(self) -> Choice:
        return Choice(*next(iter(self.said.items())))


class GridSection(Section):
    x: AxisSection = Field(description="from left to right")
    y: AxisSection | None = Field(None, description="from top to bottom")
    z: AxisSection | None = Field(None, description="from table to table")

    @model_validator(mode="after")
    def _different(self) -> Self:
        kinds = ["adapter" if choice.kind in FILES else choice.kind for choice in self.choices if choice]
        twice = next((kind for index, kind in enumerate(kinds) if kind in kinds[:index]), None)
        if twice:
            raise ValueError(f"two axes say {twice}{', or checkpoint, which is the same' * (twice == 'adapter')}")
        return self

    @property
    def choices(self) -> tuple[Choice, Choice | None, Choice | None]:
        """Of x, y and z."""
        return self.x.choice, self.y.choice if self.y else None, self.z.choice if self.z else None

    @property
    def kinds(self) -> set[str]:
        return {choice.kind for choice in self.choices if choice}


class GridSampleSection(Section):
    """What all pictures have in common; what an axis says takes the place of what is said here."""

    prompt: str | None = Field(None, description="what the pictures show, unless an axis says it")
    negative: str = Field("", description="negative prompt")
    steps: Positive = Field(25, description="denoising steps")
    guidance: float | None = Field(None, ge=0, description="classifier-free guidance scale; by default the model's own")
    size: Sides | None = Field(None, description=SIDES)


class GridSpec(PictureSpec):
    method: Literal["grid"] = Field("grid", description="which method runs the job")
    model: Model = Field(description="the base model")
    adapters: tuple[AdapterUse, ...] = Field((), description="applied together to every picture, each with its weight")
    allow_pickle: bool = Field(False, description="read pickles as well (.pt, .bin): their tensors alone, never code")
    grid: GridSection = Field(description="what varies along the axes")
    sample: GridSampleSection = Field(GridSampleSection(), description="what all pictures have in common")
    memory: PictureMemorySection = Field(PictureMemorySection(), description="device, precision, denoiser")

    resumes = True

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        kinds = self.grid.kinds
        if self.sample.prompt is None and "prompt" not in kinds:
            raise ValueError("say what the pictures show: sample.prompt, or prompt along an axis")
        if kinds & STRENGTHS and not self.adapters and not kinds & FILES:
            what = "weights" if "weight" in kinds else "schedules"
            raise ValueError(f"an axis of {what} needs adapters, or their files along another axis")
        return self

"""What a job may say of its pictures."""

from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from loractl.specs import InputPath, Positive, PromptedSampleSection, SamplerName, Share

T = TypeVar("T")
_NEEDS = {"strength": "image", "mask": "image", "paste_edge": "mask"}


class InferSampleSection(PromptedSampleSection):
    prompts: tuple[str, ...] = Field((), description="one row of pictures for each")
    prompts_file: InputPath | None = Field(
        None,
        description="a text file of further prompts: one on each line, less empty lines and those that begin with #",
    )
    scheduler: SamplerName | None = Field(
        None,
        description="the method of sampling, by the name that A1111, kohya or diffusers has for it: euler-a, "
        "dpm++2m-karras, ddim, …; by default the model's own",
    )
    clip_skip: Annotated[int, Field(ge=1, le=12)] = Field(
        1, description="which layer of CLIP reads the prompt: 1 is the last, 2 the one before, as in A1111"
    )
    image: InputPath | None = Field(
        None, description="a picture to start from: as much of its middle as has the shape of the size, brought to it"
    )
    strength: Share | None = Field(
        None, description="how much of the picture is made anew: the share of the steps that are run; by default 0.75"
    )
    mask: InputPath | None = Field(None, description="a picture of the image's size: what is white there is made anew")
    paste_edge: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="puts back the very pixels outside the mask; inside it, the new picture appears over so many "
        "pixels, 0 being a sharp edge",
    )
    preview_every: Positive | None = Field(
        None, description="after every so many steps shows what the pictures would be, in a strip for each"
    )

    @property
    def share(self) -> float:
        """The strength that counts."""
        return 0.75 if self.strength is None else self.strength

    @field_validator(*_NEEDS)
    @classmethod
    def _has_its_picture(cls, value: T, info: ValidationInfo) -> T:
        other = _NEEDS[str(info.field_name)]
        if value is not None and info.data.get(other, other) is None:
            raise ValueError(f"it needs sample.{other}: give both or neither")
        return value

    @model_validator(mode="after")
    def _steps_are_left(self) -> Self:
        if self.image is not None and int(self.steps * self.share) == 0:
            raise ValueError(f"strength {self.share:g} leaves none of {self.steps} steps: set one of them higher")
        return self

    @model_validator(mode="after")
    def _all_prompts_are_here(self) -> Self:
        """The file's prompts become the job's own, so that the job says what was made whatever becomes of the file."""
        if self.prompts_file is not None:
            both = (*self.prompts, *_lines(self.prompts_file))
            return self.model_copy(update={"prompts": both, "prompts_file": None})
        if not self.prompts:
            raise ValueError("say what the pictures show: sample.prompts, or sample.prompts_file")
        return self


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} can't be read as a text file: {error}") from None
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{file} has no prompts: write one on each line")
    return prompts

"""What an interpolating job may say."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from loractl.specs import (
    ChildOutputSection,
    Finite,
    InputPath,
    MemorySection,
    Model,
    PromptedSampleSection,
    Spec,
    Token,
)


class InterpolateSpec(Spec):
    method: Literal["interpolate"] = Field("interpolate", description="which method runs the job")
    a: InputPath = Field(description="the adapter's file at 0")
    b: InputPath = Field(description="the adapter's file at 1")
    steps: int = Field(5, ge=2, description="how many adapters, evenly from 0 to 1, if at says nothing")
    at: tuple[Finite, ...] | None = Field(None, min_length=1, description="where: 0 is a, 1 is b, others go beyond")
    mode: Literal["linear", "slerp"] = Field("linear", description="along the line, or along the arc between them")
    rename: dict[Token, Token] = Field({}, description="other names for learned tokens of b: old → new")
    model: Model | None = Field(None, description="with sample.prompts: what draws a contact sheet across the series")
    sample: PromptedSampleSection | None = Field(None, description="what the contact sheet shows")
    memory: MemorySection = Field(MemorySection(), description="device, and precision of the contact sheet")
    output: ChildOutputSection = Field(ChildOutputSection(), description="where the result goes, and in which form")

    @field_validator("at")
    @classmethod
    def _distinct(cls, at: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if at and len(set(at)) < len(at):
            raise ValueError("the same place is given twice")
        return at

    @model_validator(mode="after")
    def _sheet(self) -> Self:
        if (self.model is None) != (self.sample is None):
            raise ValueError("a contact sheet needs both a model and sample.prompts: give both, or neither")
        return self

    @property
    def places(self) -> tuple[float, ...]:
        return self.at or tuple(step / (self.steps - 1) for step in range(self.steps))

"""What an inference job may say."""

from typing import Annotated, Literal

from pydantic import Field

from loractl.specs import InputPath, MemorySection, Model, SampleSection, Section, Spec


class AdapterUse(Section):
    path: InputPath = Field(description="the adapter's file")
    weight: float = Field(1.0, allow_inf_nan=False, description="what its ΔW is multiplied by; may be negative")


class PromptedSampleSection(SampleSection):
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="one row of pictures for each")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1, description="one picture each")


class InferSpec(Spec):
    method: Literal["infer"] = Field("infer", description="which method runs the job")
    model: Model = Field(description="the base model")
    adapters: tuple[AdapterUse, ...] = Field((), description="applied together, each with its weight")
    sample: PromptedSampleSection = Field(description="what is made")
    memory: MemorySection = Field(MemorySection(), description="device and precision")

"""What an inference job may say."""

from typing import Literal

from pydantic import Field

from loractl.specs import InputPath, MemorySection, Model, PromptedSampleSection, Section, Spec


class AdapterUse(Section):
    path: InputPath = Field(description="the adapter's file")
    weight: float = Field(1.0, allow_inf_nan=False, description="what its ΔW is multiplied by; may be negative")


class InferSpec(Spec):
    method: Literal["infer"] = Field("infer", description="which method runs the job")
    model: Model = Field(description="the base model")
    adapters: tuple[AdapterUse, ...] = Field((), description="applied together, each with its weight")
    sample: PromptedSampleSection = Field(description="what is made")
    memory: MemorySection = Field(MemorySection(), description="device and precision")

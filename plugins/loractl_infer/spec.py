"""What an inference job may say."""

from typing import Literal

from pydantic import Field

from loractl.specs import AdapterUse, MemorySection, Model, PromptedSampleSection, Spec


class InferSpec(Spec):
    method: Literal["infer"] = Field("infer", description="which method runs the job")
    model: Model = Field(description="the base model")
    adapters: tuple[AdapterUse, ...] = Field((), description="applied together, each with its weight")
    allow_pickle: bool = Field(False, description="read pickles as well (.pt, .bin): their tensors alone, never code")
    sample: PromptedSampleSection = Field(description="what is made")
    memory: MemorySection = Field(MemorySection(), description="device and precision")

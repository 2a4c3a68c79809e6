"""What a resizing job may say."""

from typing import Literal, Self

from pydantic import Field, model_validator

from loractl.specs import ChildOutputSection, DeviceSection, InputPath, SizedSpec


class ResizeSpec(SizedSpec):
    method: Literal["resize"] = Field("resize", description="which method runs the job")
    adapter: InputPath = Field(description="the adapter's file")
    memory: DeviceSection = Field(DeviceSection(), description="the device")
    output: ChildOutputSection = Field(ChildOutputSection(), description="where the result goes, and in which form")

    writes_file = True

    @model_validator(mode="after")
    def _has_a_size(self) -> Self:
        if not self.is_sized:
            raise ValueError("say how large the result may be: rank, energy, ratio or budget_mb")
        return self

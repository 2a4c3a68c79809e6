"""What a comparing job may say."""

from typing import Literal, Self

from pydantic import Field, model_validator

from loractl.specs import DeviceSection, Finite, InputPath, OutputSection, Spec


class DiffSpec(Spec):
    """Nothing is written: what is found is told by events and numbers."""

    method: Literal["diff"] = Field("diff", description="which method runs the job")
    a: InputPath = Field(description="the adapter's file that counts as right")
    b: InputPath | None = Field(None, description="the adapter's file that is compared with it")
    merged: InputPath | None = Field(None, description="instead of b: a model that is said to have a in its weights")
    base: InputPath | None = Field(None, description="the same model without it")
    weight: Finite = Field(1.0, description="what a's ΔW was multiplied by when it was baked")
    memory: DeviceSection = Field(DeviceSection(), description="the device")

    writes_nothing = True

    @model_validator(mode="after")
    def _no_output(self) -> Self:
        if self.output != OutputSection():
            raise ValueError("output: a comparison writes no file: leave this out")
        return self

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        if (self.merged is None) != (self.base is None) or (self.b is None) == (self.merged is None):
            raise ValueError("give a second adapter b, or else merged and base, two models")
        return self

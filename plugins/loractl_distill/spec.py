"""What a distilling job may say."""

from typing import Literal, Self

from pydantic import Field, model_validator

from loractl.specs import DeviceSection, FileOutputSection, InputPath, Positive, Spec


class DistillSpec(Spec):
    method: Literal["distill"] = Field("distill", description="which method runs the job")
    tuned: InputPath = Field(description="the tuned model: a diffusers folder or one .safetensors file")
    base: InputPath = Field(description="the model it was tuned from, in either layout")
    rank: Positive | None = Field(None, description="rank of every module, or with energy the largest allowed")
    energy: float | None = Field(None, gt=0, le=1, description="the smallest rank that holds this share of ‖ΔW‖²")
    unchanged: float = Field(
        1e-5, ge=0, allow_inf_nan=False, description="modules with ‖ΔW‖ up to this share of ‖W‖ are left out"
    )
    memory: DeviceSection = Field(DeviceSection(), description="the device")
    output: FileOutputSection = Field(FileOutputSection(), description="where the result goes, and in which form")

    writes_file = True

    @model_validator(mode="after")
    def _some_rule(self) -> Self:
        if self.rank is None and self.energy is None:
            raise ValueError("give a rank or an energy, for example rank = 16 or energy = 0.95")
        return self

"""What a baking job may say."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from loractl.specs import AdapterUse, DeviceSection, InputPath, Spec


class BakeSpec(Spec):
    method: Literal["bake"] = Field("bake", description="which method runs the job")
    model: InputPath = Field(description="a diffusers folder, or one .safetensors or .ckpt file")
    adapters: tuple[AdapterUse, ...] = Field(min_length=1, description="added together, each with its weight")
    allow_pickle: bool = Field(False, description="read a .ckpt, from a source you trust; the result is safetensors")
    memory: DeviceSection = Field(DeviceSection(), description="the device")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        """A folder makes a folder, a file a file."""
        is_file, named_file = self.model.is_file(), self.destination().suffix == ".safetensors"
        if is_file and self.model.suffix not in (".safetensors", ".ckpt"):
            raise ValueError(f"model: {self.model} is neither a folder nor a .safetensors or .ckpt file")
        if is_file and not named_file:
            raise ValueError("output.path: the model is one file and so is the result: give it the ending .safetensors")
        if named_file and not is_file:
            raise ValueError(
                "output.path: the model is a folder and so is the result: leave out the ending .safetensors"
            )
        return self

    def destination(self) -> Path:
        return self.output.path or Path("out", f"{self.name}{'.safetensors' if self.model.is_file() else ''}")

    def record(self) -> Path:
        where = self.destination()
        return where.with_suffix(".job.toml") if self.model.is_file() else where / "job.toml"

    def result(self) -> Path:
        return self.destination() if self.model.is_file() else self.record()

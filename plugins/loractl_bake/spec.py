"""What a baking job may say."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from loractl.specs import AdapterUse, DeviceSection, InputPath, Spec

_FILES = (".safetensors", ".ckpt")


class BakeSpec(Spec):
    method: Literal["bake"] = Field("bake", description="which method runs the job")
    model: InputPath = Field(description="a diffusers folder, or one .safetensors or .ckpt file")
    adapters: tuple[AdapterUse, ...] = Field(min_length=1, description="added together, each with its weight")
    allow_pickle: bool = Field(False, description="read a .ckpt, from a source you trust, or write one")
    memory: DeviceSection = Field(DeviceSection(), description="the device")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        """A folder makes a folder, a file a file."""
        is_file, ending = self.model.is_file(), self.destination().suffix
        if is_file and self.model.suffix not in _FILES:
            raise ValueError(f"model: {self.model} is neither a folder nor a .safetensors or .ckpt file")
        if is_file and ending not in _FILES:
            raise ValueError("output.path: the model is one file and so is the result: give it the ending .safetensors")
        if ending in _FILES and not is_file:
            raise ValueError(f"output.path: the model is a folder and so is the result: leave out the ending {ending}")
        if ending == ".ckpt" and not self.allow_pickle:
            raise ValueError(
                "output.path: a .ckpt is a pickle, which whoever loads it has to trust: set allow_pickle, or give it "
                "the ending .safetensors"
            )
        return self

    def destination(self) -> Path:
        return self.output.path or Path("out", f"{self.name}{'.safetensors' if self.model.is_file() else ''}")

    def record(self) -> Path:
        where = self.destination()
        return where.with_suffix(".job.toml") if self.model.is_file() else where / "job.toml"

    def result(self) -> Path:
        return self.destination() if self.model.is_file() else self.record()

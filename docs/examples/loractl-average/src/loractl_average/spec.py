"""What an averaging job may say."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from loractl.specs import InputPath, Spec


class AverageSpec(Spec):
    method: Literal["average"] = Field("average", description="which method runs the job")
    adapters: tuple[InputPath, ...] = Field(min_length=2, description="the adapters' files")
    format: Literal["diffusers", "kohya"] = Field("kohya", description="the form of the file that is written")

    writes_file = True

    def destination(self) -> Path:
        return self.output.path or Path("out", f"{self.name}.safetensors")

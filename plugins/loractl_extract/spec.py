"""What an extracting job may say."""

from typing import Literal

from pydantic import Field

from loractl.specs import FileOutputSection, InputPath, Spec


class ExtractSpec(Spec):
    method: Literal["extract"] = Field("extract", description="which method runs the job")
    model: InputPath = Field(
        description="a diffusers folder or a .safetensors file that was saved with an adapter on or beside its weights"
    )
    adapter: str | None = Field(None, description="which adapter, where the model has several")
    alpha: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="alpha of the modules, if it is not stored; by default the rank"
    )
    output: FileOutputSection = Field(FileOutputSection(), description="where the result goes, and in which form")

    writes_file = True

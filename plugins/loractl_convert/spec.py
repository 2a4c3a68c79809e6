"""What a conversion job may say."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from loractl.specs import InputPath, OutputSection, Spec


class FileSection(OutputSection):
    format: Literal["diffusers", "kohya", "cloneofsimo", "a1111", "learned_embeds"] = Field(
        description="the form of the file; a1111 and learned_embeds (diffusers) are embeddings alone"
    )
    dtype: Literal["fp16", "bf16", "fp32"] | None = Field(
        None, description="precision of the saved tensors; by default the widest of the file's"
    )


class ConvertSpec(Spec):
    method: Literal["convert"] = Field("convert", description="which method runs the job")
    adapter: InputPath = Field(description="the file, of any format that can be read")
    allow_pickle: bool = Field(False, description="read pickles as well (.pt, .bin): their tensors alone, never code")
    base: Literal["sd_v1", "sd_v2", "sd_v2_v", "sdxl_base_v1-0", "sd3", "sd3m", "flux1"] | None = Field(
        None, description="the base model, which kohya's names depend on, where the file does not tell it"
    )
    output: FileSection = Field(description="where the result goes, and in which form")

    writes_file = True

    def destination(self) -> Path:
        return self.output.path or Path("out", f"{self.name}.safetensors")

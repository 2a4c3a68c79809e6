"""How a job keeps the denoiser: in how many bits, where, and with which attention; and text encoders beside it."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from loractl.sections.presets import PRESET, PresetName, with_picture_preset
from loractl.specs import MemorySection, Spec


class DenoiserMemorySection(MemorySection):
    quantize: Literal["none", "nf4", "int8", "fp8"] = Field(
        "none", description="keep the frozen denoiser in 4 or 8 bits (nf4: extra bnb, int8: extra torchao)"
    )
    offload: Literal["none", "blocks"] = Field(
        "none", description="keep the denoiser in main memory, and bring its blocks to the GPU one at a time"
    )
    attention: str | None = Field(None, description="an attention backend of diffusers, such as flash or _native_flash")

    @property
    def keeping(self) -> dict[str, Any]:
        """What `families.precision.Keeping` is told."""
        return {"quantize": self.quantize, "offload": self.offload, "attention": self.attention}


class PictureMemorySection(DenoiserMemorySection):
    """Of a job that makes pictures with adapters, which trains nothing."""

    preset: PresetName | None = Field(None, description=PRESET)
    text_encoders: Literal["device", "cpu"] = Field(
        "device", description="where prompts are read: cpu is for text encoders that leave a GPU no room for the rest"
    )

    @model_validator(mode="after")
    def _adapters_have_a_place(self) -> "PictureMemorySection":
        if self.quantize != "none" and self.offload != "none":
            raise ValueError("quantize and offload go together in training alone: set one of them")
        return self

    @property
    def engine(self) -> Literal["auto", "composed", "branch"]:
        """How adapters act on a denoiser so kept: few bits have nothing to add to, and branches do not move."""
        return "branch" if self.quantize != "none" else "composed" if self.offload != "none" else "auto"


class PictureSpec(Spec):
    """Of a job with a `model` and a `memory` that makes pictures."""

    @field_validator("memory", check_fields=False)
    @classmethod
    def _resolve_preset(cls, memory: PictureMemorySection, info: ValidationInfo) -> PictureMemorySection:
        model = info.data.get("model")
        return with_picture_preset(memory, memory.preset, model.source) if model else memory

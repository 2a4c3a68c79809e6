"""Who judges pictures, and which scores a job may set a limit to."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from loractl.specs import InputPath, Section

Limited = Literal["subject_fidelity", "prompt_fidelity", "diversity", "memorization"]  # less drift is better
Text = Annotated[str, Field(min_length=1)]


class EncoderSection(Section):
    source: Text = Field(
        description='"lab"; the hub id or folder of a transformers model (CLIP, SigLIP, DINOv2, …); or, with weights, '
        "the dotted path of a function that builds a classifier as torchvision's do"
    )
    revision: str | None = Field(None, description="the hub revision, for results that can be repeated")
    weights: InputPath | None = Field(None, description="the classifier's weights")
    allow_pickle: bool = Field(False, description="read them from a .pth as well: their tensors alone, never code")

    @field_validator("source")
    @classmethod
    def _resolve(cls, source: str, info: ValidationInfo) -> str:
        """A folder that exists becomes absolute; what can only be a folder must exist."""
        path = Path((info.context or {}).get("base", "."), Path(source).expanduser()).absolute()
        if path.is_dir():
            return str(path)
        if source.startswith((".", "/", "~")):
            raise ValueError(f"there is no folder {path}")
        return source


def _as_encoder(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


EncoderChoice = Annotated[EncoderSection, BeforeValidator(_as_encoder, json_schema_input_type=str | EncoderSection)]

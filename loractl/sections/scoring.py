"""Who judges pictures, which scores a job may set a limit to, what they need to be measured, and what is too low."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from loractl.specs import InputPath, Section

Limited = Literal["subject_fidelity", "prompt_fidelity", "diversity", "memorization"]  # less drift is better
LAB_PLACES = 10
"""The lab asks for every prompt in each of its places (lab.scenes.PLACES, which is not for the front)."""

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


def unmeasured(
    limited: Collection[str],
    judges: Sequence[EncoderSection],
    prompts: Sequence[str],
    samples: int,
    *,
    held_out: bool,
    training: bool,
    section: str = "",
) -> dict[str, str]:
    """Of these scores those that such a job can't measure, each with what it needs; `section` is where its keys are.

    Whether a model of transformers reads texts is known when it is loaded: then such a score is refused.
    """
    places = LAB_PLACES if [judge.source for judge in judges] == ["lab"] else 1
    asked = {(prompts[i // places % len(prompts)], i % places) for i in range(samples)}
    needs = {
        "subject_fidelity": (held_out, f"{section}held_out: pictures of the subject that are not trained on"),
        "prompt_fidelity": (
            any(judge.weights is None for judge in judges),
            "an encoder that reads texts, such as openai/clip-vit-base-patch32",
        ),
        "diversity": (len(asked) < samples, f"two pictures of a prompt: {section}samples above {samples}"),
        "memorization": (training, f"{section}training: the pictures that were trained on"),
    }
    return {name: f"{name} needs {need}" for name, (there, need) in needs.items() if name in limited and not there}


def below(values: Mapping[str, float], limits: Mapping[Any, float]) -> list[str]:
    """A sentence for each score that is not as high as its limit, or that has a limit and was not measured."""
    missing = [name for name in limits if name not in values]
    low = {name: values[name] for name in limits if name in values and not values[name] >= limits[name]}  # NaN is low
    return [
        *(f"{name} was not measured, so it can't be {limits[name]:g}" for name in missing),
        *(f"{name} is {value:.3f}, below {limits[name]:g}" for name, value in low.items()),
    ]


def written_below(file: Path, limits: Mapping[Any, float]) -> list[str]:
    """The same for the scores in a run's scores.json; without the file nothing was measured."""
    scores = json.loads(file.read_bytes())["scores"] if file.is_file() else {}
    return below({name: score["value"] for name, score in scores.items()}, limits)


EncoderChoice = Annotated[EncoderSection, BeforeValidator(_as_encoder, json_schema_input_type=str | EncoderSection)]

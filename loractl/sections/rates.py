"""The learning rate of a job that names none, by the pipeline of its model.

Those of diffusers' examples of DreamBooth with LoRA and AdamW (examples/dreambooth/README_*.md), which like loractl
scale ΔW by 1. What can't be told from here (most hub ids, a .ckpt) has the rate of most.
"""

from collections.abc import Mapping
from typing import TypeVar

from loractl.bases import pipeline_of
from loractl.specs import Section

S = TypeVar("S", bound=Section)

RATE = 1e-4
RATES: Mapping[str, float] = {"StableDiffusion3Pipeline": 4e-4, "QwenImagePipeline": 2e-4}


def with_rate(train: S, source: str) -> S:
    """The section with the rate for the model `source`, unless it has one of its own."""
    if "lr" in train.model_fields_set:
        return train
    return train.model_copy(update={"lr": RATES.get(pipeline_of(source), RATE)})


def changed(train: Section, source: str) -> list[str]:
    """The keys of the section that are not as they would be, with the model `source`, without a word of them."""
    silent = with_rate(type(train)(), source)
    return [key for key, value in train if value != getattr(silent, key)]

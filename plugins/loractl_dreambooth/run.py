"""Carries out a DreamBooth job."""

from typing import cast

from loractl.events import Emit
from loractl.method import Outcome
from loractl.runs.recipe import Recipe
from loractl.runs.training import train
from loractl.sections import TrainingSpec
from loractl_dreambooth.spec import DreamBoothSpec


def run(spec: DreamBoothSpec, emit: Emit) -> Outcome:
    return train(spec, emit, cook)


def cook(any_spec: TrainingSpec) -> Recipe:
    """Everything learns at every step; the text encoder until `train.text_encoder_steps`."""
    spec = cast(DreamBoothSpec, any_spec)
    until = spec.train.text_encoder_steps or spec.train.steps
    names = frozenset({"denoiser", "text_encoder", "tokens"})
    return Recipe(
        spec.subject.prompt,
        lambda step: names if step < until else names - {"text_encoder"},
        adapter=spec.adapter,
        embedding=spec.embedding,
        class_prompt=spec.subject.class_prompt,
        prior=spec.prior if spec.prior_is_on else None,
    )

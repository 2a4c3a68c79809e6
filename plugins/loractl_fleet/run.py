"""Carries out a fleet's job."""

from typing import cast

from loractl.events import Emit
from loractl.method import Outcome
from loractl.runs.fleet import train_together
from loractl.runs.recipe import Recipe
from loractl.sections import TrainingSpec
from loractl_fleet.spec import FleetSpec, SoloSpec


def run(spec: FleetSpec, emit: Emit) -> Outcome:
    return train_together(spec, [spec.solo(subject) for subject in spec.subjects], emit, cook, spec.at_once)


def cook(any_spec: TrainingSpec) -> Recipe:
    """A subject's recipe, which is DreamBooth's: everything learns, the text encoder until its last step."""
    spec = cast(SoloSpec, any_spec)
    until = spec.train.text_encoder_steps or spec.train.steps
    names = frozenset({"denoiser", "text_encoder"})
    return Recipe(
        spec.subject.prompt,
        lambda step: names if step < until else names - {"text_encoder"},
        adapter=spec.adapter,
        class_prompt=spec.subject.class_prompt,
        prior=spec.prior if spec.prior_is_on else None,
    )

"""Carries out a pivotal-tuning job."""

from typing import cast

from loractl.events import Emit
from loractl.method import Outcome
from loractl.runs.recipe import Recipe
from loractl.runs.training import train
from loractl.sections import TrainingSpec
from loractl_pti.phases import phases
from loractl_pti.spec import PivotalTuningSpec


def run(spec: PivotalTuningSpec, emit: Emit) -> Outcome:
    return train(spec, emit, cook)


def cook(any_spec: TrainingSpec) -> Recipe:
    """Tokens and adapter learn as the phases say, the text encoder's adapter in the first `train.text_encoder_steps` of
    the steps that would be its own.
    """
    spec = cast(PivotalTuningSpec, any_spec)
    active = phases(spec.phases, spec.train.steps)
    own = [step for step in range(spec.train.steps) if "text_encoder" in active(step)]
    listening = frozenset(own[: spec.train.text_encoder_steps])
    return Recipe(
        spec.subject.prompt,
        lambda step: active(step) if step in listening else active(step) - {"text_encoder"},
        adapter=spec.adapter,
        embedding=spec.embedding,
        class_prompt=spec.subject.class_prompt,
        prior=spec.prior if spec.prior_is_on else None,
        token_weight=spec.phases.token_weight,
        subject_weight=spec.phases.subject_weight,
    )

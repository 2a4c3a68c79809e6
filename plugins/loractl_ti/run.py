"""Carries out a textual-inversion job."""

from typing import cast

from loractl.events import Emit
from loractl.method import Outcome
from loractl.runs.recipe import Recipe
from loractl.runs.training import train
from loractl.sections import TrainingSpec
from loractl.train.templates import OBJECT, STYLE
from loractl_ti.spec import TextualInversionSpec

SENTENCES = {"object": OBJECT, "style": STYLE, None: ()}


def run(spec: TextualInversionSpec, emit: Emit) -> Outcome:
    return train(spec, emit, cook)


def cook(any_spec: TrainingSpec) -> Recipe:
    """The tokens alone learn, at every step."""
    spec = cast(TextualInversionSpec, any_spec)
    return Recipe(
        spec.prompt,
        lambda _: frozenset({"tokens"}),
        embedding=spec.embedding,
        class_prompt=spec.subject.class_prompt,
        templates=SENTENCES[spec.subject.kind],
        template_word=spec.words,
    )

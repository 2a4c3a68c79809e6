"""Textual inversion (Gal et al. 2023): find the word for a subject or a style; the model stays as it is."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_ti.command import ti
from loractl_ti.spec import TextualInversionSpec


def start(spec: TextualInversionSpec, emit: Emit) -> Outcome:
    from loractl_ti.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    summary = "Learn a word for a subject or a style; the model stays as it is."
    return [Method("ti", summary, TextualInversionSpec, start, ti)]

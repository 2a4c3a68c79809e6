"""Pivotal tuning (after Roich et al. 2022): a word for the subject, and an adapter around that word."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_pti.command import pti
from loractl_pti.spec import PivotalTuningSpec


def start(spec: PivotalTuningSpec, emit: Emit) -> Outcome:
    from loractl_pti.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    summary = "Learn a word for a subject, and an adapter around it."
    return [Method("pti", summary, PivotalTuningSpec, start, pti)]

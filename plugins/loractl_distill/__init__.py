"""An adapter out of the difference of two models."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_distill.command import distill
from loractl_distill.spec import DistillSpec


def start(spec: DistillSpec, emit: Emit) -> Outcome:
    from loractl_distill.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("distill", "Make an adapter of the difference of two models.", DistillSpec, start, distill)]

"""A series of adapters from one to another."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_interpolate.command import interpolate
from loractl_interpolate.spec import InterpolateSpec


def start(spec: InterpolateSpec, emit: Emit) -> Outcome:
    from loractl_interpolate.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    summary = "Make a series of adapters from one to another."
    return [Method("interpolate", summary, InterpolateSpec, start, interpolate)]

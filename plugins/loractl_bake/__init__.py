"""Add adapters to the weights of a model for good."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_bake.command import bake
from loractl_bake.spec import BakeSpec


def start(spec: BakeSpec, emit: Emit) -> Outcome:
    from loractl_bake.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("bake", "Add adapters to the weights of a model for good.", BakeSpec, start, bake)]

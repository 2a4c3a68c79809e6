"""Bring an adapter to another rank."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_resize.command import resize
from loractl_resize.spec import ResizeSpec


def start(spec: ResizeSpec, emit: Emit) -> Outcome:
    from loractl_resize.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("resize", "Make an adapter smaller, losing as little as can be.", ResizeSpec, start, resize)]

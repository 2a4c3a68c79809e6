"""Make a table of pictures along up to three axes, and a page to slide through it."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_grid.command import grid
from loractl_grid.spec import GridSpec


def start(spec: GridSpec, emit: Emit) -> Outcome:
    from loractl_grid.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    summary = "Make a table of pictures along up to three axes, and a page to slide through it."
    return [Method("grid", summary, GridSpec, start, grid)]

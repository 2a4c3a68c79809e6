"""Merge adapters into one."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_merge.command import merge
from loractl_merge.spec import MergeSpec


def start(spec: MergeSpec, emit: Emit) -> Outcome:
    from loractl_merge.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("merge", "Merge adapters into one, exactly.", MergeSpec, start, merge)]

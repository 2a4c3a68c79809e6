"""Tell how two adapters differ, or whether a model contains one."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_diff.command import diff
from loractl_diff.spec import DiffSpec


def start(spec: DiffSpec, emit: Emit) -> Outcome:
    from loractl_diff.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("diff", "Tell how two adapters differ, or whether a model contains one.", DiffSpec, start, diff)]

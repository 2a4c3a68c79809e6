"""Turn a folder of pictures into a training set."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_ppim.command import ppim
from loractl_ppim.spec import PpimSpec


def start(spec: PpimSpec, emit: Emit) -> Outcome:
    from loractl_ppim.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("ppim", "Turn a folder of pictures into a training set.", PpimSpec, start, ppim)]

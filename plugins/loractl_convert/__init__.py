"""Write an adapter or an embedding in another format."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_convert.command import convert
from loractl_convert.spec import ConvertSpec


def start(spec: ConvertSpec, emit: Emit) -> Outcome:
    from loractl_convert.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("convert", "Write an adapter or an embedding in another format.", ConvertSpec, start, convert)]

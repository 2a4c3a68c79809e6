"""Take out an adapter that is stored inside a model."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_extract.command import extract
from loractl_extract.spec import ExtractSpec


def start(spec: ExtractSpec, emit: Emit) -> Outcome:
    from loractl_extract.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("extract", "Take out an adapter that is stored inside a model.", ExtractSpec, start, extract)]

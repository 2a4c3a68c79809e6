"""Make pictures with a model and adapters."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_infer.command import infer
from loractl_infer.spec import InferSpec


def start(spec: InferSpec, emit: Emit) -> Outcome:
    from loractl_infer.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("infer", "Make pictures with a model and adapters.", InferSpec, start, infer)]

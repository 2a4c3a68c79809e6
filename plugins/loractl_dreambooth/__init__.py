"""DreamBooth (Ruiz et al. 2023): teach a model one subject from a handful of pictures, without forgetting its class."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_dreambooth.command import dreambooth
from loractl_dreambooth.spec import DreamBoothSpec


def start(spec: DreamBoothSpec, emit: Emit) -> Outcome:
    from loractl_dreambooth.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    summary = "Teach a model one subject from a handful of pictures."
    return [Method("dreambooth", summary, DreamBoothSpec, start, dreambooth)]

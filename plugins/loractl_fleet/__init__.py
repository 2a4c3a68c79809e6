"""Many subjects on one model at once, each with an adapter, data, seed and schedule of its own."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_fleet.spec import FleetSpec


def start(spec: FleetSpec, emit: Emit) -> Outcome:
    from loractl_fleet.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("fleet", "Teach one model many subjects at once, an adapter for each.", FleetSpec, start)]

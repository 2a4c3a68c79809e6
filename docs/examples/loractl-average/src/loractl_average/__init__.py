"""The plain mean of adapters: a whole loractl plugin to copy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.job import spec_from_options
from loractl.method import Method, Outcome
from loractl_average.spec import AverageSpec


def start(spec: AverageSpec, emit: Emit) -> Outcome:
    from loractl_average.run import run  # torch is imported here, not before

    return run(spec, emit)


def average(
    adapters: Annotated[list[Path], Argument(help="the adapters' files")],
    out: Annotated[Path | None, Option(help="the file to write")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace it if it is there")] = None,
) -> AverageSpec:
    """The plain mean of adapters."""
    values = {"adapters": adapters, "output.path": out, "output.overwrite": overwrite}
    return spec_from_options(AverageSpec, values, {"adapters": "ADAPTERS"})


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("average", "The plain mean of adapters.", AverageSpec, start, average)]

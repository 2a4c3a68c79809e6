"""`loractl diff`: an adapter and what it is held against."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from loractl.job import spec_from_options
from loractl_diff.spec import DiffSpec


def diff(
    a: Annotated[Path, Argument(help="the adapter's file that counts as right", show_default=False)],
    b: Annotated[Path | None, Argument(help="the adapter's file that is compared with it", show_default=False)] = None,
    merged: Annotated[Path | None, Option(help="instead of B: a model that is said to have A in its weights")] = None,
    base: Annotated[Path | None, Option(help="the same model without it")] = None,
    weight: Annotated[float | None, Option(help="what A's ΔW was multiplied by when it was baked")] = None,
    device: Annotated[str | None, Option(help="where the arithmetic is done: cpu (default) or cuda")] = None,
) -> DiffSpec:
    """Tell how two adapters differ, or whether a model contains one."""
    values = {"a": a, "b": b, "merged": merged, "base": base, "weight": weight, "memory.device": device}
    return spec_from_options(DiffSpec, values, {"a": "A", "b": "B"})

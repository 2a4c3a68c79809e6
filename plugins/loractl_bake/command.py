"""`loractl bake`: a model, adapters and their weights."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from loractl.errors import JobError
from loractl.job import spec_from_options
from loractl_bake.spec import BakeSpec


def bake(
    model: Annotated[Path, Argument(help="a diffusers folder, or one .safetensors or .ckpt file", show_default=False)],
    adapters: Annotated[list[Path], Argument(help="the adapters' files", show_default=False)],
    weight: Annotated[list[float] | None, Option(help="what ΔW is multiplied by: one for all, or one for each")] = None,
    allow_pickle: Annotated[
        bool | None, Option("--allow-pickle", help="read a .ckpt that you trust, or write one")
    ] = None,
    device: Annotated[str | None, Option(help="where the arithmetic is done: cpu (default) or cuda")] = None,
    name: Annotated[str, Option(help="names the result")] = "baked",
    out: Annotated[Path | None, Option(help="the folder, or the .safetensors or .ckpt file, to write")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace files that are already there")] = None,
) -> BakeSpec:
    """Add adapters to the weights of a model for good."""
    values = {
        "model": model,
        "adapters": _uses(adapters, weight or [1.0]),
        "allow_pickle": allow_pickle,
        "memory.device": device,
        "name": name,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(BakeSpec, values, {"model": "MODEL", "adapters": "ADAPTERS"})


def _uses(adapters: list[Path], weights: list[float]) -> list[dict[str, Path | float]]:
    """The job's table of adapters; a single weight is everyone's."""
    if len(weights) not in (1, len(adapters)):
        raise JobError(f"--weight: there are {len(weights)} for {len(adapters)} adapters; give one for all or one each")
    each = weights if len(weights) == len(adapters) else weights * len(adapters)
    return [{"path": path, "weight": weight} for path, weight in zip(adapters, each, strict=True)]

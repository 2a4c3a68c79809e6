"""`loractl extract`: a model with an adapter inside."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from loractl.job import spec_from_options
from loractl_extract.spec import ExtractSpec


def extract(
    model: Annotated[Path, Argument(help="a diffusers folder or a .safetensors file", show_default=False)],
    adapter: Annotated[str | None, Option(help="which adapter, where the model has several")] = None,
    alpha: Annotated[float | None, Option(help="alpha, if it is not stored; by default the rank")] = None,
    format: Annotated[str | None, Option(help="diffusers or kohya")] = None,
    dtype: Annotated[str | None, Option(help="fp16, bf16 or fp32")] = None,
    name: Annotated[str, Option(help="names the adapter")] = "extracted",
    out: Annotated[Path | None, Option(help="the file to write")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace it if it is there")] = None,
) -> ExtractSpec:
    """Take out an adapter that is stored inside a model."""
    values = {
        "model": model,
        "adapter": adapter,
        "alpha": alpha,
        "output.format": format,
        "output.dtype": dtype,
        "name": name,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(ExtractSpec, values, {"model": "MODEL"})

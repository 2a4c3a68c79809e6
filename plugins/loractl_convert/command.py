"""`loractl convert`: the job's keys as options."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from loractl.job import spec_from_options
from loractl_convert.spec import ConvertSpec

NAMES = {"adapter": "FILE", "output.format": "--to"}


def convert(
    file: Annotated[Path, Argument(help="an adapter or an embedding", show_default=False)],
    to: Annotated[str, Option(help="diffusers, kohya, cloneofsimo, a1111 or learned_embeds", show_default=False)],
    dtype: Annotated[str | None, Option(help="fp16, bf16 or fp32; by default the widest of the file's")] = None,
    base: Annotated[str | None, Option(help="the base model, where the file does not tell it: flux1, sd3, …")] = None,
    allow_pickle: Annotated[bool | None, Option("--allow-pickle", help="read .pt and .bin files as well")] = None,
    name: Annotated[str, Option(help="names the file, and is its title")] = "converted",
    out: Annotated[Path | None, Option(help="the file to write")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace it if it is there")] = None,
) -> ConvertSpec:
    """Write an adapter or an embedding in another format."""
    values = {
        "adapter": file,
        "allow_pickle": allow_pickle,
        "base": base,
        "name": name,
        "output.format": to,
        "output.dtype": dtype,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(ConvertSpec, values, NAMES)

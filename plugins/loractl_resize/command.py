"""`loractl resize`: the job's keys as options."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from loractl.job import spec_from_options
from loractl_resize.spec import ResizeSpec


def resize(
    adapter: Annotated[Path, Argument(help="the adapter's file", show_default=False)],
    rank: Annotated[int | None, Option(help="each module's rank at most")] = None,
    energy: Annotated[float | None, Option(help="share of each module's squared norm that is kept")] = None,
    ratio: Annotated[float | None, Option(help="singular values below this share of the largest go")] = None,
    budget_mb: Annotated[float | None, Option(help="megabytes that all factors may take")] = None,
    format: Annotated[str | None, Option(help="diffusers, kohya or cloneofsimo; by default the adapter's")] = None,
    dtype: Annotated[str | None, Option(help="fp16, bf16 or fp32; by default that of the adapter")] = None,
    device: Annotated[str | None, Option(help="where the arithmetic is done: cpu (default) or cuda")] = None,
    name: Annotated[str, Option(help="names the file")] = "resized",
    out: Annotated[Path | None, Option(help="the file to write")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace it if it is there")] = None,
) -> ResizeSpec:
    """Bring an adapter to another rank."""
    values = {
        "adapter": adapter,
        "rank": rank,
        "energy": energy,
        "ratio": ratio,
        "budget_mb": budget_mb,
        "memory.device": device,
        "name": name,
        "output.format": format,
        "output.dtype": dtype,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(ResizeSpec, values, {"adapter": "ADAPTER"})

"""`loractl distill`: two models and a rule for the rank."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from loractl.job import spec_from_options
from loractl_distill.spec import DistillSpec


def distill(
    tuned: Annotated[Path, Argument(help="the tuned model: a folder or one .safetensors file", show_default=False)],
    base: Annotated[Path, Argument(help="the model it was tuned from", show_default=False)],
    rank: Annotated[int | None, Option(help="rank of every module, or with --energy the largest allowed")] = None,
    energy: Annotated[float | None, Option(help="the smallest rank that holds this share of ‖ΔW‖²")] = None,
    format: Annotated[str | None, Option(help="diffusers or kohya")] = None,
    dtype: Annotated[str | None, Option(help="fp16, bf16 or fp32")] = None,
    device: Annotated[str | None, Option(help="cpu or cuda")] = None,
    name: Annotated[str, Option(help="names the adapter")] = "distilled",
    out: Annotated[Path | None, Option(help="the file to write")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace it if it is there")] = None,
) -> DistillSpec:
    """Make an adapter of the difference of two models."""
    values = {
        "tuned": tuned,
        "base": base,
        "rank": rank,
        "energy": energy,
        "output.format": format,
        "output.dtype": dtype,
        "memory.device": device,
        "name": name,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(DistillSpec, values, {"tuned": "TUNED", "base": "BASE"})

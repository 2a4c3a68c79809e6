"""`loractl grid`: the job's most used keys as options."""

import csv
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from loractl.job import adapter_use, spec_from_options
from loractl_grid.spec import GridSpec

NAMES = {"sample.prompt": "PROMPT", "adapters": "--adapter"}
TEXTS = {"prompt", "adapter", "checkpoint"}  # the axes that are no numbers


def grid(
    x: Annotated[
        str,
        Option(
            help="from left to right: weight=0:1:0.25, seed=1..4, steps=5,10, guidance=1..7, adapter=A,B, prompt=A,B, "
            "checkpoint=FOLDER of a run, schedule=1/0:1,0.5:0/linear:0:1,1:0"
        ),
    ],
    prompt: Annotated[
        str | None, Argument(help="what the pictures show, unless an axis says it", show_default=False)
    ] = None,
    y: Annotated[str | None, Option(help="from top to bottom, in the same way")] = None,
    z: Annotated[str | None, Option(help="from table to table, in the same way")] = None,
    model: Annotated[str, Option(help='"lab", a diffusers folder or a hub id')] = "lab",
    adapter: Annotated[list[str] | None, Option(help="FILE or FILE=WEIGHT; may be given several times")] = None,
    allow_pickle: Annotated[bool | None, Option("--allow-pickle", help="read .pt and .bin files as well")] = None,
    seed: Annotated[int | None, Option(help="of all pictures, unless an axis says it")] = None,
    steps: Annotated[int | None, Option(help="denoising steps")] = None,
    guidance: Annotated[float | None, Option(help="classifier-free guidance scale")] = None,
    negative: Annotated[str | None, Option(help="negative prompt")] = None,
    size: Annotated[str | None, Option(help="pixels of each side, or of width and height: 768x512")] = None,
    name: Annotated[str, Option(help="names the output's folder")] = "grid",
    out: Annotated[Path | None, Option(help="the output's folder")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace files that are already there")] = None,
) -> GridSpec:
    """Make a table of pictures along up to three axes, and a page to slide through it."""
    axes = {f"grid.{axis}": _axis(axis, text) for axis, text in (("x", x), ("y", y), ("z", z))}
    values = {
        "sample.prompt": prompt,
        **axes,
        "model": model,
        "adapters": [adapter_use(text) for text in adapter] if adapter else None,
        "allow_pickle": allow_pickle,
        "seed": seed,
        "sample.steps": steps,
        "sample.guidance": guidance,
        "sample.negative": negative,
        "sample.size": size,
        "name": name,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(GridSpec, values, NAMES)


def _axis(axis: str, text: str | None) -> dict[str, Any] | None:
    """KIND=VALUES as the job's table. Texts are set apart by commas, one with a comma in it stands in quotes."""
    if text is None:
        return None
    kind, equals, values = text.partition("=")
    if not equals:
        raise BadParameter(f'"{text}" is not like seed=1..4 or adapter=A,B', param_hint=f"--{axis}")
    return {kind: next(csv.reader([values], skipinitialspace=True), []) if kind in TEXTS else values}

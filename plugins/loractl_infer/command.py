"""`loractl infer`: the job's most used keys as options."""

import re
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from loractl.job import adapter_use, spec_from_options
from loractl_infer.spec import InferSpec

_SCHEDULED = re.compile(r"(?P<use>.+=[^=@]+)@(?P<points>[^=@]+)")
NAMES = {"sample.prompts": "PROMPTS", "sample.seeds": "--seed", "adapters": "--adapter"}


def infer(
    prompts: Annotated[list[str], Argument(help="what the pictures show; each may be in quotes", show_default=False)],
    model: Annotated[str, Option(help='"lab", a diffusers folder or a hub id')] = "lab",
    adapter: Annotated[
        list[str] | None,
        Option(help="FILE, FILE=WEIGHT or, from fractions of the run on, FILE=1.0@0.0:0.2,0.5:1.0; repeatable"),
    ] = None,
    engine: Annotated[str | None, Option(help="auto, composed or branch: how adapters are applied")] = None,
    allow_pickle: Annotated[bool | None, Option("--allow-pickle", help="read .pt and .bin files as well")] = None,
    seed: Annotated[list[int] | None, Option(help="one picture each; may be given several times")] = None,
    steps: Annotated[int | None, Option(help="denoising steps")] = None,
    guidance: Annotated[float | None, Option(help="classifier-free guidance scale")] = None,
    negative: Annotated[str | None, Option(help="negative prompt")] = None,
    size: Annotated[int | None, Option(help="pixels of each side")] = None,
    name: Annotated[str, Option(help="names the output's folder")] = "pictures",
    out: Annotated[Path | None, Option(help="the output's folder")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace files that are already there")] = None,
) -> InferSpec:
    """Make pictures with a model and adapters."""
    values = {
        "sample.prompts": prompts,
        "model": model,
        "adapters": [scheduled_use(text) for text in adapter] if adapter else None,
        "composition.engine": engine,
        "allow_pickle": allow_pickle,
        "sample.seeds": seed or None,
        "sample.steps": steps,
        "sample.guidance": guidance,
        "sample.negative": negative,
        "sample.size": size,
        "name": name,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(InferSpec, values, NAMES)


def scheduled_use(text: str) -> dict[str, Any]:
    """FILE, FILE=WEIGHT or FILE=WEIGHT@SCHEDULE, as the job's table. A file may have = and @ in its name: what follows
    them is a weight and a schedule only if the weight is a number.
    """
    found = _SCHEDULED.fullmatch(text)
    use = adapter_use(found["use"]) if found else {}
    return {**use, "schedule": found["points"]} if found and "weight" in use else adapter_use(text)

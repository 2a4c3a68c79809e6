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
    prompts: Annotated[
        list[str] | None, Argument(help="what the pictures show; each may be in quotes", show_default=False)
    ] = None,
    prompts_file: Annotated[Path | None, Option(help="a text file of further prompts, one on each line")] = None,
    model: Annotated[str, Option(help='"lab", a diffusers folder or a hub id')] = "lab",
    adapter: Annotated[
        list[str] | None,
        Option(help="FILE, FILE=WEIGHT or, from fractions of the run on, FILE=1.0@0.0:0.2,0.5:1.0; repeatable"),
    ] = None,
    engine: Annotated[str | None, Option(help="auto, composed or branch: how adapters are applied")] = None,
    allow_pickle: Annotated[bool | None, Option("--allow-pickle", help="read .pt and .bin files as well")] = None,
    seed: Annotated[list[str] | None, Option(help="one picture each: 7, 1..4 or 1,5..8; repeatable")] = None,
    steps: Annotated[int | None, Option(help="denoising steps")] = None,
    scheduler: Annotated[
        str | None, Option(help="euler-a, dpm++2m-karras, ddim, …; by default the model's own")
    ] = None,
    guidance: Annotated[float | None, Option(help="classifier-free guidance scale")] = None,
    negative: Annotated[str | None, Option(help="negative prompt")] = None,
    clip_skip: Annotated[int | None, Option(help="the layer of CLIP that reads the prompt, 1 being the last")] = None,
    size: Annotated[str | None, Option(help="pixels of each side, or of width and height: 768x512")] = None,
    image: Annotated[Path | None, Option(help="a picture to start from")] = None,
    strength: Annotated[float | None, Option(help="how much of it is made anew, 0 to 1")] = None,
    mask: Annotated[Path | None, Option(help="a picture of where: what is white there is made anew")] = None,
    paste_edge: Annotated[
        int | None, Option(help="keep all else to the bit, with a soft edge of so many pixels")
    ] = None,
    preview_every: Annotated[int | None, Option(help="show the pictures on their way after so many steps")] = None,
    name: Annotated[str, Option(help="names the output's folder")] = "pictures",
    out: Annotated[Path | None, Option(help="the output's folder")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace files that are already there")] = None,
) -> InferSpec:
    """Make pictures with a model and adapters."""
    values = {
        "sample.prompts": prompts or (None if prompts_file else ()),
        "sample.prompts_file": prompts_file,
        "model": model,
        "adapters": [scheduled_use(text) for text in adapter] if adapter else None,
        "composition.engine": engine,
        "allow_pickle": allow_pickle,
        "sample.seeds": seed or None,
        "sample.steps": steps,
        "sample.guidance": guidance,
        "sample.negative": negative,
        "sample.scheduler": scheduler,
        "sample.clip_skip": clip_skip,
        "sample.size": size,
        "sample.image": image,
        "sample.strength": strength,
        "sample.mask": mask,
        "sample.paste_edge": paste_edge,
        "sample.preview_every": preview_every,
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

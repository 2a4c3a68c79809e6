"""`loractl dreambooth`: the job's most used keys as options."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from loractl.job import spec_from_options
from loractl_dreambooth.spec import DreamBoothSpec

NAMES = {"data.path": "PICTURES", "subject.prompt": "--prompt"}


def dreambooth(
    pictures: Annotated[Path, Argument(help="the folder of the subject's pictures", show_default=False)],
    prompt: Annotated[
        str, Option(help='names the subject with a rare token: "a photo of sks dog"', show_default=False)
    ],
    class_prompt: Annotated[str | None, Option(help="the same without the token; turns prior preservation on")] = None,
    model: Annotated[str, Option(help='"lab", a diffusers folder or a hub id')] = "lab",
    name: Annotated[str | None, Option(help="names the output's folder and files")] = None,
    steps: Annotated[int | None, Option(help="optimizer steps")] = None,
    batch_size: Annotated[int | None, Option(help="subject pictures per step")] = None,
    lr: Annotated[float | None, Option(help="learning rate")] = None,
    rank: Annotated[int | None, Option(help="rank of the adapter")] = None,
    text_encoder: Annotated[bool | None, Option("--text-encoder", help="adapt the text encoder too")] = None,
    seed: Annotated[int | None, Option(help="all randomness comes from this number")] = None,
    out: Annotated[Path | None, Option(help="the output's folder")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace files that are already there")] = None,
) -> DreamBoothSpec:
    """Teach a model one subject from a handful of pictures."""
    values = {
        "data.path": str(pictures),
        "subject.prompt": prompt,
        "subject.class_prompt": class_prompt,
        "model": model,
        "name": name or pictures.stem,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "adapter.rank": rank,
        "adapter.text_encoder": text_encoder,
        "seed": seed,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(DreamBoothSpec, values, NAMES)

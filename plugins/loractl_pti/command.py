"""`loractl pti`: the job's most used keys as options."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from loractl.job import spec_from_options
from loractl_pti.spec import PivotalTuningSpec

NAMES = {"data.path": "PICTURES", "subject.prompt": "--prompt", "embedding.token": "--token"}


def pti(
    pictures: Annotated[Path, Argument(help="the folder of the subject's pictures", show_default=False)],
    prompt: Annotated[str, Option(help='names the subject by its token: "a photo of a <rex> dog"', show_default=False)],
    token: Annotated[str, Option(help="the placeholder that learns: <rex>", show_default=False)],
    class_prompt: Annotated[str | None, Option(help="the same without the token; turns prior preservation on")] = None,
    init: Annotated[str | None, Option(help='words it starts from ("a toy dog"), "random" or "zero"')] = None,
    mode: Annotated[str | None, Option(help="sequential, alternating or joint")] = None,
    model: Annotated[str, Option(help='"lab", a diffusers folder or a hub id')] = "lab",
    name: Annotated[str | None, Option(help="names the output's folder and files")] = None,
    steps: Annotated[int | None, Option(help="optimizer steps, those of the token and the adapter together")] = None,
    batch_size: Annotated[int | None, Option(help="subject pictures per step")] = None,
    lr: Annotated[float | None, Option(help="learning rate of the adapter")] = None,
    token_lr: Annotated[float | None, Option(help="learning rate of the token")] = None,
    rank: Annotated[int | None, Option(help="rank of the adapter")] = None,
    seed: Annotated[int | None, Option(help="all randomness comes from this number")] = None,
    out: Annotated[Path | None, Option(help="the output's folder")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace files that are already there")] = None,
) -> PivotalTuningSpec:
    """Learn a word for a subject, and an adapter around it."""
    values = {
        "data.path": str(pictures),
        "subject.prompt": prompt,
        "subject.class_prompt": class_prompt,
        "embedding.token": token,
        "embedding.init": init,
        "embedding.lr": token_lr,
        "phases.mode": mode,
        "model": model,
        "name": name or pictures.stem,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "adapter.rank": rank,
        "seed": seed,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(PivotalTuningSpec, values, NAMES)

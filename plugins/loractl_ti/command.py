"""`loractl ti`: the job's most used keys as options."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from loractl.job import spec_from_options
from loractl_ti.spec import TextualInversionSpec

NAMES = {"data.path": "PICTURES", "embedding.token": "--token"}


def ti(
    pictures: Annotated[Path, Argument(help="the folder of the subject's pictures", show_default=False)],
    token: Annotated[str, Option(help="the placeholder that learns: <rex>", show_default=False)],
    init: Annotated[str | None, Option(help='words it starts from ("a toy dog"), "random" or "zero"')] = None,
    vectors: Annotated[int | None, Option(help="embedding vectors of the token")] = None,
    kind: Annotated[str | None, Option(help="object or style: train on its sentences")] = None,
    prompt: Annotated[str | None, Option(help='a sentence with the token: "a photo of a <rex> dog"')] = None,
    model: Annotated[str, Option(help='"lab", a diffusers folder or a hub id')] = "lab",
    name: Annotated[str | None, Option(help="names the output's folder")] = None,
    steps: Annotated[int | None, Option(help="optimizer steps")] = None,
    batch_size: Annotated[int | None, Option(help="pictures per step")] = None,
    lr: Annotated[float | None, Option(help="learning rate of the token")] = None,
    seed: Annotated[int | None, Option(help="all randomness comes from this number")] = None,
    out: Annotated[Path | None, Option(help="the output's folder")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace files that are already there")] = None,
) -> TextualInversionSpec:
    """Learn a word for a subject or a style; the model stays as it is."""
    values = {
        "data.path": str(pictures),
        "embedding.token": token,
        "embedding.init": init,
        "embedding.vectors": vectors,
        "embedding.lr": lr,
        "subject.kind": kind,
        "subject.prompt": prompt,
        "model": model,
        "name": name or pictures.stem,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "seed": seed,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(TextualInversionSpec, values, NAMES)

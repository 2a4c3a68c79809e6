"""`loractl ppim`: the job's most used keys as options."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from loractl.errors import JobError
from loractl.job import spec_from_options
from loractl_ppim.spec import PpimSpec

NAMES = {
    "source.path": "PICTURES",
    "output.path": "OUT",
    "crop.how": "--crop",
    "check.on_fail": "--on-fail",
    "caption.sources": "--caption",
    "caption.model": "--caption-model",
    "mask.source": "--mask",
    "mask.model": "--mask-model",
    "mask.prompt": "--mask-prompt",
    "mask.folder": "--masks",
    "augment.copies": "--copies",
}


def ppim(
    pictures: Annotated[Path, Argument(help="the folder of pictures; nothing in it changes", show_default=False)],
    out: Annotated[Path | None, Argument(help="the output's folder; by default out/<name>")] = None,
    size: Annotated[int | None, Option(help="pixels of each side, or with buckets the root of the area")] = None,
    crop: Annotated[str | None, Option(help="center, random, subject or none")] = None,
    subject: Annotated[str | None, Option(help="how a subject is found: saliency, faces, mask or alpha")] = None,
    buckets: Annotated[bool | None, Option("--buckets", help="keep the shape, in steps of 64 pixels")] = None,
    upscale: Annotated[bool | None, Option("--upscale", help="enlarge pictures that are too small")] = None,
    trim: Annotated[bool | None, Option("--trim", help="cut letterbox bars and plain borders away")] = None,
    copies: Annotated[int | None, Option(help="changed copies that are written of each picture")] = None,
    on_fail: Annotated[str | None, Option(help="report, skip or error: pictures that fail a check")] = None,
    mask: Annotated[str | None, Option(help="alpha, saliency, transformers or rembg")] = None,
    masks: Annotated[Path | None, Option(help="a folder of masks, named as the pictures")] = None,
    mask_model: Annotated[str | None, Option(help="a segmentation model's hub id or folder")] = None,
    mask_prompt: Annotated[str | None, Option(help="what it shall find")] = None,
    caption: Annotated[
        list[str] | None, Option(help="sidecar, captioner, template or filename; the first that has a text; repeatable")
    ] = None,
    captioner: Annotated[str | None, Option(help="who describes pictures")] = None,
    caption_model: Annotated[str | None, Option(help="its model, a hub id or a folder")] = None,
    template: Annotated[str | None, Option(help="a caption with {trigger}, {class} and {name} in it")] = None,
    trigger: Annotated[str | None, Option(help="the word that calls the subject, put into every caption")] = None,
    class_word: Annotated[str | None, Option(help="what the subject is, for example dog")] = None,
    layout: Annotated[str | None, Option(help="imagefolder, kohya or original")] = None,
    format: Annotated[str | None, Option(help="png or jpeg")] = None,
    workers: Annotated[int | None, Option(help="processes; by default one a core")] = None,
    executor: Annotated[str | None, Option(help="processes or ray")] = None,
    dry_run: Annotated[bool | None, Option("--dry-run", help="say what would happen, and write nothing")] = None,
    name: Annotated[str | None, Option(help="names the output's folder and kohya's")] = None,
    out_: Annotated[Path | None, Option("--out", help="the same as OUT")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace files that ppim did not write")] = None,
) -> PpimSpec:
    """Turn a folder of pictures into a training set."""
    if out and out_:
        raise JobError("OUT and --out are both given: leave one of them out")
    said = ["captioner"] * bool(captioner or caption_model) + ["template"] * bool(template)
    values = {
        "source.path": pictures,
        "output.path": out or out_,
        "crop.size": size,
        "crop.how": crop or ("subject" if subject else None),
        "crop.subject": subject,
        "crop.buckets": buckets,
        "crop.upscale": upscale,
        "crop.trim": trim,
        "augment.copies": copies,
        "check.on_fail": on_fail,
        "mask.source": mask,
        "mask.folder": masks,
        "mask.model": mask_model,
        "mask.prompt": mask_prompt,
        "caption.sources": caption or (["sidecar", *said] if said else None),
        "caption.captioner": captioner,
        "caption.model": caption_model,
        "caption.template": template,
        "caption.trigger": trigger,
        "caption.class_word": class_word,
        "write.layout": layout,
        "write.format": format,
        "run.workers": workers,
        "run.executor": executor,
        "run.dry_run": dry_run,
        "name": name or "pictures",
        "output.overwrite": overwrite,
    }
    return spec_from_options(PpimSpec, values, NAMES)

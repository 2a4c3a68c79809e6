"""The pictures of an inference job: what each asks for, where it goes, and which are rendered together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from loractl.data.images import cut, read_picture
from loractl.data.masks import check_mask, read_mask
from loractl.families.family import Family
from loractl.sample.adapted import requests
from loractl.sample.canvas import Canvas, Size, blank
from loractl.sample.denoise import Request
from loractl.sample.picture import file_name
from loractl.sample.sizes import pixels
from loractl_infer.sample import InferSampleSection
from loractl_infer.spec import InferSpec

BATCH = 4


@dataclass(frozen=True)
class Shot:
    """One picture of the job: its file, what is asked for, and the weights that its prompt gives adapters."""

    file: Path
    request: Request
    weights: tuple[tuple[str, float], ...]


def plan(spec: InferSpec, model: Family) -> list[Shot]:
    """A shot for each prompt and seed, the seeds of a prompt in a row."""
    sample, folder = spec.sample, spec.destination()
    size = pixels(model, sample.size)
    settings = (sample.seeds, sample.steps, sample.guidance, size, sample.negative, sample.scheduler or "")
    prompts = [prompt.text for prompt in spec.prompts]
    wanted = requests(model, prompts, *settings, sample.clip_skip, canvas(sample, model, size))
    said = [prompt.weights for prompt in spec.prompts for _ in sample.seeds]
    named = [folder / file_name(index, request) for index, request in enumerate(wanted)]
    return [Shot(*each) for each in zip(named, wanted, said, strict=True)]


def batches(shots: Sequence[Shot]) -> list[list[Shot]]:
    """The shots that are rendered together: those in a row that want the same weights.

    They follow from the job alone, whatever has been made already: a picture depends on its batch by a rounding.
    """
    groups = [list(group) for _, group in groupby(shots, key=lambda shot: shot.weights)]
    return [group[start : start + BATCH] for group in groups for start in range(0, len(group), BATCH)]


def canvas(sample: InferSampleSection, model: Family, size: Size) -> Canvas | None:
    """The picture to start from and its mask; a model for inpainting has them always, if need be all to be painted."""
    if sample.image is None:
        return blank(size) if model.is_inpainting else None
    picture = read_picture(sample.image)
    mask = blank(size).mask if model.is_inpainting else None
    if sample.mask is not None:
        check_mask(sample.mask, picture.size)
        mask = read_mask(sample.image, sample.mask)
    return Canvas(cut(picture, size), sample.share, mask and cut(mask, size), sample.paste_edge)

"""Pictures of a model in training: the samples a job asks for, and those that are measured."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from PIL import Image

from loractl.events import Emit, Progress
from loractl.families.family import Family
from loractl.sample.adapted import requests
from loractl.sample.denoise import After, Request, render
from loractl.sample.phases import render_in_phases
from loractl.sample.sizes import pixels
from loractl.sample.task import sampling_by
from loractl.specs import SampleSection

SCORE_STEPS = 20  # denoising steps of the pictures that are measured
SCORE_SEED = 20_000


class Studio:
    """Makes pictures with the model as it is now, and reports progress."""

    def __init__(self, model: Family, emit: Emit) -> None:
        self.model, self.emit = model, emit

    def make(self, wanted: Sequence[Request], stage: str, sampler: str = "") -> list[Image.Image]:
        """The pictures of the requests, by a method of SAMPLERS or the model's own; where networks take turns on the
        device, in phases.
        """
        batch = 32 if self.model.resolution <= 64 else 4
        with self.model.autocast(), sampling_by(self.model.pipeline, sampler):
            if self.model.has_guests:
                return render_in_phases(self.model, wanted, batch, self._report(stage), self._canvas())
            paint = partial(self.model.paint, **self._canvas())
            return list(render(paint, wanted, batch, self._report(stage)))

    def _report(self, stage: str) -> After:
        return lambda done, of: self.emit(Progress(stage, done, of))

    def _canvas(self) -> dict[str, Any]:
        """What a model for inpainting is told besides: it paints all over an empty picture."""
        if not self.model.is_inpainting:
            return {}
        size = (self.model.resolution, self.model.resolution)
        return {"image": Image.new("RGB", size), "mask_image": Image.new("L", size, 255)}

    def samples(self, sample: SampleSection, prompt: str, stage: str) -> list[Image.Image]:
        """The job's sample pictures."""
        return self.make(self.requests(sample, prompt), stage)

    def requests(self, sample: SampleSection, prompt: str) -> list[Request]:
        """What a job wants to see: its own prompts, or the subject's. MismatchError for a size that the model does not
        draw.
        """
        settings = (sample.steps, sample.guidance, pixels(self.model, sample.size), sample.negative)
        return requests(self.model, sample.prompts or (prompt,), sample.seeds, *settings)

    def score_samples(self, prompts: Sequence[str], stage: str) -> list[Image.Image]:
        return self.make([self.plain_request(prompt, SCORE_SEED + i) for i, prompt in enumerate(prompts)], stage)

    def plain_request(self, prompt: str, seed: int, steps: int = SCORE_STEPS) -> Request:
        return Request(prompt, seed, steps, self.model.guidance, self.model.resolution)

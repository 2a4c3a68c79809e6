"""Pictures from a pipeline. Each has its own seed, so it does not depend on what else is in its batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image


@dataclass(frozen=True)
class Request:
    """One picture to be made; size in pixels."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    size: int
    negative: str = ""


def render(
    pipeline: Any, requests: Sequence[Request], batch_size: int = 4, on_step: Callable[[int, int], None] | None = None
) -> Iterator[Image.Image]:
    """The pictures of the requests, in order. `on_step(done, total)` is called after every denoising step.

    Requests that follow one another and differ in prompt and seed alone are rendered together.
    """
    total, done = sum(request.steps for request in requests), 0
    for batch in _batches(requests, batch_size):
        first = batch[0]

        def after_step(
            _: Any, step: int, __: Any, kwargs: dict[str, Any], base: int = done, n: int = len(batch)
        ) -> dict[str, Any]:
            if on_step:
                on_step(base + (step + 1) * n, total)
            return kwargs

        yield from pipeline(
            prompt=[request.prompt for request in batch],
            negative_prompt=[request.negative for request in batch],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            height=first.size,
            width=first.size,
            generator=[torch.Generator().manual_seed(request.seed) for request in batch],
            callback_on_step_end=after_step,
        ).images
        done += first.steps * len(batch)


def _batches(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    batch: list[Request] = []
    for request in requests:
        if batch and (len(batch) == size or _shared(batch[0]) != _shared(request)):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def _shared(request: Request) -> dict[str, Any]:
    return {name: value for name, value in asdict(request).items() if name not in ("prompt", "seed", "negative")}

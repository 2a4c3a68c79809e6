"""Pictures from a pipeline. Each has its own seed, so it does not depend on what else is in its batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


class Turns:
    """Counts the turns of a pipeline's loop, of which each calls the denoiser once, or twice for guidance.

    `ahead(turn)` is called before the denoiser, once in each turn, the first included: for it a callback at the end of
    steps comes too late, which is how many set weights that change along a run.
    """

    def __init__(self, ahead: Callable[[int], None]) -> None:
        self.turn, self._told, self._ahead = 0, -1, ahead

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's
    def _hook(self, *_: Any) -> None:
        if self._told != self.turn:
            self._told = self.turn
            self._ahead(self.turn)

    @contextmanager
    def watching(self, denoiser: torch.nn.Module) -> Iterator[None]:
        hook = denoiser.register_forward_pre_hook(self._hook)
        try:
            yield
        finally:
            hook.remove()


def render(
    pipeline: Any, requests: Sequence[Request], batch_size: int = 4, on_step: Callable[[int, int], None] | None = None
) -> Iterator[Image.Image]:
    """The pictures of the requests, in order. `on_step(done, total)` is called after every denoising step.

    Requests that follow one another and differ in prompt and seed alone are rendered together.
    """
    total, done = sum(request.steps for request in requests), 0
    for batch in batches(requests, batch_size):
        steps = batch[0].steps * len(batch)

        def after(turn: int, turns: int, base: int = done, steps: int = steps) -> None:
            if on_step:
                on_step(base + steps * turn // turns, total)

        yield from render_batch(pipeline, batch, after)
        done += steps


def render_batch(pipeline: Any, batch: Sequence[Request], after: Callable[[int, int], None]) -> list[Image.Image]:
    """The pictures of requests that differ in prompts and seed alone. `after(turn, turns)` is called at the end of each
    turn of the pipeline's loop: one for a step, or two with Heun's method and its kin.
    """
    first = batch[0]

    def at_end(pipe: Any, turn: int, _: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        after(turn + 1, pipe.num_timesteps)
        return kwargs

    pictures: list[Image.Image] = pipeline(
        prompt=[request.prompt for request in batch],
        negative_prompt=[request.negative for request in batch],
        num_inference_steps=first.steps,
        guidance_scale=first.guidance,
        height=first.size,
        width=first.size,
        generator=[torch.Generator().manual_seed(request.seed) for request in batch],
        callback_on_step_end=at_end,
    ).images
    return pictures


def batches(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Requests that may be rendered together: that follow one another and differ in prompts and seed alone."""
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

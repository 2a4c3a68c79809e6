"""Pictures from a pipeline. Each has its own seed, so it does not depend on what else is in its batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from PIL import Image

from loractl.sample.canvas import Canvas, Size
from loractl.sample.task import canvas_arguments, skipping, task_pipeline

After = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One picture to be made; its size is the pixels of each side, or of its width and height.

    `scheduler` is of SAMPLERS, or empty for the model's own; `clip_skip` 1 reads the text encoder's last layer.
    """

    prompt: str
    seed: int
    steps: int
    guidance: float
    size: int | Size
    negative: str = ""
    scheduler: str = ""
    clip_skip: int = 1
    canvas: Canvas | None = None

    @property
    def shape(self) -> Size:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def steps_run(self) -> int:
        """How many of the steps are run: with a canvas the last ones."""
        return self.steps if self.canvas is None else self.canvas.steps(self.steps)


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
    pipeline: Any, requests: Sequence[Request], batch_size: int = 4, on_step: After | None = None
) -> Iterator[Image.Image]:
    """The pictures of the requests, in order. `on_step(done, total)` is called after every denoising step.

    Requests that follow one another and differ in prompt and seed alone are rendered together.
    """

    def make(batch: Sequence[Request], after: After) -> list[Image.Image]:
        return render_batch(pipeline_for(pipeline, batch[0]), batch, after)

    return in_batches(make, requests, batch_size, on_step)


def in_batches(
    make: Callable[[Sequence[Request], After], list[T]],
    requests: Sequence[Request],
    batch_size: int,
    on_step: After | None,
) -> Iterator[T]:
    """What `make(batch, after)` gives. Of turns of a batch `on_step` hears as steps of all pictures."""
    total, done = sum(request.steps_run for request in requests), 0
    for batch in batches(requests, batch_size):
        steps = batch[0].steps_run * len(batch)

        def after(turn: int, turns: int, base: int = done, steps: int = steps) -> None:
            if on_step:
                on_step(base + steps * turn // turns, total)

        yield from make(batch, after)
        done += steps


def pipeline_for(pipeline: Any, request: Request) -> Any:
    """The pipeline that makes such a picture, out of the networks of this one."""
    return task_pipeline(pipeline, request.canvas, request.scheduler)


def render_batch(
    pipeline: Any, batch: Sequence[Request], after: After, say: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> list[Image.Image]:
    """The pictures of requests that differ in prompts and seed alone, from the pipeline for them. `after(turn, turns)`
    is called at the end of each turn of its loop: one for a step, or two with Heun's method and its kin. `say` puts
    what Stable Diffusion would be told into the words of the pipeline's family.
    """
    first = batch[0]
    canvas = first.canvas and first.canvas.fitted(first.shape)

    def at_end(pipe: Any, turn: int, _: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        after(turn + 1, pipe.num_timesteps)
        return kwargs

    with skipping(pipeline, first.clip_skip) as skips:
        wanted = {
            "prompt": [request.prompt for request in batch],
            "negative_prompt": [request.negative for request in batch],
            "num_inference_steps": first.steps,
            "guidance_scale": first.guidance,
            "generator": [torch.Generator().manual_seed(request.seed) for request in batch],
            "callback_on_step_end": at_end,
            **canvas_arguments(pipeline, canvas, first.shape, len(batch)),
            **skips,
        }
        pictures: list[Image.Image] = pipeline(**say(wanted)).images
    return [canvas.finish(picture) for picture in pictures] if canvas else pictures


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


def _shared(request: Request) -> Request:
    return replace(request, prompt="", seed=0, negative="")

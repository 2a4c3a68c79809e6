"""What a picture would be if it were finished at once: x̂₀, seen by the denoiser in the midst of a run.

The denoiser's input is x_t = cos θ · x + sin θ · ε with tan θ = σ, whatever the scheduler's own scale (Salimans & Ho
2022, appendix D).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image
from torch import Tensor

from loractl.errors import MismatchError
from loractl.families.family import Family
from loractl.sample.axes import Axis, draw_table
from loractl.sample.phases import pictures
from loractl.sample.schedule import noise_level

CELL = 128  # pixels of a picture in a strip, at least

_CLEAN: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "epsilon": lambda x, epsilon, theta: (x - math.sin(theta) * epsilon) / math.cos(theta),
    "v_prediction": lambda x, v, theta: math.cos(theta) * x - math.sin(theta) * v,
    "sample": lambda _x, clean, _theta: clean,
}
"""x̂₀ of x_t, what the denoiser says of it, and θ."""


class Preview:
    """Listens to the denoiser of one run of `count` pictures, and changes nothing: no random number is drawn."""

    def __init__(self, model: Family, guidance: float, count: int, every: int) -> None:
        """MismatchError for a model that is no UNet along a noise path."""
        if model.denoiser_name != "unet" or model.path.predicts not in _CLEAN:
            raise MismatchError("previews need a UNet that predicts noise, v or pictures: leave preview_every out")
        self.model, self.guidance, self.count, self.every = model, guidance, count, every
        self._seen: dict[int, list[Image.Image]] = {}  # step → pictures
        self._heard: tuple[Tensor, float, Tensor] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        hook = self.model.denoiser.register_forward_hook(self._hear)
        try:
            yield
        finally:
            hook.remove()

    def look(self, step: int) -> bool:
        """Whether the step, which has just been run, is one to look at; then it has been looked at."""
        is_due = step > 0 and step % self.every == 0 and step not in self._seen
        if is_due:
            self._seen[step] = self.pictures()
        return is_due

    def strips(self) -> list[Image.Image]:
        """For each picture of the run, how it looked after the steps that were looked at."""
        steps = Axis("step", tuple(map(str, self._seen)))
        rows = zip(*self._seen.values(), strict=True)
        return [draw_table(steps, Axis(), row, cell=max(CELL, *row[0].size)) for row in rows]

    def pictures(self) -> list[Image.Image]:
        """The pictures that the denoiser's last answer means."""
        assert self._heard is not None, "the run has begun"
        x, t, said = self._heard
        if len(said) == 2 * self.count:
            plain, told = said.chunk(2)
            said = plain + self.guidance * (told - plain)
        x = x[: self.count, : said.shape[1]].float()  # an inpainting model sees a mask and a picture beside x_t
        theta = math.atan(noise_level(self.model.path, t))
        return pictures(self.model, _CLEAN[self.model.path.predicts](x, said.float(), theta))

    def _hear(self, _: Any, arguments: Sequence[Any], output: Any) -> None:
        self._heard = arguments[0], float(arguments[1]), output[0]

"""A picture to start from: how much of it is made anew, and where."""

from dataclasses import dataclass, replace
from typing import Self

from PIL import Image, ImageFilter

Size = tuple[int, int]
"""Of a picture: its width and height, in pixels."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """The run begins with this picture under so much noise that the share `strength` of the steps remains.

    `mask` (mode "L"): white is made anew and black kept, as far as the autoencoder can. With an `edge` what is kept
    comes back to the bit, and inside the mask the new picture appears over that many pixels; 0 is a sharp edge.
    """

    picture: Image.Image
    strength: float = 0.75
    mask: Image.Image | None = None
    edge: int | None = None

    def steps(self, steps: int) -> int:
        """How many of so many steps are run, as Stable Diffusion's pipelines count them: a flow model's run one that is
        begun as well.
        """
        return min(int(steps * self.strength), steps)

    def fitted(self, size: Size) -> Self:
        """The same for pictures of this size, by Lanczos."""
        filtering = Image.Resampling.LANCZOS
        mask = self.mask and self.mask.resize(size, filtering)
        return replace(self, picture=self.picture.convert("RGB").resize(size, filtering), mask=mask)

    def finish(self, made: Image.Image) -> Image.Image:
        """What was made, with what was to be kept put back."""
        if self.mask is None or self.edge is None:
            return made
        return Image.composite(made, self.picture, soft_edge(self.mask, self.edge))


def blank(size: Size) -> Canvas:
    """All of it to be painted anew: what a model for inpainting is given where there is nothing to keep."""
    return Canvas(Image.new("RGB", size), 1.0, Image.new("L", size, 255))


def soft_edge(mask: Image.Image, width: int) -> Image.Image:
    """How much of the new picture shows, 0 to 255: nothing outside the mask, and all of it `width` pixels inside.

    The mask shrinks by half the width and is blurred by as much, so that nothing reaches over its edge.
    """
    sharp = mask.convert("L").point([0] * 128 + [255] * 128)
    half = (width + 1) // 2
    return sharp.filter(ImageFilter.MinFilter(2 * half + 1)).filter(ImageFilter.BoxBlur(half)) if half else sharp

"""How one picture is shown to one sample: where it is cut, whether it is mirrored, how its colors are changed, and
what an inpainting model doesn't see of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from loractl.data.images import Size, cut, part


@dataclass(frozen=True)
class Hole:
    """A rectangle, or the ellipse in it, in fractions of the view's width and height."""

    is_round: bool
    left: float
    top: float
    right: float
    bottom: float

    def mask(self, size: Size) -> Image.Image:
        """Mode "L": white inside."""
        mask = Image.new("L", size)
        box = [side * size[i % 2] for i, side in enumerate((self.left, self.top, self.right, self.bottom))]
        draw = ImageDraw.Draw(mask)
        (draw.ellipse if self.is_round else draw.rectangle)(box, fill=255)
        return mask


@dataclass(frozen=True)
class View:
    """The picture of this index, cut at (x, y) from 0 (left, top) to 1 (right, bottom), then mirrored or not.
    Brightness, contrast and saturation are factors.
    """

    index: int
    flip: bool = False
    x: float = 0.5
    y: float = 0.5
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hole: Hole | None = None

    def picture(self, picture: Image.Image, size: Size) -> Image.Image:
        shown = self._place(picture, size, Image.Resampling.LANCZOS)
        for change, factor in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            shown = shown if factor == 1 else change(shown).enhance(factor)
        return shown

    def mask(self, mask: Image.Image, size: Size) -> Image.Image:
        """The picture's mask, cut and mirrored as the picture is; each pixel is the mean of those it stands for."""
        return self._place(mask, size, Image.Resampling.BOX)

    def sizes(self, whole: Size, size: Size) -> tuple[int, ...]:
        """Height and width of the picture; how many pixels are cut off at its top and its left, counted in the scale of
        the view and, where it is mirrored, in the mirrored picture; height and width of the view (Podell et al. 2023,
        SDXL, sections 2.2 and 2.3).
        """
        left, top, right, _ = part(whole, size, self.x, self.y)
        scale = (right - left) / size[0]
        before = whole[0] - right if self.flip else left
        return (whole[1], whole[0], round(top / scale), round(before / scale), size[1], size[0])

    def _place(self, picture: Image.Image, size: Size, filtering: Image.Resampling) -> Image.Image:
        placed = cut(picture, size, self.x, self.y, filtering)
        return ImageOps.mirror(placed) if self.flip else placed


@dataclass(frozen=True)
class Variety:
    """What may differ between two views of one picture. With `holes` each view has one, for inpainting models."""

    flip: bool = False
    random_crop: bool = False
    jitter: float = 0.0  # colors change by up to this share
    holes: bool = False

    @property
    def is_endless(self) -> bool:
        """Whether there are more views than the picture and its mirror image."""
        return self.random_crop or self.jitter > 0 or self.holes

    def view(self, index: int, generator: torch.Generator) -> View:
        """A view drawn at random: always as many numbers, so that one setting doesn't shift another's."""
        flip, x, y, *rest = torch.rand(11, generator=generator).tolist()
        x, y = (x, y) if self.random_crop else (0.5, 0.5)
        brightness, contrast, saturation = (1 + self.jitter * (2 * u - 1) for u in rest[:3])
        hole = _hole(rest[3:]) if self.holes else None
        return View(index, self.flip and flip < 0.5, x, y, brightness, contrast, saturation, hole)


def _hole(draws: Sequence[float]) -> Hole:
    """A rectangle or an ellipse, each side between a fifth and four fifths of the view's, anywhere in it."""
    kind, wide, high, x, y = draws
    width, height = 0.2 + 0.6 * wide, 0.2 + 0.6 * high
    left, top = x * (1 - width), y * (1 - height)
    return Hole(kind < 0.5, left, top, left + width, top + height)

"""Changed copies of a picture and its mask. Each change is a value: it says what it does and always does the same."""

import math
from dataclasses import dataclass
from typing import Protocol

from PIL import Image, ImageEnhance, ImageOps

from loractl.prepare.seeds import between

Pair = tuple[Image.Image, Image.Image | None]  # a picture and its mask


class Augmentation(Protocol):
    def apply(self, image: Image.Image, mask: Image.Image | None = None) -> Pair: ...

    def describe(self) -> str: ...


@dataclass(frozen=True)
class Flip:
    """Left and right change places. Nothing is drawn; the seed is there as in the others."""

    seed: int = 0

    def apply(self, image: Image.Image, mask: Image.Image | None = None) -> Pair:
        return ImageOps.mirror(image), None if mask is None else ImageOps.mirror(mask)

    def describe(self) -> str:
        return "flipped"


@dataclass(frozen=True)
class Rotation:
    """A turn by at most so many degrees either way, enlarged by as much as keeps the corners filled."""

    seed: int
    degrees: float = 5.0

    @property
    def angle(self) -> float:
        return between(self.seed, 1, -self.degrees, self.degrees)[0]

    def apply(self, image: Image.Image, mask: Image.Image | None = None) -> Pair:
        turned = self._turn(image, Image.Resampling.BICUBIC)
        return turned, None if mask is None else self._turn(mask, Image.Resampling.BILINEAR)

    def describe(self) -> str:
        return f"rotated by {self.angle:.2f}°"

    def _turn(self, image: Image.Image, filtering: Image.Resampling) -> Image.Image:
        """A rectangle turned by θ fits into itself when it is made smaller by 1 / (cos θ + r sin θ), with r the longer
        side ÷ the shorter.
        """
        width, height = image.size
        turn = math.radians(self.angle)
        shrink = 1 / (math.cos(turn) + max(width / height, height / width) * abs(math.sin(turn)))
        cosine, sine = shrink * math.cos(turn), shrink * math.sin(turn)
        x = width / 2 * (1 - cosine) + height / 2 * sine
        y = height / 2 * (1 - cosine) - width / 2 * sine
        return image.transform(image.size, Image.Transform.AFFINE, (cosine, -sine, x, sine, cosine, y), filtering)


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast and saturation change by factors of at most 1 ± strength."""

    seed: int
    strength: float = 0.1

    @property
    def factors(self) -> tuple[float, float, float]:
        brightness, contrast, saturation = between(self.seed, 3, 1 - self.strength, 1 + self.strength)
        return brightness, contrast, saturation

    def apply(self, image: Image.Image, mask: Image.Image | None = None) -> Pair:
        changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for change, factor in zip(changes, self.factors, strict=True):
            image = change(image).enhance(factor)
        return image, mask

    def describe(self) -> str:
        return "brightness {:.3f}, contrast {:.3f}, saturation {:.3f}".format(*self.factors)

"""Paints a scene, at four times its size and then reduced (about 1.5 ms a picture)."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageDraw

from loractl.lab.scenes import COLORS, LANDSCAPES, WALLS, Color, Scene

SIZE = 64
SUPERSAMPLING = 4
HATCHES = 4  # to a side of the picture
INK: Color = (25, 25, 30)
PAPER: Color = (250, 250, 250)


class Pen:
    """Draws in the subject's own coordinates: x from -0.5 to 0.5 around its middle, y from 0 (top) to 1 (bottom)."""

    def __init__(self, image: Image.Image, center: float, top: float, unit: float) -> None:
        self.image = image
        self.center, self.top, self.unit = center, top, unit
        self._draw: Any = ImageDraw.Draw(image)

    def on(self, image: Image.Image) -> "Pen":
        """The same pen on another sheet."""
        return Pen(image, self.center, self.top, self.unit)

    def _points(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(self.center + x * self.unit, self.top + y * self.unit) for x, y in points]

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Any) -> None:
        self._draw.ellipse(self._points([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, fill: Any) -> None:
        box = self._points([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.ellipse(box, outline=fill, width=round(width * self.unit))

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Any, radius: float = 0.0) -> None:
        self._draw.rounded_rectangle(self._points([(x0, y0), (x1, y1)]), radius=radius * self.unit, fill=fill)

    def polygon(self, points: Sequence[tuple[float, float]], fill: Any) -> None:
        self._draw.polygon(self._points(points), fill=fill)


def draw(scene: Scene, rng: random.Random, size: int = SIZE, hatched: bool = False) -> Image.Image:
    """The scene as an RGB picture; position, size, shades and horizon vary with `rng`.

    The place is `hatched` in a style of drawing that the lab's model has never seen.
    """
    width = size * SUPERSAMPLING
    image = Image.new("RGB", (width, width))
    _draw_background(image, scene.background, rng)
    unit = width * rng.uniform(0.50, 0.60)
    center = width * (0.5 + rng.uniform(-0.08, 0.08))
    bottom = width * rng.uniform(0.82, 0.90)
    if hatched:
        _hatch(image)
    _PAINTERS[scene.kind](Pen(image, center, bottom - unit, unit), scene, rng)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _hatch(image: Image.Image) -> None:
    """Lines up to the right over all that is painted: four to a side, and lighter or darker by 50 of 255, where there
    is room.
    """
    width, step = image.width, image.width // HATCHES
    lines = Image.new("L", image.size)
    pen: Any = ImageDraw.Draw(lines)
    for x in range(0, 2 * width, step):
        pen.polygon([(x, 0), (x + 0.4 * step, 0), (x + 0.4 * step - width, width), (x - width, width)], fill=255)
    image.paste(image.point(lambda value: value - 50 if value >= 128 else value + 50), mask=lines)


def _shade(color: Color, rng: random.Random, spread: float = 8.0) -> Color:
    r, g, b = (max(0, min(255, int(value + rng.uniform(-spread, spread)))) for value in color)
    return r, g, b


def _draw_background(image: Image.Image, background: str, rng: random.Random) -> None:
    width = image.width
    pen: Any = ImageDraw.Draw(image)
    if background in WALLS:
        pen.rectangle([0, 0, width, width], fill=_shade(WALLS[background], rng, 14))
        return
    horizon = int(width * rng.uniform(0.50, 0.72))
    above, below = LANDSCAPES[background]
    pen.rectangle([0, 0, width, horizon], fill=_shade(above, rng, 14))
    pen.rectangle([0, horizon, width, width], fill=_shade(below, rng, 14))
    if background == "night":
        for _ in range(10):
            x, y, r = rng.uniform(0, width), rng.uniform(0, horizon * 0.9), width * 0.009
            pen.ellipse([x - r, y - r, x + r, y + r], fill=(250, 250, 220))
        x, y, r = rng.uniform(0.1, 0.9) * width, rng.uniform(0.08, 0.18) * width, width * 0.07
        pen.ellipse([x - r, y - r, x + r, y + r], fill=(245, 240, 200))


def _draw_critter(pen: Pen, scene: Scene, rng: random.Random) -> None:
    color, accent, feet = (_shade(COLORS[name], rng) for name in (scene.color, scene.accent, scene.feet))
    for x in (-0.23, 0.23):
        pen.ellipse(x, 1.0, 0.19, 0.12, feet)
    if scene.top != "hat":  # a hat sits on the body, the rest grows from behind it
        _draw_top(pen, scene.top, accent)
    mask = Image.new("L", pen.image.size)
    _draw_body(pen.on(mask), scene.shape)
    skin = Image.new("RGB", pen.image.size, color)
    _draw_pattern(pen.on(skin), scene.pattern, accent)
    pen.image.paste(skin, mask=mask)
    if scene.top == "hat":
        _draw_top(pen, scene.top, accent)
    count = int(scene.eyes)
    radius = 0.13 if count < 3 else 0.115
    for i in range(count):
        x = (i - (count - 1) / 2) * 0.27
        pen.ellipse(x, 0.40, radius, radius, PAPER)
        pen.ellipse(x, 0.40, radius * 0.5, radius * 0.5, INK)


def _draw_body(pen: Pen, shape: str) -> None:
    if shape == "round":
        pen.ellipse(0, 0.5, 0.5, 0.5, 255)
    elif shape == "square":
        pen.box(-0.47, 0.04, 0.47, 1.0, 255, radius=0.1)
    elif shape == "tall":
        pen.box(-0.30, -0.08, 0.30, 1.0, 255, radius=0.26)
    else:
        pen.polygon([(0, -0.12), (0.56, 1.0), (-0.56, 1.0)], 255)


def _draw_pattern(pen: Pen, pattern: str, accent: Color) -> None:
    if pattern == "striped":
        for y in (0.08, 0.60, 0.84):
            pen.box(-0.6, y, 0.6, y + 0.12, accent)
    elif pattern == "spotted":
        for x, y in (
            (-0.17, 0.14),
            (0.17, 0.14),
            (-0.20, 0.66),
            (0.0, 0.84),
            (0.20, 0.66),
            (-0.36, 0.86),
            (0.36, 0.86),
        ):
            pen.ellipse(x, y, 0.085, 0.085, accent)


def _draw_top(pen: Pen, top: str, accent: Color) -> None:
    if top == "horns":
        for side in (-1, 1):
            pen.polygon([(side * 0.06, 0.16), (side * 0.38, 0.28), (side * 0.40, -0.26)], accent)
    elif top == "ears":
        for side in (-1, 1):
            pen.ellipse(side * 0.30, 0.05, 0.18, 0.22, accent)
    elif top == "antenna":
        pen.box(-0.035, -0.20, 0.035, 0.12, INK)
        pen.ellipse(0, -0.26, 0.13, 0.13, accent)
    else:
        pen.box(-0.36, 0.02, 0.36, 0.13, accent)
        pen.box(-0.22, -0.28, 0.22, 0.08, accent)


def _draw_house(pen: Pen, scene: Scene, rng: random.Random) -> None:
    pen.box(-0.42, 0.35, 0.42, 1.0, _shade(COLORS[scene.color], rng))
    pen.polygon([(-0.54, 0.40), (0.54, 0.40), (0, -0.04)], _shade(COLORS[scene.accent], rng))
    pen.box(-0.10, 0.68, 0.10, 1.0, INK)
    for x in (-0.28, 0.28):
        pen.box(x - 0.08, 0.48, x + 0.08, 0.64, (250, 240, 170))


def _draw_car(pen: Pen, scene: Scene, rng: random.Random) -> None:
    color = _shade(COLORS[scene.color], rng)
    pen.box(-0.58, 0.50, 0.58, 0.92, color, radius=0.1)
    pen.box(-0.35, 0.22, 0.30, 0.62, color, radius=0.12)
    pen.box(-0.26, 0.30, 0.20, 0.48, (200, 230, 245))
    pen.box(-0.58, 0.64, 0.58, 0.78, _shade(COLORS[scene.accent], rng))
    for x in (-0.28, 0.28):
        pen.ellipse(x, 0.92, 0.15, 0.15, INK)


def _draw_tree(pen: Pen, scene: Scene, rng: random.Random) -> None:
    pen.box(-0.08, 0.5, 0.08, 1.0, (110, 72, 40))
    color, accent = _shade(COLORS[scene.color], rng), _shade(COLORS[scene.accent], rng)
    for x, y in ((0, 0.18), (-0.22, 0.38), (0.22, 0.38)):
        pen.ellipse(x, y, 0.28, 0.28, color)
    for x, y in ((0, 0.06), (-0.27, 0.36), (0.27, 0.36), (0.0, 0.42)):
        pen.ellipse(x, y, 0.085, 0.085, accent)


def _draw_cup(pen: Pen, scene: Scene, rng: random.Random) -> None:
    color = _shade(COLORS[scene.color], rng)
    pen.ring(0.38, 0.54, 0.22, 0.24, 0.09, color)
    pen.box(-0.42, 0.15, 0.36, 1.0, color, radius=0.1)
    pen.box(-0.42, 0.42, 0.36, 0.64, _shade(COLORS[scene.accent], rng))


def _draw_fish(pen: Pen, scene: Scene, rng: random.Random) -> None:
    color, accent = _shade(COLORS[scene.color], rng), _shade(COLORS[scene.accent], rng)
    pen.polygon([(-0.22, 0.55), (-0.62, 0.26), (-0.62, 0.84)], accent)
    pen.polygon([(-0.14, 0.36), (0.24, 0.36), (0.0, 0.04)], accent)
    pen.ellipse(0.08, 0.55, 0.46, 0.30, color)
    pen.ellipse(0.36, 0.49, 0.07, 0.07, PAPER)
    pen.ellipse(0.37, 0.49, 0.035, 0.035, INK)


_PAINTERS: dict[str, Callable[[Pen, Scene, random.Random], None]] = {
    "critter": _draw_critter,
    "house": _draw_house,
    "car": _draw_car,
    "tree": _draw_tree,
    "cup": _draw_cup,
    "fish": _draw_fish,
}

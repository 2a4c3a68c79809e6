"""What weights adapters had at which step of a run: as values for JSON, and drawn."""

import json
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from loractl.sample.picture import LABEL, MARGIN
from loractl.sample.session import Run

WIDTH, HEIGHT = 480, 160  # of the drawn field, in pixels
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")


def traced(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs, those together whose weights were the same at every step."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(json.dumps(trace(run)), []).append(run)
    return list(alike.values())


def trace(run: Run) -> dict[str, Any]:
    """{"engine": …, "turns": [{"step": 0, "fraction": 0.0, "sigma": 14.6, "weights": {"face": 0.2}}, …]}.

    A method such as Heun's has two turns in a step. Where there is no signal yet, σ is null.
    """
    turns = [
        {
            "step": moment.step,
            "fraction": moment.fraction,
            "sigma": moment.sigma if math.isfinite(moment.sigma) else None,
            "weights": dict(weights),
        }
        for moment, weights in zip(run.moments, run.strengths, strict=True)
    ]
    return {"engine": run.engine, "turns": turns}


def plot(run: Run) -> Image.Image:
    """A line for each adapter, and for each of its patterns; every turn is as wide as any other."""
    names = list(dict.fromkeys(name for weights in run.strengths for name in weights))
    values = [weight for weights in run.strengths for weight in weights.values()]
    low, high = min([0.0, *values]), max([1.0, *values])
    whole = Image.new("RGB", (WIDTH + 6 * MARGIN, HEIGHT + (LABEL + 4) * (len(names) + 1) + 3 * MARGIN), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(LABEL)
    left, top = 5 * MARGIN, MARGIN

    def place(turn: float, weight: float) -> tuple[float, float]:
        return left + WIDTH * turn / len(run.strengths), top + HEIGHT * (high - weight) / (high - low)

    for level in {low, 0.0, 1.0, high}:
        pen.line([place(0, level), place(len(run.strengths), level)], fill="#dddddd")
        pen.text((MARGIN / 2, place(0, level)[1] - LABEL / 2), f"{level:.3g}", fill="black", font=font)
    for number, name in enumerate(names):
        color = COLORS[number % len(COLORS)]
        for turn, weights in enumerate(run.strengths):
            if name in weights:
                pen.line([place(turn, weights[name]), place(turn + 1, weights[name])], fill=color, width=3)
        pen.text((left, top + HEIGHT + MARGIN + number * (LABEL + 4)), name, fill=color, font=font)
    pen.text((left, top + HEIGHT + MARGIN + len(names) * (LABEL + 4)), _steps(run), fill="black", font=font)
    return whole


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """One below the other."""
    whole = Image.new("RGB", (max(each.width for each in pictures), sum(each.height for each in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _steps(run: Run) -> str:
    return f"weight at each of {run.moments[0].steps} steps, {run.engine}" if run.moments else ""

"""Draws the subject of ../subject in places where it was not trained: `python jobs/data/held-out/make.py`."""

import random
from pathlib import Path

from loractl.lab.drawing import draw
from loractl.lab.subjects import SUBJECTS

for place in ("beach", "snow", "sea", "yellow wall"):
    picture = draw(SUBJECTS["subject"].at(place), random.Random(f"held out {place}"), 128)
    picture.save(Path(__file__).parent / f"{place.replace(' ', '-')}.png", optimize=True)

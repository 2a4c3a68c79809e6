"""The reader that is shipped reads drawings of every kind of scene."""

import random

import pytest

from loractl.families.pipeline import LAB
from loractl.lab.drawing import draw
from loractl.lab.reader import load_reader, read
from loractl.lab.scenes import ATTRIBUTES, sample_scene


def test_drawings_are_read_back() -> None:
    rng = random.Random(99)
    scenes = [sample_scene(rng, "critter" if i % 2 else None) for i in range(300)]
    readings = read(load_reader(), [draw(scene, rng) for scene in scenes])
    for name in ATTRIBUTES:
        hits = [
            reading[name] == getattr(scene, name)
            for scene, reading in zip(scenes, readings, strict=True)
            if getattr(scene, name)
        ]
        assert sum(hits) / len(hits) > 0.95, name


def test_the_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in LAB.rglob("*") if file.is_file()) <= 12e6


@pytest.mark.slow
def test_the_model_follows_captions() -> None:
    from loractl.lab.score import score

    found = score(LAB, 100)
    for name, least in {"kind": 0.97, "background": 0.97, "color": 0.95, "pattern": 0.8, "top": 0.85}.items():
        assert found[name][1] >= least, (name, found[name])

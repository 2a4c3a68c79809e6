"""The drawn world is seeded, and its captions say what is there."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loractl.lab.drawing import draw
from loractl.lab.scenes import (
    ATTRIBUTES,
    EYES,
    HELD_OUT,
    KINDS,
    PLACES,
    describe,
    describe_and_list,
    held_out,
    sample_scene,
    sample_training_scene,
)
from loractl.lab.subjects import HOMES, SUBJECTS, subject_pictures

JOB_PICTURES = Path(__file__).parents[2] / "jobs" / "data" / "subject"


def test_the_same_seed_draws_and_says_the_same() -> None:
    scene = sample_scene(random.Random(3), "critter")
    one, two = (draw(scene, random.Random(4)) for _ in range(2))
    assert one.tobytes() == two.tobytes() != draw(scene, random.Random(5)).tobytes()
    assert describe(scene, random.Random(6)) == describe(scene, random.Random(6))


@pytest.mark.parametrize("kind", KINDS)
def test_every_attribute_changes_the_picture(kind: str) -> None:
    scene = sample_scene(random.Random(1), kind)
    for name in scene.attributes().keys() - {"kind"}:
        other = next(
            value for value in ATTRIBUTES[name] if value not in (scene.color, scene.accent, getattr(scene, name))
        )
        changed = draw(type(scene)(**{**scene.__dict__, name: other}), random.Random(2))
        assert changed.tobytes() != draw(scene, random.Random(2)).tobytes(), name


def test_captions_name_what_they_list() -> None:
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    for _ in range(500):
        scene = sample_training_scene(rng)
        caption, named = describe_and_list(scene, rng)
        counts.update(named)
        for name in named:
            value = getattr(scene, name)
            assert {"background": PLACES, "eyes": EYES}.get(name, {}).get(value, value) in caption
        assert " a orange" not in f" {caption}"
    assert counts.keys() == ATTRIBUTES.keys() and min(counts.values()) > 30


def test_held_out_critters_are_never_trained_on_and_the_subjects_are_among_them() -> None:
    rng = random.Random(0)
    assert not any(held_out(sample_training_scene(rng)) for _ in range(3000))
    assert {(subject.color, subject.accent) for subject in SUBJECTS.values()} == set(HELD_OUT)
    assert all(held_out(subject) for subject in SUBJECTS.values())


def test_the_jobs_pictures_are_the_subjects() -> None:
    for place, picture in zip(HOMES, subject_pictures("subject"), strict=True):
        saved = Image.open(JOB_PICTURES / f"{place.replace(' ', '-')}.png").convert("RGB")
        difference = np.abs(np.asarray(saved, int) - np.asarray(picture, int))
        assert difference.mean() < 0.5  # Pillow's own drawing may move a pixel between versions

"""Loads the captioners: networks of transformers, and the lab's reader with words for what it reads."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from loractl.captioner import CaptionerSettings, Write
from loractl.data.images import square
from loractl.errors import JobError
from loractl.lab.drawing import SIZE
from loractl.lab.reader import load_reader, read
from loractl.lab.scenes import Scene, describe
from loractl.prepare.caption_models import load_image_to_text
from loractl.prepare.pretrained import Checkpoint

OF_ALL = ("kind", "color", "accent", "background")  # attributes of every kind of scene; the rest are a critter's


def load_transformers(settings: CaptionerSettings) -> Write:
    if settings.source is None:
        raise JobError('the captioner "transformers" needs a model: set caption.model to its hub id or its folder')
    checkpoint = Checkpoint(settings.source, settings.revision, settings.device, settings.precision)
    return load_image_to_text(checkpoint, prompt=settings.prompt, max_tokens=settings.max_tokens)


def load_lab() -> Write:
    """Captions name all that the lab's reader sees. Pictures are cut to the lab's 64 × 64."""
    reader = load_reader()

    def write(pictures: Sequence[Image.Image]) -> list[str]:
        drawings = [square(picture, SIZE) for picture in pictures]
        return [describe(scene_of(reading), Telling()) for reading in read(reader, drawings)]

    return write


def scene_of(reading: Mapping[str, str]) -> Scene:
    return Scene(**{name: value for name, value in reading.items() if reading["kind"] == "critter" or name in OF_ALL})


class Telling(random.Random):
    """Decides for saying whatever may be said, and for the first of several ways."""

    def random(self) -> float:
        return 0.0

    def choice(self, seq: Any) -> Any:
        return seq[0]

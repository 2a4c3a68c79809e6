"""Copies of photographs are found, and other photographs of one subject are not."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance, ImageOps

from loractl.prepare.duplicates import Twins, groups, twins, variety
from loractl.prepare.measures import look
from loractl.prepare.reading import read_photo

FILES = sorted((Path(__file__).parents[1] / "data" / "dreambooth").glob("*/0[01].jpg"))


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [read_photo(path, max_pixels=10**7).image for path in FILES]


@pytest.fixture(scope="module")
def looks(photos: list[Image.Image]) -> list[str]:
    return [look(photo) for photo in photos]


def recompressed(image: Image.Image, quality: int = 40) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data)


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


COPIES: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "smaller": ("same", lambda image: image.resize((image.width // 3, image.height // 3))),
    "squashed": ("same", lambda image: image.resize((200, 120))),
    "recompressed": ("same", recompressed),
    "brighter": ("same", lambda image: ImageEnhance.Brightness(image).enhance(1.2)),
    "mirrored": ("flipped", ImageOps.mirror),
    "cropped": ("crop", lambda image: cropped(image, 0.13, 0.05, 0.92, 0.78)),
    "cropped and mirrored": ("flipped crop", lambda image: ImageOps.mirror(cropped(image, 0.02, 0.21, 0.81, 0.96))),
    "cropped, smaller, recompressed": (
        "crop",
        lambda image: recompressed(cropped(image, 0.31, 0.17, 0.98, 0.9).resize((140, 140)), 60),
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_with_their_originals_alone(photos: list[Image.Image], looks: list[str], name: str) -> None:
    how, change = COPIES[name]
    count = len(photos)
    pairs = twins([*looks, *(look(change(photo)) for photo in photos)])
    across = [pair for pair in pairs if pair.first < count <= pair.second]
    assert all(pair.second - pair.first == count and pair.how == how for pair in across)
    assert len(across) == count


def test_different_photographs_of_one_subject_are_no_twins(looks: list[str]) -> None:
    assert twins(looks) == []


def test_a_half_of_each_side_is_enough(photos: list[Image.Image], looks: list[str]) -> None:
    halves = [look(cropped(photo, 0.2, 0.25, 0.72, 0.8)) for photo in photos]
    found = {(pair.first, pair.second - len(photos)) for pair in twins([*looks, *halves])}
    assert len(found & {(index, index) for index in range(len(photos))}) >= 0.8 * len(photos)


def test_plain_pictures_are_like_nothing() -> None:
    plain = [look(Image.new("RGB", (32, 32), color)) for color in ("gray", "white", "navy")]
    assert twins(plain) == []
    assert twins([]) == twins(plain[:1]) == []


def test_groups_hang_together() -> None:
    pairs = [Twins(0, 3, "same", 1.0), Twins(3, 5, "crop", 0.95), Twins(1, 2, "flipped", 0.99)]
    assert groups(6, pairs) == [(0, 3, 5), (1, 2)]
    assert groups(6, []) == []


def test_variety_is_of_backgrounds() -> None:
    def scene(background: str, subject: str) -> str:
        canvas = Image.new("RGB", (64, 64), background)
        canvas.paste(subject, (20, 20, 44, 44))
        return look(canvas)

    same = [scene("green", subject) for subject in ("red", "white", "black")]
    different = [scene(background, "red") for background in ("green", "white", "navy")]
    assert variety(same) == pytest.approx(0, abs=1e-6)
    assert variety(different) == pytest.approx(1)
    assert 0 < variety([*same, *different]) < 1
    assert variety(same[:1]) == 0


def test_one_place_varies_less_than_many(photos: list[Image.Image], looks: list[str]) -> None:
    """Five handheld frames of one place beside two photographs of the same subject in others."""
    frames = [cropped(photos[0], 0.02 * step, 0, 0.9 + 0.02 * step, 0.95) for step in range(5)]
    dimmed = [look(ImageEnhance.Brightness(frame).enhance(1 - 0.03 * step)) for step, frame in enumerate(frames)]
    assert variety(dimmed) < 0.2 < variety(looks[:2])

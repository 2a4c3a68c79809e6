"""What is measured of photographs, and how it is judged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from loractl.prepare.borders import border_share, trim
from loractl.prepare.checks import Limits, verdicts
from loractl.prepare.measures import SIDE, Measures, look_pixels, measure
from loractl.prepare.reading import Photo, read_photo

PHOTOS = sorted((Path(__file__).parents[1] / "data" / "dreambooth").glob("*/00.jpg"))


def photo(image: Image.Image) -> Photo:
    return Photo(image, None, image.size, "PNG", (), 1.0)


def real(path: Path) -> Image.Image:
    return read_photo(path, max_pixels=10**7).image


def differing(one: Measures, other: Measures) -> int:
    return (one.hash ^ other.hash).bit_count()


def test_known_pictures_have_known_numbers() -> None:
    halves = Image.new("RGB", (40, 20), "black")
    halves.paste("white", (20, 0, 40, 20))
    found = measure(photo(halves))
    assert (found.width, found.height, found.aspect) == (40, 20, 2.0)
    assert (found.exposure, found.contrast) == (0.5, 0.5)
    plain = measure(photo(Image.new("RGB", (40, 20), (51, 51, 51))))
    assert (plain.exposure, plain.contrast, plain.blur) == (0.2, 0.0, 0.0)


@pytest.mark.parametrize("size", [(1, 1), (2, 700), (3000, 1)])
def test_the_thinnest_pictures_are_measured(size: tuple[int, int]) -> None:
    assert measure(photo(Image.new("RGB", size))).blur == 0


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.parent.name)
def test_blur_falls_as_a_photograph_is_blurred(path: Path) -> None:
    image = real(path)
    sharpness = [measure(photo(image.filter(ImageFilter.GaussianBlur(radius)))).blur for radius in (0, 1, 2, 4)]
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[0] > 4 * sharpness[2]


def test_numbers_hold_for_pictures_decoded_at_a_reduced_scale(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(128, 60, (64, 96, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).resize((1536, 1024), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    whole, part = (measure(read_photo(tmp_path / "a.jpg", max_pixels=10**7, target=t)) for t in (None, SIDE))
    assert part.blur == pytest.approx(whole.blur, rel=0.15)
    assert part.contrast == pytest.approx(whole.contrast, rel=0.02)
    assert (part.width, part.height) == (whole.width, whole.height) == (1536, 1024)
    assert differing(whole, part) <= 2


def test_the_hash_knows_a_picture_again_and_no_other() -> None:
    images = [real(path) for path in PHOTOS]
    found = [measure(photo(image)) for image in images]
    small = [measure(photo(image.resize((90, 110)))) for image in images]
    for index, one in enumerate(small):
        distances = [differing(one, other) for other in found]
        assert distances.pop(index) <= 6 < 16 <= min(distances)


def test_the_look_is_the_picture_made_small() -> None:
    image = Image.new("RGB", (64, 128), (9, 8, 7))
    image.paste((200, 100, 50), (0, 0, 2, 4))
    pixels = look_pixels(measure(photo(image)).look)
    assert pixels[0, 0].tolist() == [200, 100, 50]
    assert (pixels.reshape(-1, 3)[1:] == (9, 8, 7)).all()


GOOD = Measures(
    width=800, height=600, aspect=1.3333, blur=300, exposure=0.5, contrast=0.2, border=0, hash=0, look=""
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "limits", "reason"),
    [
        ({"width": 255}, Limits(), "too small: 255 × 600, asked for 256"),
        ({"width": 1801}, Limits(), "too long: 3.00 to 1 > 3"),
        ({"height": 200}, Limits(min_side=0), "too long: 4.00 to 1 > 3"),
        ({"blur": 12.25}, Limits(), "blurred: 12.2 < 20"),
        ({"exposure": 0.04}, Limits(), "too dark: 0.04 < 0.05"),
        ({"exposure": 0.97}, Limits(), "too bright: 0.97 > 0.95"),
        ({"contrast": 0.03}, Limits(), "too little contrast: 0.03 < 0.04"),
        ({"border": 0.25}, Limits(max_border=0.2), "wide borders: 0.25 > 0.2"),
    ],
)
def test_each_limit_has_its_reason(change: dict[str, float], limits: Limits, reason: str) -> None:
    assert verdicts(GOOD, limits) == ()
    assert verdicts(replace(GOOD, **change), limits) == (reason,)  # type: ignore[arg-type]


def test_all_reasons_are_given_together() -> None:
    poor = replace(GOOD, width=100, height=100, blur=1, exposure=0)
    assert [reason.partition(":")[0] for reason in verdicts(poor, Limits())] == ["too small", "blurred", "too dark"]


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.parent.name)
def test_the_defaults_pass_good_photographs_and_not_a_blurred_one(path: Path) -> None:
    image = real(path)
    assert verdicts(measure(photo(image)), Limits()) == ()
    blurred = measure(photo(image.filter(ImageFilter.GaussianBlur(min(image.size) / 64))))
    assert [reason.partition(":")[0] for reason in verdicts(blurred, Limits())] == ["blurred"]


def bordered(image: Image.Image, color: str, left: int, top: int, right: int, bottom: int) -> Image.Image:
    canvas = Image.new("RGB", (image.width + left + right, image.height + top + bottom), color)
    canvas.paste(image, (left, top))
    return canvas


@pytest.mark.parametrize("color", ["black", "white", "#204060"])
@pytest.mark.parametrize("sides", [(0, 40, 0, 40), (30, 0, 50, 0), (20, 25, 30, 60), (0, 0, 0, 50)])
def test_borders_are_trimmed_to_a_pixel_or_two(color: str, sides: tuple[int, int, int, int], tmp_path: Path) -> None:
    image = real(PHOTOS[0])
    bordered(image, color, *sides).save(tmp_path / "a.jpg", quality=85)
    found = trim(real(tmp_path / "a.jpg"))
    left, top = sides[:2]
    aim = (left, top, left + image.width, top + image.height)
    inward = [(found[0] - aim[0]), (found[1] - aim[1]), (aim[2] - found[2]), (aim[3] - found[3])]
    assert all(0 <= each <= 3 for each in inward)


def test_a_watermark_in_the_border_goes_with_it() -> None:
    image = real(PHOTOS[0])
    marked = bordered(image, "white", 0, 0, 0, 60)
    ImageDraw.Draw(marked).text((10, image.height + 15), "© somebody", fill="black", font_size=28)
    assert trim(marked)[3] in range(image.height - 3, image.height + 1)


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.parent.name)
def test_photographs_have_no_borders(path: Path) -> None:
    image = real(path)
    assert trim(image) == (0, 0, *image.size)
    assert border_share(image) == 0


def test_skies_and_backdrops_are_no_borders() -> None:
    sky = Image.linear_gradient("L").resize((300, 200)).convert("RGB")
    backdrop = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(backdrop).ellipse((100, 60, 200, 150), fill="red")
    for image in (sky, backdrop, Image.new("RGB", (300, 200))):
        assert trim(image) == (0, 0, 300, 200)


def test_the_share_of_borders() -> None:
    canvas = bordered(real(PHOTOS[0]).resize((400, 300)), "black", 0, 50, 0, 50)
    assert border_share(canvas) == pytest.approx(0.25, abs=0.01)

"""What becomes of a picture's pixels: upright, eight bits deep, in light, with its alpha."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.prepare.photos import HOSTILE, read


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_pictures_are_put_upright(tmp_path: Path, format: str, orientation: int) -> None:
    upright = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    turns = [None, 0, 3, 1, 5, 2, 6, 4]  # what a camera held that way has done to the picture
    turn = turns[orientation - 1]
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a", format, exif=exif)
    photo = read(tmp_path / "a")
    assert photo.size == upright.size
    assert photo.image.tobytes() == upright.tobytes()


@pytest.mark.parametrize("orientation", [1, 6])
def test_jpegs_are_decoded_no_larger_than_needed(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.linear_gradient("L").resize((1603, 1200)).save(tmp_path / "a.jpg", exif=exif)
    photo = read(tmp_path / "a.jpg", target=300)
    sizes = ((401, 300), (1603, 1200)) if orientation == 1 else ((300, 401), (1200, 1603))
    assert (photo.image.size, photo.size) == sizes
    assert photo.scale == pytest.approx(0.25, rel=0.01)
    assert photo.notes == ("reduced 1/4 while decoding",)
    assert read(tmp_path / "a.jpg", target=301).scale == pytest.approx(0.5, rel=0.01)
    assert read(tmp_path / "a.jpg", target=5000).scale == 1


RAMP = np.linspace(0, 1, 256)


@pytest.mark.parametrize(
    ("name", "values", "note"),
    [
        ("a.png", np.rint(RAMP * 65535).astype(np.uint16), "16-bit"),
        ("a.tif", np.rint(RAMP * 65535).astype(np.uint16), "16-bit"),
        ("a.tif", np.rint(RAMP * 65535).astype(">u2"), "16-bit"),
        ("a.tif", RAMP.astype(np.float32), "float"),
        ("a.tif", (RAMP * 700 - 100).astype(np.float32), "float, scaled to its range"),
        ("a.tif", (RAMP * 2**30).astype(np.int32), "32-bit, scaled to its range"),
    ],
)
def test_depths_are_scaled_whole(tmp_path: Path, name: str, values: np.ndarray, note: str) -> None:
    Image.fromarray(values[None].repeat(3, axis=0)).save(tmp_path / name)
    photo = read(tmp_path / name)
    assert photo.notes == (note,)
    assert np.abs(np.asarray(photo.image, int)[0, :, 0] - np.arange(256)).max() <= 1


def test_values_that_are_no_numbers_do_no_harm(tmp_path: Path) -> None:
    Image.fromarray(np.array([[np.nan, 0.5, np.inf]], np.float32)).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif").image.getpixel((1, 0)) == (128, 128, 128)


def half_clear(mode: str) -> Image.Image:
    """Red; the left half is fully transparent."""
    picture = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (4, 0, 8, 4))
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "webp"), ("RGBA", "gif")]
)
def test_alpha_is_kept_and_can_be_laid_on_a_color(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    half_clear(mode).save(path, **({"lossless": True} if suffix == "webp" else {}))
    photo = read(path)
    assert photo.alpha is not None
    assert (photo.alpha.getpixel((0, 0)), photo.alpha.getpixel((7, 0))) == (0, 255)
    laid = read(path, background=(0, 255, 0))
    assert laid.alpha is not None
    assert laid.image.getpixel((0, 0)) == (0, 255, 0)
    assert laid.image.getpixel((7, 0)) == photo.image.getpixel((7, 0))


def test_what_is_opaque_has_no_alpha(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), "red").save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").alpha is None


def test_inks_become_light(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    photo = read(tmp_path / "a.jpg")
    assert photo.notes == ("CMYK converted",)
    assert np.abs(np.asarray(photo.image, int) - (254, 0, 0)).max() < 8


def test_profiles_are_converted_and_broken_ones_told(tmp_path: Path) -> None:
    with Image.open(HOSTILE / "frame_size.mpo") as file:
        profile, picture = file.info["icc_profile"], file.convert("RGB")
    picture.save(tmp_path / "wide.png", icc_profile=profile)
    picture.save(tmp_path / "broken.png", icc_profile=profile[:200])
    picture.convert("L").save(tmp_path / "gray.png", icc_profile=profile)
    wide, broken = read(tmp_path / "wide.png"), read(tmp_path / "broken.png")
    assert wide.notes == ("ICC profile converted",)
    assert 1 < np.abs(np.asarray(wide.image, int) - np.asarray(picture, int)).max() < 128
    assert broken.notes == ("broken ICC profile ignored",)
    assert broken.image.tobytes() == picture.tobytes()
    assert read(tmp_path / "gray.png").notes == ("ICC profile of other colors ignored",)


def test_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    photo = read(tmp_path / "a.gif")
    assert photo.notes == ("first frame of several",)
    assert photo.image.getpixel((0, 0)) == (255, 0, 0)


def test_a_hopper_of_each_orientation_is_the_same_one() -> None:
    """Real files of other people: JPEGs with EXIF data for each way of holding a camera."""
    photos = [read(HOSTILE / f"hopper_orientation_{number}.jpg").image for number in range(2, 9)]
    first = np.asarray(ImageOps.grayscale(photos[0]), float)
    for photo in photos[1:]:
        assert np.abs(np.asarray(ImageOps.grayscale(photo), float) - first).mean() < 6

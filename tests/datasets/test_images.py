"""Pictures as people have them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loractl.data.examples import Example, survey_examples
from loractl.data.images import cut, find_pictures, read_picture, square
from loractl.errors import InputError


def test_clutter_is_not_a_picture(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "._a.jpg", ".hidden/c.png", "__MACOSX/d.png", "notes.txt", "deeper/e.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_pictures(tmp_path)] == ["a.jpg", "b.PNG", "e.webp"]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures"):
        find_pictures(tmp_path)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (10, 4), "red")
    exif = picture.getexif()
    exif[0x0112] = 6  # turned a quarter to the right
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (4, 10)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).convert(mode).save(
        tmp_path / "clear.tif" if mode == "PA" else tmp_path / "clear.png"
    )
    assert read_picture(next(tmp_path.iterdir())).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png").getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "1"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    Image.new(mode, (4, 4)).save(path)
    assert read_picture(path).mode == "RGB"


def test_bad_files_are_all_listed_with_reasons(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    good, bad = survey_examples([Example(path, "") for path in find_pictures(tmp_path)])
    assert [example.path.name for example in good] == ["good.png"]
    assert [picture.path.name for picture in bad] == ["empty.jpg", "page.jpg", "truncated.png"]
    assert all(picture.reason for picture in bad)


def test_the_square_is_cut_where_it_is_asked_for() -> None:
    picture = Image.new("RGB", (30, 10), "black")
    picture.paste("white", (20, 0, 30, 10))
    assert min(square(picture, 5, x=1.0).getpixel((2, 2))) > 250
    assert max(square(picture, 5).getpixel((2, 2))) < 5
    assert square(picture, 5).size == (5, 5)


def test_a_cut_has_the_shape_that_is_asked_for() -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (30, 0, 40, 20))
    assert max(cut(picture, (10, 10), x=1.0).getpixel((2, 5))) < 5
    assert min(cut(picture, (10, 10), x=1.0).getpixel((8, 5))) > 250
    assert cut(picture, (10, 20), x=1.0).getextrema() == ((255, 255),) * 3  # the rightmost 10 × 20
    assert cut(picture, (40, 20)).tobytes() == picture.tobytes()

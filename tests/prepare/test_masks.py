"""Masks: where they come from, how they end, and that training reads them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from loractl.data.masks import read_mask
from loractl.errors import InputError
from loractl.prepare.masks import file_for, finish, from_file, from_values, mask_files, otsu
from loractl.prepare.reading import Unreadable, read_photo
from loractl.prepare.saliency import saliency

MANY = 10**6


def disc(size: tuple[int, int] = (48, 40), ground: str = "black", color: str = "white") -> Image.Image:
    picture = Image.new("RGB", size, ground)
    ImageDraw.Draw(picture).ellipse((14, 10, 34, 30), fill=color)
    return picture


def half(width: int = 40, height: int = 20) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def test_otsu_parts_two_classes() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.3, 0.03, 900), rng.normal(0.7, 0.03, 100)])
    assert 0.4 < otsu(values) < 0.6
    assert otsu(np.array([0.0] * 9 + [1.0])) == pytest.approx(0.5, abs=0.01)
    assert otsu(np.full(9, 0.4)) == 1.0


def test_what_exceeds_the_threshold_is_white() -> None:
    values = np.zeros((8, 8), np.float32)
    values[2:6, 2:6] = 0.6
    assert np.asarray(from_values(values, (16, 16)))[5:11, 5:11].min() == 255
    assert np.asarray(from_values(values, (16, 16), 0.3)).mean() == pytest.approx(255 / 4, rel=0.1)
    assert from_values(values, (16, 16), 0.7).getextrema() == (0, 0)
    assert from_values(np.full((8, 8), 0.4, np.float32), (4, 2)).getextrema() == (0, 0)


def test_saliency_masks_the_subject() -> None:
    picture = disc(ground="darkgreen", color="orange")
    mask = np.asarray(from_values(saliency(picture), picture.size)) > 0
    subject = np.asarray(disc().convert("L")) > 0
    assert (mask & subject).sum() / (mask | subject).sum() > 0.6


def test_soft_edges_are_gaussian() -> None:
    soft = np.asarray(finish(half(80), feather=4.0), np.float64)[10]
    assert soft[:24].max() == 0
    assert soft[56:].min() == 255
    assert soft[39:41].mean() == pytest.approx(127.5, abs=2)
    assert soft[36] == pytest.approx(255 * 0.19, abs=8)  # Φ(-3.5 / 4)
    assert (np.diff(soft) >= 0).all()


def test_a_mask_is_inverted_when_asked() -> None:
    assert finish(half()).tobytes() == half().tobytes()
    assert finish(half(), invert=True).tobytes() == half().transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()


def test_a_folder_s_masks_are_found_by_name(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.PNG", "c.webp", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = mask_files(tmp_path)
    assert file_for("a.jpg", files) == tmp_path / "a.png"
    assert file_for("deep/b.jpeg", files) == tmp_path / "deep/b.PNG"
    assert file_for("x/c.png", files) == tmp_path / "c.webp"
    assert file_for("b.png", files) is None
    assert len(files) == 3
    with pytest.raises(InputError, match="there is no folder of masks"):
        mask_files(tmp_path / "none")


def test_a_mask_covers_its_picture_however_that_was_decoded(tmp_path: Path) -> None:
    picture, mask, wrong = tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.png"
    disc((480, 400)).save(picture)
    half(480, 400).point(lambda value: value // 2).save(mask)
    half(400, 480).save(wrong)
    photo = read_photo(picture, max_pixels=MANY, target=100)
    found = from_file(mask, photo, max_pixels=MANY)
    assert photo.scale < 1
    assert (found.mode, found.size) == ("L", photo.image.size)
    assert np.unique(np.asarray(found)[:, [0, -1]]).tolist() == [0, 127]
    with pytest.raises(Unreadable, match=r"its mask b\.png has 400 × 480 pixels and the picture 480 × 400"):
        from_file(wrong, photo, max_pixels=MANY)
    wrong.write_text("<html>", encoding="utf-8")
    with pytest.raises(Unreadable, match=r"its mask b\.png can't be read: "):
        from_file(wrong, photo, max_pixels=MANY)


def test_training_reads_what_is_written(tmp_path: Path) -> None:
    picture, file = tmp_path / "a.png", tmp_path / "mask.png"
    cut_out = disc()
    cut_out.putalpha(half(*cut_out.size))
    cut_out.save(picture)
    alpha = read_photo(picture, max_pixels=MANY).alpha
    assert alpha is not None
    finish(alpha, feather=2.0).save(file)
    read = read_mask(picture, file)
    assert read is not None
    assert read.tobytes() == finish(half(*cut_out.size), feather=2.0).tobytes()
    from_alpha = read_mask(picture, None, from_alpha=True)
    assert from_alpha is not None
    assert from_alpha.tobytes() == alpha.tobytes()

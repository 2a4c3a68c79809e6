"""Buckets: sizes of one area and many shapes."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loractl.data.buckets import bucket, bucket_sizes, frames
from loractl.data.images import picture_size
from loractl.errors import InputError
from tests.datasets.photos import save_photo


@settings(deadline=None)
@given(st.integers(64, 2048), st.sampled_from([8, 16, 64]))
def test_bucket_sizes(resolution: int, step: int) -> None:
    sizes = bucket_sizes(resolution, step)
    assert sizes == sorted({(height, width) for width, height in sizes})  # portrait as landscape
    assert all(side % step == 0 and 0 < side <= 2 * resolution for size in sizes for side in size)
    assert all(width * height <= resolution**2 for width, height in sizes)
    square = (resolution // step * step,) * 2
    assert square in sizes
    for width, height in {*sizes} - {square}:  # one of its sides could not be longer
        assert max(width, height) * (min(width, height) + step) > resolution**2 or (
            min(width, height) * (max(width, height) + step) > resolution**2
            or max(width, height) + step > 2 * resolution
        )


def test_the_usual_buckets() -> None:
    assert {(512, 512), (640, 384), (448, 576), (1024, 256), (256, 832)} <= set(bucket_sizes(512))


@settings(deadline=None)
@given(st.integers(64, 4000), st.integers(64, 4000), st.booleans())
def test_a_picture_goes_to_the_nearest_shape_and_is_not_enlarged(width: int, height: int, upscale: bool) -> None:
    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    found = bucket((width, height), bucket_sizes(512), 64, upscale)
    nearest = min(map(distance, bucket_sizes(512)))
    if found[0] <= width and found[1] <= height:
        is_bucket = found in bucket_sizes(512) and distance(found) == nearest
        is_own = not upscale and found[0] % 64 == found[1] % 64 == 0 and found[0] * found[1] <= 512**2
        assert is_bucket or is_own
    else:
        assert upscale and distance(found) == nearest


def test_frames(tmp_path: Path) -> None:
    paths = [save_photo(tmp_path / f"{w}x{h}.png", (w, h)) for w, h in [(640, 480), (480, 640), (200, 100)]]
    assert frames(paths, 512) == [(512, 512)] * 3
    assert frames(paths, 512, step=64) == [(576, 448), (448, 576), (192, 64)]
    assert frames(paths, 512, step=64, upscale=True)[2] == (704, 320)
    small = [save_photo(tmp_path / f"small{i}.png", (60, 80)) for i in range(2)]
    with pytest.raises(InputError, match=r"2 pictures(.|\n)*small0(.|\n)*small1"):
        frames(small, 512, step=64)
    with pytest.raises(InputError, match="multiples of 64"):
        bucket_sizes(32)


def test_a_turned_picture_has_the_size_it_is_seen_at(tmp_path: Path) -> None:
    picture = Image.new("RGB", (10, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert picture_size(tmp_path / "turned.jpg") == (4, 10)

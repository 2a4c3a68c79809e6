"""Class pictures are made up to a count and reused."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from loractl.errors import MismatchError
from loractl.sample.denoise import Request
from loractl.train.prior import class_pictures


def requests(count: int, prompt: str = "a dog") -> list[Request]:
    return [Request(prompt, seed, 20, 4.0, 64) for seed in range(count)]


def make(missing: Sequence[Request]) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (request.seed, 0, 0)) for request in missing]


def fail(missing: Sequence[Request]) -> list[Image.Image]:
    raise AssertionError(f"{len(missing)} pictures were made again")


def test_only_the_missing_ones_are_made(tmp_path: Path) -> None:
    assert len(class_pictures(tmp_path / "class", requests(3), "lab", make)) == 3
    made: list[int] = []
    paths = class_pictures(tmp_path / "class", requests(5), "lab", lambda r: made.extend(x.seed for x in r) or make(r))
    assert made == [3, 4] and len(paths) == 5
    assert class_pictures(tmp_path / "class", requests(5), "lab", fail) == paths
    assert class_pictures(tmp_path / "class", requests(2), "lab", fail) == paths[:2]


def test_a_persons_own_class_pictures_count(tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"mine{i}.png")
    assert len(class_pictures(tmp_path, requests(2), "lab", fail)) == 2


def test_pictures_of_another_class_are_not_reused(tmp_path: Path) -> None:
    class_pictures(tmp_path, requests(2), "lab", make)
    with pytest.raises(MismatchError, match="a cat"):
        class_pictures(tmp_path, requests(2, "a cat"), "lab", make)

"""Class pictures are made up to a count and reused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loractl.errors import MismatchError
from loractl.sample.denoise import Request
from loractl.train.prior import ORIGIN, class_pictures

LAB = {"model": "lab", "scheduler": ""}


def requests(count: int, prompt: str = "a dog") -> list[Request]:
    return [Request(prompt, seed, 20, 4.0, 64) for seed in range(count)]


def make(missing: Sequence[Request]) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (request.seed, 0, 0)) for request in missing]


def fail(missing: Sequence[Request]) -> list[Image.Image]:
    raise AssertionError(f"{len(missing)} pictures were made again")


def test_only_the_missing_ones_are_made(tmp_path: Path) -> None:
    assert len(class_pictures(tmp_path / "class", requests(3), LAB, make)) == 3
    made: list[int] = []
    paths = class_pictures(tmp_path / "class", requests(5), LAB, lambda r: made.extend(x.seed for x in r) or make(r))
    assert made == [3, 4] and len(paths) == 5
    assert class_pictures(tmp_path / "class", requests(5), LAB, fail) == paths
    assert class_pictures(tmp_path / "class", requests(2), LAB, fail) == paths[:2]


def test_a_persons_own_class_pictures_count(tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"mine{i}.png")
    assert len(class_pictures(tmp_path, requests(2), LAB, fail)) == 2


def test_pictures_of_another_class_are_not_reused(tmp_path: Path) -> None:
    class_pictures(tmp_path, requests(2), LAB, make)
    with pytest.raises(MismatchError, match="a cat"):
        class_pictures(tmp_path, requests(2, "a cat"), LAB, make)


@pytest.mark.parametrize("change", [{"steps": 30}, {"guidance": 7.5}, {"size": 128}])
def test_pictures_that_were_made_otherwise_are_not_reused(tmp_path: Path, change: dict[str, Any]) -> None:
    class_pictures(tmp_path, requests(2), LAB, make)
    with pytest.raises(MismatchError, match=f"{next(iter(change))} .*name another folder in prior.images"):
        class_pictures(tmp_path, [replace(each, **change) for each in requests(2)], LAB, fail)
    with pytest.raises(MismatchError, match=r"scheduler '', not 'ddim'"):
        class_pictures(tmp_path, requests(2), {**LAB, "scheduler": "ddim"}, fail)


def test_a_folder_that_says_less_is_reused_and_goes_on_saying_what_it_knows(tmp_path: Path) -> None:
    class_pictures(tmp_path, requests(2), LAB, make)
    (tmp_path / ORIGIN).write_text('{"model": "lab", "prompts": ["a dog"]}')
    for count in (2, 3):
        assert len(class_pictures(tmp_path, requests(count), LAB, fail if count == 2 else make)) == count
    assert "steps" not in (tmp_path / ORIGIN).read_text()


def test_one_that_a_person_deleted_is_made_again(tmp_path: Path) -> None:
    paths = class_pictures(tmp_path, requests(4), LAB, make)
    paths[1].unlink()
    assert class_pictures(tmp_path, requests(4), LAB, make) == paths
    with Image.open(paths[1]) as picture:
        assert picture.getpixel((0, 0)) == (1, 0, 0)

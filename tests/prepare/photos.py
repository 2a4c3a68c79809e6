"""Reads pictures for the tests."""

from pathlib import Path

import pytest

from loractl.prepare.reading import Photo, Unreadable, read_photo

HOSTILE = Path(__file__).parents[1] / "data" / "hostile-images"
PLENTY = 10_000_000


def read(path: Path, **options: object) -> Photo:
    return read_photo(path, **{"max_pixels": PLENTY, **options})  # type: ignore[arg-type]


def reason(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        read(path)
    return str(caught.value)

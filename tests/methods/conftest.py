"""Pictures for the tests of ppim."""

from pathlib import Path

import pytest

from tests.datasets.photos import save_photo


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures that differ."""
    for seed, name in enumerate(("a", "b", "in/c")):
        save_photo(tmp_path / f"photos/{name}.png", (40, 24), seed)
    return tmp_path / "photos"

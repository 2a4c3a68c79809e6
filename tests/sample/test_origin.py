"""A picture tells apart base models of one name, and not where they are."""

import os
import shutil
from pathlib import Path

from loractl.sample.origin import origin


def model(folder: Path, weights: bytes = b"abc") -> str:
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "unet" / "model.safetensors").write_bytes(weights)
    return str(folder)


def test_another_folder_and_files_written_again_are_other_models(tmp_path: Path) -> None:
    one = model(tmp_path / "exp1" / "model")
    two = str(shutil.copytree(one, tmp_path / "exp2" / "model"))
    first = origin(one)
    assert first is not None and first == origin(one) and first != origin(two)
    weights = Path(one, "unet", "model.safetensors")
    os.utime(weights, ns=(0, 0))
    touched = origin(one)
    weights.write_bytes(b"abcd")
    os.utime(weights, ns=(0, 0))
    assert len({first, touched, origin(one), origin(str(weights)), origin(str(weights), one)}) == 5


def test_what_is_written_beside_the_weights_does_not_count(tmp_path: Path) -> None:
    one = model(tmp_path / "model")
    before = origin(one)
    (tmp_path / "model" / "out").mkdir()
    (tmp_path / "model" / "out" / "trace.json").write_text("{}")
    assert origin(one) == before


def test_a_model_that_is_not_here_has_its_revision_alone() -> None:
    assert origin("lab") is None and origin("somebody/model") is None

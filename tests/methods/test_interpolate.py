"""A series has its ends exactly, and goes evenly between them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loractl_interpolate import start
from loractl_interpolate.command import interpolate
from PIL import Image

from loractl.errors import JobError, MismatchError
from loractl.formats import load_adapter, save_adapter
from loractl.formats.safefile import read_tensors
from loractl.sample.picture import LABEL, MARGIN
from loractl.tensors.adapter import Adapter, content_hash
from tests.methods.lab_job import JOBS, run_job
from tests.tensors.updates import delta, random_update

PATHS = [f"unet.mid_block.attentions.0.transformer_blocks.0.attn{n}.to_q" for n in (1, 2)]


@pytest.fixture
def ends(tmp_path: Path) -> tuple[Path, Path]:
    """Two files in fp16 that have one module in common."""
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_adapter(files[0], Adapter({PATHS[0]: random_update((8, 6), 3, 2.0, 1)}), "kohya", name="a")
    modules = {path: random_update((8, 6), 2, 1.0, seed) for seed, path in enumerate(PATHS, 5)}
    save_adapter(files[1], Adapter(modules), "kohya", name="b")
    return files


def series(ends: tuple[Path, Path], out: Path, **settings: object) -> list[Path]:
    job = interpolate(*ends, out=out, **settings)  # type: ignore[arg-type]
    return list(start(job, lambda _: None).files.values())


@pytest.mark.parametrize("mode", ["linear", "slerp"])
def test_the_ends_are_the_files_bit_for_bit(ends: tuple[Path, Path], tmp_path: Path, mode: str) -> None:
    files = series(ends, tmp_path / "out", mode=mode)
    assert [file.name for file in files] == [
        f"{i:03}-t{t}.safetensors" for i, t in enumerate(("0", "0.25", "0.5", "0.75", "1"))
    ]
    for file, end in ((files[0], ends[0]), (files[-1], ends[1])):
        assert content_hash(read_tensors(file)[0]) == content_hash(read_tensors(end)[0])


def test_between_and_beyond_it_is_linear_in_the_update(ends: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = (load_adapter(end).modules for end in ends)
    places = (-0.5, 0.3, 1.5)
    for file, t in zip(series(ends, tmp_path / "out", at="-0.5,0.3,1.5", dtype="fp32"), places, strict=True):
        modules = load_adapter(file).modules
        for path in PATHS:
            right = (1 - t) * delta(a.get(path), (8, 6)) + t * delta(b[path])
            assert (delta(modules[path]) - right).norm() < 1e-5 * right.norm()


def test_biases_are_interpolated_along_the_line_and_refused_on_the_arc(tmp_path: Path) -> None:
    ends, bias = (tmp_path / "a.safetensors", tmp_path / "b.safetensors"), f"{PATHS[0]}.bias"
    for seed, end in enumerate(ends):
        adapter = Adapter(
            {PATHS[0]: random_update((4, 6), 2, 1.0, seed)}, vectors={bias: torch.full((4,), 1.0 + 2 * seed)}
        )
        save_adapter(end, adapter, "kohya", dtype=torch.float32, name="x")
    found = [load_adapter(file, whole=True).vectors[bias] for file in series(ends, tmp_path / "out", steps=3)]
    assert [vector.tolist() for vector in found] == [[1.0] * 4, [2.0] * 4, [3.0] * 4]
    with pytest.raises(MismatchError, match=r"changes 1 biases and norms.*slerp is for weights alone"):
        series(ends, tmp_path / "arc", mode="slerp")


def test_slerp_keeps_the_norm_of_like_ends(tmp_path: Path) -> None:
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for seed, file in enumerate(files):
        low = random_update((8, 6), 3, 2.0, seed)
        low.up.div_(delta(low).norm())
        save_adapter(file, Adapter({PATHS[0]: low}), "diffusers", dtype=torch.float32, name="x")
    for file in series(files, tmp_path / "out", mode="slerp"):
        assert float(delta(load_adapter(file).modules[PATHS[0]]).norm()) == pytest.approx(1, abs=1e-5)


def test_a_place_given_twice_is_refused(ends: tuple[Path, Path]) -> None:
    with pytest.raises(JobError, match="the same place is given twice"):
        interpolate(*ends, at="0,0.5,0")


def test_the_contact_sheet_shows_the_series(tmp_path: Path) -> None:
    sample = '{prompts=["a picture of a blue fish"], seeds=[3, 4], steps=2}'
    outcome, _ = run_job(JOBS / "interpolate.toml", tmp_path / "series", 'model="lab"', f"sample={sample}", "steps=3")
    one = JOBS / "data/adapters/one.safetensors"
    plain, _ = run_job(JOBS / "infer.toml", tmp_path / "one", f'adapters=[{{path="{one}"}}]', f"sample={sample}")
    series, own = (np.asarray(Image.open(each.files["sheet"]), int) for each in (outcome, plain))
    for row, picture in enumerate(cell(own, 0, column) for column in range(2)):
        assert np.abs(cell(series, row, 0) - picture).max() <= 1, "the first adapter of the series is one.safetensors"
        assert np.abs(cell(series, row, 2) - picture).max() > 10
    assert series.shape[1] == MARGIN + 3 * (128 + MARGIN)
    assert outcome.numbers == {"adapters": 3}


def cell(sheet: Any, row: int, column: int) -> Any:
    """One picture of a sheet."""
    top, left = MARGIN + row * (LABEL + 2 * MARGIN + 128) + LABEL + MARGIN // 2, MARGIN + column * (128 + MARGIN)
    return sheet[top : top + 128, left : left + 128]


def test_a_sheet_needs_a_model_and_a_prompt(ends: tuple[Path, Path]) -> None:
    for settings in ({"model": "lab"}, {"prompt": ["a fish"]}):
        with pytest.raises(JobError, match=r"needs both a model and sample\.prompts"):
            interpolate(*ends, **settings)  # type: ignore[arg-type]


def test_the_job_that_comes_with_loractl_runs(tmp_path: Path) -> None:
    outcome, _ = run_job(JOBS / "interpolate.toml", tmp_path / "series")
    assert outcome.numbers == {"adapters": 5}

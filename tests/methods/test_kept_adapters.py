"""The adapters that a run keeps on its way: what a shorter run would have given, and what a grid shows of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from loractl.method import Outcome
from tests.methods.lab_job import run_job, run_subject

SHORT = ("prior.weight=0.0", "sample.at_start=false", "train.lr=1e-2", "train.ema=0.5")
PROMPT = "a picture of a sks critter"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    settings = ("train.steps=4", "checkpoint.every=2", "checkpoint.keep=1", "checkpoint.adapters=true")
    return run_subject(tmp_path_factory.mktemp("run"), *SHORT, *settings)[0]


def test_each_is_the_result_of_a_run_that_ends_there(trained: Outcome, tmp_path: Path) -> None:
    folder = trained.files["kohya"].parent
    assert [path.name for path in (folder / "adapters").iterdir()] == ["step-000002.safetensors"]
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-000004"], "the older one is gone"
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters/step-000009.safetensors").touch()
    shorter, _ = run_subject(tmp_path, *SHORT, "train.steps=2", "output.overwrite=true")
    kept, result = load_file(folder / "adapters/step-000002.safetensors"), load_file(shorter.files["kohya"])
    assert kept.keys() == result.keys() and all(torch.equal(kept[key], result[key]) for key in kept)
    assert not (tmp_path / "adapters").exists(), "what an earlier run kept goes with it"


def test_a_grid_shows_how_the_pictures_change(trained: Outcome, tmp_path: Path) -> None:
    folder = trained.files["kohya"].parent
    grid, infer = tmp_path / "grid.toml", tmp_path / "infer.toml"
    head = 'model = "lab"\n[sample]\nsteps = 2\n'
    grid.write_text(f'method = "grid"\nseed = 3\ngrid.x.checkpoint = ["{folder}"]\n{head}prompt = "{PROMPT}"\n')
    result = trained.files["diffusers"]
    infer.write_text(
        f'method = "infer"\nadapters = [{{ path = "{result}" }}]\n{head}prompts = ["{PROMPT}"]\nseeds = [3]\n'
    )
    run_job(grid, tmp_path / "grid")
    outcome, _ = run_job(infer, tmp_path / "infer")
    on_the_way, last = (np.asarray(Image.open(tmp_path / f"grid/pictures/z1-y1-x{x}.png")) for x in (1, 2))
    assert not np.array_equal(on_the_way, last)
    assert np.array_equal(last, np.asarray(Image.open(next(iter(outcome.files.values())))))
    assert sorted(path.name for path in (tmp_path / "grid/pictures").iterdir()) == ["z1-y1-x1.png", "z1-y1-x2.png"]

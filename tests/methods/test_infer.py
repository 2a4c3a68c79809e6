"""Pictures with adapters are those that diffusers makes with the same file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from loractl.families.pipeline import load_model
from loractl.formats import save_adapter
from loractl.inject.inject import load_into
from loractl.inject.targets import resolve
from loractl.sample.denoise import Request, render
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.methods.lab_job import JOBS, run_job

CPU = torch.device("cpu")
PROMPT = "a picture of a sks critter in the snow"


def strong_adapter(seed: int = 0) -> Adapter:
    """Random factors on attention, convolutions and the text encoder, of two ranks, alpha unlike the rank."""
    rng = torch.Generator().manual_seed(seed)
    model = load_model("lab", CPU, torch.float32)
    modules = {}
    for component, targets in (("unet", ["extended"]), ("text_encoder", ["text-encoder"])):
        for i, path in enumerate(resolve(model.components[component], targets, 4)):
            weight: Any = model.components[component].get_submodule(path).weight
            rank = 2 + 2 * (i % 2)
            down = torch.randn(rank, *weight.shape[1:], generator=rng) / 20
            up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=rng) / 20
            modules[f"{component}.{path}"] = LowRank(down, up, alpha=3.0)
    return Adapter(modules)


def floats(pipeline: Any) -> np.ndarray:
    result = pipeline(
        PROMPT, num_inference_steps=4, height=64, width=64, output_type="np", generator=torch.Generator().manual_seed(7)
    )
    return np.asarray(result.images[0], np.float32)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_the_picture_equals_diffusers_own(tmp_path: Path, form: Any) -> None:
    file, adapter = tmp_path / "adapter.safetensors", strong_adapter()
    save_adapter(file, adapter, form, dtype=torch.float32, name="strong")
    ours, theirs, plain = (load_model("lab", CPU, torch.float32) for _ in range(3))
    for component in adapter.components():
        load_into(ours.components[component], adapter.component(component))
    theirs.pipeline.load_lora_weights(str(file))
    picture = floats(ours.pipeline)
    assert np.abs(picture - floats(plain.pipeline)).max() > 0.1
    np.testing.assert_allclose(picture, floats(theirs.pipeline), atol=1e-5)


def test_a_job_writes_pictures_that_say_how_they_were_made(tmp_path: Path) -> None:
    save_adapter(tmp_path / "strong.safetensors", strong_adapter(), "kohya", name="strong")
    settings = (f'adapters=[{{path="{tmp_path / "strong.safetensors"}", weight=0.5}}]', "sample.steps=2")
    outcome, _ = run_job(JOBS / "infer.toml", tmp_path / "out", *settings)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 9 and "sheet.png" in names
    assert names[0].startswith("0000-a-picture-of-a-red-critter-with-horns-in-the-") and names[0].endswith("-s1.png")
    first = Image.open(next(path for path in outcome.files.values() if path.name.startswith("0000")))
    said = json.loads(first.info["loractl"])
    assert said["seed"] == 1 and said["adapters"] == {"strong": 0.5} and said["steps"] == 2
    assert first.info["parameters"].startswith("a picture of a red critter with horns in the snow <lora:strong:0.5>")
    assert "Seed: 1, Size: 64x64" in first.info["parameters"]


def test_a_picture_does_not_depend_on_its_batch() -> None:
    model = load_model("lab", CPU, torch.float32)
    requests = [Request(PROMPT, seed, 2, 4.0, 64) for seed in range(3)]
    together = [np.asarray(picture, int) for picture in render(model.pipeline, requests, batch_size=3)]
    alone = [np.asarray(picture, int) for picture in render(model.pipeline, requests, batch_size=1)]
    assert all(np.abs(one - two).max() <= 1 for one, two in zip(together, alone, strict=True))


def test_weight_zero_is_the_plain_model(tmp_path: Path) -> None:
    save_adapter(tmp_path / "strong.safetensors", strong_adapter(), "diffusers", name="strong")
    plain, _ = run_job(JOBS / "infer.toml", tmp_path / "plain", "sample.steps=2", "sample.seeds=[1]")
    off = f'adapters=[{{path="{tmp_path / "strong.safetensors"}", weight=0.0}}]'
    zero, _ = run_job(JOBS / "infer.toml", tmp_path / "zero", "sample.steps=2", "sample.seeds=[1]", off)
    one, two = (np.asarray(Image.open(outcome.files["sheet"]), int) for outcome in (plain, zero))
    assert np.abs(one - two).max() <= 1

"""`[memory]` of the methods that make pictures: the denoiser in few bits, block by block, with other attention."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from loractl.errors import InputError, JobError
from loractl.inject.inject import injected
from loractl.sample.compose import Branch
from tests.methods.lab_job import JOBS, run_job

ONE = JOBS / "data/adapters/one.safetensors"
PICTURE = (
    "sample.prompts=['a red critter']",
    "sample.seeds=[1]",
    "sample.steps=2",
    f"adapters=[{{path='{ONE}', weight=0.5}}]",
)


def picture(out: Path, *settings: str) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """An inference job's picture, and what it says of itself."""
    outcome, _ = run_job(JOBS / "infer.toml", out, *PICTURE, *settings)
    made = Image.open(outcome.files["0000-a-red-critter-s1"])
    return np.asarray(made, int), json.loads(made.info["loractl"])


def test_pictures_of_a_denoiser_that_is_kept_otherwise(tmp_path: Path) -> None:
    plain, said = picture(tmp_path / "plain")
    assert "quantize" not in json.dumps(said)
    offloaded, _ = picture(tmp_path / "offload", "memory.offload=blocks")
    assert np.array_equal(offloaded, plain)
    attention, _ = picture(tmp_path / "attention", "memory.attention=_native_math")
    assert np.abs(attention - plain).max() <= 2
    rounded, said = picture(tmp_path / "fp8", "memory.quantize=fp8")
    assert 0 < np.abs(rounded - plain).mean() < 8
    assert '"quantize": "fp8"' in json.dumps(said)


def test_what_was_made_of_other_bits_is_made_anew(tmp_path: Path) -> None:
    for bits, made in (("fp8", 1), ("fp8", 0), ("none", 1)):
        outcome, _ = run_job(JOBS / "infer.toml", tmp_path, *PICTURE, f"memory.quantize={bits}")
        assert outcome.numbers["made"] == made


def test_adapters_stand_beside_weights_in_few_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer in few bits never sums its weights; the others may."""
    kept = set[tuple[str, torch.dtype]]()
    begin = Branch.__init__

    def watched(self: Branch, network: Any, plan: Any) -> None:
        begin(self, network, plan)
        kept.update((layer.form, layer.weight.dtype) for layer in injected(network).values())

    monkeypatch.setattr(Branch, "__init__", watched)
    axes = (f"grid.z.adapter=['{ONE}']", "grid.x.weight='0,1'", "grid.y.seed='1'", "sample.steps=1")
    grid, _ = run_job(JOBS / "grid.toml", tmp_path, *axes, "memory.quantize=fp8")
    assert grid.numbers["made"] == 2
    assert {form for form, dtype in kept if dtype == torch.float8_e4m3fn} == {"branch"}


def test_scores_of_a_denoiser_in_few_bits(tmp_path: Path) -> None:
    settings = ("samples=10", "sample.steps=1", f"adapters=[{{path='{ONE}'}}]", "memory.quantize=fp8")
    outcome, _ = run_job(JOBS / "eval.toml", tmp_path, *settings)
    assert 0 <= outcome.numbers["prompt_fidelity"] <= 1


@pytest.mark.parametrize("method", ["infer", "grid", "eval"])
def test_what_the_model_can_not_do_is_told(method: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'memory\.attention = "fast" can\'t be used'):
        run_job(JOBS / f"{method}.toml", tmp_path, "memory.attention=fast")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (("memory.quantize=fp8", "composition.engine=composed"), "does not act on a denoiser"),
        (("memory.offload=blocks", "composition.engine=branch"), "does not act on a denoiser"),
        (("memory.quantize=fp8", "memory.offload=blocks"), "set one of them"),
    ],
)
def test_what_does_not_go_together_is_told(tmp_path: Path, settings: tuple[str, ...], problem: str) -> None:
    with pytest.raises(JobError, match=problem):
        run_job(JOBS / "infer.toml", tmp_path, *PICTURE, *settings)

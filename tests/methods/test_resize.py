"""A resized file is the best one of its size."""

from pathlib import Path

import pytest
import torch
from loractl_resize import start
from loractl_resize.command import resize

from loractl.errors import JobError
from loractl.formats import load_adapter, save_adapter
from loractl.tensors.adapter import Adapter
from tests.methods.lab_job import JOBS, run_job
from tests.tensors.updates import delta, random_update

LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    modules = {LINEAR: random_update((9, 12), 8, 4.0, 0), CONV: random_update((6, 8, 3, 3), 5, 2.0, 1)}
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, Adapter(modules, {"a": "b"}), "diffusers", dtype=torch.float32, name="adapter")
    return path


@pytest.mark.parametrize("rank", [2, 5, 100])
def test_what_is_lost_is_the_tail_of_the_singular_values(file: Path, tmp_path: Path, rank: int) -> None:
    outcome = start(resize(file, rank=rank, out=tmp_path / "small.safetensors"), lambda _: None)
    before, small = load_adapter(file).modules, load_adapter(outcome.files["diffusers"])
    assert small.metadata["a"] == "b", "what the file said of itself goes along"
    kept = total = 0.0
    for path, low in small.modules.items():
        assert low.rank == min(rank, before[path].rank) == low.alpha
        whole = delta(before[path])
        values = torch.linalg.svdvals(whole.flatten(1))
        assert float((delta(low) - whole).norm()) == pytest.approx(
            float(values[rank:].norm()), abs=1e-5 * float(values.norm())
        )
        kept, total = kept + float(values[:rank].square().sum()), total + float(values.square().sum())
    assert outcome.numbers["energy"] == pytest.approx(kept / total)
    assert outcome.numbers["parameters"] == small.parameters


def test_biases_and_norms_go_along(tmp_path: Path) -> None:
    path, vectors = tmp_path / "a.safetensors", {"unet.mid_block.resnets.0.norm1.weight": torch.randn(8)}
    adapter = Adapter({LINEAR: random_update((9, 12), 8, 4.0, 0)}, vectors=vectors)
    save_adapter(path, adapter, "kohya", dtype=torch.float32, name="a")
    file = start(resize(path, rank=2, out=tmp_path / "small.safetensors"), lambda _: None).files["kohya"]
    small = load_adapter(file, whole=True)
    assert small.modules[LINEAR].rank == 2
    assert {name: vector.tolist() for name, vector in small.vectors.items()} == {
        name: vector.tolist() for name, vector in vectors.items()
    }


def test_the_size_must_be_said(file: Path) -> None:
    with pytest.raises(JobError, match="say how large the result may be"):
        resize(file)


def test_the_job_that_comes_with_loractl_runs(tmp_path: Path) -> None:
    outcome, _ = run_job(JOBS / "resize.toml", tmp_path / "small.safetensors")
    assert {low.rank for low in load_adapter(outcome.files["kohya"]).modules.values()} == {2}

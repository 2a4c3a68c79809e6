"""Files of Flux and Stable Diffusion 3 in kohya's form keep ranks and sizes of their own modules, in memory several."""

from pathlib import Path

import pytest
import torch
from loractl_convert.command import convert
from loractl_merge.command import merge
from loractl_resize.command import resize
from safetensors.torch import save_file

from loractl.formats.safefile import read_header, read_tensors
from loractl.method import Outcome
from loractl.plugins import load_plugins
from loractl.specs import Spec
from loractl.tensors.lowrank import LowRank
from tests.formats.adapters import random_update, relative

SHAPES = {
    "flux1": {
        "lora_unet_double_blocks_0_img_attn_qkv": (24, 8),
        "lora_unet_double_blocks_0_img_mod_lin": (48, 8),
        "lora_unet_single_blocks_0_linear1": (56, 8),
        "lora_unet_single_blocks_0_linear2": (8, 40),
    },
    "sd3": {
        "lora_unet_joint_blocks_0_x_block_attn_qkv": (24, 8),
        "lora_unet_joint_blocks_0_context_block_attn_qkv": (24, 8),
        "lora_unet_joint_blocks_0_x_block_mlp_fc1": (32, 8),
    },
}
bases = pytest.mark.parametrize("base", SHAPES)


def made(path: Path, base: str, rank: int, seed: int = 0) -> dict[str, LowRank]:
    """A kohya file, and its modules by their names in it. One rank of the first is zero in the first part."""
    generator = torch.Generator().manual_seed(seed)
    modules = {name: random_update(shape, rank, 2.0, generator) for name, shape in SHAPES[base].items()}
    next(iter(modules.values())).up[:8, 1] = 0
    tensors = {f"{name}.lora_down.weight": low.down for name, low in modules.items()}
    tensors |= {f"{name}.lora_up.weight": low.up for name, low in modules.items()}
    tensors |= {f"{name}.alpha": torch.tensor(low.alpha) for name, low in modules.items()}
    save_file(tensors, path, {"ss_base_model_version": base})
    return modules


def written(path: Path) -> dict[str, LowRank]:
    tensors, _ = read_tensors(path)
    names = {key.partition(".")[0] for key in tensors}
    return {
        name: LowRank(
            tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"], float(tensors[f"{name}.alpha"])
        )
        for name in names
    }


def run(job: Spec) -> Outcome:
    """What the method of the job returns."""
    return load_plugins().methods[job.method].run(job, lambda _: None)


def best(delta: torch.Tensor, rank: int) -> torch.Tensor:
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


@bases
def test_a_file_that_is_written_again_does_not_grow(tmp_path: Path, base: str) -> None:
    before = made(tmp_path / "a", base, 4)
    run(convert(tmp_path / "a", "kohya", out=tmp_path / "b"))
    after = written(tmp_path / "b")
    assert {name: (low.rank, low.alpha) for name, low in after.items()} == dict.fromkeys(before, (4, 2.0))
    assert all(relative(after[name].delta(), low.delta()) < 1e-6 for name, low in before.items())
    metadata = read_header(tmp_path / "b").metadata
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2.0")


@bases
def test_the_rank_asked_for_is_that_of_the_files_modules(tmp_path: Path, base: str) -> None:
    before = made(tmp_path / "a", base, 6)
    outcome = run(resize(tmp_path / "a", rank=3, out=tmp_path / "b"))
    after = written(tmp_path / "b")
    assert {low.rank for low in after.values()} == {3}
    assert all(relative(after[name].delta(), best(low.delta(), 3)) < 1e-5 for name, low in before.items())
    assert outcome.numbers["parameters"] == sum(low.down.numel() + low.up.numel() for low in after.values())


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_budget_is_that_of_the_file(tmp_path: Path, form: str) -> None:
    made(tmp_path / "a", "flux1", 8)
    run(resize(tmp_path / "a", budget_mb=0.003, format=form, out=tmp_path / "b"))
    tensors, _ = read_tensors(tmp_path / "b")
    assert 2500 < sum(tensor.nbytes for tensor in tensors.values() if tensor.ndim) <= 3000


@bases
@pytest.mark.parametrize("method", ["sum", "karcher", "ties", "prune"])
def test_a_merge_keeps_to_its_rank(tmp_path: Path, base: str, method: str) -> None:
    """At full density and with equal parents every method gives twice or once what they have."""
    before = made(tmp_path / "a", base, 4)
    settings = {"density": 1.0} if method in ("ties", "prune") else {}
    run(merge([tmp_path / "a", tmp_path / "a"], weights="1,1", method=method, rank=3, out=tmp_path / "b", **settings))
    after = written(tmp_path / "b")
    assert {low.rank for low in after.values()} == {3}
    for name, low in before.items():
        wanted = best(low.delta(), 3)
        scale = float((after[name].delta() * wanted).sum() / wanted.square().sum())
        assert relative(after[name].delta(), scale * wanted) < 1e-4


def test_a_sum_has_the_sum_of_the_ranks(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a", "flux1", 4), made(tmp_path / "b", "flux1", 3, seed=1)
    outcome = run(merge([tmp_path / "a", tmp_path / "b"], weights="0.5,2", out=tmp_path / "c"))
    after = written(tmp_path / "c")
    assert {low.rank for low in after.values()} == {7}
    assert all(relative(after[name].delta(), 0.5 * one[name].delta() + 2 * two[name].delta()) < 1e-6 for name in one)
    assert outcome.numbers["parameters"] == sum(low.down.numel() + low.up.numel() for low in after.values())

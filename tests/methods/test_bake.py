"""A baked model is the model that runs the adapter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from loractl_bake.command import bake
from torch import Tensor, nn

from loractl.errors import JobError
from loractl.events import Note
from loractl.formats import save_adapter
from loractl.formats.checkpoint import model_weights
from loractl.formats.safefile import read_header, read_tensors, write_tensors
from loractl.inject.inject import load_into
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.formats.adapters import random_update
from tests.formats.models import (
    OPEN_CLIP,
    WIDTH,
    open_clip,
    small_unet,
    unet_adapter,
    write_folder,
    write_native,
    write_single,
)
from tests.methods.baking import job, run, save
from tests.methods.lab_job import JOBS, run_job
from tests.tiny import tiny


def denoise(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, context = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 5, WIDTH)))
    output: Tensor = unet(latents, torch.tensor([3, 700]), context).sample
    return output


@torch.no_grad()
def test_a_baked_folder_is_the_model_that_runs_the_adapters(tmp_path: Path) -> None:
    unet = small_unet()
    adapter = unet_adapter(unet)
    second = Adapter({path: replace(low, up=low.up.flip(0)) for path, low in list(adapter.modules.items())[:5]})
    uses = (save(tmp_path / "a.safetensors", adapter), 0.7), (save(tmp_path / "b.safetensors", second), -0.4)
    plain = denoise(unet)
    run(job(write_folder(tmp_path / "model", unet), tmp_path / "baked", *uses))
    load_into(unet, adapter.component("unet"), "a", 0.7)
    load_into(unet, second.component("unet"), "b", -0.4)
    wanted, found = denoise(unet), denoise(UNet2DConditionModel.from_pretrained(tmp_path / "baked/unet"))
    assert (wanted - plain).abs().max() > 0.05
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_changes_where_the_adapter_is_and_nowhere_else(tmp_path: Path, dtype: torch.dtype) -> None:
    model = write_single(tmp_path / "model.safetensors", small_unet(), dtype)
    adapter, out = unet_adapter(small_unet()), tmp_path / "out.safetensors"
    run(job(model, out, (save(tmp_path / "a.safetensors", adapter), 0.5)))
    weights = model_weights(model)
    touched = {weights[path].key: low for path, low in adapter.modules.items()}
    before, after = read_tensors(model)[0], read_tensors(out)[0]
    assert [*read_header(model).entries.items()] == [*read_header(out).entries.items()]
    assert 0 < len(touched) == len(adapter.modules) < len(before)
    for key, tensor in before.items():
        if key in touched:
            wanted = (tensor.float() + 0.5 * touched[key].delta()).to(dtype)
            torch.testing.assert_close(after[key], wanted)
            assert not torch.equal(after[key], tensor)
        else:
            assert torch.equal(after[key].view(torch.uint8), tensor.view(torch.uint8))


def test_one_of_fused_modules(tmp_path: Path) -> None:
    low = LowRank(torch.ones(1, WIDTH), torch.arange(1.0, WIDTH + 1)[:, None], 1.0)
    adapter = save(tmp_path / "a.safetensors", Adapter({"text_encoder.encoder.layers.1.self_attn.k_proj": low}))
    model = write_single(tmp_path / "model.safetensors", small_unet())
    run(job(model, tmp_path / "out.safetensors", (adapter, 1.0)))
    wanted = open_clip()[f"{OPEN_CLIP}.1.attn.in_proj_weight"]
    wanted[WIDTH : 2 * WIDTH] += low.delta()
    found = read_tensors(tmp_path / "out.safetensors")[0][f"{OPEN_CLIP}.1.attn.in_proj_weight"]
    torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_biases_and_norms_are_added_too(tmp_path: Path) -> None:
    """In both layouts; of OpenCLIP's joined bias only the rows of one module."""
    unet = small_unet()
    shapes = {"unet.conv_norm_out.weight": 8, "unet.conv_in.bias": 8, "unet.mid_block.resnets.0.norm1.bias": 16}
    vectors = {path: torch.randn(size) for path, size in shapes.items()}
    low = {"unet.conv_out": LowRank(torch.zeros(1, 8, 3, 3), torch.zeros(4, 1, 1, 1), 1.0)}
    save_adapter(tmp_path / "a", Adapter(low, vectors=vectors), "kohya", dtype=torch.float32, name="a")
    run(job(write_folder(tmp_path / "model", unet), tmp_path / "baked", (tmp_path / "a", -2.0)))
    state = UNet2DConditionModel.from_pretrained(tmp_path / "baked/unet").state_dict()
    for name, tensor in unet.state_dict().items():
        added = vectors.get(f"unet.{name}")
        torch.testing.assert_close(state[name], tensor if added is None else tensor - 2 * added)
    bias = {"text_encoder.encoder.layers.1.self_attn.v_proj.bias": torch.arange(1.0, WIDTH + 1)}
    save_adapter(tmp_path / "b", Adapter(low, vectors=bias), "kohya", dtype=torch.float32, name="b")
    single = write_single(tmp_path / "model.safetensors", unet)
    run(job(single, tmp_path / "out.safetensors", (tmp_path / "b", 1.0)))
    before, after = (read_tensors(path)[0] for path in (single, tmp_path / "out.safetensors"))
    changed = {key: after[key] - before[key] for key in before if not torch.equal(after[key], before[key])}
    assert changed.keys() == {f"{OPEN_CLIP}.1.attn.in_proj_bias"}
    wanted = torch.cat([torch.zeros(2 * WIDTH), torch.arange(1.0, WIDTH + 1)])
    torch.testing.assert_close(changed[f"{OPEN_CLIP}.1.attn.in_proj_bias"], wanted)


@pytest.mark.parametrize("version", ["sd3", "flux1"])
def test_a_transformer_in_one_file_is_the_one_that_runs_the_adapter(tmp_path: Path, version: str) -> None:
    """Native tensors, q, k and v in one and scale and shift in the other order, as `distill` finds them again too."""
    transformer = tiny(version).transformer
    generator = torch.Generator().manual_seed(0)
    modules = {
        f"transformer.{path}": random_update(tuple(layer.weight.shape), 2, 1.0, generator)
        for path, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    single = write_native(tmp_path / "model.safetensors", transformer, version.removesuffix("1"))
    save_adapter(tmp_path / "a", Adapter(modules), "diffusers", dtype=torch.float32, name="a")
    run(job(single, tmp_path / "out.safetensors", (tmp_path / "a", 0.5)))
    found = model_weights(tmp_path / "out.safetensors")
    assert found.keys() == modules.keys()
    for path, low in modules.items():
        weight = transformer.get_parameter(f"{path.removeprefix('transformer.')}.weight")
        torch.testing.assert_close(found[path].read(), weight + 0.5 * low.delta())


def test_the_job_runs_as_it_stands(tmp_path: Path) -> None:
    outcome, _ = run_job(JOBS / "bake.toml", tmp_path / "baked")
    assert outcome.numbers["updates"] > outcome.numbers["tensors"] > 0
    assert (tmp_path / "baked/model_index.json").is_file()


def test_the_command_gives_weights_to_all_or_to_each(tmp_path: Path) -> None:
    model = write_single(tmp_path / "m.safetensors", small_unet())
    for name in "ab":
        write_tensors(tmp_path / name, {}, {})
    files, out = [tmp_path / "a", tmp_path / "b"], tmp_path / "out.safetensors"
    given = {None: [1.0, 1.0], (0.5,): [0.5, 0.5], (0.5, -2.0): [0.5, -2.0]}
    for weights, wanted in given.items():
        spec = bake(model, files, weight=list(weights) if weights else None, out=out)
        assert [use.weight for use in spec.adapters] == wanted
    with pytest.raises(JobError, match="--weight: there are 3 for 2"):
        bake(model, files, weight=[1.0, 2.0, 3.0], out=out)
    for kind, wrong in ((model, tmp_path / "out"), (tmp_path, out), (model, tmp_path / "out.ckpt")):
        with pytest.raises(JobError, match=r"ending \.safetensors"):
            bake(kind, files, out=wrong)
    assert bake(model, files, allow_pickle=True, out=tmp_path / "out.ckpt").destination() == tmp_path / "out.ckpt"


def test_a_bundles_tokens_are_said_to_be_left_out(tmp_path: Path) -> None:
    unet = small_unet()
    adapter = replace(unet_adapter(unet), tokens={"text_encoder.<rex>": torch.zeros(2, WIDTH)})
    save_adapter(tmp_path / "a.safetensors", adapter, "kohya", dtype=torch.float32, name="a")
    model = write_folder(tmp_path / "model", unet)
    events = run(job(model, tmp_path / "baked", (tmp_path / "a.safetensors", 1.0)))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == ["a.safetensors: its 1 learned tokens are left out here"]

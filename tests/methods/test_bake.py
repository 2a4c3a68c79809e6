"""A baked model is the model that runs the adapter, and all else in its files stays as it was."""

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from loractl_bake import start
from loractl_bake.command import bake
from loractl_bake.spec import AdapterUse, BakeSpec
from torch import Tensor, nn

from loractl.errors import DiskFullError, InputError, JobError, MismatchError
from loractl.events import Event, Note, Progress
from loractl.formats import save_adapter
from loractl.formats.checkpoint import model_weights
from loractl.formats.safefile import read_header, read_tensors, write_tensors
from loractl.inject.inject import load_into
from loractl.specs import OutputSection
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
from tests.methods.lab_job import JOBS, run_job
from tests.tiny import tiny


def denoise(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, context = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 5, WIDTH)))
    output: Tensor = unet(latents, torch.tensor([3, 700]), context).sample
    return output


def save(path: Path, adapter: Adapter) -> Path:
    save_adapter(path, adapter, "diffusers", dtype=torch.float32, name=path.stem)
    return path


def job(model: Path, out: Path, *uses: tuple[Path, float], **settings: Any) -> BakeSpec:
    adapters = tuple(AdapterUse(path=path, weight=weight) for path, weight in uses)
    output = OutputSection(path=out, overwrite=settings.pop("overwrite", False))
    return BakeSpec(model=model, adapters=adapters, output=output, **settings)


def run(spec: BakeSpec) -> list[Event]:
    events: list[Event] = []
    start(spec, events.append)
    return events


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


def test_metadata_say_what_was_added_and_nothing_stale(tmp_path: Path) -> None:
    model = write_single(tmp_path / "model.safetensors", small_unet())
    run(job(model, tmp_path / "out.safetensors", (save(tmp_path / "a.safetensors", unet_adapter(small_unet())), 0.5)))
    metadata = read_header(tmp_path / "out.safetensors").metadata
    assert metadata["kept"] == "yes" and "sshs_hash" not in metadata
    (parent,) = json.loads(metadata["loractl.parents"])
    assert parent["name"] == "a.safetensors" and parent["weight"] == 0.5 and len(parent["content_hash"]) == 64
    assert str(tmp_path) not in json.dumps(dict(metadata))


def test_only_changed_files_are_written_and_other_variants_left_out(tmp_path: Path) -> None:
    unet = small_unet()
    model = write_folder(tmp_path / "model", unet)
    (model / "vae").mkdir()
    (model / "vae/model.safetensors").write_bytes(b"some weights")
    (model / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"the weights without the adapter")
    out = tmp_path / "out"
    events = run(job(model, out, (save(tmp_path / "a.safetensors", unet_adapter(unet)), 1.0)))
    weights = "unet/diffusion_pytorch_model.safetensors"
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {"model_index.json", "unet/config.json", "vae/model.safetensors", weights}
    assert (out / "vae/model.safetensors").samefile(model / "vae/model.safetensors")
    assert not (out / weights).samefile(model / weights)
    assert ["fp16" in event.text for event in events if isinstance(event, Note)] == [True]
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].done == progress[-1].total == len(unet.state_dict())


def test_only_the_shards_that_change_are_written(tmp_path: Path) -> None:
    unet = small_unet()
    unet.save_pretrained(tmp_path / "model/unet", max_shard_size="100KB")
    (tmp_path / "model/model_index.json").write_text("{}")
    path, low = next(iter(unet_adapter(unet).modules.items()))
    run(job(tmp_path / "model", tmp_path / "out", (save(tmp_path / "a.safetensors", Adapter({path: low})), 1.0)))
    shards = [file.name for file in (tmp_path / "model/unet").glob("*.safetensors")]
    same = [(tmp_path / "out/unet" / name).samefile(tmp_path / "model/unet" / name) for name in shards]
    assert same.count(False) == 1 and len(same) > 1
    baked = UNet2DConditionModel.from_pretrained(tmp_path / "out/unet").get_parameter(f"{path[5:]}.weight")
    torch.testing.assert_close(baked, unet.get_parameter(f"{path[5:]}.weight") + low.delta())


LAYOUTS = pytest.mark.parametrize(("layout", "name"), [(write_single, "out.safetensors"), (write_folder, "out")])


@LAYOUTS
def test_the_wrong_base_is_refused(tmp_path: Path, layout: Any, name: str) -> None:
    model = layout(tmp_path / "model.safetensors", small_unet())
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    wide = LowRank(torch.zeros(2, 1024), torch.zeros(16, 2), 2.0)
    for module, words in ((path, r"\(16, 1024\).* has \(16, 8\) there"), (f"{path}z", r"\(16, 1024\).*no such module")):
        file = save(tmp_path / f"{module}.safetensors", Adapter({module: wide}))
        before = sorted(tmp_path.iterdir())
        with pytest.raises(MismatchError, match=f"{module}.*{words}"):
            run(job(model, tmp_path / name, (file, 1.0)))
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("layout", "name"), [(write_single, "out.safetensors"), (write_single, "out.ckpt"), (write_folder, "out")]
)
def test_a_full_disk_leaves_nothing(tmp_path: Path, layout: Any, name: str) -> None:
    model = layout(tmp_path / "model.safetensors", small_unet())
    file = save(tmp_path / "a.safetensors", unet_adapter(small_unet()))
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(DiskFullError, match="make room"):
            run(job(model, tmp_path / name, (file, 1.0), allow_pickle=name.endswith("ckpt")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_there_is_replaced_only_when_allowed(tmp_path: Path) -> None:
    unet = small_unet()
    model, out = write_folder(tmp_path / "model", unet), tmp_path / "out"
    use = (save(tmp_path / "a.safetensors", unet_adapter(unet)), 1.0)
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        run(job(model, out, use))
    assert [path.name for path in out.iterdir()] == ["precious.txt"]
    run(job(model, out, use, overwrite=True))
    assert (out / "precious.txt").exists() and (out / "unet/diffusion_pytorch_model.safetensors").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_ckpt_becomes_a_safetensors_file_when_allowed(tmp_path: Path) -> None:
    single = write_single(tmp_path / "model.safetensors", small_unet())
    torch.save({"state_dict": read_tensors(single)[0]}, tmp_path / "model.ckpt")
    use = (save(tmp_path / "a.safetensors", unet_adapter(small_unet())), 1.0)
    with pytest.raises(InputError, match="allow_pickle"):
        run(job(tmp_path / "model.ckpt", tmp_path / "one.safetensors", use))
    run(job(tmp_path / "model.ckpt", tmp_path / "one.safetensors", use, allow_pickle=True))
    run(job(single, tmp_path / "two.safetensors", use))
    one, two = (read_tensors(tmp_path / name)[0] for name in ("one.safetensors", "two.safetensors"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_ckpt_is_written_when_allowed_and_is_the_safetensors_file(tmp_path: Path, ending: str) -> None:
    """Tensor by tensor, whatever the model came as; where it comes from is beside the tensors."""
    single = write_single(tmp_path / "model.safetensors", small_unet(), torch.float16)
    torch.save({"state_dict": read_tensors(single)[0]}, tmp_path / "model.ckpt")
    model, use = tmp_path / f"model.{ending}", (save(tmp_path / "a.safetensors", unet_adapter(small_unet())), 0.5)
    with pytest.raises(ValueError, match="set allow_pickle"):
        job(model, tmp_path / "out.ckpt", use)
    run(job(model, tmp_path / "out.ckpt", use, allow_pickle=True))
    run(job(single, tmp_path / "out.safetensors", use))
    found = torch.load(tmp_path / "out.ckpt", weights_only=True)
    wanted, metadata = read_tensors(tmp_path / "out.safetensors")
    assert found["state_dict"].keys() == wanted.keys()
    assert all(torch.equal(found["state_dict"][key], wanted[key]) for key in wanted)
    assert found["metadata"]["loractl.parents"] == metadata["loractl.parents"]
    with pytest.raises(InputError, match="exists already"):
        run(job(model, tmp_path / "out.ckpt", use, allow_pickle=True))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


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

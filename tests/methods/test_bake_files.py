"""The files of a baked model: what is written, what is left as it was, what is refused."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from loractl.errors import DiskFullError, InputError, MismatchError
from loractl.events import Note, Progress
from loractl.formats.safefile import read_header, read_tensors
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.formats.models import (
    small_unet,
    unet_adapter,
    write_folder,
    write_single,
)
from tests.methods.baking import job, run, save


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

"""The difference of two models as an adapter: what was added comes back, in either layout."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from loractl_bake import start as start_baking
from loractl_bake.spec import AdapterUse, BakeSpec
from loractl_distill import start
from loractl_distill.command import distill
from loractl_distill.spec import DistillSpec

from loractl.errors import JobError, MismatchError, NumericsError
from loractl.events import Event, Facts, Note
from loractl.formats import load_adapter, save_adapter
from loractl.formats.safefile import read_tensors, write_tensors
from loractl.specs import DeviceSection, FileOutputSection, OutputSection
from loractl.tensors.adapter import Adapter
from tests.formats.adapters import distance, random_update
from tests.formats.models import small_unet, unet_adapter, write_folder, write_native, write_single
from tests.methods.lab_job import JOBS, run_job
from tests.tiny import tiny


def bake_into(model: Path, adapter: Adapter, out: Path) -> Path:
    file = out.with_name(f"{out.stem}-adapter.safetensors")
    save_adapter(file, adapter, "diffusers", dtype=torch.float32, name="planted")
    spec = BakeSpec(model=model, adapters=(AdapterUse(path=file),), output=OutputSection(path=out))
    start_baking(spec, lambda event: None)  # noqa: ARG005
    return out


def run(tuned: Path, base: Path, out: Path, **settings: Any) -> tuple[Adapter, list[Event]]:
    events: list[Event] = []
    spec = DistillSpec(tuned=tuned, base=base, output=FileOutputSection(path=out, dtype="fp32"), **settings)
    start(spec, events.append)
    return load_adapter(out), events


def test_what_was_baked_in_is_distilled_out(tmp_path: Path) -> None:
    """Attention, convolutions and the text encoder, which changed very little; from a folder and from a file."""
    planted = unet_adapter(small_unet())
    base = write_single(tmp_path / "base.safetensors", small_unet())
    gently = torch.Generator().manual_seed(5)
    path = "text_encoder.encoder.layers.0.self_attn.q_proj"
    low = next(low for low in planted.modules.values() if low.shape == (8, 8))
    text = replace(low, up=torch.randn(8, 2, generator=gently) / 10)
    planted = replace(planted, modules={**planted.modules, path: text})
    tuned = bake_into(base, planted, tmp_path / "tuned.safetensors")
    found, events = run(tuned, base, tmp_path / "found.safetensors", rank=2)
    assert distance(found, planted) < 1e-4
    facts = next(event.values for event in events if isinstance(event, Facts) and event.title == "captured energy")
    assert facts.keys() == planted.modules.keys()
    assert all(text == "1.0000 (rank 2)" for text in facts.values())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_transformers_native_modules_are_joined_again(tmp_path: Path, device: Literal["cpu", "cuda"]) -> None:
    """Of each joined module only one part has changed, so that zeros stand beside it."""
    transformer = tiny("flux1").transformer
    base = write_native(tmp_path / "base.safetensors", transformer, "flux")
    generator, blocks = torch.Generator().manual_seed(0), ("transformer_blocks", "single_transformer_blocks")
    modules = {}
    for path in (f"{name}.0.attn.to_k" for name in blocks):
        shape = tuple(transformer.get_parameter(f"{path}.weight").shape)
        modules[f"transformer.{path}"] = random_update(shape, 2, 1.0, generator)
    tuned = bake_into(base, Adapter(modules), tmp_path / "tuned.safetensors")
    out = FileOutputSection(path=tmp_path / "found.safetensors", format="kohya", dtype="fp32")
    start(DistillSpec(tuned=tuned, base=base, rank=2, memory=DeviceSection(device=device), output=out), lambda _: None)
    assert distance(load_adapter(tmp_path / "found.safetensors"), Adapter(modules)) < 1e-4


def test_folders_and_a_mixture_of_layouts(tmp_path: Path) -> None:
    unet, planted = small_unet(), unet_adapter(small_unet())
    base = write_folder(tmp_path / "base", unet)
    tuned = bake_into(base, planted, tmp_path / "tuned")
    found, _ = run(tuned, base, tmp_path / "found.safetensors", rank=2)
    assert distance(found, planted) < 1e-4
    with pytest.raises(MismatchError, match=r"text_encoder.*has nothing"):
        run(tuned, write_single(tmp_path / "base.safetensors", unet), tmp_path / "other.safetensors", rank=2)


def test_one_rank_less_holds_less(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", small_unet())
    tuned = bake_into(base, unet_adapter(small_unet(), rank=3), tmp_path / "tuned")
    whole, _ = run(tuned, base, tmp_path / "whole.safetensors", energy=0.999)
    part, events = run(tuned, base, tmp_path / "part.safetensors", rank=1)
    assert {low.rank for low in part.modules.values()} == {1}
    assert all(2 <= low.rank <= 3 for low in whole.modules.values())
    energy = next(event.values["energy"] for event in events if isinstance(event, Facts) and event.title == "distilled")
    assert 0.3 < energy < 0.99


def test_what_programs_refuse_is_left_out_and_said(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", small_unet())
    tuned = bake_into(base, unet_adapter(small_unet()), tmp_path / "tuned")
    file = tuned / "unet/diffusion_pytorch_model.safetensors"
    tensors, metadata = read_tensors(file)
    changed = {key: tensor.clone() for key, tensor in tensors.items()}
    changed["conv_in.weight"] += 1
    write_tensors(file, changed, metadata, overwrite=True)
    found, events = run(tuned, base, tmp_path / "found.safetensors", rank=2)
    assert found.modules.keys() == unet_adapter(small_unet()).modules.keys()
    assert [event.text for event in events if isinstance(event, Note) and "unet.conv_in" in event.text]


def test_changed_biases_and_norms_are_left_out_and_said(tmp_path: Path) -> None:
    base = write_single(tmp_path / "base.safetensors", small_unet())
    tuned = bake_into(base, unet_adapter(small_unet()), tmp_path / "tuned.safetensors")
    _, quiet = run(tuned, base, tmp_path / "a.safetensors", rank=2)
    tensors = {key: tensor.clone() for key, tensor in read_tensors(tuned)[0].items()}
    tensors["model.diffusion_model.out.0.weight"] += 0.1
    write_tensors(tuned, tensors, {}, overwrite=True)
    _, events = run(tuned, base, tmp_path / "b.safetensors", rank=2)
    said = [event.text for event in events if isinstance(event, Note) and event not in quiet]
    assert said == ["1 biases and norms have changed and are left out; the first is unet.conv_norm_out.weight"]


def test_equal_and_damaged_models_are_refused(tmp_path: Path) -> None:
    base = write_single(tmp_path / "base.safetensors", small_unet())
    half = write_single(tmp_path / "half.safetensors", small_unet(), torch.float16)
    with pytest.raises(MismatchError, match="do not differ"):
        run(half, base, tmp_path / "out.safetensors", rank=2)
    tensors = {key: tensor.clone() for key, tensor in read_tensors(base)[0].items()}
    tensors["model.diffusion_model.input_blocks.1.0.in_layers.2.weight"][0, 0, 0, 0] = torch.nan
    write_tensors(tmp_path / "nan.safetensors", tensors, {})
    with pytest.raises(NumericsError, match=r"unet\.down_blocks\.0\.resnets\.0\.conv1"):
        run(tmp_path / "nan.safetensors", base, tmp_path / "out.safetensors", rank=2)
    assert not (tmp_path / "out.safetensors").exists()


def test_the_job_runs_as_it_stands(tmp_path: Path) -> None:
    out = tmp_path / "distilled.safetensors"
    outcome, _ = run_job(JOBS / "distill.toml", out)
    assert outcome.numbers["modules"] == 4 and outcome.numbers["left_out"] == 1 and outcome.numbers["energy"] > 0.99
    adapter = load_adapter(out)
    assert {low.rank for low in adapter.modules.values()} <= {1, 2}
    assert "unet.mid_block.resnets.0.conv2" not in adapter.modules


def test_the_command_needs_a_rule_for_the_rank(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="give a rank or an energy"):
        distill(tmp_path, tmp_path)
    assert distill(tmp_path, tmp_path, rank=4, format="kohya").output.format == "kohya"

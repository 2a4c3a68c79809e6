"""An adapter comes out of a model that was saved while it wore it, whoever wrapped it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loractl_extract import start
from loractl_extract.spec import ExtractSpec
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from loractl.errors import FormatError, InputError
from loractl.formats import load_adapter, save_adapter
from loractl.formats.safefile import read_tensors, write_tensors
from loractl.inject.inject import load_into
from loractl.specs import FileOutputSection
from loractl.tensors.adapter import Adapter
from tests.formats.adapters import distance
from tests.formats.models import NATIVE, native, small_unet, unet_adapter, write_folder, write_single
from tests.methods.lab_job import JOBS, run_job

RANK = 2


def write_worn(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """A diffusers folder whose UNet has these tensors."""
    write_folder(folder, small_unet())
    write_tensors(folder / "unet/diffusion_pytorch_model.safetensors", tensors, {"format": "pt"}, overwrite=True)
    return folder


def run(model: Path, out: Path, **settings: Any) -> Adapter:
    start(ExtractSpec(model=model, output=FileOutputSection(path=out, dtype="fp32"), **settings), lambda event: None)  # noqa: ARG005
    return load_adapter(out)


def test_what_loractl_put_on(tmp_path: Path) -> None:
    unet, adapter = small_unet(), unet_adapter(small_unet(), RANK)
    load_into(unet, adapter.component("unet"), "mine")
    model = write_worn(tmp_path / "model", unet.state_dict())
    assert distance(run(model, tmp_path / "out.safetensors", alpha=0.1), adapter) < 1e-6


def test_what_peft_put_on(tmp_path: Path) -> None:
    unet = small_unet()
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "conv1"], init_lora_weights=False)
    inject_adapter_in_model(config, unet, "style")
    found = run(write_worn(tmp_path / "model", unet.state_dict()), tmp_path / "out.safetensors")
    layers: dict[str, Any] = {path: layer for path, layer in unet.named_modules() if hasattr(layer, "get_delta_weight")}
    assert found.modules.keys() == {f"unet.{path}" for path in layers} and layers
    for path, layer in layers.items():
        torch.testing.assert_close(found.modules[f"unet.{path}"].delta(), layer.get_delta_weight("style"))


def test_one_of_several_is_chosen_by_name(tmp_path: Path) -> None:
    unet, adapter = small_unet(), unet_adapter(small_unet(), RANK)
    load_into(unet, adapter.component("unet"), "one")
    load_into(unet, dict(list(adapter.component("unet").items())[:3]), "two")
    model = write_worn(tmp_path / "model", unet.state_dict())
    with pytest.raises(InputError, match="adapters one, two: choose one"):
        run(model, tmp_path / "out.safetensors")
    with pytest.raises(InputError, match="no adapter three inside, but one, two"):
        run(model, tmp_path / "out.safetensors", adapter="three")
    assert len(run(model, tmp_path / "out.safetensors", adapter="two").modules) == 3


def test_out_of_a_single_file(tmp_path: Path) -> None:
    """Factors beside their native module, as cloneofsimo's wrapper names them."""
    unet, adapter = small_unet(), unet_adapter(small_unet(), RANK)
    single = write_single(tmp_path / "base.safetensors", unet)
    factors = {}
    for path, low in adapter.component("unet").items():
        module = NATIVE + native(f"{path}.weight").removesuffix(".weight")
        factors |= {f"{module}.lora_down.weight": low.down, f"{module}.lora_up.weight": low.up}
    write_tensors(tmp_path / "worn.safetensors", read_tensors(single)[0] | factors, {})
    assert distance(run(tmp_path / "worn.safetensors", tmp_path / "out.safetensors", alpha=0.1), adapter) < 1e-6


def test_a_bundle_of_model_and_adapter(tmp_path: Path) -> None:
    """kohya's names say the alpha, which then counts."""
    adapter = unet_adapter(small_unet(), RANK)
    single = write_single(tmp_path / "base.safetensors", small_unet())
    save_adapter(tmp_path / "kohya.safetensors", adapter, "kohya", dtype=torch.float32, name="a")
    both = read_tensors(single)[0] | read_tensors(tmp_path / "kohya.safetensors")[0]
    write_tensors(tmp_path / "bundle.safetensors", both, {})
    assert distance(run(tmp_path / "bundle.safetensors", tmp_path / "out.safetensors", alpha=7.0), adapter) < 1e-6


def test_dora_that_peft_put_on(tmp_path: Path) -> None:
    unet = small_unet()
    config = LoraConfig(r=RANK, target_modules=["to_q", "conv1"], init_lora_weights=False, use_dora=True)
    inject_adapter_in_model(config, unet, "style")
    found = run(write_worn(tmp_path / "model", unet.state_dict()), tmp_path / "out.safetensors")
    layers: dict[str, Any] = {path: layer for path, layer in unet.named_modules() if hasattr(layer, "get_delta_weight")}
    assert found.magnitudes.keys() == found.modules.keys() == {f"unet.{path}" for path in layers}
    for path, layer in layers.items():
        wanted = layer.lora_magnitude_vector["style"].weight.detach().flatten()
        torch.testing.assert_close(found.magnitudes[f"unet.{path}"].flatten(), wanted)


LORA = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2)}
QUERY = "unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
BUNDLES: dict[str, dict[str, Tensor]] = {
    "lora_unet_down_blocks_0_resnets_0_conv1": {
        "lora_down.weight": torch.randn(2, 8, 1, 1),
        "lora_mid.weight": torch.randn(2, 2, 3, 3),
        "lora_up.weight": torch.randn(8, 2, 1, 1),
    },
    f"lora_{QUERY}": {**LORA, "dora_scale": torch.ones(8, 1)},
    f"lycoris_{QUERY.removeprefix('unet_')}": {"lokr_w1": torch.randn(2, 2), "lokr_w2": torch.randn(4, 4)},
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": LORA,
    "lora_transformer_transformer_blocks_0_attn_to_q": LORA,
}


@pytest.mark.parametrize("module", BUNDLES)
def test_every_part_of_a_bundle_counts(tmp_path: Path, module: str) -> None:
    """All is as in a file of the adapter alone."""
    tensors = {f"{module}.{part}": tensor for part, tensor in BUNDLES[module].items()}
    tensors |= {f"lora_te1_text_model_encoder_layers_0_mlp_fc1.{part}": tensor for part, tensor in LORA.items()}
    write_tensors(tmp_path / "alone.safetensors", tensors, {})
    single = write_single(tmp_path / "base.safetensors", small_unet())
    write_tensors(tmp_path / "bundle.safetensors", read_tensors(single)[0] | tensors, {})
    alone = load_adapter(tmp_path / "alone.safetensors")
    found = run(tmp_path / "bundle.safetensors", tmp_path / "out.safetensors")
    assert len(found.modules) == 2 and distance(found, alone) < 1e-6
    assert found.magnitudes.keys() == alone.magnitudes.keys()


def test_a_part_of_a_bundle_that_nobody_knows_is_named_with_its_model(tmp_path: Path) -> None:
    single = write_single(tmp_path / "base.safetensors", small_unet())
    strange = {f"lora_{QUERY}.{part}": tensor for part, tensor in {**LORA, "gate": torch.ones(1)}.items()}
    write_tensors(tmp_path / "bundle.safetensors", read_tensors(single)[0] | strange, {})
    with pytest.raises(FormatError, match=rf"bundle\.safetensors: the adapter inside .*lora_{QUERY}\.gate"):
        run(tmp_path / "bundle.safetensors", tmp_path / "out.safetensors")


@pytest.mark.parametrize("layout", [write_single, write_folder])
def test_a_bare_model_has_none(tmp_path: Path, layout: Any) -> None:
    with pytest.raises(InputError, match=r"no adapter inside.*distill"):
        run(layout(tmp_path / "model.safetensors", small_unet()), tmp_path / "out.safetensors")


def test_the_job_runs_as_it_stands(tmp_path: Path) -> None:
    out = tmp_path / "extracted.safetensors"
    outcome, _ = run_job(JOBS / "extract.toml", out)
    modules = load_adapter(out).modules
    assert outcome.numbers["modules"] == len(modules) == 5
    assert {(low.rank, low.alpha) for low in modules.values()} == {(2, 2.0)}
    worn, _ = read_tensors(JOBS / "data/models/worn/unet/diffusion_pytorch_model.safetensors")
    path = "mid_block.resnets.0.conv1"
    torch.testing.assert_close(
        modules[f"unet.{path}"].down.float(), worn[f"{path}.lora_A.default.weight"], rtol=1e-3, atol=1e-4
    )

"""diffusers loads our files and computes what they say: the output of W + ΔW, for every kind of layer."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from loractl.formats import load_adapter, save_adapter
from loractl.tensors.adapter import Adapter
from tests.formats.adapters import distance, random_update
from tests.tiny import tiny_sd

COMPONENTS = ("unet", "text_encoder")


def layers(pipeline: StableDiffusionPipeline, component: str) -> dict[str, nn.Module]:
    modules = getattr(pipeline, component).named_modules()
    return {f"{component}.{path}": module for path, module in modules if isinstance(module, nn.Linear | nn.Conv2d)}


def everywhere(pipeline: StableDiffusionPipeline) -> Adapter:
    """An update for each layer, with ranks 2 to 4 and five alphas."""
    generator = torch.Generator().manual_seed(1)
    modules = {path: module for component in COMPONENTS for path, module in layers(pipeline, component).items()}
    return Adapter(
        {
            path: random_update(tuple(module.weight.shape), 2 + index % 3, 0.01 * (1 + index % 5), generator)
            for index, (path, module) in enumerate(modules.items())
        }
    )


@torch.no_grad()
def baked(pipeline: StableDiffusionPipeline, adapter: Adapter) -> StableDiffusionPipeline:
    copied = copy.deepcopy(pipeline)
    for path, low in adapter.modules.items():
        component, _, module = path.partition(".")
        getattr(copied, component).get_submodule(module).weight += low.delta()
    return copied


@torch.no_grad()
def outputs(pipeline: StableDiffusionPipeline) -> tuple[Tensor, Tensor]:
    """What the text encoder and the UNet make of a fixed input."""
    tokens = pipeline.tokenizer("a photo of a dog", padding="max_length", return_tensors="pt").input_ids
    text = pipeline.text_encoder(tokens).last_hidden_state
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    context = torch.randn(1, 77, text.shape[-1], generator=torch.Generator().manual_seed(3))
    return text, pipeline.unet(latents, 500, context).sample


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_computes_what_our_file_says(tmp_path: Path, form: str) -> None:
    pipeline = tiny_sd()
    adapter = everywhere(pipeline)
    save_adapter(tmp_path / "adapter.safetensors", adapter, form, dtype=torch.float32, name="test")
    base, expected = outputs(pipeline), outputs(baked(pipeline, adapter))
    pipeline.load_lora_weights(tmp_path, weight_name="adapter.safetensors")
    for plain, wanted, found in zip(base, expected, outputs(pipeline), strict=True):
        assert (wanted - plain).norm() > 0.1 * plain.norm()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_we_read_what_diffusers_saves(tmp_path: Path) -> None:
    """The ranks and alphas of its own metadata, and its own names of the text encoder's modules."""
    pipeline = tiny_sd()
    adapter = everywhere(pipeline)
    save_adapter(tmp_path / "ours.safetensors", adapter, "diffusers", dtype=torch.float32, name="test")
    pipeline.load_lora_weights(tmp_path, weight_name="ours.safetensors")
    pipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet, adapter_name="default_0"),
        text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder, adapter_name="default_0"),
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default_0"].to_dict(),
        text_encoder_lora_adapter_metadata=pipeline.text_encoder.peft_config["default_0"].to_dict(),
        weight_name="theirs.safetensors",
    )
    assert distance(load_adapter(tmp_path / "theirs.safetensors"), adapter) < 1e-6

"""diffusers loads our files and computes what they say: the output of W + ΔW, for every family and kind of layer."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from loractl.formats import load_adapter, save_adapter
from loractl.formats.names import canonical
from loractl.tensors.adapter import Adapter
from tests.formats.adapters import distance, random_update
from tests.tiny import TINY, WIDTH, tiny

# What diffusers (0.42) itself cannot read in kohya's form: of Flux it takes linear1 apart for the real width alone and
# loses the layers outside the blocks; of Stable Diffusion 3 it reads nothing.
UNREAD = {
    ("flux1", "kohya"): re.compile(r".*single.*\.(attn|proj_mlp).*|.*_embed.*|transformer\.(norm_out|proj_out).*")
}
NOTHING = re.compile(r"(?!)")
PAIRS = [(version, form) for version in TINY for form in ("diffusers", "kohya") if (version, form) != ("sd3", "kohya")]


def components(pipeline: Any) -> dict[str, nn.Module]:
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return {name: part for name in names if (part := getattr(pipeline, name, None)) is not None}


def layers(pipeline: Any) -> dict[str, nn.Module]:
    """Path in memory → layer, of all that an adapter can change."""
    return {
        canonical(f"{name}.{path}"): layer
        for name, part in components(pipeline).items()
        for path, layer in part.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def everywhere(pipeline: Any, version: str, form: str) -> Adapter:
    """An update for each layer that can be read, with ranks 2 to 4 and five alphas."""
    generator = torch.Generator().manual_seed(1)
    unread = UNREAD.get((version, form), NOTHING)
    modules = {
        path: random_update(tuple(layer.weight.shape), 2 + index % 3, 0.01 * (1 + index % 5), generator)
        for index, (path, layer) in enumerate(layers(pipeline).items())
        if not unread.fullmatch(path)
    }
    return Adapter(modules, {"ss_base_model_version": version})


@torch.no_grad()
def baked(pipeline: Any, adapter: Adapter) -> Any:
    copied = copy.copy(pipeline)
    for name, part in components(pipeline).items():
        setattr(copied, name, copy.deepcopy(part))
    own = layers(copied)
    for path, low in adapter.modules.items():
        own[path].weight += low.delta()
    return copied


@torch.no_grad()
def outputs(pipeline: Any, version: str) -> list[Tensor]:
    """What the text encoders and the denoiser make of fixed inputs."""
    tokens = torch.arange(77)[None]
    texts = [part(tokens)[0] for name, part in components(pipeline).items() if name.startswith("text")]
    return [*texts, denoised(pipeline, version)]


def denoised(pipeline: Any, version: str) -> Tensor:
    generator = torch.Generator().manual_seed(2)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if version == "flux1":
        ids, text_ids = torch.zeros(16, 3), torch.zeros(5, 3)
        text, pooled, time = noise(1, 5, WIDTH), noise(1, WIDTH), torch.tensor([0.5])
        guidance = torch.tensor([3.5])
        return pipeline.transformer(noise(1, 16, 16), text, pooled, time, ids, text_ids, guidance)[0]  # type: ignore[no-any-return]
    if version == "sd3":
        text, pooled = noise(1, 5, WIDTH), noise(1, WIDTH)
        return pipeline.transformer(noise(1, 16, 8, 8), text, pooled, torch.tensor([500]))[0]  # type: ignore[no-any-return]
    added = {"text_embeds": noise(1, WIDTH), "time_ids": noise(1, 6)}
    context = noise(1, 77, pipeline.unet.config.cross_attention_dim)
    return pipeline.unet(noise(1, 4, 8, 8), 500, context, added_cond_kwargs=added).sample  # type: ignore[no-any-return]


@pytest.mark.parametrize(("version", "form"), PAIRS)
def test_diffusers_computes_what_our_file_says(tmp_path: Path, version: str, form: str) -> None:
    pipeline = tiny(version)
    adapter = everywhere(pipeline, version, form)
    save_adapter(tmp_path / "adapter.safetensors", adapter, form, dtype=torch.float32, name="test")
    base, expected = outputs(pipeline, version), outputs(baked(pipeline, adapter), version)
    pipeline.load_lora_weights(tmp_path, weight_name="adapter.safetensors")
    for plain, wanted, found in zip(base, expected, outputs(pipeline, version), strict=True):
        assert (wanted - plain).norm() > 0.01 * plain.norm()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", TINY)
def test_kohyas_form_holds_every_layer_of_every_family(tmp_path: Path, version: str) -> None:
    adapter = everywhere(tiny(version), version, "all")
    save_adapter(tmp_path / "a", adapter, "kohya", dtype=torch.float32, name="test")
    assert distance(load_adapter(tmp_path / "a"), adapter) < 1e-6


def test_diffusers_takes_fluxs_fused_layers_apart_as_we_put_them_together(tmp_path: Path) -> None:
    """At the real width, the only one that diffusers splits linear1 by; updates with factors of their own."""
    block, wide, width = "transformer.single_transformer_blocks.0", 12288, 3072
    shapes = {"attn.to_q": (width, width), "attn.to_k": (width, width), "attn.to_v": (width, width)}
    shapes |= {"proj_mlp": (wide, width), "proj_out": (width, width + wide), "norm.linear": (3 * width, width)}
    generator = torch.Generator().manual_seed(1)
    modules = {f"{block}.{name}": random_update(shape, 2, 2.0, generator) for name, shape in shapes.items()}
    adapter = Adapter(modules, {"ss_base_model_version": "flux1"})
    save_adapter(tmp_path / "a.safetensors", adapter, "kohya", dtype=torch.float32, name="a")
    theirs = FluxPipeline.lora_state_dict(tmp_path / "a.safetensors")
    save_file({key: tensor.contiguous() for key, tensor in theirs.items()}, tmp_path / "b.safetensors")
    found = load_adapter(tmp_path / "b.safetensors")
    assert found.modules.keys() == modules.keys()
    assert distance(found, adapter) < 1e-5


def test_we_read_what_diffusers_saves(tmp_path: Path) -> None:
    """The ranks and alphas of its own metadata, and its own names of the text encoder's modules."""
    pipeline = tiny("sd_v1")
    adapter = everywhere(pipeline, "sd_v1", "diffusers")
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

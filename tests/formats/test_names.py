"""Flattened names of modules can be read back, for every model there is a name for."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from loractl.formats import kohya
from loractl.formats.modules import Source
from loractl.formats.names import WORDS, canonical, flatten, nested, unflatten
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.tiny import tiny_sd

Pieces = tuple[str, ...]

UNETS = {
    "SD 1.5": {"cross_attention_dim": 768},
    "SD 2.1": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "SDXL": {
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
}

T5_XXL = {  # google/t5-v1_1-xxl, config.json, whose encoder is in stable-diffusion-3-medium and in FLUX.1-dev
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
}


def layers(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def text_layers(kind: type[nn.Module], width: int, depth: int) -> list[str]:
    with torch.device("meta"):
        config = CLIPTextConfig(hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64)
        return layers(kind(config))


def dangling(shorter: Pieces, longer: Pieces) -> set[Pieces]:
    return {longer[len(shorter) :]} if shorter != longer and longer[: len(shorter)] == shorter else set()


@pytest.mark.parametrize("network", WORDS)
def test_no_flattened_name_reads_in_two_ways(network: str) -> None:
    """Sardinas and Patterson (1953): what is made of words reads in one way iff no dangling suffix is itself a word."""
    words = {tuple(word.split("_")) for word in (*WORDS[network], "0", "1", "2")}
    suffixes = {suffix for a in words for b in words for suffix in dangling(a, b)}
    seen: set[Pieces] = set()
    while suffixes - seen:
        seen |= suffixes
        suffixes = {rest for s in suffixes for w in words for rest in dangling(s, w) | dangling(w, s)}
    assert not seen & words


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_every_layer_of_a_unet_can_be_read_back(config: dict[str, object]) -> None:
    with torch.device("meta"):
        paths = layers(UNet2DConditionModel(**config))
    assert len(paths) > 250
    assert [unflatten("unet", flatten(path)) for path in paths] == paths


@pytest.mark.parametrize(
    ("kind", "width", "depth"),
    [(CLIPTextModel, 768, 12), (CLIPTextModel, 1024, 23), (CLIPTextModelWithProjection, 1280, 32)],
)
def test_every_layer_of_a_text_encoder_can_be_read_back(kind: type[nn.Module], width: int, depth: int) -> None:
    paths = [canonical(f"text_encoder.{path}") for path in text_layers(kind, width, depth)]
    assert len(paths) in (6 * depth, 6 * depth + 1)
    assert not any("text_model" in path for path in paths)
    written = [nested(path) for path in paths]
    assert all(path.startswith("text_encoder.text_model.") for path in written if "layers" in path)
    for path in written:
        module = path.removeprefix("text_encoder.")
        assert unflatten("clip", flatten(module)) == module
    assert [canonical(path) for path in written] == paths


@pytest.mark.parametrize(
    ("base", "component", "others"), [("flux1", "text_encoder_2", ["te2"]), ("sd3", "text_encoder_3", [])]
)
def test_every_layer_of_t5_xxl_has_one_name_in_kohyas_files(base: str, component: str, others: list[str]) -> None:
    """te3 in both, and beside Flux it is read as te2 too. A denoiser's module is there to tell which base it is."""
    with torch.device("meta"):
        paths = layers(T5EncoderModel(T5Config(**T5_XXL)))
    assert len(paths) == 24 * 7
    assert [unflatten("t5", flatten(path)) for path in paths] == paths
    low = LowRank(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    modules = dict.fromkeys((f"{component}.{path}" for path in paths), low)
    denoiser = {"transformer.transformer_blocks.0.attn.to_out.0": low}
    written, _ = kohya.write(Adapter({**modules, **denoiser}, {"ss_base_model_version": base}), torch.float32, "t5")
    names = {key.partition(".")[0] for key in written if not key.startswith("lora_unet_")}
    assert names == {f"lora_te3_{flatten(path)}" for path in paths} and len(names) == len(paths)
    for prefix in ("te3", *others):
        tensors = {key.replace("lora_te3_", f"lora_{prefix}_"): tensor for key, tensor in written.items()}
        found = kohya.read(Source("t5", tensors, {}))
        assert found.modules.keys() == modules.keys() | denoiser.keys() and not found.unknown


def test_every_layer_of_the_tiny_pipeline_can_be_read_back() -> None:
    pipeline = tiny_sd()
    for component, network in (("unet", "unet"), ("text_encoder", "clip")):
        paths = layers(getattr(pipeline, component))
        assert paths
        assert [unflatten(network, flatten(path)) for path in paths] == paths


@pytest.mark.parametrize("name", ["", "_", "to_q_", "_to_q", "down_blocks__0", "blocks_0", "to_q_lora", "0x", "q_proj"])
def test_what_is_no_name_is_not_read(name: str) -> None:
    assert unflatten("unet", name) is None

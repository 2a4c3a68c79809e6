"""The numbers of the public SD 1.5 configuration, on the meta device: no weights are needed to count."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from loractl.inject.inject import adapter_parameters, inject
from loractl.inject.targets import resolve

CONFIGS = Path(__file__).parents[1] / "data" / "sd15"


def unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(json.loads((CONFIGS / "unet.json").read_text()))


def text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(**json.loads((CONFIGS / "text_encoder.json").read_text()))
    with torch.device("meta"):
        return CLIPTextModel(config)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def inject_both(rank: int) -> tuple[int, int]:
    """Trainable parameters of the UNet (attention+geglu) and of the text encoder."""
    numbers = []
    for model, preset in ((unet(), "attention+geglu"), (text_encoder(), "text-encoder")):
        inject(model, resolve(model, [preset], rank))
        numbers.append(sum(parameter.numel() for parameter in adapter_parameters(model).values()))
    return numbers[0], numbers[1]


def test_modules() -> None:
    model = unet()
    assert len(resolve(model, ["attention"], 4)) == 128
    assert len(resolve(model, ["attention+geglu"], 4)) == 144
    kinds = [type(model.get_submodule(path)) for path in resolve(model, ["extended"], 4)]
    assert (kinds.count(nn.Linear), kinds.count(nn.Conv2d), len(kinds)) == (166, 58, 224)
    assert len(resolve(text_encoder(), ["text-encoder"], 4)) == 48


@pytest.mark.parametrize(("rank", "megabytes"), [(4, 3.08), (8, 6.17), (64, 49.3)])
def test_trainable_parameters(rank: int, megabytes: float) -> None:
    trainable = sum(inject_both(rank))
    assert trainable == 1_541_376 * rank // 4
    assert trainable * 2 / 1e6 == pytest.approx(megabytes, rel=2e-3), "two bytes each in fp16"


def test_how_many_times_fewer() -> None:
    """637 × fewer than UNet and text encoder (the VAE does not count), 155 × fewer than the UNet's adapted matrices."""
    model, encoder = unet(), text_encoder()
    of_unet, of_encoder = inject_both(4)
    assert (count(model), count(encoder)) == (859_520_964, 123_060_480), "the published sizes"
    assert round((count(model) + count(encoder)) / (of_unet + of_encoder)) == 637
    adapted = sum(model.get_submodule(path).weight.numel() for path in resolve(model, ["attention+geglu"], 4))
    assert round(adapted / of_unet) == 155

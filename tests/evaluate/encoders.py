"""Encoders of random weights, saved as their real sisters are, and a classifier with a head."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from tests.tiny import tiny_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION: dict[str, Any] = {**SIZES, "image_size": 16, "patch_size": 8}
SQUARE = {"height": 16, "width": 16}


def save_clip(folder: Path) -> CLIPModel:
    tokenizer = tiny_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**SIZES, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)).eval()
    parts = (model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE))
    return _save(folder, *parts)


def save_siglip(folder: Path) -> SiglipModel:
    tokenizer = tiny_tokenizer()
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "projection_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).eval()
    return _save(folder, model, tokenizer, SiglipImageProcessorPil(size=SQUARE))


def save_dinov2(folder: Path) -> Dinov2Model:
    model = Dinov2Model(Dinov2Config(**VISION)).eval()
    return _save(folder, model, BitImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE))


def _save(folder: Path, model: Any, *parts: Any) -> Any:
    for part in (model, *parts):
        part.save_pretrained(folder)
    return model


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)) for _ in range(count)]


class TinyClassifier(nn.Module):
    """Mean color → four features → ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(4, 10))

    def forward(self, pictures: Tensor) -> Tensor:
        classes: Tensor = self.classifier(self.body(pictures.mean((2, 3))))
        return classes


def tiny_classifier() -> TinyClassifier:
    torch.manual_seed(0)
    return TinyClassifier()


def no_network() -> str:
    return "nothing"

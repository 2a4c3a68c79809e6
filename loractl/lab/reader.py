"""Reads a lab picture back: a small convolutional network with one head per attribute.

Because a program can say what a picture shows, fidelity, prompt following and forgetting are measured on the lab.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from loractl.data.images import to_tensor
from loractl.lab.scenes import ATTRIBUTES

WEIGHTS = Path(__file__).parent / "weights" / "reader.safetensors"
WIDTHS = (3, 32, 48, 64, 96)


class Reader(nn.Module):
    """Pictures (n, 3, 64, 64) in [-1, 1] → logits (n, number of values) for each attribute."""

    def __init__(self) -> None:
        super().__init__()
        stages = [_stage(*widths, kernel=5 if widths[0] == 3 else 3) for widths in pairwise(WIDTHS)]
        self.features = nn.Sequential(*stages)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(WIDTHS[-1] * 16, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.features(pictures).flatten(1)
        return {name: head(features) for name, head in self.heads.items()}


def _stage(width_in: int, width_out: int, kernel: int) -> nn.Sequential:
    """Halves the resolution."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, kernel, stride=2, padding=kernel // 2),
        nn.BatchNorm2d(width_out),
        nn.ReLU(),
        nn.Conv2d(width_out, width_out, 3, padding=1),
        nn.BatchNorm2d(width_out),
        nn.ReLU(),
    )


def load_reader(path: Path = WEIGHTS) -> Reader:
    reader = Reader()
    reader.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, strict=False)
    return reader.eval()


@torch.inference_mode()
def read(reader: Reader, pictures: Sequence[Image.Image]) -> list[dict[str, str]]:
    """What each picture shows, as the reader sees it: attribute → value. Critter attributes are guesses on other
    kinds.
    """
    if not pictures:
        return []
    logits = reader(to_tensor(pictures))
    best = {name: values.argmax(1).tolist() for name, values in logits.items()}
    return [{name: ATTRIBUTES[name][best[name][i]] for name in ATTRIBUTES} for i in range(len(pictures))]

"""One trained adapter for each family, made when a test first asks for it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loractl.families.family import Family
from loractl.families.flux2 import Flux2Klein
from loractl.families.pipeline import load_model
from loractl.families.sana import Sana
from loractl.formats import save_adapter
from loractl.inject.inject import adapter_parameters, collect, inject
from loractl.inject.targets import resolve
from loractl.tensors.adapter import Adapter
from loractl.train.batches import Batch
from loractl.train.loss import denoising_errors
from tests.families.tiny import whole

PROMPT = "a photo of sks dog"
FILE = "pytorch_lora_weights.safetensors"
SHORT = (
    "train.steps=3",
    "train.batch_size=1",
    "data.resolution=64",
    "sample.size=64",
    "sample.steps=1",
    "sample.seeds=[0]",
    "sample.prompts=['a dog']",
    "sample.at_start=false",
    "output.dtype=fp32",
)
"""Settings of a short job on 64 × 64 pictures."""


@dataclass(frozen=True)
class Trained:
    """A model's folder, the losses of 25 steps on one batch, what they made of the adapter, and one of its pictures."""

    folder: Path
    losses: list[float]
    adapter: Adapter
    picture: Tensor

    @property
    def file(self) -> Path:
        """The adapter in diffusers' form."""
        return self.folder / "adapter" / FILE


Train = Callable[[str], Trained]
Folder = Callable[[str], Path]


@pytest.fixture(scope="session", autouse=True)
def short_texts() -> Iterator[None]:
    """Where tokens are letters, Sana's instruction is two thousand of them, and Flux.2 has 27 layers for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sana, "instruction", None)
        patch.setattr(Flux2Klein, "text_length", 64)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Train:
    return cache(lambda name: train(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A model's, saved when a test first asks for it."""

    def saved(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        whole(name).save_pretrained(path)
        return path

    return cache(saved)


def train(name: str, folder: Path) -> Trained:
    whole(name).save_pretrained(folder)
    model = load(folder)
    patterns = model.patterns("attention")
    inject(model.denoiser, resolve(model.denoiser, patterns, 4), generator=torch.Generator().manual_seed(0))
    parameters = list(adapter_parameters(model.denoiser).values())
    losses = descend(model, parameters, encode_once=True)
    modules = {f"{model.denoiser_name}.{path}": low for path, low in collect(model.denoiser).items()}
    adapter = Adapter(modules, {"ss_base_model_version": model.version} if model.version else {})
    done = Trained(folder, losses, adapter, paint(model))
    done.file.parent.mkdir()
    save_adapter(done.file, adapter, "diffusers", dtype=torch.float32, name=name)
    return done


def load(folder: Path) -> Family:
    return load_model(str(folder), torch.device("cpu"), torch.float32)


def paint(model: Family, prompt: str = PROMPT) -> Tensor:
    """(1, 3, 64, 64)."""
    made: Tensor = model.paint(
        prompt=[prompt],
        negative_prompt=[""],
        num_inference_steps=2,
        guidance_scale=model.guidance,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(3)],
        output_type="pt",
    ).images
    return made


def descend(
    model: Family, parameters: list[torch.nn.Parameter], encode_once: bool, steps: int = 25, lr: float = 2e-2
) -> list[float]:
    """The losses of some steps of AdamW on one batch of one picture."""
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = model.encode_pictures(pixels).mean
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    batch = Batch(latents, noise, noise, torch.tensor([0.6]), [PROMPT if encode_once else "a photo of <rex>"])
    with torch.no_grad():
        kept = model.encode_text(batch.captions)
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    losses = []
    for _ in range(steps):
        loss = denoising_errors(model, batch, kept if encode_once else model.encode_text(batch.captions)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses

"""Made one.safetensors and two.safetensors here: random adapters for the lab's UNet, to try the file tools with.

`python jobs/data/adapters/make.py` writes them anew, byte for byte. They have other ranks, alphas, modules and formats.
"""

from pathlib import Path

import torch

from loractl.families.pipeline import load_model
from loractl.formats import FormatName, save_adapter
from loractl.inject.targets import resolve
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

FOLDER = Path(__file__).parent


def random_adapter(targets: list[str], rank: int, alpha: float, seed: int) -> Adapter:
    """Normal factors that give ΔW a tenth of the size that a layer's weight starts with."""
    unet = load_model("lab", torch.device("cpu"), torch.float32).components["unet"]
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for path in resolve(unet, targets, rank):
        out, wide = unet.get_submodule(path).weight.shape
        down = torch.randn(rank, wide, generator=generator) / wide**0.5
        up = torch.randn(out, rank, generator=generator) / 10
        modules[f"unet.{path}"] = LowRank(down, up, alpha)
    return Adapter(modules)


def write(name: str, adapter: Adapter, form: FormatName) -> None:
    save_adapter(FOLDER / f"{name}.safetensors", adapter, form, name=name, overwrite=True)


if __name__ == "__main__":
    write("one", random_adapter(["attn2.to_k", "attn2.to_v"], rank=4, alpha=2.0, seed=1), "kohya")
    write("two", random_adapter(["attn2.to_q", "attn2.to_k"], rank=2, alpha=2.0, seed=2), "diffusers")

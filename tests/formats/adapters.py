"""Random adapters for the tests of formats."""

from collections.abc import Mapping
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from loractl.formats.safefile import read_tensors
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

BLOCK = "unet.down_blocks.0.attentions.0"
QUERY = f"{BLOCK}.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
# Paths and weights' shapes (out, in, *k): linear, convolution, 1×1 convolution, text encoder.
SHAPES: Mapping[str, tuple[int, ...]] = {
    QUERY: (8, 8),
    f"{BLOCK}.transformer_blocks.0.attn2.to_k": (8, 12),
    f"{BLOCK}.transformer_blocks.0.attn2.to_out.0": (8, 8),
    f"{BLOCK}.transformer_blocks.0.ff.net.0.proj": (16, 8),
    f"{BLOCK}.proj_in": (8, 8, 1, 1),
    "unet.down_blocks.0.resnets.1.conv1": (6, 8, 3, 3),
    "unet.mid_block.resnets.0.time_emb_proj": (6, 5),
    "text_encoder.encoder.layers.0.self_attn.q_proj": (12, 12),
    "text_encoder.encoder.layers.11.mlp.fc2": (12, 20),
}


def random_update(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> LowRank:
    down = torch.randn(rank, *shape[1:], generator=generator)
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
    return LowRank(down, up, alpha)


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    """Some of the modules above, each with its own rank and alpha."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    paths = draw(st.lists(st.sampled_from(list(SHAPES)), min_size=1, unique=True))
    ranks, alphas = st.integers(1, 6), st.sampled_from([0.5, 1.0, 3.0, 4.0, 8.0]) | st.floats(0.1, 64)
    return Adapter({path: random_update(SHAPES[path], draw(ranks), draw(alphas), generator) for path in paths})


def example(alphas: tuple[float, ...] = (2.0, 3.0), metadata: dict[str, str] | None = None) -> Adapter:
    """All modules, with ranks 1 to 3 and the given alphas in turn."""
    generator = torch.Generator().manual_seed(0)
    modules = {
        path: random_update(shape, 1 + index % 3, alphas[index % len(alphas)], generator)
        for index, (path, shape) in enumerate(SHAPES.items())
    }
    return Adapter(modules, metadata or {})


def distance(a: Adapter, b: Adapter) -> float:
    """The largest relative difference between the updates of two adapters of the same modules."""
    assert a.modules.keys() == b.modules.keys()
    return max(
        relative(a.modules[path].to(torch.float64).delta(), b.modules[path].to(torch.float64).delta())
        for path in a.modules
    )


def are_equal(a: Adapter, b: Adapter) -> bool:
    """Whether two adapters have the same modules, with the same factors and alphas."""
    pairs = [(a.modules[path], b.modules[path]) for path in a.modules if path in b.modules]
    same = (x.alpha == y.alpha and torch.equal(x.down, y.down) and torch.equal(x.up, y.up) for x, y in pairs)
    return a.modules.keys() == b.modules.keys() and all(same)


def relative(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


def replace_tensors(path: Path, **changes: Tensor | None) -> None:
    """Writes the file anew with tensors changed, added or, for None, removed."""
    tensors, metadata = read_tensors(path)
    changed = {key: tensor.clone() for key, tensor in tensors.items()} | changes
    save_file({key: tensor for key, tensor in changed.items() if tensor is not None}, path, metadata)

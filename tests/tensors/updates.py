"""Random low-rank updates for the tests of algebra."""

from collections.abc import Mapping

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from loractl.tensors.lowrank import LowRank

patient = settings(deadline=None, max_examples=50)  # the first call of a kernel takes its time

# Weights' shapes (out, in, *k): wide, tall, convolution, 1×1 convolution.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "unet.wide": (5, 9),
    "unet.tall": (9, 4),
    "unet.conv": (6, 3, 3, 3),
    "unet.point": (4, 7, 1, 1),
}


def random_update(shape: tuple[int, ...], rank: int, alpha: float, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator)
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
    return LowRank(down, up, alpha)


@st.composite
def updates(draw: st.DrawFn, shape: tuple[int, ...] | None = None) -> LowRank:
    """Of any shape above or of the given one, also of a rank beyond full."""
    shape = shape or draw(st.sampled_from(list(SHAPES.values())))
    alpha = draw(st.sampled_from([0.5, 1.0, 4.0, 16.0]))
    return random_update(shape, draw(st.integers(1, 6)), alpha, draw(st.integers(0, 2**32)))


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, LowRank]:
    """Some of the modules above, each of its own rank and alpha."""
    paths = draw(st.lists(st.sampled_from(list(SHAPES)), min_size=1, unique=True))
    return {path: draw(updates(SHAPES[path])) for path in paths}


def delta(low: LowRank | None, shape: tuple[int, ...] = ()) -> Tensor:
    """ΔW in fp64; zeros for a module that is not there."""
    return torch.zeros(shape, dtype=torch.float64) if low is None else low.to(torch.float64).delta()


def turned(low: LowRank, seed: int = 0) -> LowRank:
    """The same ΔW by other factors: (up·G, G⁻¹·down)."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(low.rank, low.rank, generator=generator)).Q
    gauge = basis * torch.linspace(0.5, 2.0, low.rank)
    up = (low.up.flatten(1) @ gauge).view_as(low.up)
    down = torch.linalg.solve(gauge, low.down.flatten(1)).view_as(low.down)
    return LowRank(down, up, low.alpha)

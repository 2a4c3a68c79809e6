"""A small network with every kind of layer, two adapters for it, and their merge by the definition."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from loractl.sample.stack import Change, Plan, Stack
from loractl.tensors.lowrank import LowRank

CPU = torch.device("cpu")
RANKS = (2, 3)  # of the two adapters


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.linear = nn.Linear(6, 5)
        self.free = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.free(self.linear(self.grouped(self.conv(x)).movedim(1, -1)))
        return y


def make(dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> tuple[Net, Plan, dict[str, list[LowRank]]]:
    """A network, two adapters for three of its layers, and the plan of both; the second has two slots."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net().to(device, dtype).eval().requires_grad_(False)
        updates, stacks = {}, {}
        for path, slots in (("conv", (0, 1)), ("grouped", (0, 2)), ("linear", (0, 1))):
            weight = net.get_submodule(path).weight
            assert isinstance(weight, Tensor)
            ones = [1] * (weight.ndim - 2)
            updates[path] = [
                LowRank(torch.randn(rank, *weight.shape[1:]) / 9, torch.randn(len(weight), rank, *ones), 1.0)
                for rank in RANKS
            ]
            changes = [(slot, Change.of(low)) for slot, low in zip(slots, updates[path], strict=True)]
            stacks[f"{path}.weight"] = Stack.of(changes, device)
        sizes = {name: net.get_parameter(name).nbytes for name in stacks}
    return net, Plan.of("unet", stacks, MEANINGS, sizes), updates


MEANINGS = ((1, "a"), (2, "b"), (2, "b2"))
VECTOR = (0.7, -0.4, 0.2)
SLOTS = {"conv": (0, 1), "grouped": (0, 2), "linear": (0, 1)}
X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def merged(net: Net, updates: dict[str, list[LowRank]], vector: Sequence[float]) -> None:
    """The static merge, by the definition."""
    for path, lows in updates.items():
        weight = net.get_parameter(f"{path}.weight")
        total = sum((vector[slot] * low.delta() for slot, low in zip(SLOTS[path], lows, strict=True)), torch.zeros(()))
        weight.data = (weight.float() + total).to(weight.dtype)

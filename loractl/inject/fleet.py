"""The adapters of many subjects on one frozen model: in a batch, every sample goes through its own subject's.

    x (g·per, …) ──┬── base, frozen, for all samples at once ─────────────────────┬── +  y
                   └── group i: down[rows[i]] (r, in, *k), up[rows[i]] (out, r) ──┘

The factors of K subjects are one tensor, down (K, r, in, *k) and up (K, out, r, *1), and those of one subject are its
rows: so a subject's optimizer steps what the batch multiplies with, and no gradient is copied. Outside of a batch the
model wears one subject's adapter, and computes to the bit what it would if there were no others.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractl.device import upload
from loractl.inject.inject import adapter, remove
from loractl.inject.layers import Layer, LoraFactors, LoraInjected, LoraInjectedConv2d, LoraInjectedLinear
from loractl.inject.targets import injectable
from loractl.tensors.lowrank import LowRank

NAME = "default"  # of the adapter that the model wears


@dataclass(frozen=True)
class Seats:
    """Which subject the samples of a batch belong to: `per` in a row to each of `rows` (g,); without rows, to each of
    all subjects.
    """

    rows: Tensor | None
    per: int

    def of(self, stacked: Tensor) -> Tensor:
        """What the groups go through, (g, …) of (K, …)."""
        return stacked if self.rows is None else stacked.index_select(0, self.rows)


def seats(counts: Sequence[int], device: torch.device) -> Seats:
    """For a batch that has so many samples of each subject, side by side and in order; a subject may have none."""
    per = math.gcd(*counts)
    rows = [subject for subject, count in enumerate(counts) for _ in range(count // per)]
    return Seats(None if rows == [*range(len(counts))] else upload(torch.tensor(rows), device), per)


class Fleet:
    """The adapters, of the same modules and ranks, that `take_off` took from these networks, one subject after another.

    From here on `adapters[k][component]` are rows of what all have in common. In a batch of many every adapter counts
    whole: weights at run time are for the one that is worn.
    """

    def __init__(self, networks: Mapping[str, nn.Module], adapters: Sequence[Mapping[str, "Adapter"]]) -> None:
        self.seats: Seats | None = None
        self.layers: list[Routed] = []
        for component, network in networks.items():
            layers = injectable(network)
            for path in adapters[0][component]:
                layer = _route(layers[path], [each[component][path] for each in adapters], self)
                network.set_submodule(path, layer)
                self.layers.append(layer)
        self.wear(0)

    def wear(self, subject: int) -> None:
        """Gives the model this subject's adapter alone, under the name "default"."""
        for layer in self.layers:
            layer.adapters[NAME] = layer.crew[subject]

    @contextmanager
    def seated(self, counts: Sequence[int]) -> Iterator[None]:
        """Inside, the model takes batches with so many samples of each subject, see `seats`."""
        self.seats = seats(counts, self.layers[0].weight.device)
        try:
            yield
        finally:
            self.seats = None

    def forget_gradients(self) -> None:
        """Sets the gradients of all subjects to zero and leaves them where they are."""
        torch._foreach_zero_([gradient for layer in self.layers for gradient in layer.gradients])


Adapter = Mapping[str, LoraFactors]  # path → factors, live


def take_off(network: nn.Module) -> dict[str, LoraFactors]:
    """The adapter that the network wears, path → factors, live; the network is bare again."""
    factors = adapter(network, NAME)
    remove(network, NAME)
    return factors


class Routed(LoraInjected):
    """A layer that knows the adapters of all subjects (`crew`) and takes from the fleet who sits where."""

    def __init__(self, base: nn.Linear | nn.Conv2d, crew: Sequence[LoraFactors], fleet: Fleet) -> None:
        super().__init__(base)
        self.crew, self.fleet, self.alpha = tuple(crew), fleet, crew[0].alpha
        # In tuples, so that they are no parameters of the model: a subject's own are its rows.
        self.stacks = _stack([each.down for each in crew]), _stack([each.up for each in crew])

    @property
    def gradients(self) -> list[Tensor]:
        return [stack.grad for stack in self.stacks if stack.grad is not None]

    def forward(self, x: Tensor) -> Tensor:
        seats = self.fleet.seats
        if seats is None:
            return super().forward(x)
        down, up = self.stacks
        if any(each.keep is not None for each in self.crew):
            down = down * torch.stack([_kept(each) for each in self.crew])
        scale = self.alpha / down.shape[1]
        return self.through(x, seats.of(down).to(x.dtype), (scale * seats.of(up)).to(x.dtype))

    def through(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Samples of g groups, side by side, through the base and their factors, down (g, r, in, *k), up (g, out, r,
        *1).
        """
        raise NotImplementedError


class RoutedLinear(Routed, LoraInjectedLinear):
    def through(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Two batched products; x (g·per, …, in)."""
        out: Tensor = self.base(x)
        groups = len(down)
        hidden = torch.bmm(x.reshape(groups, -1, x.shape[-1]), down.mT)  # (g, per·…, r)
        return torch.baddbmm(out.reshape(groups, -1, out.shape[-1]), hidden, up.mT).view(out.shape)


class RoutedConv2d(Routed, LoraInjectedConv2d):
    def through(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Group by group on a CPU, where that is as fast as anything and takes every kind of padding; else as grouped
        convolutions, which are two launches for any number of subjects.
        """
        if self.groups > 1:  # the groups of one layer share `down`, so there is no branch
            return self._each(x, [(self.base.weight + self._delta(*factors)) for factors in zip(down, up, strict=True)])
        out: Tensor = self.base(x)
        if x.device.type == "cpu" or self.padding_mode != "zeros":
            hidden = self._each(x, down.unbind(), bias=False).split(len(x) // len(down))
            return out + torch.cat([F.conv2d(part, own) for part, own in zip(hidden, up.unbind(), strict=True)])
        return out + self._grouped(x, down, up)

    def _each(self, x: Tensor, weights: Sequence[Tensor], bias: bool = True) -> Tensor:
        """The layer's operation with a weight for each group of samples."""
        parts = zip(x.split(len(x) // len(weights)), weights, strict=True)
        return torch.cat([self.op(part, weight, self.base.bias if bias else None) for part, weight in parts])

    def _grouped(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """The samples' groups become groups of channels (per, g·in, h, w), and channels' groups samples again."""
        groups = len(down)
        wide = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)
        how = (None, self.stride, self.padding, self.dilation, groups)
        hidden = F.conv2d(wide, down.flatten(0, 1), *how)  # (per, g·r, h', w')
        wide = F.conv2d(hidden, up.flatten(0, 1), groups=groups)
        delta: Tensor = wide.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)
        return delta

    def _delta(self, down: Tensor, up: Tensor) -> Tensor:
        return LowRank(down, up, down.shape[0]).delta()  # `up` has the scale in it


def _route(layer: Layer, crew: Sequence[LoraFactors], fleet: Fleet) -> Routed:
    if isinstance(layer, LoraInjected):
        raise TypeError(f"{type(layer).__name__}: the fleet's model must be bare")
    return RoutedConv2d(layer, crew, fleet) if isinstance(layer, nn.Conv2d) else RoutedLinear(layer, crew, fleet)


def _stack(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One tensor that asks for a gradient; the parameters become its rows, and their gradients rows of its own."""
    stack = torch.stack([parameter.detach() for parameter in parameters]).requires_grad_()
    stack.grad = torch.zeros_like(stack)
    for row, gradient, parameter in zip(stack.detach(), stack.grad, parameters, strict=True):
        parameter.data, parameter.grad = row, gradient
    return stack


def _kept(factors: LoraFactors) -> Tensor:
    """The dropout mask of one subject (r, in, *1): ones where nothing is left out."""
    rank, inner, *kernel = factors.down.shape
    return factors.down.new_ones(rank, inner, *(1 for _ in kernel)) if factors.keep is None else factors.keep

"""The original's two wrapper layers, over ours: op(x, W + scale · up · diag(selector) · down), in training with dropout
of the update's output.

A wrapper holds one adapter, under the name "default" and with alpha = rank, so what `loractl.inject` does by that name
works on it as well. `scale` is the adapter's weight at run time, and the selector stands where dropout of the core
would: both are no part of the adapter until it is saved or collapsed.
"""

from collections.abc import Iterator
from operator import attrgetter
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from loractl.errors import JobError, MismatchError
from loractl.inject import layers
from loractl.inject.layers import LoraFactors, LoraInjected
from loractl.tensors.lowrank import LowRank

NAME = "default"

W = TypeVar("W", bound="Wrapper")


class Factor:
    """`lora_up` or `lora_down`: has a `weight` (out, r, *1) or (r, in, *k), live, and is otherwise no module."""

    def __init__(self, factors: LoraFactors, part: Literal["up", "down"]) -> None:
        self._factors, self._part = factors, part

    @property
    def weight(self) -> nn.Parameter:
        return cast(nn.Parameter, getattr(self._factors, self._part))

    @weight.setter
    def weight(self, weight: nn.Parameter) -> None:
        setattr(self._factors, self._part, weight)
        self._factors.alpha = float(len(self._factors.down))

    def parameters(self) -> Iterator[nn.Parameter]:
        yield self.weight


class Wrapper(LoraInjected):
    """What the two have in common. `dropout` is the original's: of entries of the update's output."""

    dropout: nn.Dropout

    @classmethod
    def around(cls: type[W], layer: nn.Module) -> W:
        """The wrapper of a layer that exists, without an adapter as yet."""
        wrapper = cls.__new__(cls)
        super(Wrapper, wrapper).__init__(cast("nn.Linear | nn.Conv2d", layer))
        wrapper.dropout = nn.Dropout(0.0)
        return wrapper.train(layer.training)

    def hold(self, low: LowRank, scale: float = 1.0, dropout_p: float = 0.0) -> None:
        """Has this adapter from now on, in the place of what it had."""
        own = LowRank(low.down, low.scale * low.up, float(low.rank))
        self.adapters[NAME] = LoraFactors(own, self.weight.device)
        self.scale, self.dropout.p = scale, dropout_p

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.dropout.p):
            return super().forward(x)
        update = self.op(x, self.delta().to(x.dtype), None)
        return cast(Tensor, self.base(x) + self.dropout(update))

    @property
    def lora_up(self) -> Factor:
        return Factor(self._factors, "up")

    @property
    def lora_down(self) -> Factor:
        return Factor(self._factors, "down")

    @property
    def r(self) -> int:
        return len(self._factors.down)

    @property
    def scale(self) -> float:
        return float(self._factors.weight)

    @scale.setter
    def scale(self, scale: float) -> None:
        self._factors.weight.fill_(scale)

    @property
    def selector(self) -> Tensor:
        """The diagonal (r,) between `lora_down` and `lora_up`: ones, until `set_selector_from_diag`."""
        keep, down = self._factors.keep, self._factors.down
        return down.new_ones(self.r) if keep is None else keep.flatten()

    def set_selector_from_diag(self, diag: Tensor) -> None:
        if diag.shape != (self.r,):
            raise MismatchError(
                f"the diagonal has the shape {tuple(diag.shape)} and the LoRA is of rank {self.r}: "
                "give one number for each rank"
            )
        down = self._factors.down
        self._factors.keep = diag.detach().to(down, copy=True).view(-1, *(1 for _ in down.shape[1:]))

    def update(self) -> LowRank:
        """The adapter with its selector and without its scale, cut off from the gradient's graph."""
        down = self._factors.down.detach()
        selector = self.selector.view(-1, *(1 for _ in down.shape[1:]))
        return LowRank(selector * down, self._factors.up.detach(), float(self.r))

    def realize_as_lora(self) -> tuple[Tensor, Tensor]:
        """`up` (out, r, *1) and `down` (r, in, *k) whose product is the update, scale and selector included."""
        low = self.update()
        return self.scale * low.up, low.down

    @property
    def _factors(self) -> LoraFactors:
        return cast(LoraFactors, self.adapters[NAME])


class LoraInjectedLinear(Wrapper, layers.LoraInjectedLinear):
    """Made by its constructor, it has a layer of its own."""

    linear = property(attrgetter("base"))

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        r: int = 4,
        dropout_p: float = 0.1,
        scale: float = 1.0,
    ) -> None:
        super().__init__(nn.Linear(in_features, out_features, bias))
        self.dropout = nn.Dropout(dropout_p)
        self.hold(fresh(self.base.weight, r), scale, dropout_p)


class LoraInjectedConv2d(Wrapper, layers.LoraInjectedConv2d):
    """Made by its constructor, it has a layer of its own."""

    conv = property(attrgetter("base"))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        r: int = 4,
        dropout_p: float = 0.1,
        scale: float = 1.0,
    ) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias))
        self.dropout = nn.Dropout(dropout_p)
        self.hold(fresh(self.base.weight, r), scale, dropout_p)


def fresh(weight: Tensor, r: int) -> LowRank:
    """`up` = 0 and `down` ~ N(0, 1/r²) for a weight (out, in, *k). JobError for a rank beyond its channels."""
    out, *inner = weight.shape
    if r > min(out, inner[0]):
        raise JobError(
            f"the rank {r} is more than a layer of {inner[0]} inputs and {out} outputs has: choose a lower r"
        )
    return LowRank(torch.randn(r, *inner) / r, torch.zeros(out, r, *(1 for _ in inner[1:])), float(r))


def wrap(layer: nn.Module) -> Wrapper:
    """The layer in its wrapper; what is wrapped already is returned as it is."""
    if isinstance(layer, Wrapper):
        return layer
    return (LoraInjectedConv2d if isinstance(layer, nn.Conv2d) else LoraInjectedLinear).around(layer)

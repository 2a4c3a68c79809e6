"""Wrapper layers that add low-rank updates to a frozen linear or convolution: op(x, W + Σ weightᵢ·ΔWᵢ).

            x ──┬──────── base, frozen: op(·, W) ────────┬── +  y       "branch": two small ops beside the base
                └── down (r, in, *k) ── up (out, r, *1) ─┘
            x ─────────── op(·, W + s·up·down) ───────────── y          "weight": one op with the summed weight

The forms are equal, and with `up` = 0 both give the base's output to the bit. A wrapper stands at the path of its base
and answers for it: `weight`, `in_features` and the like are the base's.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import attrgetter
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from loractl.tensors.lowrank import LowRank

Form = Literal["auto", "weight", "branch"]

WEIGHT_SPACE_LIMIT = 2**18
"""Up to so many entries a weight takes the "weight" form, which launches fewer kernels and keeps fewer activations.
Beyond, the branch is better: the weight form computes a gradient as large as W at every step."""


class LoraFactors(nn.Module):
    """One adapter of one layer: `down` and `up` in fp32, `alpha`, and its strength at run time, `weight`.

    `weight` is a tensor, so that changing it neither waits for the device nor recompiles, and is not in the state dict.
    `keep` (r, in/groups, *1) multiplies `down` while dropout is on (see `dropout`), and is not there either.
    """

    weight: Tensor
    keep: Tensor | None

    def __init__(self, low: LowRank, device: torch.device) -> None:
        super().__init__()
        self.down = nn.Parameter(low.down.detach().to(device, torch.float32, copy=True))  # (r, in/groups, *k)
        self.up = nn.Parameter(low.up.detach().to(device, torch.float32, copy=True))  # (out, r, *1)
        self.alpha = low.alpha
        self.register_buffer("weight", torch.ones((), device=device), persistent=False)
        self.register_buffer("keep", None, persistent=False)

    def weighted(self) -> LowRank:
        """weight·ΔW, the weight multiplied into `up`, which is smaller than ΔW."""
        down = self.down if self.keep is None else self.keep * self.down
        return LowRank(down, self.weight * self.up, self.alpha)


class LoraInjected(nn.Module):
    """A frozen `base` with named adapters. The two subclasses say only what the layer's operation is."""

    base: nn.Linear | nn.Conv2d
    pointwise: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, base: nn.Linear | nn.Conv2d, form: Form = "auto") -> None:
        """Freezes `base` until `unwrap`."""
        super().__init__()
        self.form = _form_for(base, form)
        self.base = base
        self.adapters = nn.ModuleDict()
        self._trainable = {name: parameter.requires_grad for name, parameter in base.named_parameters()}
        base.requires_grad_(False)

    weight = property(attrgetter("base.weight"))
    bias = property(attrgetter("base.bias"))

    def op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the base does, with another weight."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "weight":
            return self.op(x, self.summed(), self.base.bias)
        out: Tensor = self.base(x)
        for factors in self.factors():
            low = factors.weighted()
            hidden = self.op(x, low.down.to(x.dtype), None)  # (batch, …, r), or (batch, r, h, w)
            out = out + self.pointwise(hidden, (low.scale * low.up).to(x.dtype))
        return out

    def summed(self) -> Tensor:
        """W + Σ weightᵢ·ΔWᵢ in W's precision; where that is the factors', each is multiplied and added in one call."""
        weight: Tensor = self.base.weight
        if weight.dtype != torch.float32:
            return weight + self.delta().to(weight.dtype)
        with self._exact():
            return reduce(_plus, (factors.weighted() for factors in self.factors()), weight)

    def delta(self) -> Tensor:
        """Σ weightᵢ·ΔWᵢ (out, in/groups, *k) in fp32, under autocast too."""
        with self._exact():
            return reduce(torch.add, (factors.weighted().delta() for factors in self.factors()))

    def _exact(self) -> AbstractContextManager[object]:
        """No autocast. Entering a context for nothing costs as much as a small matmul."""
        device = self.base.weight.device.type
        return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()

    def factors(self) -> Iterable[LoraFactors]:
        return cast("Iterable[LoraFactors]", self.adapters.values())

    def unwrap(self) -> nn.Module:
        """The base, its parameters trainable or not as they were when it was wrapped."""
        for name, parameter in self.base.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        return self.base


class LoraInjectedLinear(LoraInjected):
    base: nn.Linear
    pointwise = staticmethod(F.linear)
    in_features = property(attrgetter("base.in_features"))
    out_features = property(attrgetter("base.out_features"))

    def op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class LoraInjectedConv2d(LoraInjected):
    base: nn.Conv2d
    pointwise = staticmethod(F.conv2d)
    in_channels = property(attrgetter("base.in_channels"))
    out_channels = property(attrgetter("base.out_channels"))
    kernel_size = property(attrgetter("base.kernel_size"))
    stride = property(attrgetter("base.stride"))
    padding = property(attrgetter("base.padding"))
    dilation = property(attrgetter("base.dilation"))
    groups = property(attrgetter("base.groups"))
    padding_mode = property(attrgetter("base.padding_mode"))

    def op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The one place in torch that knows every padding mode.
        return cast(Tensor, self.base._conv_forward(x, weight, bias))


def _plus(weight: Tensor, low: LowRank) -> Tensor:
    """W + ΔW (out, in/groups, *k)."""
    up, down = low.up.flatten(1), low.down.flatten(1)
    return torch.addmm(weight.flatten(1), up, down, alpha=low.scale).view(low.shape)


def _form_for(base: nn.Linear | nn.Conv2d, form: Form) -> Form:
    """A grouped convolution always takes the weight form: all its groups share `down`, so there is no branch. A weight
    in few bits always takes the branch: there is nothing to add to.
    """
    if getattr(base, "groups", 1) > 1:
        return "weight"
    if _is_in_few_bits(base.weight):
        return "branch"
    if form == "auto":
        return "weight" if base.weight.numel() <= WEIGHT_SPACE_LIMIT else "branch"
    return form


def _is_in_few_bits(weight: Tensor) -> bool:
    """As bytes (bitsandbytes), as 8-bit floats, or in a tensor that looks like a plain one (torchao)."""
    is_plain = weight.is_floating_point() and weight.element_size() > 1
    return not is_plain or is_traceable_wrapper_subclass(weight)


Layer = nn.Linear | nn.Conv2d | LoraInjected


def weight_shape(layer: Layer) -> torch.Size:
    """(out, in/groups, *k) of the weight with which the layer computes; in storage it may be packed."""
    base = layer.base if isinstance(layer, LoraInjected) else layer
    return torch.Size((base.out_features, base.in_features)) if isinstance(base, nn.Linear) else base.weight.shape


def wrap(layer: Layer, form: Form = "auto") -> LoraInjected:
    """The layer in its wrapper; what is wrapped already is returned as it is."""
    if isinstance(layer, LoraInjected):
        return layer
    return LoraInjectedConv2d(layer, form) if isinstance(layer, nn.Conv2d) else LoraInjectedLinear(layer, form)

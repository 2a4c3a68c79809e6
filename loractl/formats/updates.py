"""The update of a module from its tensors, whatever parametrization they are of: LoRA, LoHa, LoKr, a full difference.

A kind is known by the names of its parts. What multiplies the base weight (IA3, OFT, the first half of GLoRA) says
nothing about ΔW without that weight, so `foreign` tells of it and it is never built.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from loractl.errors import FormatError
from loractl.tensors.lowrank import LowRank, dense, factored, hadamard, kronecker, tucker

PLAIN = "plain"  # a bare weight: of IA3 where it says on which side, else of a model

# The ends of keys and the parts they stand for, in every dialect.
PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    "diff_b": "bias",
    "b_norm": "bias",
    "w_norm": "weight",
    **{f"{name}.weight": name for name in ("a1", "a2", "b1", "b2", "bm")},
    **{name: name for name in ("alpha", "diff", "on_input", "oft_blocks", "oft_diag", "rescale")},
    "boft_s": "rescale",
    "weight": PLAIN,
    "ia3_l": "ia3",
    **dict.fromkeys(("oft_r", "oft_R.weight", "oft_R.default.weight", "boft_R"), "oft_blocks"),
    **{f"hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}

_LARGEST = 2**28  # numbers in a weight, more than any layer has: a few factors could describe a weight of any size

Parts = Mapping[str, Tensor]
Alpha = Callable[[int], float]  # rank → alpha


class Kind(NamedTuple):
    """A parametrization: each of `needed` is a choice of parts that must be there, one choice at least."""

    name: str
    needed: tuple[frozenset[str], ...]
    optional: frozenset[str]
    build: Callable[[Parts, Alpha], LowRank]


def build(path: str, parts: Parts, alpha: Alpha) -> tuple[str, LowRank]:
    """The name of the kind and the update. `alpha` answers where no tensor does. FormatError when parts are missing, do
    not belong together or do not fit each other.
    """
    given = frozenset(parts) - {"alpha"}
    kind = max(_KINDS, key=lambda kind: len(given & _all_parts(kind)))
    _check_whole(path, kind, given)
    if any(not parts[name].is_floating_point() for name in given):
        raise FormatError(f"the module {path} has {_describe(parts)}, which are no factors: make the file again")
    try:
        low = kind.build(parts, lambda rank: _alpha(path, parts, alpha(rank)))
    except (RuntimeError, IndexError, ValueError, ZeroDivisionError):
        low = None
    if low is None or low.rank == 0:
        raise FormatError(
            f"the module {path} has {_describe(parts)}, which are no factors of a {kind.name} update: "
            "make the file again"
        )
    return kind.name, low


def _lora(parts: Parts, alpha: Alpha) -> LowRank:
    down, up = parts["down"], parts["up"]
    if "mid" in parts:
        mid = parts["mid"]
        return _scaled(tucker(_flat(up, len(mid)), mid, _flat(down)), alpha(len(down)) / len(down))
    if not (down.ndim == up.ndim >= 2 and down.dtype == up.dtype and up.shape[1:] == (len(down), *[1] * (up.ndim - 2))):
        raise ValueError("not two factors")
    return LowRank(down, up, alpha(len(down)))


def _loha(parts: Parts, alpha: Alpha) -> LowRank:
    a, b = (_half(parts, f"hada_w{n}", f"hada_t{n}") for n in (1, 2))
    rank = len(parts["hada_w1_b"])
    return _scaled(hadamard(a, b), alpha(rank) / rank)


def _lokr(parts: Parts, alpha: Alpha) -> LowRank:
    """The scale is alpha / r where a half is factored, else 1."""
    ranks = [len(parts[name]) for name in ("lokr_w1_b", "lokr_w2_b") if name in parts]
    a, b = _half(parts, "lokr_w1", "lokr_t1"), _half(parts, "lokr_w2", "lokr_t2")
    if math.prod(a.shape) * math.prod(b.shape) > _LARGEST:
        raise ValueError("too large")
    return _scaled(kronecker(a, b), alpha(ranks[0]) / ranks[0] if ranks else 1.0)


def _full(parts: Parts, _alpha: Alpha) -> LowRank:
    return dense(_wide(parts["diff"]))


def _glora(parts: Parts, alpha: Alpha) -> LowRank:
    """ΔW = W·a1·a2 + b1·b2, where a1 or a2 is zero."""
    rank = len(parts["b2"])
    return _scaled(factored(_flat(parts["b1"], rank), parts["b2"]), alpha(rank) / rank)


def _half(parts: Parts, name: str, core: str) -> LowRank:
    """One half of a product: whole, of two factors, or of two factors and a core (whose up is transposed)."""
    if name in parts:
        return dense(_wide(parts[name]))
    up, down = _wide(parts[f"{name}_a"]), _wide(parts[f"{name}_b"])
    return tucker(up.T, _wide(parts[core]), down) if core in parts else factored(_flat(up, len(down)), down)


def _flat(factor: Tensor, rank: int | None = None) -> Tensor:
    """A factor (n, m, *1) as a matrix."""
    flat = _wide(factor).flatten(1)
    if rank is not None and flat.shape[1] != rank:
        raise ValueError("another rank")
    return flat


def _wide(tensor: Tensor) -> Tensor:
    """Products of half-precision factors would lose digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _scaled(low: LowRank, scale: float) -> LowRank:
    return LowRank(low.down, low.up, scale * low.alpha)


_LOHA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
_KINDS = (
    Kind("lora", (frozenset({"down", "up"}),), frozenset({"mid"}), _lora),
    Kind("loha", (_LOHA, _LOHA | {"hada_t1", "hada_t2"}), frozenset(), _loha),
    Kind(
        "lokr",
        tuple(
            frozenset(first | second)
            for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
            for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
        ),
        frozenset(),
        _lokr,
    ),
    Kind("full", (frozenset({"diff"}),), frozenset(), _full),
    Kind("glora", (frozenset({"a1", "a2", "b1", "b2"}),), frozenset(), _glora),
)
_NEEDS_BASE = {
    "on_input": "an IA3 update, which scales the base weight",
    "ia3": "an IA3 update, which scales the base weight",
    **dict.fromkeys(("oft_blocks", "oft_diag", "rescale"), "an OFT or BOFT update, which rotates the base weight"),
    "bm": "a Tucker GLoRA update",
}


def _all_parts(kind: Kind) -> frozenset[str]:
    return kind.optional.union(*kind.needed)


def _check_whole(path: str, kind: Kind, given: frozenset[str]) -> None:
    needed = given - kind.optional
    if needed in kind.needed:
        return
    if foreign := needed - _all_parts(kind):
        raise FormatError(f"the module {path} has a tensor {min(foreign)} beside those of a {kind.name} update")
    nearest = min(kind.needed, key=lambda choice: len(choice ^ needed))
    missing = min(nearest - needed or nearest)
    raise FormatError(f"the module {path} has no tensor {missing}: the file is incomplete, so fetch it again")


def foreign(parts: Parts) -> str | None:
    """What the update is, if its ΔW depends on the base weight."""
    if "a1" in parts and "a2" in parts and parts["a1"].any() and parts["a2"].any():
        return "a GLoRA update, whose first half multiplies the base weight"
    return next((reason for part, reason in _NEEDS_BASE.items() if part in parts), None)


def _alpha(path: str, parts: Parts, default: float) -> float:
    """The alpha of the module's own tensor, else the default; any dtype and shape with one number will do."""
    value = float(default)
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            count = parts["alpha"].numel()
            raise FormatError(f"the module {path} has {count} numbers for an alpha: make the file again")
        value = float(parts["alpha"].item())
    if not math.isfinite(value):
        raise FormatError(f"the module {path} has alpha {value}, which is not finite: make the file again")
    return value


def _describe(parts: Parts) -> str:
    return " and ".join(
        f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in sorted(parts.items())
        if name != "alpha"
    )

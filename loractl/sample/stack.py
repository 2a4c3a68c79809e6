"""What adapters do to the parameters of one network: for each the sum of all changes, with a number that weighs each.

A change of a parameter W is ΔW = (c − 1) ⊙ W + scale · up · down + D, of which every term may be missing: plain LoRA
is the middle one, the difference of a bias, a norm or a whole weight is D, and DoRA has the first two. In memory and in
arithmetic a term costs what it is; none is ever made a matrix of full rank that is not one.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from loractl.device import upload
from loractl.errors import MismatchError
from loractl.inject.inject import fitted
from loractl.inject.targets import injectable
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

Meaning = tuple[int, Hashable]
"""What a slot stands for: an adapter's number, and which of its strengths."""


@dataclass(frozen=True)
class Key:
    """All that the sums of a part of a network follow from: the meanings and weights of the slots that act in it."""

    component: str
    names: frozenset[str]
    acting: frozenset[tuple[Meaning, float]]


@dataclass(frozen=True)
class Change:
    """ΔW of one parameter: gain ⊙ W + the low-rank update + whole."""

    low: LowRank | None = None
    whole: Tensor | None = None  # in the shape of W
    gain: Tensor | None = None  # (out, 1, *1) or (1, in, *1)

    @classmethod
    def of(cls, low: LowRank) -> "Change":
        """Of an update that may be no low-rank one: where a factor is the identity, ΔW is the other."""
        up, down = low.up.flatten(1), low.down.flatten(1)
        if up.shape[0] == low.rank and torch.equal(up, torch.eye(low.rank).to(up)):
            return cls(whole=low.scale * low.down)
        if down.shape[1] == low.rank and torch.equal(down, torch.eye(low.rank).to(down)):
            return cls(whole=(low.scale * up).view(low.shape))
        return cls(low)

    @classmethod
    def dora(cls, low: LowRank, magnitude: Tensor, weight: Tensor) -> "Change":
        """W′ − W for W′ = c ⊙ (W + update), c = magnitude / ‖W + update‖, the norm by output or, as the magnitude has
        it, by input (Liu et al. 2024, DoRA, section 4.1).

        With a weight w it is W + w · (W′ − W), as ComfyUI and A1111 have it: linear, and at 0 the plain model. peft
        multiplies the update alone by w, within the norm too, which at 0 is not the plain model. At 1 they agree.
        """
        own = low.to(torch.float32, weight.device)
        magnitude = magnitude.reshape(*magnitude.shape[:2], *[1] * (weight.ndim - 2))
        axes = [axis for axis, size in enumerate(magnitude.shape) if size == 1]
        norm = torch.linalg.vector_norm(weight.float() + own.delta(), dim=axes, keepdim=True)
        c = magnitude.to(norm) / (norm + torch.finfo(norm.dtype).eps)  # a row of zeros stays one
        by_output = c.numel() == len(c)
        low = replace(own, up=c * own.up) if by_output else replace(own, down=c * own.down)
        return cls(low, gain=c - 1)


@dataclass(frozen=True)
class Stack:
    """One parameter's changes: W + Σ wᵢ·ΔWᵢ = (1 + Σ wᵢ·gainᵢ) ⊙ W + up · diag(weights[units]) · down + Σ wᵢ·wholeᵢ,
    the low-rank ones side by side along the rank. A slot is the place of an adapter's number in the vector of all.
    """

    down: Tensor  # (R, in, *k) in fp32; of rank 0 where no change is low-rank
    up: Tensor  # (out, R, *1) in fp32, with every adapter's scale in it
    units: tuple[int, ...]  # (R,): the slot of each unit
    wholes: tuple[tuple[int, Tensor], ...] = ()
    gains: tuple[tuple[int, Tensor], ...] = ()

    @classmethod
    def of(cls, parts: Sequence[tuple[int, Change]], device: torch.device) -> "Stack":
        """Of changes with their slots."""
        lows = [(slot, change.low) for slot, change in parts if change.low is not None]
        downs = [low.down.to(device, torch.float32) for _, low in lows]
        ups = [low.scale * low.up.to(device, torch.float32) for _, low in lows]
        return cls(
            torch.cat(downs) if lows else torch.empty(0, device=device),
            torch.cat(ups, dim=1) if lows else torch.empty(0, device=device),
            tuple(slot for slot, low in lows for _ in range(low.rank)),
            tuple((slot, change.whole.to(device)) for slot, change in parts if change.whole is not None),
            tuple((slot, change.gain.to(device)) for slot, change in parts if change.gain is not None),
        )

    @property
    def is_low_rank(self) -> bool:
        """Whether it can stand beside W as a branch."""
        return not self.wholes and not self.gains

    @cached_property
    def slots(self) -> frozenset[int]:
        return frozenset([*self.units, *(slot for slot, _ in (*self.wholes, *self.gains))])

    def weights(self, vector: Sequence[float]) -> Tensor:
        """Of the units, (R,)."""
        return upload(torch.tensor([vector[slot] for slot in self.units]), self.up.device)

    def add_to(self, weight: Tensor, vector: Sequence[float], weights: Tensor, out: Tensor) -> None:
        """W + Σ wᵢ·ΔWᵢ into `out`, summed in fp32 and rounded once; `weights` are those of the units."""
        total = weight.float()
        if self.gains:
            total = total * (1 + sum((vector[slot] * gain for slot, gain in self.gains), torch.zeros(())))
        if self.units:
            up, down = self.up.flatten(1) * weights, self.down.flatten(1)
            if not self.wholes and out.dtype == torch.float32 and out.is_contiguous():
                torch.addmm(total.flatten(1), up, down, out=out.flatten(1))
                return
            total = torch.addmm(total.flatten(1), up, down).view(weight.shape)
        for slot, whole in self.wholes:
            total = torch.add(total, whole, alpha=vector[slot])
        out.copy_(total)


@dataclass(frozen=True, eq=False)
class Part:
    """Parameters in which the same slots count: when these don't change, nothing in the part does."""

    names: frozenset[str]
    slots: frozenset[int]
    size: int  # bytes of its parameters


@dataclass(frozen=True)
class Plan:
    """What acts on one network: the stacks of its parameters by name ("conv_in.weight"), in parts, and for each slot of
    the vector what it stands for.
    """

    component: str
    stacks: Mapping[str, Stack]
    meanings: tuple[Meaning, ...]
    parts: tuple[Part, ...]

    @classmethod
    def of(
        cls, component: str, stacks: Mapping[str, Stack], meanings: Sequence[Meaning], sizes: Mapping[str, int]
    ) -> "Plan":
        """`sizes`: the bytes of each parameter."""
        alike: dict[frozenset[int], list[str]] = {}
        for name, stack in stacks.items():
            alike.setdefault(stack.slots, []).append(name)
        parts = (Part(frozenset(names), slots, sum(sizes[name] for name in names)) for slots, names in alike.items())
        return cls(component, stacks, tuple(meanings), tuple(parts))

    @property
    def size(self) -> int:
        """Bytes of all parameters that are ever changed."""
        return sum(part.size for part in self.parts)

    @property
    def is_low_rank(self) -> bool:
        return all(stack.is_low_rank for stack in self.stacks.values())

    def keys(self, vector: Sequence[float]) -> dict[Key, Part]:
        """The parts in which anything acts."""
        acting = {part: [slot for slot in part.slots if vector[slot]] for part in self.parts}
        return {
            Key(self.component, part.names, frozenset((self.meanings[slot], vector[slot]) for slot in slots)): part
            for part, slots in acting.items()
            if slots
        }


def parameter(network: nn.Module, name: str) -> nn.Parameter:
    """By its name in the bare network, whatever wraps its layer. MismatchError when there is none."""
    path, _, leaf = name.rpartition(".")
    try:
        found = getattr(network.get_submodule(path), leaf, None)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Parameter):
        raise MismatchError(
            f"the model has no parameter {name}, which the adapter changes: it is for another base model"
        )
    return found


def changed_networks(adapter: Adapter) -> list[str]:
    """The components of which the adapter changes any parameter."""
    return sorted({path.partition(".")[0] for path in (*adapter.modules, *adapter.vectors)})


def check_fit(adapter: Adapter, component: str, network: nn.Module) -> None:
    """MismatchError names the first change that the network has no place for."""
    fitted(network, adapter.component(component))
    for name, vector in _vectors(adapter, component):
        shape = parameter(network, name).shape
        if shape != vector.shape:
            raise MismatchError(
                f"{name}: the adapter's difference {tuple(vector.shape)} does not fit the model's {tuple(shape)}, so "
                "it was made for another base model"
            )


def changes(adapter: Adapter, component: str, network: nn.Module) -> dict[str, Change]:
    """Parameter → its change, for a plain network that the adapter fits."""
    layers = injectable(network)
    found = {}
    for path, low in fitted(network, adapter.component(component)).items():
        magnitude = adapter.magnitudes.get(f"{component}.{path}")
        weight = layers[path].weight.detach()
        found[f"{path}.weight"] = Change.of(low) if magnitude is None else Change.dora(low, magnitude, weight)
    return found | {name: Change(whole=vector) for name, vector in _vectors(adapter, component)}


def beyond_low_rank(adapter: Adapter) -> str | None:
    """The first change that is no low-rank update, in words; None if there is none."""
    if adapter.magnitudes:
        return f"DoRA's magnitudes of {min(adapter.magnitudes)}"
    if adapter.vectors:
        return f"a difference of {min(adapter.vectors)}"
    whole = (path for path, low in adapter.modules.items() if Change.of(low).whole is not None)
    path = next(whole, None)
    return None if path is None else f"a difference of full rank of {path}"


def _vectors(adapter: Adapter, component: str) -> Iterator[tuple[str, Tensor]]:
    """Parameter and difference."""
    for path, vector in adapter.vectors.items():
        owner, _, name = path.partition(".")
        if owner == component:
            yield name, vector

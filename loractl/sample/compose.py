"""All adapters of one network at weights that change: two engines with one result, W + Σ wᵢ·ΔWᵢ in every layer.

`Composed` puts finished weights in the place of W: the plain model's speed, one matmul of the ranks for each layer and
weight vector, and room for the results, which a `Cache` keeps. W itself is never written to, only set aside.
`Branch` keeps the factors beside W, the ranks of all adapters in one stack, so that a change of the weights is a few
numbers: layers with the same adapters share them.

Under torch.compile neither recompiles when weights change: tensors take the place of tensors like them.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from loractl.device import upload
from loractl.inject.inject import adapter, load_into, remove
from loractl.inject.targets import injectable
from loractl.tensors.lowrank import LowRank

EngineName = Literal["composed", "branch"]
NAME = "session"  # of the stack, as an adapter of the network
CALLS_FOR_A_COMPOSITION = 2
"""So many runs of the denoiser must share a composition on average to make it worth its while."""

Key = frozenset[Hashable]
NOTHING: Key = frozenset()  # the key of the plain network


@dataclass(frozen=True)
class Stack:
    """One layer's updates side by side along the rank: Σ wᵢ·ΔWᵢ = up · diag(weights[slots]) · down."""

    down: Tensor  # (R, in, *k) in fp32
    up: Tensor  # (out, R, *1) in fp32, with every adapter's scale in it
    slots: tuple[int, ...]  # (R,): which number of the weight vector is each unit's

    @classmethod
    def of(cls, parts: Sequence[tuple[int, LowRank]], device: torch.device) -> "Stack":
        """Of updates with their slots."""
        down = torch.cat([low.down.to(device, torch.float32) for _, low in parts])
        up = torch.cat([low.scale * low.up.to(device, torch.float32) for _, low in parts], dim=1)
        return cls(down, up, tuple(slot for slot, low in parts for _ in range(low.rank)))

    def weights(self, vector: Sequence[float]) -> Tensor:
        """Of the units, (R,)."""
        return upload(torch.tensor([vector[slot] for slot in self.slots]), self.up.device)

    def added_to(self, weight: Tensor, vector: Sequence[float]) -> Tensor:
        """A new W + Σ wᵢ·ΔWᵢ (out, in, *k), summed in fp32 and rounded once."""
        up = self.up.flatten(1) * self.weights(vector)
        total = torch.addmm(weight.float().flatten(1), up, self.down.flatten(1))
        return torch.empty_like(weight).copy_(total.view(weight.shape))


@dataclass(frozen=True)
class Plan:
    """What acts on one network: path → stack, and for each slot of the weight vector what it stands for."""

    component: str
    stacks: Mapping[str, Stack]
    meanings: tuple[Hashable, ...]
    size: int  # bytes of all weights of the layers

    @cached_property
    def slots(self) -> frozenset[int]:
        """Those that count here."""
        return frozenset(slot for stack in self.stacks.values() for slot in stack.slots)

    def key(self, vector: Sequence[float]) -> Key:
        """The same for vectors that weigh everything here alike; empty where nothing acts."""
        return frozenset((self.component, self.meanings[slot], vector[slot]) for slot in self.slots if vector[slot])


class Cache:
    """Composed weights by what they are composed of, at most `limit` bytes of them: the least recently used ones go."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.formed = Counter[str]()  # by network
        self._kept: OrderedDict[Key, dict[str, Tensor]] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def get(self, key: Key) -> dict[str, Tensor] | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def make_room(self, size: int) -> None:
        while self._kept and self.used + size > self.limit:
            _, oldest = self._kept.popitem(last=False)
            self.used -= _size(oldest.values())

    def keep(self, key: Key, tensors: dict[str, Tensor]) -> None:
        """What is larger than the limit is not kept."""
        size = _size(tensors.values())
        if size <= self.limit:
            self.make_room(size)
            self._kept[key] = tensors
            self.used += size


class Engine(Protocol):
    kind: EngineName

    def write(self, vector: Sequence[float]) -> None:
        """The network acts with these weights from now on."""

    def off(self) -> None:
        """The network acts as it did without adapters, to the bit."""

    def close(self) -> None:
        """The network is what it was."""


class Composed:
    kind: EngineName = "composed"

    def __init__(self, network: nn.Module, plan: Plan, cache: Cache) -> None:
        layers = injectable(network)
        self._parameters = {path: layers[path].weight for path in plan.stacks}
        self._base = {path: parameter.data for path, parameter in self._parameters.items()}
        self._plan, self._cache = plan, cache

    def write(self, vector: Sequence[float]) -> None:
        key = self._plan.key(vector)
        weights = self._cache.get(key)
        if weights is None:
            weights = self._form(vector) if key else {}
            self._cache.keep(key, weights)
        self._place({**self._base, **weights})

    def off(self) -> None:
        self._place(self._base)

    def close(self) -> None:
        self.off()

    @torch.no_grad()
    def _form(self, vector: Sequence[float]) -> dict[str, Tensor]:
        """The weights of the layers in which any adapter acts."""
        acting = {path: stack for path, stack in self._plan.stacks.items() if any(vector[i] for i in set(stack.slots))}
        self.off()  # or what the cache drops would stay in memory
        self._cache.make_room(_size(self._base[path] for path in acting))
        self._cache.formed[self._plan.component] += 1
        return {path: stack.added_to(self._base[path], vector) for path, stack in acting.items()}

    def _place(self, weights: Mapping[str, Tensor]) -> None:
        for path, parameter in self._parameters.items():
            parameter.data = weights[path]


class Branch:
    kind: EngineName = "branch"

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        self._network = network
        modules = {path: LowRank(stack.down, stack.up, len(stack.slots)) for path, stack in plan.stacks.items()}
        load_into(network, modules, NAME)
        self._shared: dict[tuple[int, ...], tuple[Stack, Tensor]] = {}
        for path, factors in adapter(network, NAME).items():
            stack = plan.stacks[path]
            factors.requires_grad_(False)
            _, weights = self._shared.setdefault(
                stack.slots, (stack, torch.zeros(len(stack.slots), device=stack.up.device))
            )
            factors.weight = weights.view(-1, *[1] * (stack.up.dim() - 2))  # (R, *1), one for each column of `up`

    def write(self, vector: Sequence[float]) -> None:
        for stack, weights in self._shared.values():
            weights.copy_(stack.weights(vector))

    def off(self) -> None:
        for _, weights in self._shared.values():
            weights.zero_()

    def close(self) -> None:
        remove(self._network, NAME)


def choose(vectors: int, fresh: int, calls: int, size: int, room: int) -> EngineName:
    """The engine for so many calls of a denoiser with so many weight vectors, of which `fresh` are not composed yet.

    Composed weights must fit, `size` bytes for each vector, and enough calls must share what is formed.
    """
    fits = vectors * size <= room
    return "composed" if fits and (fresh <= 1 or fresh * CALLS_FOR_A_COMPOSITION <= calls) else "branch"


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)

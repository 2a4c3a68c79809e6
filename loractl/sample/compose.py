"""All adapters of one network at weights that change: two engines with one result, W + Σ wᵢ·ΔWᵢ in every parameter.

`Composed` puts finished weights in the place of W: the plain model's speed, one pass over the weights for each vector
of weights, and room for the results, which a `Cache` keeps. While the network computes with some, those that come next
can be formed aside. W itself is never written to, only set aside.
`Branch` keeps the factors beside W, the ranks of all adapters in one stack, so that a change of the weights is a few
numbers: layers with the same adapters share them. It has place for low-rank updates alone.

Under torch.compile neither recompiles when weights change: tensors take the place of tensors like them.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from loractl.inject.inject import adapter, load_into, remove
from loractl.sample.ahead import Aside, Pending
from loractl.sample.stack import Key, Part, Plan, Stack, parameter
from loractl.tensors.lowrank import LowRank
from loractl.tensors.slabs import room_like

EngineName = Literal["composed", "branch"]
NAME = "session"  # of the stack, as an adapter of the network


class Cache:
    """Composed parts by what they are composed of, at most `limit` bytes of them: the least recently used ones go.

    Their memory stays for parts that are laid out alike, as long as there is room: fresh memory costs a CPU more than
    the sums do. So an engine lets go of what it has placed before it forms anything in the place of it.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.formed = Counter[str]()  # by network, the vectors for which anything had to be
        self._kept: OrderedDict[Key, dict[str, Tensor]] = OrderedDict()
        self._spare: list[tuple[Key, dict[str, Tensor]]] = []

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    @property
    def spare(self) -> int:
        """Bytes that nothing is in."""
        return sum(_size(tensors) for _, tensors in self._spare)

    def get(self, key: Key) -> dict[str, Tensor] | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def make_room(self, parts: Mapping[Key, Part]) -> dict[Key, dict[str, Tensor]]:
        """For parts that will be kept; those for which there is memory to be written to come with it."""
        self._shrink(self.limit - _bytes(parts))
        lent = dict[Key, dict[str, Tensor]]()
        for key in parts:
            alike = (n for n, (old, _) in enumerate(self._spare) if _layout(old) == _layout(key))
            if (number := next(alike, None)) is not None:
                _, lent[key] = self._spare.pop(number)
        self._tidy(self.limit - _bytes(parts))
        return lent

    def keep(self, key: Key, tensors: dict[str, Tensor]) -> None:
        """What is larger than the limit is not kept."""
        if (size := _size(tensors)) <= self.limit:
            self._shrink(self.limit - size)
            self._tidy(self.limit - size)
            self._kept[key] = tensors
            self.used += size

    def forget(self, number: int) -> None:
        """What the adapter of this number has a part in, when it will not be asked for again."""
        for key in [key for key in self._kept if any(meaning[0] == number for meaning, _ in key.acting)]:
            self._let_go(key)

    def clear(self) -> None:
        self._kept.clear()
        self._spare.clear()
        self.used = 0

    def _shrink(self, limit: int) -> None:
        while self._kept and self.used > limit:
            self._let_go(next(iter(self._kept)))

    def _tidy(self, limit: int) -> None:
        while self._spare and self.used + self.spare > limit:
            del self._spare[0]

    def _let_go(self, key: Key) -> None:
        tensors = self._kept.pop(key)
        self.used -= _size(tensors)
        self._spare.append((key, tensors))


class Engine(Protocol):
    kind: EngineName

    def write(self, vector: Sequence[float]) -> None:
        """The network acts with these weights from now on."""

    def prefetch(self, vector: Sequence[float]) -> None:
        """Says that these come next. Nothing happens to the network; what fails is raised by the next `write` of other
        weights than those of now.
        """

    def off(self) -> None:
        """The network acts as it did without adapters, to the bit."""

    def close(self) -> None:
        """The network is what it was."""


class Composed:
    kind: EngineName = "composed"

    def __init__(self, network: nn.Module, plan: Plan, cache: Cache, aside: Aside | None = None) -> None:
        """Without an `aside` nothing is prefetched. `close` closes it."""
        self._parameters = {name: parameter(network, name) for name in plan.stacks}
        self._base = {name: each.data for name, each in self._parameters.items()}
        self._plan, self._cache, self._aside = plan, cache, aside
        self._placed: dict[Key, Part] = {}
        self._pending: tuple[dict[Key, Part], Pending] | None = None

    def write(self, vector: Sequence[float]) -> None:
        keys = self._plan.keys(vector)
        if keys.keys() == self._placed.keys():
            return
        self._settle()
        found = {key: self._cache.get(key) for key in keys}
        missing = {key: keys[key] for key, tensors in found.items() if tensors is None}
        if missing:
            self.off()  # or what the cache drops would stay in memory, or be written to
            found |= self._keep(missing, self._form(missing, vector, self._cache.make_room(missing)))
        ready = [tensors for tensors in found.values() if tensors is not None]
        self._place({name: tensor for tensors in ready for name, tensor in tensors.items()})
        self._placed = keys

    def prefetch(self, vector: Sequence[float]) -> None:
        """Begins to form what is missing, if the cache can hold it beside what is in use and what is there already."""
        keys = self._plan.keys(vector)
        missing = {key: part for key, part in keys.items() if key not in self._cache}
        fits = _bytes(self._placed | keys) <= self._cache.limit
        if self._aside is None or self._pending or not missing or not fits:
            return
        for key in (*keys, *self._placed):  # what is needed next or now is not what goes
            self._cache.get(key)
        lent = self._cache.make_room(missing)
        self._pending = missing, self._aside.begin(lambda: self._form(missing, vector, lent))

    def off(self) -> None:
        self._pending = None  # nobody waits for it any more
        self._place({})
        self._placed = {}

    def close(self) -> None:
        self.off()
        if self._aside:
            self._aside.close()

    def _settle(self) -> None:
        """What was begun is kept, whether it is what comes next or not."""
        if self._pending:
            (parts, work), self._pending = self._pending, None
            self._keep(parts, work.result())

    @torch.no_grad()
    def _form(
        self, parts: Mapping[Key, Part], vector: Sequence[float], lent: Mapping[Key, dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        stacks = {name: self._plan.stacks[name] for part in parts.values() for name in part.names}
        weights = {units: one.weights(vector) for units, one in {one.units: one for one in stacks.values()}.items()}
        made = dict[str, Tensor]()
        for key, part in parts.items():  # the cache lets go of a part as a whole
            made |= lent.get(key) or room_like({name: self._base[name] for name in part.names})
        for name, one in stacks.items():
            one.add_to(self._base[name], vector, weights[one.units], made[name])
        return made

    def _keep(self, parts: Mapping[Key, Part], made: Mapping[str, Tensor]) -> dict[Key, dict[str, Tensor]]:
        self._cache.formed[self._plan.component] += 1
        found = {key: {name: made[name] for name in part.names} for key, part in parts.items()}
        for key, tensors in found.items():
            self._cache.keep(key, tensors)
        return found

    def _place(self, weights: Mapping[str, Tensor]) -> None:
        for name, each in self._parameters.items():
            each.data = weights.get(name, self._base[name])


class Branch:
    kind: EngineName = "branch"

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        """For a plan whose changes are all low-rank."""
        self._network = network
        stacks = {name.removesuffix(".weight"): stack for name, stack in plan.stacks.items()}
        load_into(network, {path: LowRank(each.down, each.up, len(each.units)) for path, each in stacks.items()}, NAME)
        self._shared: dict[tuple[int, ...], tuple[Stack, Tensor]] = {}
        for path, factors in adapter(network, NAME).items():
            stack = stacks[path]
            factors.requires_grad_(False)
            _, weights = self._shared.setdefault(
                stack.units, (stack, torch.zeros(len(stack.units), device=stack.up.device))
            )
            factors.weight = weights.view(-1, *[1] * (stack.up.dim() - 2))  # (R, *1), one for each column of `up`

    def write(self, vector: Sequence[float]) -> None:
        for stack, weights in self._shared.values():
            weights.copy_(stack.weights(vector))

    def prefetch(self, vector: Sequence[float]) -> None:
        """A few numbers are no work to begin early."""

    def off(self) -> None:
        for _, weights in self._shared.values():
            weights.zero_()

    def close(self) -> None:
        remove(self._network, NAME)


def choose(vectors: int, size: int, room: int) -> EngineName:
    """The engine for a run with so many vectors of weights, of `size` bytes each, with `room` for composed weights:
    composed where the one in use and the next one fit.

    Even when every call has weights of its own: for a layer (out, in) a composition is one pass over out · in entries
    with R products each, a branch in + out entries for each of the T places of a picture with R products each, that is
    T · (in + out) / (in · out) times as much, 2 T / width, in every call. At the sizes pictures are made T is a
    multiple of the width but in the innermost blocks, and small layers have no branch at all: they sum their weights
    in every call (`inject.layers`), and keep nothing.
    """
    return "composed" if min(vectors, 2) * size <= room else "branch"


def _bytes(parts: Mapping[Key, Part]) -> int:
    return sum(part.size for part in parts.values())


def _layout(key: Key) -> tuple[str, frozenset[str]]:
    """What the shapes of its tensors follow from."""
    return key.component, key.names


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())

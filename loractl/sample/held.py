"""The adapters that a session holds, each with its use: whether one fits, and what all of them do to a network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from loractl.errors import JobError, MismatchError
from loractl.sample.schedule import Moment, Use, in_layers
from loractl.sample.stack import (
    Change,
    Meaning,
    Plan,
    Stack,
    beyond_low_rank,
    changed_networks,
    changes,
    check_fit,
    parameter,
)
from loractl.tensors.adapter import Adapter


@dataclass(frozen=True)
class Held:
    adapter: Adapter
    use: Use
    number: int  # no other adapter of the session ever has it

    @property
    def components(self) -> Sequence[str]:
        """That it changes."""
        return changed_networks(self.adapter)


def check(adapter: Adapter, use: Use, networks: Mapping[str, nn.Module], low_rank_only: bool) -> None:
    """MismatchError for a change that the networks have no place for, and for a pattern that matches none; JobError for
    one that is no low-rank one where there may be no other.
    """
    for component in changed_networks(adapter):
        check_fit(adapter, component, networks[component])
    check_patterns(adapter, use)
    if low_rank_only and (what := beyond_low_rank(adapter)):
        raise JobError(f"a branch has no place for {what}: choose the engine auto or composed")


def check_patterns(adapter: Adapter, use: Use) -> None:
    """MismatchError when a pattern is for no module of the adapter."""
    modules = {*adapter.modules, *(path.rpartition(".")[0] for path in adapter.vectors)}
    for pattern in use.layers:
        if not any(in_layers(path, pattern) for path in modules):
            raise MismatchError(f'no module of the adapter matches "{pattern}": correct the pattern or remove it')


def strangers(adapter: Adapter, networks: Iterable[str]) -> list[str]:
    """The networks that the adapter changes, or teaches words to, and that are not among these."""
    taught = {path.partition(".")[0] for path in adapter.tokens}
    return sorted({*changed_networks(adapter), *taught} - {*networks})


def vector(held: Iterable[Held], moment: Moment | None) -> list[float]:
    """The strengths of all adapters, one after the other."""
    return [strength for each in held for strength in each.use.strengths(moment)]


def make_plan(component: str, network: nn.Module, held: Iterable[Held]) -> Plan:
    """What the adapters do to a network, which is now the plain one; a slot is a place in the `vector`."""
    parts: dict[str, list[tuple[int, Change]]] = {}
    meanings: list[Meaning] = []
    for each in held:
        for name, change in changes(each.adapter, component, network).items():
            slot = len(meanings) + each.use.group(f"{component}.{name.rpartition('.')[0]}")
            parts.setdefault(name, []).append((slot, change))
        meanings += [(each.number, (tuple(each.use.layers), group)) for group in range(len(each.use.layers) + 1)]
    changed = {name: parameter(network, name) for name in parts}
    stacks = {name: Stack.of(own, changed[name].device) for name, own in parts.items()}
    return Plan.of(component, stacks, meanings, {name: each.nbytes for name, each in changed.items()})

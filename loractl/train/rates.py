"""Learning rates within one adapter: by patterns of its modules' paths, and LoRA+'s for `up`."""

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from loractl.inject.targets import PRESETS, matches
from loractl.train.loop import Group


def grouped(name: str, parameters: Mapping[str, nn.Parameter], lr: float, rates: Mapping[str, float]) -> list[Group]:
    """An adapter's parameters ("<path>.down", "<path>.up") by preset or pattern → rate, in the table's order.

    What matches none comes first, at `lr`; of several patterns that match a module the last one wins; empty groups
    are left out.
    """
    found: dict[str | None, list[nn.Parameter]] = {pattern: [] for pattern in (None, *rates)}
    for key, parameter in parameters.items():
        found[_winner(key.rpartition(".")[0], rates)].append(parameter)
    return [
        Group(name, members, lr) if pattern is None else Group(f"{name}:{pattern}", members, rates[pattern])
        for pattern, members in found.items()
        if members
    ]


def lora_plus(group: Group, parameters: Mapping[str, nn.Parameter], ratio: float) -> list[Group]:
    """The group's `down` at its rate and its `up` at `ratio` times as much (Hayou et al. 2024, "LoRA+: Efficient Low
    Rank Adaptation of Large Models"; 16 there). `parameters` names them: "<path>.down", "<path>.up".
    """
    ups = {id(parameter) for key, parameter in parameters.items() if key.endswith(".up")}
    down = [parameter for parameter in group.parameters if id(parameter) not in ups]
    up = [parameter for parameter in group.parameters if id(parameter) in ups]
    return [
        replace(group, name=f"{group.name}:down", parameters=down),
        replace(group, name=f"{group.name}:up", parameters=up, lr=ratio * group.lr),
    ]


def _winner(path: str, rates: Mapping[str, float]) -> str | None:
    """The last pattern that matches the path."""
    matching = [name for name in rates if any(matches(path, pattern) for pattern in PRESETS.get(name, (name,)))]
    return matching[-1] if matching else None

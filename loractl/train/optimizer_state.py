"""What an optimizer remembers, under flat names and without its settings, so that a checkpoint can hold it.

"state.<parameter>.<key>" is what it keeps for a parameter. "group.<parameter>.<key>" is what it has changed in the
options of the group that begins with this parameter: Prodigy's estimate of the distance, a schedule-free optimizer's
sums. What it was made with, the learning rate above all, is the job's to say and not remembered.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

Options = dict[str, Any]


def options(optimizer: Optimizer) -> list[Options]:
    """A copy of each group's options, that is all but its parameters."""
    return [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def remembered(optimizer: Optimizer, names: Sequence[str], made: Sequence[Options]) -> dict[str, Any]:
    """Tensors and values by name; `names` are the parameters' in the optimizer's order, `made` its first options."""
    state = optimizer.state_dict()["state"]
    kept = {f"state.{names[i]}.{key}": value for i, entry in state.items() for key, value in entry.items()}
    for first, now, before in zip(_firsts(optimizer), options(optimizer), made, strict=True):
        changed = {key for key, value in now.items() if key not in before or _differ(value, before[key])}
        kept |= {f"group.{names[first]}.{key}": now[key] for key in changed - {"lr"}}
    return kept


def recall(optimizer: Optimizer, names: Sequence[str], made: Sequence[Options], kept: Mapping[str, Any]) -> None:
    """The reverse of `remembered`; nothing else that the optimizer has learnt is left."""
    tables: dict[str, defaultdict[str, Options]] = {"state": defaultdict(dict), "group": defaultdict(dict)}
    for name, value in kept.items():
        table, _, rest = name.partition(".")
        owner, _, key = rest.rpartition(".")
        tables[table][owner][key] = copy.deepcopy(value)
    groups = [
        {
            **copy.deepcopy(before),
            **tables["group"][names[first]],
            "params": [*range(first, first + len(group["params"]))],
        }
        for first, before, group in zip(_firsts(optimizer), made, optimizer.param_groups, strict=True)
    ]
    state = {i: tables["state"][name] for i, name in enumerate(names) if name in tables["state"]}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _firsts(optimizer: Optimizer) -> list[int]:
    """The number of each group's first parameter."""
    lengths = [len(group["params"]) for group in optimizer.param_groups]
    return [sum(lengths[:i]) for i in range(len(lengths))]


def _differ(one: Any, other: Any) -> bool:
    return bool(isinstance(one, Tensor) or one != other)

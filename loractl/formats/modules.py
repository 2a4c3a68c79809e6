"""From the tensors of a file to modules: parts are brought together, and a module that is not whole is refused."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from loractl.errors import FormatError
from loractl.tensors.lowrank import LowRank


class Place(NamedTuple):
    """Where a tensor of a file belongs: a module's path and "down", "up" or "alpha"."""

    path: str
    part: str


class Contents(NamedTuple):
    """All of a file: its modules, and the keys that are no module's."""

    modules: dict[str, LowRank]
    unknown: list[str]


Alpha = Callable[[str, int], float]


def gather(
    tensors: Mapping[str, Tensor], locate: Callable[[str], Place | None], alpha: Alpha = lambda _, rank: rank
) -> Contents:
    """The modules whose tensors `locate` finds by key; `alpha` (path, rank) answers for those without such a tensor."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unknown = []
    for key in sorted(tensors):
        place = locate(key)
        if place is None:
            unknown.append(key)
        elif place.part in found[place.path]:
            raise FormatError(f"{key} is a second {place.part} of the module {place.path}: remove one of the two")
        else:
            found[place.path][place.part] = tensors[key]
    return Contents({path: _module(path, found[path], alpha) for path in sorted(found)}, unknown)


def _module(path: str, parts: Mapping[str, Tensor], alpha: Alpha) -> LowRank:
    """One module, whole and of fitting shapes: down (r, in, *k), up (out, r, *1)."""
    missing = {"down", "up"} - parts.keys()
    if missing:
        raise FormatError(f"the module {path} has no tensor {min(missing)}: the file is incomplete, so fetch it again")
    down, up = parts["down"], parts["up"]
    if not _are_factors(down, up):
        raise FormatError(
            f"the module {path} has down {_describe(down)} and up {_describe(up)}, which are no factors of an update: "
            "make the file again"
        )
    value = _number(path, parts["alpha"]) if "alpha" in parts else float(alpha(path, down.shape[0]))
    if not math.isfinite(value):
        raise FormatError(f"the module {path} has alpha {value}, which is not finite: make the file again")
    return LowRank(down, up, value)


def _are_factors(down: Tensor, up: Tensor) -> bool:
    if not (down.ndim == up.ndim >= 2 and down.is_floating_point() and down.dtype == up.dtype):
        return False
    return len(down) > 0 and up.shape[1:] == (len(down), *[1] * (up.ndim - 2))


def _number(path: str, tensor: Tensor) -> float:
    if tensor.numel() != 1:
        raise FormatError(f"the module {path} has {tensor.numel()} numbers for an alpha: make the file again")
    return float(tensor.item())


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

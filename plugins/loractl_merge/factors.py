"""The fixed factors that a job gives the modules of an adapter: by block of the UNet and by pattern of their paths."""

from collections.abc import Mapping
from math import prod

from torch import Tensor

from loractl.errors import MismatchError
from loractl.formats.lineage import Parent
from loractl.inject.targets import matches
from loractl.tensors.algebra import scaled
from loractl.tensors.lowrank import LowRank
from loractl_merge.blocks import block_of, have_blocks
from loractl_merge.blocks import factors as block_factors
from loractl_merge.spec import MergeInput


def factors_of(parent: Parent, use: MergeInput) -> dict[str, float]:
    """Module → factor, by block and by pattern; MismatchError when these touch no module."""
    modules = {*parent.modules, *map(module_of, parent.vectors)}
    by_block = block_factors(use.vector) if use.vector else {}
    if by_block and not have_blocks(modules):
        raise MismatchError(f"{use.path} has no module in a block of a UNet: remove its block weights")
    for pattern in use.layers:
        if not any(matches(path, pattern) for path in modules):
            raise MismatchError(f"{use.path} has no module {pattern}: correct the pattern or remove it")
    return {path: _factor(path, by_block, use.layers) for path in modules}


def adjusted(parent: Parent, factors: Mapping[str, float]) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """The updates of the weights, and of the biases and norms, times their modules' factors."""
    modules = {path: scaled(low, factors[path]) for path, low in parent.modules.items()}
    return modules, {path: factors[module_of(path)] * vector for path, vector in parent.vectors.items()}


def module_of(parameter: str) -> str:
    """The module that a bias or a norm's weight belongs to."""
    return parameter.rpartition(".")[0]


def _factor(path: str, by_block: Mapping[str, float], layers: Mapping[str, float]) -> float:
    by_pattern = [factor for pattern, factor in layers.items() if matches(path, pattern)]
    return prod([by_block.get(block_of(path) or "", 1.0), *by_pattern[-1:]])

"""Memory for many tensors, asked for at once."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

SLAB = 2**25
"""Bytes asked for at once at most: small beside what memory comes in, so that it is found in a crowded one."""
LINE = 64
"""Bytes; kernels are at their best with tensors that begin at a multiple of it."""


def room_like(tensors: Mapping[str, Tensor], limit: int = SLAB) -> dict[str, Tensor]:
    """New tensors in the shapes and layouts of these, their entries undefined. Small ones lie side by side in memory
    that is asked for at once, up to `limit` bytes of it: hundreds of pieces cost a CPU several times as much.
    """
    found, slabs = dict[str, Tensor](), dict[tuple[torch.dtype, torch.device], list[str]]()
    for name, tensor in tensors.items():
        if _is_dense(tensor):
            slabs.setdefault((tensor.dtype, tensor.device), []).append(name)
        else:
            found[name] = torch.empty_like(tensor)
    for (dtype, device), names in slabs.items():
        for batch in _batches({name: _aligned(tensors[name]) for name in names}, limit // dtype.itemsize):
            slab = torch.empty(sum(batch.values()), dtype=dtype, device=device)
            pieces = zip(batch, slab.split(list(batch.values())), strict=True)
            found |= {n: each.as_strided(tensors[n].shape, tensors[n].stride()) for n, each in pieces}
    return found


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _aligned(tensor: Tensor) -> int:
    """Entries in whole lines of memory, as kernels expect tensors to begin."""
    return -(-tensor.nbytes // LINE) * LINE // tensor.itemsize


def _batches(sizes: Mapping[str, int], limit: int) -> Iterator[dict[str, int]]:
    """Names in order, as many at a time as the limit allows, but one at least."""
    batch = dict[str, int]()
    for name, size in sizes.items():
        if batch and sum(batch.values()) + size > limit:
            yield batch
            batch = {}
        batch[name] = size
    if batch:
        yield batch

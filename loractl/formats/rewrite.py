"""A safetensors file written anew with some tensors changed, a block of rows at a time.

The header keeps its order, dtypes and shapes, and what is not changed is copied byte for byte, so the memory taken does
not depend on the size of the file.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from loractl.errors import FormatError, NumericsError
from loractl.formats.safefile import DTYPES, Entry, Header, replacing

Change = Callable[[Iterator[Tensor]], Iterator[Tensor]]
"""From a tensor's blocks of rows, in fp32 or wider, to as many blocks that take their place."""

Data = bytes | memoryview
Report = Callable[[int, int], None]
"""Is told the tensors done, of all."""

BLOCK = 2**20
"""Numbers in a block: as fp32, it and its update fit into a processor's cache."""

_COPIED = 2**22  # bytes at a time


def rewrite(
    header: Header,
    out: Path,
    changes: Mapping[str, Change],
    metadata: Mapping[str, str],
    report: Report,
    overwrite: bool = False,
) -> None:
    """Writes the file of `header` to `out`, the tensors named in `changes` changed.

    NumericsError where a changed number does not fit the tensor's dtype; then nothing is written.
    """
    with replacing(out, overwrite) as target:
        target.write(_head(header, metadata))
        for _, data in rewritten(header, changes, report):
            target.writelines(data)


def rewritten(header: Header, changes: Mapping[str, Change], report: Report) -> Iterator[tuple[str, Iterator[Data]]]:
    """Name and bytes of each tensor, in the order of the file; its bytes come in pieces and before the next tensor."""
    entries = sorted(header.entries.items(), key=lambda item: item[1].begin)
    with header.path.open("rb") as source:
        for done, (name, entry) in enumerate(entries):
            source.seek(header.offset + entry.begin)
            yield name, _changed(name, entry, source, changes[name]) if name in changes else _copied(entry, source)
            report(done + 1, len(entries))


def _changed(name: str, entry: Entry, source: BinaryIO, change: Change) -> Iterator[Data]:
    dtype = DTYPES[entry.dtype]
    for rows in change(_blocks(entry, source)):
        changed = rows.to(dtype)
        if not changed.float().isfinite().all():
            raise NumericsError(f"{name} is not finite in {dtype} once it is changed: use smaller weights")
        yield changed.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _blocks(entry: Entry, source: BinaryIO) -> Iterator[Tensor]:
    """The rows of a tensor, about BLOCK numbers at a time, from where `source` stands."""
    dtype, inner = DTYPES[entry.dtype], entry.shape[1:]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    step = max(1, BLOCK // max(1, math.prod(inner)))
    for begin in range(0, entry.shape[0], step):
        rows = min(step, entry.shape[0] - begin)
        data = bytearray(_take(rows * math.prod(inner) * dtype.itemsize, source))
        yield torch.frombuffer(data, dtype=dtype).view(rows, *inner).to(wide)


def _copied(entry: Entry, source: BinaryIO) -> Iterator[Data]:
    size = entry.end - entry.begin
    for begin in range(0, size, _COPIED):
        yield _take(min(_COPIED, size - begin), source)


def _take(size: int, source: BinaryIO) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise FormatError(f"{source.name} became shorter while it was read: leave it alone and try again")
    return data


def _head(header: Header, metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON of the header, its entries as they were, padded so that the data begin at 8·n."""
    head: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for name, entry in header.entries.items():
        head[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [entry.begin, entry.end]}
    raw = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw

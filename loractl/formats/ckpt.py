"""A model as one .ckpt: the zip around a pickle that torch.save makes, written a block of rows at a time.

The pickle is {"state_dict": {key: tensor}, "metadata": {key: text}}. A tensor in it is torch's own call that makes one
from a record of the zip, `model/data/<n>`. torch.save would need all tensors at once, and it adds records that A1111
refuses. Programs that load a .ckpt take its `state_dict` and leave the rest.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZipFile, ZipInfo

import torch
from torch._utils import _rebuild_tensor_v2

from loractl.errors import MismatchError
from loractl.formats.rewrite import Change, Data, Report, rewritten
from loractl.formats.safefile import DTYPES, Header, replacing

# The names that pickles have for dtypes; the others have none.
_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
_ALIGNED = 64  # bytes, as torch.save does it: a record that is mapped is a tensor
_LOCAL_HEADER = 30  # bytes before a record's name


class _Tensor(NamedTuple):
    """What the pickle says of a tensor, whose numbers are the record `number`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    number: int


class _Storage(NamedTuple):
    tensor: _Tensor


class _Pickler(pickle.Pickler):
    """Writes a `_Tensor` as torch.save writes a tensor."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, _Tensor):
            return NotImplemented
        stride = torch.empty(value.shape, device="meta").stride()
        return _rebuild_tensor_v2, (_Storage(value), 0, value.shape, stride, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        dtype, shape, number = value.tensor
        return "storage", _STORAGES[dtype], str(number), "cpu", math.prod(shape)


def rewrite_ckpt(
    header: Header,
    out: Path,
    changes: Mapping[str, Change],
    metadata: Mapping[str, str],
    report: Report,
    overwrite: bool = False,
) -> None:
    """Writes the safetensors file of `header` to `out` as a .ckpt, changed as `rewrite` does it.

    MismatchError where a tensor has a dtype that pickles have no name for.
    """
    tensors = {
        name: _Tensor(DTYPES[entry.dtype], entry.shape, number)
        for number, (name, entry) in enumerate(header.entries.items())
    }
    for name, tensor in tensors.items():
        if tensor.dtype not in _STORAGES:
            raise MismatchError(
                f"{name} is in {tensor.dtype}, which a .ckpt has no place for: write {out.stem}.safetensors"
            )
    with replacing(out, overwrite) as file, ZipFile(file, "w") as archive:
        _add(archive, file, "version", 2, [b"3\n"])
        content = _pickled({"state_dict": tensors, "metadata": dict(metadata)})
        _add(archive, file, "data.pkl", len(content), [content])
        for name, data in rewritten(header, changes, report):
            entry = header.entries[name]
            _add(archive, file, f"data/{tensors[name].number}", entry.end - entry.begin, data)


def _pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def _add(archive: ZipFile, file: BinaryIO, name: str, size: int, data: Iterable[Data]) -> None:
    """Adds a record without compression, filled up so that its bytes begin at a multiple of 64."""
    info = ZipInfo(f"model/{name}")
    info.file_size = size  # whether the record needs zip64 is decided by this
    padding = -(file.tell() + _LOCAL_HEADER + len(info.filename) + 4) % _ALIGNED
    info.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
    with archive.open(info, "w") as record:
        for piece in data:
            record.write(piece)

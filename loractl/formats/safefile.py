"""safetensors files, read with suspicion and written so that equal contents give equal bytes.

A file is n (8 bytes, little endian), n bytes of JSON and the data, which the tensors cover without holes or overlaps.
The JSON is `{"__metadata__": {key: text}, name: {"dtype": "F16", "shape": [4, 320], "data_offsets": [begin, end]}, …}`.
All that it claims is checked here before the safetensors library maps the file.
"""

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from loractl.errors import DiskFullError, FormatError, InputError

HEADER_LIMIT = 100_000_000  # the safetensors library's own bound

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_PICKLE = (
    "is a pickle, which could run code when loaded: convert it to safetensors with the tool that made it, or allow it, "
    "and loractl takes the tensors alone"
)
PICKLES = (b"pk\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save writes a zip around one
_HTML = "is a web page, not the file behind it: download the file itself"
# What people have in hand instead of the file, by its first bytes in lower case.
_IMPOSTORS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
    b"<!doctype": _HTML,
    b"<html": _HTML,
    **dict.fromkeys(PICKLES, _PICKLE),
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Entry:
    """One tensor: its bytes are [begin, end) of the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says about itself. The data section begins at byte `offset`."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    offset: int = 8


def read_header(path: Path) -> Header:
    """The checked header of `path`; FormatError when the file breaks any rule of the format."""
    with _reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(32)
        try:
            offset = _data_offset(start, size)
            file.seek(8)
            entries, metadata = parse_header(file.read(offset - 8), size - offset)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path} {_impostor(start) or _broken(error)}") from None
    return Header(path, entries, metadata, offset)


def parse_header(raw: bytes, data_size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries and the metadata of a header before `data_size` bytes of data; ValueError says what is wrong."""
    header = json.loads(raw.decode(), object_pairs_hook=_unique, parse_int=_natural)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    json.dumps(header, ensure_ascii=False).encode()  # lone surrogates, which JSON can spell and UTF-8 cannot
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not strings")
    entries = {name: _entry(name, claim) for name, claim in header.items()}
    _check_cover(entries, data_size)
    return entries, metadata


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, on the CPU, and its metadata."""
    header = read_header(path)
    return load_file(path), dict(header.metadata)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], overwrite: bool = False
) -> None:
    """Writes a file whose bytes depend on the arguments alone. Wider dtypes come first, so all data are aligned."""
    with replacing(path, overwrite) as file:
        file.write(_header_bytes(_ordered(tensors), metadata))
        for data in _data(tensors):
            file.write(data)


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """The `data_hash` of the file that `write_tensors` would make of these tensors."""
    digest = hashlib.sha256()
    for data in _data(tensors):
        digest.update(data)
    return digest.hexdigest()


def data_hash(path: Path) -> str:
    """SHA-256 (hex) of every byte after the header, which kohya's tools call `sshs_model_hash`."""
    header = read_header(path)
    with _reading(path) as file:
        file.seek(header.offset)
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
        return digest.hexdigest()


@contextmanager
def replacing(path: Path, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends well, and of which nothing is left when it does not."""
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another name or allow it to be overwritten")
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(f"the disk is full, so {path} was not written: make room and try again") from error
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error


def _data_offset(start: bytes, size: int) -> int:
    if size == 0:
        raise ValueError("it is empty")
    if size < 8:
        raise ValueError("it is shorter than the shortest header")
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_LIMIT:
        raise ValueError("its first 8 bytes are no length that a header has")
    if 8 + length > size:
        raise ValueError("its header is longer than the file")
    return 8 + length


def _impostor(start: bytes) -> str | None:
    text = start.lstrip().lower()
    return next((meaning for magic, meaning in _IMPOSTORS.items() if text.startswith(magic)), None)


def _broken(error: Exception) -> str:
    spelling = isinstance(error, json.JSONDecodeError | UnicodeError | RecursionError)
    reason = "its header is not JSON" if spelling else str(error)
    return f"is not a sound safetensors file ({reason}): it may be cut off or damaged, so fetch it again"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("its header has the same key twice")
    return unique


def _natural(digits: str) -> int:
    if digits.startswith("-"):
        raise ValueError("its header has a negative number")
    return int(digits)


def _entry(name: str, claim: Any) -> Entry:
    """The tensor that `claim` describes, once its size agrees with its offsets."""
    match claim:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end], **rest} if not rest:
            pass
        case _:
            raise ValueError(f"its entry {name} is not a dtype, a shape and two offsets")
    if dtype not in DTYPES:
        raise ValueError(f"its tensor {name} has the unknown dtype {dtype}")
    if any(type(number) is not int for number in (*shape, begin, end)):
        raise ValueError(f"its tensor {name} has a shape or offsets that are not whole numbers")
    width = DTYPES[dtype].itemsize
    if len(shape) > 64 or math.prod(max(length, 1) for length in shape) * 8 * width >= 2**64:
        raise ValueError(f"its tensor {name} has a shape larger than any memory")
    if end - begin != math.prod(shape) * width:
        raise ValueError(f"its tensor {name} has a shape that does not fit its offsets")
    return Entry(dtype, tuple(shape), begin, end)


def _check_cover(entries: Mapping[str, Entry], data_size: int) -> None:
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            raise ValueError(f"its tensor {name} overlaps another or leaves a hole before it")
        reached = entry.end
    if reached != data_size:
        raise ValueError(f"its tensors take {reached} bytes and the file has {data_size}")


def _ordered(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def _data(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of each tensor, in the order of the file."""
    for _, tensor in _ordered(tensors):
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _header_bytes(ordered: list[tuple[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON, padded with spaces so that the data begin at a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype = _DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

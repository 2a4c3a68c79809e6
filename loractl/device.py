"""Which device and which precision a run uses. The only module that asks about CUDA."""

import os

import torch
from torch import Tensor

from loractl.errors import DeviceError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, index: int | None = None) -> torch.device:
    """ "auto" is CUDA when there is one; `index` says which of several. Raises DeviceError for "cuda" without one, or
    without so many.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError('no CUDA device was found: set memory.device = "cpu" or install a CUDA build of torch')
    if name == "cpu" or index is None:
        return torch.device(name)
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"process {index + 1} has no GPU of its own, there are {count}: lower memory.processes")
    return torch.device(name, index)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bf16 on a GPU that computes in it, fp32 elsewhere."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return PRECISIONS[name]


def require_determinism() -> None:
    """Refuses operations whose result differs between runs of one machine; on CUDA a few ops have no other form and
    only warn.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to a GPU through pinned memory, so that the host does not wait for it."""
    is_there = tensor.device.type == device.type
    return tensor.to(device) if is_there or device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

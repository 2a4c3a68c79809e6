"""How a frozen denoiser is kept and computed: in 4 or 8 bits, in main memory, with other attention, compiled.

    nf4   4-bit normal floats (Dettmers et al. 2023, "QLoRA"), by bitsandbytes, as the weights are loaded
    int8  8-bit integers with a scale for each row, by torchao, as the weights are loaded
    fp8   8-bit floats (e4m3) that are cast for each use, by diffusers' layerwise casting, on any device

Adapters stay in fp32 and take the branch form of their layers: what is in few bits has no weights to add to.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from loractl.errors import DeviceError, InputError, MismatchError

_NEEDS = {"nf4": ("bitsandbytes", "bnb"), "int8": ("torchao", "torchao")}
"""What quantizes → its package and the part of loractl to install with it."""


@dataclass(frozen=True)
class Keeping:
    """What a job says of the denoiser, in the words of its `memory` section; as it stands, nothing out of the usual."""

    quantize: str = "none"
    offload: str = "none"
    attention: str | None = None


def settle(denoiser: Any, keeping: Keeping, device: torch.device, dtype: torch.dtype, trains: bool = False) -> None:
    """Makes a loaded denoiser so, as far as `loading` has not. To be called before adapters are injected."""
    if keeping.quantize == "fp8":
        store_in_fp8(denoiser, dtype)
    if keeping.offload == "blocks":
        offload_blocks(denoiser, device, trains)
    if keeping.attention is not None:
        set_attention(denoiser, keeping.attention)


def check(denoiser: Any, keeping: Keeping, trains: bool) -> None:
    """Whether the denoiser can be kept so, as far as its outline tells before it is loaded; errors as of `settle`."""
    if keeping.offload == "blocks":
        _refuse_convolutions(denoiser, trains)
    if keeping.attention is not None:
        set_attention(denoiser, keeping.attention)


def loading(quantize: str, denoiser: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Further arguments of a pipeline's `from_pretrained`, which quantizes the network called `denoiser`.

    InputError when the package for it is not installed, DeviceError for NF4 without a GPU.
    """
    if quantize not in _NEEDS:
        return {}
    if quantize == "nf4" and device.type == "cpu":
        raise DeviceError('memory.quantize = "nf4" needs a GPU: set "int8" or "fp8" to train on a CPU')
    package, extra = _NEEDS[quantize]
    if find_spec(package) is None:
        raise InputError(
            f'memory.quantize = "{quantize}" needs the package {package}: pip install "loractl[{extra}]", or set "fp8"'
        )
    from diffusers import PipelineQuantizationConfig

    config = _CONFIGURATIONS[quantize](dtype)
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping={denoiser: config})}


def _nf4(dtype: torch.dtype) -> Any:
    from diffusers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _int8(dtype: torch.dtype) -> Any:  # noqa: ARG001  torchao computes in the precision of what comes in
    from diffusers import TorchAoConfig

    return TorchAoConfig(import_module("torchao.quantization").Int8WeightOnlyConfig())


_CONFIGURATIONS: Mapping[str, Callable[[torch.dtype], Any]] = {"nf4": _nf4, "int8": _int8}


def refuse_for_one_file(quantize: str) -> None:
    """InputError for what happens as a folder is loaded, and can't when a checkpoint is converted."""
    if quantize in _NEEDS:
        raise InputError(f'a checkpoint in one file can\'t be loaded in {quantize}: set memory.quantize = "fp8"')


def store_in_fp8(denoiser: Any, dtype: torch.dtype) -> None:
    """Keeps the linear layers in fp8, cast to `dtype` while each computes.

    Norms and the ends of the network are left out, as diffusers has it, and convolutions too: their backward pass would
    find the weight in fp8 again.
    """
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    denoiser.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=dtype, skip_modules_classes=convolutions)


def offload_blocks(denoiser: Any, device: torch.device, trains: bool) -> None:
    """Keeps the denoiser in main memory; parts of it are on `device` while they compute.

    For pictures these are blocks. In training they are single layers, so that what learns stays on the device, and only
    with gradient checkpointing is memory saved, since backward keeps what it needs. MismatchError for training a UNet,
    whose convolutions can't do without their weights in between.
    """
    _refuse_convolutions(denoiser, trains)
    kind: dict[str, Any] = {"offload_type": "leaf_level"}
    if not trains:
        kind = {"offload_type": "block_level", "num_blocks_per_group": 1}
    denoiser.enable_group_offload(onload_device=device, offload_device=torch.device("cpu"), **kind)


def _refuse_convolutions(denoiser: nn.Module, trains: bool) -> None:
    if trains and any(isinstance(module, nn.Conv2d) for block in _blocks(denoiser) for module in block.modules()):
        raise MismatchError(
            'memory.offload = "blocks" trains transformers alone: for a UNet leave it out, and set memory.phases or '
            'memory.quantize = "fp8"'
        )


def _blocks(denoiser: nn.Module) -> list[nn.Module]:
    return [block for each in denoiser.children() if isinstance(each, nn.ModuleList) for block in each]


def set_attention(denoiser: Any, backend: str) -> None:
    """Attention by this backend of diffusers. InputError when there is none, or its package is missing."""
    try:
        denoiser.set_attention_backend(backend)
    except (ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f'memory.attention = "{backend}" can\'t be used: {reason}') from error


def compile_network(network: nn.Module, **options: Any) -> None:
    """Compiles a network in place, when it is first called, with these options of `torch.compile`. To be called after
    adapters are injected.

    A transformer's blocks are compiled by themselves, which is done once for all that are alike and takes a fraction
    of the time; a UNet, whose blocks differ, is compiled as a whole.
    """
    is_unet = hasattr(network, "down_blocks")
    for part in [network] if is_unet else _blocks(network) or [network]:
        part.compile(**options)


def quantized_base(metadata: Mapping[str, str]) -> str | None:
    """How the base was kept that an adapter was trained on, "nf4" for example, as its file tells; None for plain."""
    try:
        memory = json.loads(metadata.get("loractl.job", "{}")).get("memory", {})
    except (ValueError, AttributeError):
        return None
    kept = memory.get("quantize", "none") if isinstance(memory, dict) else "none"
    return None if kept == "none" else str(kept)


def merging_note(kept: str) -> str:
    """What to tell who adds an adapter to the weights of its base, after it was trained on one in few bits."""
    return (
        f"the adapter was trained on a base in {kept}, and corrects its rounding as well: on plain weights it acts a "
        "little differently, so compare pictures of both"
    )

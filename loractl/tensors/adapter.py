"""The one form an adapter has in memory, whatever file it came from."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loractl.tensors.lowrank import LowRank


@dataclass(frozen=True)
class Adapter:
    """`modules`: component and dotted module path ("unet.mid_block.attentions.0…to_q") → its update.

    The component is the pipeline's own name for the part ("unet", "transformer", "text_encoder", "text_encoder_2").
    `metadata` is what the file said about itself, as strings.

    What is no update of a weight matrix stands beside the modules, under paths of the same kind:
    `tokens`: component and token ("text_encoder.<s1>") → learned embeddings (n, dim);
    `vectors`: component and parameter ("unet.conv_in.bias") → the difference of a bias or a norm (n,);
    `magnitudes`: module → DoRA's magnitudes (Liu et al. 2024), (out, 1, *1) or, by input, (1, in, *1).
    `notes` say what a person should know of the way the file was read.
    """

    modules: Mapping[str, LowRank]
    metadata: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(module.down.numel() + module.up.numel() for module in self.modules.values())

    def component(self, name: str) -> dict[str, LowRank]:
        """The modules of one component, with paths relative to it."""
        prefix = f"{name}."
        return {path.removeprefix(prefix): low for path, low in self.modules.items() if path.startswith(prefix)}

    def components(self) -> list[str]:
        return sorted({path.partition(".")[0] for path in self.modules})


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is infinite or NaN, of which the smallest and the largest would be one."""
    return tensor.numel() == 0 or all(math.isfinite(end) for end in tensor.aminmax())


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes, in order of the names; metadata does not count."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

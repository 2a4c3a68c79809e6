"""What each denoiser is given at a training step, as tensors of the right shapes.

Lengths of text are the pipelines' own: 77 tokens of CLIP, and 256 (Stable Diffusion 3, after CLIP's; Lumina 2), 300
(Sana) or 512 of a larger encoder.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from loractl.errors import MismatchError

Inputs = dict[str, Any]
CLIP_LENGTH, LUMINA_LENGTH, TEXT_LENGTH = 77, 256, 512


def denoiser_inputs(denoiser: nn.Module, n: int, height: int, width: int) -> Inputs:
    """Keyword arguments for latents of n pictures, `height` and `width` being those of the latents.

    MismatchError for a denoiser that is not in the table.
    """
    name = type(denoiser).__name__
    if name not in _INPUTS:
        raise MismatchError(f"plan does not know what a {name} is given: it knows {', '.join(_INPUTS)}")
    return _INPUTS[name](denoiser.config, n, height, width)


def words_in(inputs: Inputs) -> list[torch.Tensor]:
    """Those of the inputs that text encoders say."""
    said = [inputs.get(name) for name in ("encoder_hidden_states", "cap_feats")]
    return [each for each in tree_leaves(said) if isinstance(each, torch.Tensor)]


def _unet(config: Any, n: int, height: int, width: int) -> Inputs:
    inputs = {
        "sample": torch.zeros(n, config.in_channels, height, width),
        "timestep": torch.zeros(n, dtype=torch.long),
        "encoder_hidden_states": torch.zeros(n, CLIP_LENGTH, config.cross_attention_dim),
    }
    if config.addition_embed_type != "text_time":
        return inputs
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return inputs | {"added_cond_kwargs": {"text_embeds": torch.zeros(n, pooled), "time_ids": torch.zeros(n, 6)}}


def _sd3(config: Any, n: int, height: int, width: int) -> Inputs:
    return {
        "hidden_states": torch.zeros(n, config.in_channels, height, width),
        "timestep": torch.zeros(n),
        "encoder_hidden_states": torch.zeros(n, CLIP_LENGTH + 256, config.joint_attention_dim),
        "pooled_projections": torch.zeros(n, config.pooled_projection_dim),
    }


def _flux(config: Any, n: int, height: int, width: int) -> Inputs:
    inputs = _packed(config, n, height, width, axes=3)
    return inputs | {"pooled_projections": torch.zeros(n, config.pooled_projection_dim)}


def _packed(config: Any, n: int, height: int, width: int, axes: int) -> Inputs:
    """Patches of 2 × 2 latents, and where each is."""
    length = (height // 2) * (width // 2)
    return {
        "hidden_states": torch.zeros(n, length, config.in_channels),
        "timestep": torch.zeros(n),
        "encoder_hidden_states": torch.zeros(n, TEXT_LENGTH, config.joint_attention_dim),
        "img_ids": torch.zeros(length, axes),
        "txt_ids": torch.zeros(TEXT_LENGTH, axes),
        "guidance": torch.zeros(n) if config.guidance_embeds else None,
    }


def _qwen(config: Any, n: int, height: int, width: int) -> Inputs:
    height, width = height // 2, width // 2
    return {
        "hidden_states": torch.zeros(n, height * width, config.in_channels),
        "timestep": torch.zeros(n),
        "encoder_hidden_states": torch.zeros(n, TEXT_LENGTH, config.joint_attention_dim),
        "img_shapes": [(1, height, width)] * n,
    }


def _sana(config: Any, n: int, height: int, width: int) -> Inputs:
    return {
        "hidden_states": torch.zeros(n, config.in_channels, height, width),
        "timestep": torch.zeros(n),
        "encoder_hidden_states": torch.zeros(n, 300, config.caption_channels),
    }


def _lumina2(config: Any, n: int, height: int, width: int) -> Inputs:
    """It counts the words of each caption, as a tensor without numbers can't: say inside of `counting_words`."""
    return {
        "hidden_states": torch.zeros(n, config.in_channels, height, width),
        "timestep": torch.zeros(n),
        "encoder_hidden_states": torch.zeros(n, LUMINA_LENGTH, config.cap_feat_dim),
        "encoder_attention_mask": torch.ones(n, LUMINA_LENGTH, dtype=torch.long),
    }


@contextmanager
def counting_words() -> Iterator[None]:
    """Inside, captions are as long as they may be for a denoiser that counts their words, Lumina 2's."""

    def count(words: FakeTensor) -> list[int]:
        return [LUMINA_LENGTH] * len(words)

    kind: Any = FakeTensor
    before, kind.tolist = kind.tolist, count
    try:
        yield
    finally:
        kind.tolist = before


def _z_image(config: Any, n: int, height: int, width: int) -> Inputs:
    return {
        "x": [torch.zeros(config.in_channels, 1, height, width) for _ in range(n)],
        "t": torch.zeros(n),
        "cap_feats": [torch.zeros(TEXT_LENGTH, config.cap_feat_dim) for _ in range(n)],
    }


_INPUTS: Mapping[str, Callable[[Any, int, int, int], Inputs]] = {
    "UNet2DConditionModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": lambda config, n, height, width: _packed(config, n, height, width, axes=4),
    "QwenImageTransformer2DModel": _qwen,
    "SanaTransformer2DModel": _sana,
    "Lumina2Transformer2DModel": _lumina2,
    "ZImageTransformer2DModel": _z_image,
}
